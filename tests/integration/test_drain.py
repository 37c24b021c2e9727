"""A daemon that stops: each call that reached it is answered, and what is idle does not hold up the stop."""

import asyncio
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1 import key_management_pb2_grpc
from betrace_kms_client import KmsClient
from betrace_kms_server.host.connections import GOAWAY

from tests.daemon import Process, spawned

LISTEN = ["127.0.0.1:0", "unix:{}/kms.sock"]
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
REQUEST = pb.EncryptRequest(tenant_id="acme", plaintext=b"x" * 1000)
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""Connection preface and empty SETTINGS."""


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


HEADERS = b"\x83\x86" + b"".join(  # the indexed fields :method POST and :scheme http (RFC 7541, appendix A)
    _literal(name, value)
    for name, value in {
        b":path": b"/betrace.kms.v1.KeyManagementService/Encrypt",
        b":authority": b"localhost",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    }.items()
)
CALL_WITHOUT_A_MESSAGE = _frame(1, 4, 1, HEADERS)
HALF_A_MESSAGE = CALL_WITHOUT_A_MESSAGE + _frame(0, 0, 1, b"\0\0\0\0\x64half of it")
HALF_A_FRAME = CALL_WITHOUT_A_MESSAGE[:40]


@contextmanager
def serving(data_dir: Path, listen: str) -> Iterator[Process]:
    """Run a daemon that would drain for ten minutes."""
    with spawned("--data-dir", str(data_dir), "--listen", listen, "--set", "kms.server.drain-seconds=600") as daemon:
        daemon.wait_for("serving")
        yield daemon


def stopped(daemon: Process) -> tuple[int, str]:
    """Return the exit code, and those lines of the log that an orderly stop does not have."""
    code = daemon.process.wait(timeout=30)
    daemon.wait_for("Stopped")
    return code, "".join(line for line in daemon.lines if "Traceback" in line or line.startswith("E"))


async def outcome(stub: Any) -> str:
    """Encrypt something without retries, and return the name of the status."""
    try:
        await stub.Encrypt(REQUEST, timeout=20)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


@asynccontextmanager
async def connected(address: str, count: int) -> AsyncIterator[list[Any]]:
    """Give stubs with a connection each, on which a call was answered."""
    channels = [grpc.aio.insecure_channel(address, options=OWN_CONNECTION) for _ in range(count)]
    stubs: list[Any] = [key_management_pb2_grpc.KeyManagementServiceStub(channel) for channel in channels]
    try:
        assert ["OK"] * count == [await outcome(stub) for stub in stubs]
        yield stubs
    finally:
        for channel in channels:
            await channel.close()


@pytest.mark.parametrize("connections", [1, 8])
@pytest.mark.parametrize("listen", LISTEN)
async def test_calls_that_were_sent_before_the_signal_are_answered(
    tmp_path: Path, connections: int, listen: str
) -> None:
    """All 64 of each connection, those in gRPC's queue included: its own stop cancels 46 of 64 and 481 of 512."""
    with serving(tmp_path / "data", listen.format(tmp_path)) as daemon:
        async with connected(daemon.address, connections) as stubs:
            calls = [asyncio.create_task(outcome(stub)) for stub in stubs for _ in range(64)]
            await asyncio.sleep(0.003)  # they are written, and few of them are answered
            daemon.process.send_signal(signal.SIGTERM)
            assert Counter(OK=64 * connections) == Counter(await asyncio.gather(*calls))
        assert (0, "") == await asyncio.to_thread(stopped, daemon)


@pytest.mark.parametrize("listen", LISTEN)
async def test_callers_that_never_pause_get_an_answer_or_unavailable(tmp_path: Path, listen: str) -> None:
    """A caller that repeats its call at once is served, then refused, then led away: no call is cancelled."""

    async def calling(stub: Any, daemon: Process, outcomes: "Counter[str]") -> None:
        while daemon.process.poll() is None:
            outcomes[await outcome(stub)] += 1
            await asyncio.sleep(0)

    outcomes: Counter[str] = Counter()
    with serving(tmp_path / "data", listen.format(tmp_path)) as daemon:
        async with connected(daemon.address, 4) as stubs:
            callers = [asyncio.create_task(calling(stub, daemon, outcomes)) for stub in stubs for _ in range(8)]
            await asyncio.sleep(0.2)
            daemon.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*callers)
        assert (0, "") == await asyncio.to_thread(stopped, daemon)
    assert {"OK", "UNAVAILABLE"} == set(outcomes), outcomes


def greeted(address: str) -> socket.socket:
    """Return a connection that has spoken HTTP/2."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(HELLO)
    assert connection.recv(9)
    return connection


def received(connection: socket.socket) -> bytes:
    """Return what comes until the end of the connection."""
    parts = b""
    while part := connection.recv(4096):
        parts += part
    return parts


def test_what_is_idle_gets_a_goaway_and_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    """HTTP/2 connections, calls that were sent by half, one that never spoke, and a synchronous client that waits.

    The stop takes 0.2 s. With such a client it took 5 s, the time that gRPC waits for the answer to its ping.
    """
    with serving(tmp_path, "127.0.0.1:0") as daemon, KmsClient(daemon.address) as client:
        host, _, port = daemon.address.rpartition(":")
        with (
            socket.create_connection((host, int(port))),
            greeted(daemon.address) as idle,
            greeted(daemon.address) as first,
            greeted(daemon.address) as second,
            greeted(daemon.address) as third,
        ):
            first.sendall(HALF_A_FRAME)
            second.sendall(CALL_WITHOUT_A_MESSAGE)
            third.sendall(HALF_A_MESSAGE)
            client.encrypt("acme", b"x")
            began = time.monotonic()
            daemon.process.send_signal(signal.SIGTERM)
            ends = [received(connection) for connection in (idle, first, second, third)]
            assert (0, "") == stopped(daemon)
    assert [1, 1, 1, 1] == [end.count(GOAWAY) for end in ends]
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("listen", LISTEN)
def test_a_daemon_starts_again_at_once_where_another_stopped(tmp_path: Path, listen: str) -> None:
    """On the same socket or port, with connections that the clients of the first never closed."""
    address = listen.format(tmp_path)
    for _ in range(2):
        with serving(tmp_path / "data", address) as daemon:
            address = daemon.address
            with KmsClient(address) as client:
                client.encrypt("acme", b"x")
                daemon.process.send_signal(signal.SIGTERM)
                assert (0, "") == stopped(daemon)
    assert not (tmp_path / "kms.sock").exists()
