"""What callers cannot make the daemon hold: bombs, streams, calls in flight."""

import asyncio
import gzip
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import admin_pb2
from betrace.kms.v1 import key_management_pb2 as pb
from betrace_kms_server.access.admission import Access
from betrace_kms_server.access.identity import SameCaller
from betrace_kms_server.core.shedding import check_may_wait
from betrace_kms_server.rpc.gate import MAX_STREAMS, REQUESTS_AT_ONCE, CallGate
from betrace_kms_server.rpc.interceptors import ErrorInterceptor
from betrace_kms_server.rpc.reception import MAX_SLOW
from betrace_kms_server.telemetry.observers import UNOBSERVED
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from tests.daemon import Process, spawned
from tests.drills.attacks import CHECK, ENCRYPT, beginning, flood, reset, streams
from tests.integration.test_hostile_decrypts import MIB, resident
from tests.raw_grpc import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    Connection,
    frame,
    framed,
    headers_of,
)

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
LOCK = "/betrace.kms.v1.KmsAdminService/Lock"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Process]:
    """Run one daemon for all tests."""
    with (
        tempfile.TemporaryDirectory(prefix="kms") as folder,
        spawned("--data-dir", f"{folder}/data", "--listen", "127.0.0.1:0") as process,
    ):
        process.wait_for("serving")
        yield process


