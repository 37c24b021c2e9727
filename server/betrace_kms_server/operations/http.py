"""The HTTP ports for people and Prometheus: health, metrics, the daemon's own view of itself, and a page of it.

Health answers as MicroProfile Health 4.0 has it: 200 for UP and 503 for DOWN. Liveness never touches KMS.

An address that other machines reach serves health and metrics, and nothing else exists there, whoever calls. What is
under /api/admin shows operators about keys and principals, so it is for this machine alone: the address and the peer
must be loopback, and the request must be one that no proxy made, and no page in a browser but the one at `/`. Other
pages send `Origin`, a `Sec-Fetch-Site` other than same-origin, or by DNS rebinding a `Host` of their own; a proxy in
front would make every peer look like loopback, and adds `Forwarded`. The page holds nothing of the daemon, and is for
this machine alone as well.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.host.sockets import Address, is_loopback, listen_on
from betrace_kms_server.operations.hosts import misdirected
from betrace_kms_server.operations.monitor import KmsState
from betrace_kms_server.operations.page import load_page
from betrace_kms_server.operations.validation import Validation
from betrace_kms_server.operations.validation_run import Test

log = structlog.get_logger()

Readiness = Callable[[], Awaitable[KmsState]]
Metrics = Callable[[], tuple[bytes, str]]
"""Returns the metrics and their content type."""
Validate = Callable[[bool], Awaitable[Validation]]
"""Given whether it is for production."""
Status = Callable[[], dict[str, Any]]

_BODY_BYTES = 4096
"""No call takes a body."""
_SECONDS = 0.4
"""How long a handler may go on when the port closes, and then again after it was cancelled; and how long the body that
no one asked for is read before the connection is closed."""
_KEEPALIVE_SECONDS = 15.0
_OWN_HOST = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
_PROXY_HEADERS = frozenset({"forwarded", "via", "x-real-ip"})
_DOCS = "docs/troubleshooting.md"


@dataclass(frozen=True, slots=True)
class OpsApps:
    """What the daemon serves to operators over HTTP."""

    local: web.Application
    """Everything, on loopback addresses."""
    exposed: web.Application
    """Health and metrics, on addresses that other machines reach."""


@asynccontextmanager
async def serving_ops(addresses: Sequence[Address], apps: OpsApps) -> AsyncIterator[Sequence[str]]:
    """Serve until the context is left, which takes at most a second. Yields each host:port as it was bound.

    Raises StartRefused if one of the addresses cannot be bound.
    """
    local, exposed = _runner(apps.local), _runner(apps.exposed)
    try:
        for runner in (local, exposed):
            await runner.setup()
        yield [await _listen(address, local if address.loopback else exposed) for address in addresses]
    finally:
        await asyncio.gather(local.cleanup(), exposed.cleanup())


def _runner(app: web.Application) -> web.AppRunner:
    quiet = logging.getLogger(f"{__name__}.http")
    quiet.setLevel(logging.CRITICAL)  # our handlers log for themselves; what is left is rubbish that was sent here
    return web.AppRunner(
        app,
        access_log=None,
        logger=quiet,
        keepalive_timeout=_KEEPALIVE_SECONDS,
        lingering_time=_SECONDS,
        shutdown_timeout=_SECONDS,
    )


async def _listen(address: Address, runner: web.AppRunner) -> str:
    try:
        listeners = listen_on(address)
        for listener in listeners:
            await web.SockSite(runner, listener).start()
    except OSError as cause:
        raise StartRefused(
            f"cannot listen on {address} ({cause.strerror}): stop what holds it, or choose another kms.ops.listen"
        ) from cause
    return f"{address.text.rpartition(':')[0]}:{listeners[0].getsockname()[1]}"


def build_apps(
    provider: str,
    *,
    readiness: Readiness,
    metrics: Metrics,
    validate: Validate,
    status: Status,
    hosts: Collection[str] = (),
) -> OpsApps:
    """Return the applications. `provider` is its name, "aws" or "local"; for `hosts` see operations/hosts.py."""
    routes = _Routes(provider, readiness, metrics, validate, status)
    admin = web.Application(middlewares=[_this_machine_only])
    admin.add_routes([web.post("/kms/validate", routes.validation), web.get("/kms/status", routes.current_status)])
    local = _app(routes, hosts, "/q/health, /q/metrics, /api/admin/kms/status, and / in a browser")
    local.add_routes([web.get("/", routes.page)])
    local.add_subapp("/api/admin", admin)
    return OpsApps(local, _app(routes, hosts, "/q/health and /q/metrics"))


def _app(routes: "_Routes", hosts: Collection[str], paths: str) -> web.Application:
    """Return an application with health and metrics. `paths` is what there is, for who asks for something else."""
    app = web.Application(
        middlewares=[_always_json(paths), _known_hosts_only({name.lower() for name in hosts})],
        client_max_size=_BODY_BYTES,
    )
    app.add_routes(
        [
            web.get("/q/health", routes.health),
            web.get("/q/health/live", routes.live),
            web.get("/q/health/ready", routes.ready),
            web.get("/q/metrics", routes.prometheus),
        ]
    )
    app.on_response_prepare.append(_hide_version)
    return app


class _Routes:
    def __init__(
        self, provider: str, readiness: Readiness, metrics: Metrics, validate: Validate, status: Status
    ) -> None:
        self._provider = provider
        self._readiness = readiness
        self._metrics = metrics
        self._validate = validate
        self._status = status
        self._page = load_page()

    async def page(self, request: web.Request) -> web.Response:
        problem = _remote(request)
        return _refusal(403, problem) if problem else web.Response(body=self._page.body, headers=self._page.headers)

    async def health(self, request: web.Request) -> web.Response:
        return _health(_check("process", True), await self._kms())

    async def live(self, request: web.Request) -> web.Response:
        return _health(_check("process", True))

    async def ready(self, request: web.Request) -> web.Response:
        return _health(await self._kms())

    async def prometheus(self, request: web.Request) -> web.Response:
        body, content_type = self._metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def validation(self, request: web.Request) -> web.Response:
        return _json(validation_json(await self._validate(request.query.get("production") == "true")))

    async def current_status(self, request: web.Request) -> web.Response:
        return _json(self._status())

    async def _kms(self) -> dict[str, Any]:
        state = await self._readiness()
        if not state.usable:
            help_at = f"{_DOCS}#{state.reason.lower()}"
            return _check("kms", False, provider=self._provider, error=state.problem, help=help_at)
        latency = {} if state.latency_ms is None else {"latency_ms": round(state.latency_ms)}
        return _check("kms", True, provider=self._provider, **latency, status="operational")


def validation_json(validation: Validation) -> dict[str, Any]:
    """Return an outcome in the form that BeTrace's setup guide shows."""
    return {
        "provider": validation.provider,
        "overall": "PASS" if validation.passed else "FAIL",
        "tests": {test.name: _verdict(test) for test in validation.tests},
        "latency_ms": {
            test.name.removeprefix("key_retrieval_"): round(test.latency_ms)
            for test in validation.tests
            if test.latency_ms is not None
        },
        "recommendations": list(validation.recommendations),
    }


