"""What tests of callers' identities share: tokens, calls with them, and daemons that refuse to start."""

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from betrace_kms_server import app
from betrace_kms_server.config.sources import from_command_line, resolve
from betrace_kms_server.core.errors import StartRefused

REQUEST = pb.GenerateDataKeyRequest(tenant_id="acme", number_of_bytes=32)
FIRST, SECOND, OLD = (secrets.token_urlsafe(32) for _ in range(3))
STRANGER = 65534


def status_of(target: str, metadata: Any = None, method: str = "GenerateDataKey") -> grpc.StatusCode:
    """Make one call and return its status."""
    with grpc.insecure_channel(target) as channel:
        request = REQUEST if method == "GenerateDataKey" else _request_of(method)
        try:
            getattr(KeyManagementServiceStub(channel), method)(request, metadata=metadata, timeout=20)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def _request_of(method: str) -> Any:
    return getattr(pb, f"{method}Request")(tenant_id="acme")


def bearer(token: str, scheme: str = "Bearer") -> tuple[tuple[str, str], ...]:
    return (("authorization", f"{scheme} {token}"),)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


def set_mode(path: Path, mode: int) -> None:
    path.chmod(mode)


async def refused_start(folder: Path, *values: str, listen: str = "127.0.0.1:0") -> str:
    """Start a daemon that must not start, and return what it says."""
    given = {"kms.data-dir": str(folder / "data"), "kms.server.listen": listen, "kms.ops.listen": "127.0.0.1:0"}
    given |= dict(value.split("=", 1) for value in values)
    with pytest.raises(StartRefused) as caught:
        async with app.running(resolve([from_command_line(given)])[0]):
            pytest.fail("it started")
    return str(caught.value)


def token_at(path: Path, mode: int = 0o600, content: str = FIRST) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content + "\n")
    path.chmod(mode)
    return path


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition holds, for ten seconds at most."""
    for _ in range(200):
        if await condition():
            return
        await asyncio.sleep(0.05)
    pytest.fail("it did not happen within ten seconds")