def stub(channel: grpc.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


def healthy(daemon: Process) -> bool:
    """Return whether the daemon answers a probe."""
    with grpc.insecure_channel(daemon.address) as channel:
        answer = stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.parametrize("method", [ENCRYPT, CHECK])
@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
def test_bomb_is_not_inflated(daemon: Process, method: str, coding: bytes) -> None:
    """1 MB that would be 1,000 MB: refused as it is, by every service."""
    bomb = gzip.compress(bytes(1_000 * 1_000_000), 1)[:4_000_000]
    before, peak = resident(daemon), 0
    with Connection(daemon.address, seconds=30) as connection:
        connection.send(frame(HEADERS, END_HEADERS, 1, headers_of(method, [(b"grpc-encoding", coding)])))
        connection.send(frame(DATA, 0, 1, framed(bomb, compressed=True)[:16_000]))
        received = b""
        while b"grpc-status" not in received and (part := connection.socket.recv(65_536)):
            received += part
            peak = max(peak, resident(daemon))
    assert b"12" in received.partition(b"grpc-status")[2][:8]  # UNIMPLEMENTED
    assert max(peak, resident(daemon)) - before < 20 * MIB
    assert healthy(daemon)


@pytest.mark.parametrize("ended", [True, False], ids=["reset", "half sent"])
def test_flood_of_streams_is_not_held(daemon: Process, ended: bool) -> None:
    """40,000 calls that are reset at once, or never end, on four connections: memory stays, and probes are answered."""
    before = resident(daemon)
    parts = [beginning(ENCRYPT), reset] if ended else [beginning(ENCRYPT)]
    floods = [Thread(target=flood, args=(daemon.address, streams(10_000, *parts))) for _ in range(4)]
    for each in floods:
        each.start()
    while any(each.is_alive() for each in floods):
        assert healthy(daemon)
        assert resident(daemon) - before < 60 * MIB
    assert healthy(daemon)


def test_requests_that_do_not_come_give_way(daemon: Process) -> None:
    """Of 40 calls that never send the end of their request, a few are waited for; the others end."""
    with Connection(daemon.address, seconds=10) as connection:
        for stream in range(1, 80, 2):
            connection.call(stream, ENCRYPT, framed(b"request")[:-1], finish=False)
        while connection.open_streams > MAX_SLOW:
            assert connection.receive()
        assert MAX_SLOW == connection.open_streams
        assert healthy(daemon)


def test_requests_that_come_a_little_later_are_waited_for(daemon: Process) -> None:
    """As from callers that the machine stopped for 100 ms, between headers and message: each is read and answered."""

    def answered() -> float:
        return sum(
            count
            for name, count in daemon.metrics().items()
            if name.startswith("kms_rpc_requests_total") and "Encrypt" in name and "INVALID_ARGUMENT" in name
        )

    before, calls = answered(), range(1, 2 * REQUESTS_AT_ONCE, 2)
    with Connection(daemon.address, seconds=10) as connection:
        for stream in calls:
            connection.call(stream, ENCRYPT, b"", finish=False)
        time.sleep(0.1)
        for stream in calls:
            connection.send(frame(DATA, END_STREAM, stream, framed(b"")))
        while connection.open_streams:
            assert connection.receive()
    assert REQUESTS_AT_ONCE == answered() - before


def test_watches_are_bounded_and_check_is_not(daemon: Process) -> None:
    """Whoever watches a thousand times gets a hundred streams, and probes go on; a stream that ends makes room."""
    with ExitStack() as resources:
        channels = [
            resources.enter_context(
                grpc.insecure_channel(daemon.address, options=[("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(10)
        ]
        watches: list[Any] = [
            stub(channel).Watch(health_pb2.HealthCheckRequest()) for channel in channels for _ in range(30)
        ]
        outcomes = [_first(watch) for watch in watches]
        assert MAX_STREAMS == outcomes.count("open")
        assert {"open", "RESOURCE_EXHAUSTED"} == set(outcomes)
        assert healthy(daemon)
        watches[outcomes.index("open")].cancel()
        first: Any = stub(channels[0])
        while _first(again := first.Watch(health_pb2.HealthCheckRequest())) != "open":
            pass
        again.cancel()


def _first(watch: Any) -> str:
    try:
        next(watch)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "open"


def test_connection_has_a_hundred_streams(daemon: Process) -> None:
    """The server says so in its settings (RFC 9113, section 6.5.2), and a client that obeys lets more calls wait."""
    with Connection(daemon.address, seconds=30) as connection:
        received = connection.socket.recv(4_096)
    assert struct.pack(">HI", 3, 100) in received


async def test_calls_that_wait_are_bounded_for_callers_only(tmp_path: Path) -> None:
    """One more that must wait is refused at once, with when to come again; others, probes and operators get through."""
    going = asyncio.Event()

    async def encrypt(request: pb.EncryptRequest, context: Any) -> Any:
        if not request.tenant_id.startswith("warm"):
            check_may_wait()
            await going.wait()
        return pb.EncryptResponse(key_id="done")

    async def check(request: Any, context: Any) -> Any:
        return health_pb2.HealthCheckResponse(status=1)

    async def lock(request: Any, context: Any) -> Any:
        return admin_pb2.LockResponse(entries=7)

    methods: Sequence[tuple[str, Callable[..., Any], Any, Any]] = (
        (ENCRYPT, encrypt, pb.EncryptRequest, pb.EncryptResponse),
        (CHECK, check, health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse),
        (LOCK, lock, admin_pb2.LockRequest, admin_pb2.LockResponse),
    )
    gate = CallGate(limit=5)
    server = grpc.aio.server(interceptors=[ErrorInterceptor(UNOBSERVED, gate, Access(SameCaller()))])
    for path, handler, request, response in methods:
        _, service, name = path.split("/")
        method: Any = grpc.unary_unary_rpc_method_handler(handler, request.FromString, response.SerializeToString)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: method}),))
    address = f"unix:{tmp_path}/kms.sock"
    server.add_insecure_port(address)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            calls: list[Any] = [
                channel.unary_unary(path, request.SerializeToString, response.FromString)
                for path, _, request, response in methods
            ]
            within = [asyncio.ensure_future(calls[0](pb.EncryptRequest())) for _ in range(5)]
            while gate.in_flight < 5:  # noqa: ASYNC110  # the gate is two counters
                await asyncio.sleep(0.001)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await calls[0](pb.EncryptRequest())
            assert grpc.StatusCode.RESOURCE_EXHAUSTED == refused.value.code()
            status = rpc_status.from_call(SimpleNamespace(**_call_of(refused.value)))  # type: ignore[arg-type]
            assert status is not None
            assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)
            assert "done" == (await calls[0](pb.EncryptRequest(tenant_id="warm"))).key_id
            for _ in range(20):
                assert 1 == (await calls[1](health_pb2.HealthCheckRequest())).status
            assert 7 == (await calls[2](admin_pb2.LockRequest())).entries
            going.set()
            assert ["done"] * 5 == [answer.key_id for answer in await asyncio.gather(*within)]
            assert 0 == gate.in_flight
    finally:
        await server.stop(None)


