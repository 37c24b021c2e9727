"""A KMS with latency and a request quota, as a process of its own that speaks HTTP: what an emulator does not have.

It keeps no state but its quota: a blob is the key and its encryption context as JSON.
"""

import asyncio
import base64
import json
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from aiohttp import web

ARN = "arn:aws:kms:us-east-1:111122223333:key/0d1c6c0e-2f3a-4b5c-8d9e-0123456789ab"
_METADATA = {"Arn": ARN, "KeyId": ARN, "KeyState": "Enabled", "KeyUsage": "ENCRYPT_DECRYPT", "Enabled": True}


class FakeKms:
    """Answers after seconds of latency, and at most `quota` cryptographic calls a second; 0 is no quota."""

    def __init__(self, quota: int, latency: tuple[float, float]) -> None:
        self._quota = quota
        self._latency = latency
        self._window = 0
        self._used = 0
        self.calls: Counter[str] = Counter()

    async def __call__(self, request: web.Request) -> web.Response:
        """Answer a call, or report what was called so far."""
        if request.method == "GET":
            return web.json_response(self.calls)
        action = request.headers["X-Amz-Target"].rpartition(".")[2]
        body = await request.json()
        tenant = body.get("EncryptionContext", {}).get("tenantId", "")
        self.calls[f"{action} {tenant}"] += 1
        if action != "DescribeKey" and not self._admitted():
            return self._answer({"__type": "ThrottlingException", "message": "Rate exceeded"}, 400)
        await asyncio.sleep(random.uniform(*self._latency))  # noqa: S311
        return self._answer(*_result(action, body))

    def _admitted(self) -> bool:
        second = int(time.monotonic())
        if second != self._window:
            self._window, self._used = second, 0
        self._used += 1
        return not self._quota or self._used <= self._quota

    def _answer(self, body: dict[str, Any], status: int = 200) -> web.Response:
        headers = {"x-amzn-RequestId": os.urandom(8).hex()}
        return web.json_response(body, status=status, headers=headers, content_type="application/x-amz-json-1.1")


def _result(action: str, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    context = body.get("EncryptionContext", {})
    if action == "DescribeKey":
        return {"KeyMetadata": _METADATA}, 200
    if action == "GenerateDataKey":
        key = base64.b64encode(os.urandom(body["NumberOfBytes"])).decode()
        return {"Plaintext": key, "CiphertextBlob": _sealed(key, context), "KeyId": ARN}, 200
    if action == "Encrypt":
        return {"CiphertextBlob": _sealed(body["Plaintext"], context), "KeyId": ARN}, 200
    try:
        opened = json.loads(base64.b64decode(body["CiphertextBlob"]))
    except ValueError:
        opened = None
    if opened is None or opened["context"] != context:
        return {"__type": "InvalidCiphertextException"}, 400
    return {"Plaintext": opened["key"], "KeyId": ARN}, 200


def _sealed(key: str, context: dict[str, str]) -> str:
    return base64.b64encode(json.dumps({"key": key, "context": context}).encode()).decode()


async def _serve(quota: int, latency: tuple[float, float], ready: Connection) -> None:
    app = web.Application()
    app.router.add_route("*", "/", FakeKms(quota, latency).__call__)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    ready.send(runner.addresses[0][1])
    await asyncio.Event().wait()


def _main(quota: int, latency: tuple[float, float], ready: Connection) -> None:
    asyncio.run(_serve(quota, latency, ready))


@contextmanager
def fake_kms(quota: int = 0, latency: tuple[float, float] = (0.05, 0.1)) -> Iterator[str]:
    """Run one that takes from one to the other number of seconds to answer, and yield its URL."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_main, args=(quota, latency, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()
