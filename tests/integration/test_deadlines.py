"""No work for a caller whose time is over: on arrival, and between the slices of a batch."""

import asyncio
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_server.access.admission import Access
from betrace_kms_server.access.identity import SameCaller
from betrace_kms_server.rpc import batches, spans
from betrace_kms_server.rpc.gate import CallGate
from betrace_kms_server.rpc.interceptors import ErrorInterceptor
from betrace_kms_server.rpc.key_management import KeyManagementService
from betrace_kms_server.telemetry.figures import CallStats
from betrace_kms_server.telemetry.observers import CallObserver

from tests.daemon import running
from tests.raw_grpc import RawConnection

SERVICE = "betrace.kms.v1.KeyManagementService"
SPANS = [ComplianceSpan(trace_id=b"t" * 16, span_id=number.to_bytes(8, "big"), name="n") for number in range(1, 1001)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # counters
            await asyncio.sleep(0.005)


class Served:
    """A server with one method, and what came of its calls."""

    def __init__(self) -> None:
        self.parsed = list[bytes]()
        self.handled = list[Any]()
        self.stats, self.gate = CallStats(), CallGate()
        self._interceptor = ErrorInterceptor(CallObserver(self.stats, None, None), self.gate, Access(SameCaller()))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[RawConnection]:
        """Run the server, and connect to it."""
        server = grpc.aio.server(interceptors=[self._interceptor])
        method: Any = grpc.unary_unary_rpc_method_handler(
            self._encrypt, self._parse, pb.EncryptResponse.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Encrypt": method}),))
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        connection = RawConnection(address)
        try:
            yield connection
        finally:
            connection.reset()
            await server.stop(None)

    async def _encrypt(self, request: Any, context: Any) -> pb.EncryptResponse:
        self.handled.append(request)
        return pb.EncryptResponse()

    def _parse(self, message: bytes) -> Any:
        self.parsed.append(message)
        return pb.EncryptRequest.FromString(message)


async def test_what_is_over_when_it_arrives_is_not_parsed() -> None:
    """A message that came in time waited for the event loop too long: dropped unread, and counted as what it is."""
    served = Served()
    async with served.running() as connection:
        for timeout, seconds in (("60S", 0.3), ("1S", 1.2)):
            connection.begin(f"/{SERVICE}/Encrypt", timeout=timeout)
            await asyncio.sleep(0.2)  # the server waits for the message now
            sent = threading.Timer(0.1, connection.send, [pb.EncryptRequest(tenant_id=timeout).SerializeToString()])
            sent.start()
            time.sleep(seconds)  # noqa: ASYNC251  # nothing else runs on the loop
            sent.join()
            await until(lambda: 0 == served.gate.in_flight and 0 < served.gate.received)
        await until(lambda: 2 == served.gate.received)
    assert {("Encrypt", "OK"): 1, ("Encrypt", "DEADLINE_EXCEEDED"): 1} == served.stats.counts
    assert (["60S"], 1) == ([request.tenant_id for request in served.handled], len(served.parsed))


async def test_calls_that_are_over_before_the_server_takes_them_are_all_counted() -> None:
    """gRPC took them while the event loop was busy, and cancels them: none of them is read, or a part of it stays."""
    served, message = Served(), pb.EncryptRequest(tenant_id="acme").SerializeToString()
    async with served.running() as connection:
        for _ in range(50):
            connection.begin(f"/{SERVICE}/Encrypt", timeout="100m")
            connection.send(message)
        time.sleep(0.5)  # noqa: ASYNC251  # nothing else runs on the loop
        await until(lambda: 50 == served.gate.ended)
    assert {("Encrypt", "DEADLINE_EXCEEDED"): 50} == served.stats.counts
    assert ([], []) == (served.parsed, served.handled)


@pytest.mark.parametrize("ends", ["DEADLINE_EXCEEDED", "CANCELLED"])
async def test_batch_ends_between_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    """40 slices of 50 ms each: of most nothing is done when the deadline is over, or the caller leaves, before."""
    begun, original = list[int](), batches.payloads_of

    def slow(*arguments: Any, **options: Any) -> Any:
        begun.append(len(begun))
        time.sleep(0.05)
        return original(*arguments, **options)

    async with running(tmp_path) as daemon, grpc.aio.insecure_channel(daemon.addresses[0]) as channel:
        stub: Any = KeyManagementServiceStub(channel)
        await stub.SignSpans(pb.SignSpansRequest(tenant_id="acme", spans=SPANS[:1]))
        monkeypatch.setattr(batches, "payloads_of", slow)
        request = pb.SignSpansRequest(tenant_id="acme", spans=SPANS)
        call = stub.SignSpans(request, timeout=0.5 if ends == "DEADLINE_EXCEEDED" else 60)
        await until(lambda: len(begun) > 2)
        if ends == "CANCELLED":
            call.cancel()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await call
        await asyncio.sleep(0.2)
        assert len(begun) < 40
        before = len(begun)
        await asyncio.sleep(0.2)
        assert before == len(begun)


async def test_threads_end_between_slices() -> None:
    """Two threads work on a large batch; when its caller has left, each ends with the slice that it is at."""
    going, begun = threading.Event(), list[int]()

    def work(part: Sequence[int]) -> list[int]:
        begun.append(len(part))
        going.wait(20)
        return list(part)

    none: Any = None
    with ThreadPoolExecutor(2) as threads:
        service = KeyManagementService(none, none, none, threads=threads, max_payload_bytes=1)
        batch = asyncio.create_task(service._in_threads(work, range(1_000)))
        await until(lambda: 2 == len(begun))
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        going.set()
    assert [spans._SLICE] * 2 == begun


async def test_call_that_leaves_while_it_waits_for_room_is_counted(tmp_path: Path) -> None:
    """Its large message was received, other large ones take all the room, and its caller hangs up."""
    async with running(tmp_path) as daemon, grpc.aio.insecure_channel(daemon.addresses[0]) as channel:
        room = daemon.gate.large
        full = asyncio.Event()

        async def hold() -> None:
            await room.admit(room.limit)
            await full.wait()

        holder = asyncio.create_task(hold())
        await until(lambda: room.used == room.limit)
        encrypt: Any = KeyManagementServiceStub(channel).Encrypt
        call = encrypt(pb.EncryptRequest(tenant_id="acme", plaintext=bytes(1024 * 1024)))
        await until(lambda: daemon.gate.in_flight == 1)
        call.cancel()
        await until(lambda: daemon.gate.in_flight == 0)
        full.set()
        await holder
        with await asyncio.to_thread(urllib.request.urlopen, f"http://{daemon.ops_address}/q/metrics") as answer:
            metrics = answer.read().decode()
    (counted,) = [
        line
        for line in metrics.splitlines()
        if 'method="Encrypt"' in line and 'status="CANCELLED"' in line and "_total" in line
    ]
    assert counted.endswith(" 1.0")