def _call_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    return {"code": error.code, "details": error.details, "trailing_metadata": error.trailing_metadata}


async def test_requests_are_received_a_few_at_a_time(tmp_path: Path) -> None:
    """Of 40 requests that begin at once, gRPC receives 16 beyond their first window; all are answered when they end."""
    gate = CallGate()
    server = grpc.aio.server(interceptors=[ErrorInterceptor(UNOBSERVED, gate, Access(SameCaller()))])

    async def check(request: Any, context: Any) -> Any:
        return health_pb2.HealthCheckResponse(status=1)

    request = health_pb2.HealthCheckRequest
    method: Any = grpc.unary_unary_rpc_method_handler(
        check, request.FromString, health_pb2.HealthCheckResponse.SerializeToString
    )
    _, service, name = CHECK.split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: method}),))
    address = f"unix:{tmp_path}/kms.sock"
    server.add_insecure_port(address)
    await server.start()
    body = framed(request(service="x").SerializeToString())
    most = 0
    try:
        with await asyncio.to_thread(Connection, address) as connection:
            for stream in range(1, 80, 2):
                await asyncio.to_thread(connection.call, stream, CHECK, body[:-1], finish=False)
            while gate.turns.waiting + len(gate.receiving) < 40:  # noqa: ASYNC110  # two counters
                await asyncio.sleep(0.001)
            most = len(gate.receiving)
            for stream in range(1, 80, 2):
                connection.send(frame(DATA, END_STREAM, stream, body[-1:]))
            while connection.open_streams:
                assert await asyncio.to_thread(connection.receive)
        assert REQUESTS_AT_ONCE == most
        assert 40 == gate.received
        assert REQUESTS_AT_ONCE == gate.turns.free
    finally:
        await server.stop(None)


def test_metadata_of_megabytes_is_refused_and_freed(daemon: Process) -> None:
    """Callers that never acknowledge gRPC's settings may send 10 MB with a call: of twenty such little is left."""
    block = headers_of(CHECK, [(b"x-long", b"y" * 10_000_000)])
    parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
    before = resident(daemon)
    for _ in range(20):
        with Connection(daemon.address) as connection:
            for number, part in enumerate(parts):
                flags = END_HEADERS if number == len(parts) - 1 else 0
                connection.send(frame(CONTINUATION if number else HEADERS, flags, 1, part))
            connection.send(frame(DATA, END_STREAM, 1, framed(b"")))
            received = b""
            while b"grpc-status" not in received and (part := connection.socket.recv(65_536)):
                received += part
        assert b"8" in received.partition(b"grpc-status")[2][:8]  # RESOURCE_EXHAUSTED
        assert healthy(daemon)
    assert resident(daemon) - before < 150 * MIB


class LateAnswers(Connection):
    """A connection that answers PINGs late, so that gRPC takes the line to be long and to hold much."""

    def __init__(self, address: str) -> None:
        super().__init__(address, open_windows=True)
        self.pings: list[bytes] = []

    def _pinged(self, payload: bytes) -> None:
        self.pings.append(payload)

    def answer_pings(self) -> None:
        """Answer those that came."""
        while self.pings:
            super()._pinged(self.pings.pop())


def test_windows_of_streams_stay_small(daemon: Process) -> None:
    """Whatever the line holds, a stream may send 64 KiB before the daemon asks for its message."""
    request = framed(pb.EncryptRequest(tenant_id="warm", plaintext=bytes(MIB * 1024)).SerializeToString())
    with (connection := LateAnswers(daemon.address)):
        for stream in range(1, 16, 2):
            assert connection.call(stream, ENCRYPT, request)
            while connection.open_streams:
                assert connection.receive()
            connection.answer_pings()
        assert 65_535 == connection.window_of_new_streams