def _verdict(test: Test) -> str:
    latency = "" if test.latency_ms is None else f" ({test.latency_ms:.0f}ms)"
    return f"{'PASS' if test.passed else 'FAIL'}{latency}{': ' if test.message else ''}{test.message}"


def _check(name: str, up: bool, **data: object) -> dict[str, Any]:
    return {"name": name, "status": "UP" if up else "DOWN", **({"data": data} if data else {})}


def _health(*checks: dict[str, Any]) -> web.Response:
    up = all(check["status"] == "UP" for check in checks)
    return _json({"status": "UP" if up else "DOWN", "checks": checks}, 200 if up else 503)


def _json(content: Any, status: int = 200) -> web.Response:
    body = orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)
    return web.Response(body=body, status=status, content_type="application/json")


def _refusal(status: int, error: str) -> web.Response:
    return _json({"error": error}, status)


def _always_json(paths: str) -> Middleware:
    @web.middleware
    async def always_json(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer in JSON whatever goes wrong; a defect is logged here, once, and does not show itself."""
        try:
            response = await handler(request)
        except web.HTTPMethodNotAllowed as error:
            response = _refusal(error.status, f"use {' or '.join(sorted(error.allowed_methods))} here")
            response.headers["Allow"] = error.headers["Allow"]
        except web.HTTPNotFound as error:
            response = _refusal(error.status, f"nothing is here: see {paths}")
        except Exception as error:
            log.error("internal error", path=request.path, exc_info=error)
            response = _refusal(500, "internal error")
        return response

    return always_json


def _known_hosts_only(names: Collection[str]) -> Middleware:
    @web.middleware
    async def known_hosts_only(request: web.Request, handler: Handler) -> web.StreamResponse:
        problem = misdirected(request.headers.getall("Host", []), names)
        return _refusal(421, problem) if problem else await handler(request)

    return known_hosts_only


@web.middleware
async def _this_machine_only(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    problem = _foreign(request)
    return _refusal(403, problem) if problem else await handler(request)


def _foreign(request: web.Request) -> str | None:
    """Return why a request comes neither from this machine's command line nor from the page at `/`, or None."""
    if "Origin" in request.headers or request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        return "browsers may not ask: use curl, without an Origin header"
    return _remote(request)


def _remote(request: web.Request) -> str | None:
    """Return why a request does not come straight from this machine, or None if it does."""
    for end in ("peername", "sockname"):  # both: a mesh's own peer may be loopback too
        address = request.transport.get_extra_info(end) if request.transport else None
        if not address or not is_loopback(address[0]):
            return "only this machine may ask: call it from inside the pod, by 127.0.0.1"
    for name in request.headers:
        if name.lower() in _PROXY_HEADERS or name.lower().startswith("x-forwarded-"):
            return f"proxies may not ask: call the port directly, without a {name} header"
    hosts = request.headers.getall("Host", [])
    if len(hosts) != 1 or not _OWN_HOST.fullmatch(hosts[0]):
        return "the Host header must be localhost, 127.0.0.1 or [::1]: call the port by one of them"
    return None


async def _hide_version(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.pop("Server", None)
