"""A proxy before moto that fails as AWS or the network may: moto itself never denies, throttles, stalls or drops."""

import asyncio
import re
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import aiohttp
import orjson
from aiohttp import web

Verdict = Literal[
    "pass",
    "deny",
    "dry-run",
    "expired",
    "throttle",
    "error",
    "html",
    "half",
    "drip",
    "slow",
    "late",
    "stall",
    "drop",
    "drop-answer",
]
"""`dry-run` says that the call would have been made, `expired` refuses the caller's credentials, `error` answers 500,
`html` a page with status 200, `half` half of a body, `drip` a byte each 100 ms, `slow` after 1.5 seconds, in time,
`late` after five. `drop` closes the connection before AWS hears of the call, `drop-answer` after AWS has done what it
asks for.
"""
PRINCIPAL = "arn:aws:sts::123456789012:assumed-role/betrace-backend-role/pod"


@dataclass
class AwsProxy:
    """A running proxy. `judge` decides on each call by its action, such as "GenerateDataKey".

    `doctor` alters the good answers that pass, given the action and the JSON object. `checks_clock` refuses what was
    signed by a clock that is more than five minutes off, as AWS does. `access_keys`, if given, are
    all that are known.
    """

    url: str = ""
    judge: Callable[[str], Verdict] = lambda action: "pass"
    doctor: Callable[[str, dict[str, Any]], None] | None = None
    checks_clock: bool = False
    access_keys: Container[str] | None = None
    calls: Counter[str] = field(default_factory=Counter)
    tenant_calls: Counter[str] = field(default_factory=Counter)
    """Calls by the tenant in their encryption context."""
    attempts: Counter[str] = field(default_factory=Counter)
    """Requests by the call of the SDK that they belong to."""
    observe: Callable[[str, dict[str, Any]], None] | None = None
    """Gets each call that is about to be judged: its action and its JSON object."""

    def always(self, verdict: Verdict, *actions: str) -> None:
        """Give calls of these actions, by default of all, this verdict from now on."""
        self.judge = lambda action: verdict if not actions or action in actions else "pass"


@contextmanager
def aws_proxy(target: str, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[AwsProxy]:
    """Run a proxy on a port of 127.0.0.1, by default a free one, in a thread of its own."""
    proxy, loop, started = AwsProxy(), asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    async def serve() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def handle(request: web.Request) -> web.StreamResponse:
                return await _handle(proxy, session, target, request)

            app = web.Application(client_max_size=2**24)
            app.router.add_route("*", "/{path:.*}", handle)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls, reuse_address=True).start()
            proxy.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
            started.set()
            await stop.wait()
            await runner.cleanup()
            stalled = asyncio.all_tasks() - {asyncio.current_task()}
            for task in stalled:
                task.cancel()
            await asyncio.gather(*stalled, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    started.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


async def _handle(
    proxy: AwsProxy, session: aiohttp.ClientSession, target: str, request: web.Request
) -> web.StreamResponse:
    action = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
    proxy.calls[action] += 1
    proxy.attempts[request.headers.get("amz-sdk-invocation-id", "")] += 1
    verdict = proxy.judge(action)
    body = await request.read()
    if proxy.observe is not None:
        proxy.observe(action, orjson.loads(body))
    if action == "GenerateDataKey":
        proxy.tenant_calls[orjson.loads(body).get("EncryptionContext", {}).get("tenantId", "")] += 1
    if proxy.checks_clock and (refusal := _refused_for_its_clock(request.headers.get("X-Amz-Date", ""))):
        return refusal
    signed = re.search(r"Credential=([^/]+)/", request.headers.get("Authorization", ""))
    if proxy.access_keys is not None and (signed is None or signed[1] not in proxy.access_keys):
        return _refused("UnrecognizedClientException", "The security token included in the request is invalid.")
    if verdict == "expired":
        return _refused("ExpiredTokenException", "The security token included in the request is expired")
    if verdict == "stall":
        await asyncio.sleep(3600)
    if verdict == "deny":
        key = orjson.loads(body).get("KeyId", "*")
        return _refused(
            "AccessDeniedException",
            f"User: {PRINCIPAL} is not authorized to perform: kms:{action} on resource: {key} because no"
            f" identity-based policy allows the kms:{action} action",
        )
    if verdict == "dry-run":
        return _refused(
            "DryRunOperationException", "The request would have succeeded, but the DryRun option is set.", 412
        )
    if verdict == "throttle":
        return _refused("ThrottlingException", "Rate exceeded")
    if verdict == "error":
        return web.json_response({"__type": "KMSInternalException"}, status=500)
    if verdict == "html":
        return web.Response(text="<html><body>Sign in to this network</body></html>", content_type="text/html")
    if verdict == "half":
        answer_cut = web.StreamResponse(headers={"Content-Length": "400", "Content-Type": "application/x-amz-json-1.1"})
        await answer_cut.prepare(request)
        await answer_cut.write(b'{"KeyId": "arn:aws:kms')
    if verdict == "drip":
        slow = web.StreamResponse(headers={"Content-Length": "4000", "Content-Type": "application/x-amz-json-1.1"})
        await slow.prepare(request)
        with suppress(ConnectionError):
            for _ in range(4000):
                await slow.write(b" ")
                await asyncio.sleep(0.1)
    if verdict in ("slow", "late"):
        await asyncio.sleep(1.5 if verdict == "slow" else 5)
        verdict = "pass"
    if verdict not in ("drop", "half"):
        headers = {name: value for name, value in request.headers.items() if name.lower() != "content-length"}
        async with session.request(request.method, target + request.path_qs, data=body, headers=headers) as answer:
            content, answered = await answer.read(), answer
        if verdict == "pass":
            if proxy.doctor is not None and answered.status == 200:
                altered = orjson.loads(content)
                proxy.doctor(action, altered)
                content = orjson.dumps(altered)
            skipped = ("content-length", "transfer-encoding", "connection", "content-encoding")
            kept = {name: value for name, value in answered.headers.items() if name.lower() not in skipped}
            return web.Response(status=answered.status, body=content, headers=kept)
    if request.transport:
        request.transport.abort()
    return web.Response()


def _refused_for_its_clock(signed: str) -> web.Response | None:
    """Answer as AWS does to a signature that is too old or not yet current."""
    now = datetime.now(UTC)
    if not signed or abs(datetime.strptime(signed, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) - now) < timedelta(minutes=5):
        return None
    return _refused("InvalidSignatureException", f"Signature expired: {signed} is not within 5 min. of {now}")


def _refused(code: str, message: str, status: int = 400) -> web.Response:
    return web.json_response(
        {"__type": code, "message": message},
        status=status,
        headers={"x-amzn-RequestId": "11111111-2222-3333-4444-555555555555"},
    )
