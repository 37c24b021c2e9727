"""The drain of real servers, step by step: who is served, who is refused, and what ends the waiting."""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1 import key_management_pb2_grpc
from betrace_kms_client.errors import from_rpc_error
from betrace_kms_server.host.connections import GOAWAY, Callers
from betrace_kms_server.rpc.drain import drain
from betrace_kms_server.rpc.gate import CallGate
from betrace_kms_server.rpc.interceptors import ErrorInterceptor
from betrace_kms_server.telemetry.observers import UNOBSERVED

REQUEST = pb.EncryptRequest(tenant_id="acme")


class Held(key_management_pb2_grpc.KeyManagementServiceServicer):
    """Holds Encrypt back until it is let go; Decrypt answers at once."""

    def __init__(self) -> None:
        self.entered, self.let_go = asyncio.Event(), asyncio.Event()

    async def Encrypt(self, request: pb.EncryptRequest, context: Any) -> pb.EncryptResponse:
        """Answer when let go."""
        self.entered.set()
        await self.let_go.wait()
        return pb.EncryptResponse(key_id="k")

    async def Decrypt(self, request: pb.DecryptRequest, context: Any) -> pb.DecryptResponse:
        """Answer at once."""
        return pb.DecryptResponse(key_id="k")


@asynccontextmanager
async def draining(seconds: float) -> AsyncIterator[tuple[Held, Any, asyncio.Event, "asyncio.Task[None]", Any]]:
    """Give a held-back call to a server that drains: its service, a stub, hurry, the drain and the call."""
    gate, held, hurry = CallGate(), Held(), asyncio.Event()  # type: ignore[abstract]
    server = grpc.aio.server(interceptors=[ErrorInterceptor(UNOBSERVED, gate)])
    key_management_pb2_grpc.add_KeyManagementServiceServicer_to_server(held, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        stub: Any = key_management_pb2_grpc.KeyManagementServiceStub(channel)
        call = stub.Encrypt(REQUEST)
        await held.entered.wait()
        end = asyncio.create_task(drain([server], Callers([address]), gate, seconds, hurry))
        yield held, stub, hurry, end, call
        await end
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))


async def refused(stub: Any) -> grpc.aio.AioRpcError:
    """Call until the server refuses."""
    while True:
        try:
            await stub.Decrypt(pb.DecryptRequest(tenant_id="acme"))
        except grpc.aio.AioRpcError as refusal:
            return refusal


async def test_a_call_in_flight_gets_its_time_and_new_ones_are_refused() -> None:
    """A refusal is UNAVAILABLE with reason STOPPING, RetryInfo, and the pushback that gRPC's own retries obey."""
    async with draining(600) as (held, stub, _, end, call):
        assert "k" == (await stub.Decrypt(pb.DecryptRequest(tenant_id="acme"))).key_id  # it has only begun
        error = await refused(stub)
        known = from_rpc_error(error, "")
        pushback = [value for name, value in error.trailing_metadata() if name == "grpc-retry-pushback-ms"]
        assert (grpc.StatusCode.UNAVAILABLE, "STOPPING", 1.0, ["1000"]) == (
            error.code(),
            known.reason,
            known.retry_after,
            pushback,
        )
        assert not end.done()
        held.let_go.set()
        assert "k" == (await call).key_id


@pytest.mark.parametrize("seconds", [0.1, 600])
async def test_time_or_hurry_ends_calls_in_flight(seconds: float) -> None:
    """The end of the grace, or a second SIGINT: the caller gets UNAVAILABLE, which it may repeat."""
    async with draining(seconds) as (_, _, hurry, _, call):
        if seconds == 600:
            hurry.set()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call
    assert grpc.StatusCode.UNAVAILABLE is ended.value.code()


async def test_a_process_without_descriptors_stops_too() -> None:
    """Nothing can be found out about its connections then, and calls in flight are still answered."""
    async with draining(600) as (held, _, _, end, call):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # As many as stdin, stdout and stderr: with fewer, poll(2) would fail in the threads of other tests' servers.
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            held.let_go.set()
            assert "k" == (await call).key_id
            await end
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def listening() -> tuple[socket.socket, str]:
    """Return a socket that listens, and its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, f"127.0.0.1:{listener.getsockname()[1]}"


def test_no_goaway_goes_into_the_middle_of_an_answer() -> None:
    """While the other end does not read what was sent, nothing is announced to it, and the answer arrives whole."""
    listener, address = listening()
    with listener, socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as served:
        served.setblocking(False)
        sent = 0
        try:
            while True:
                sent += served.send(bytes(65536))
        except BlockingIOError:
            pass
        callers = Callers([address])
        assert [False] * 3 == [callers.announce_end() for _ in range(3)]
        while sent:
            sent -= len(client.recv(min(sent, 65536)))
        announced = [callers.announce_end() for _ in range(3)]
        assert ([False, True, True], GOAWAY) == (announced, client.recv(100))
        callers.close()
        assert b"" == client.recv(100)


def test_a_connection_with_tls_is_closed_and_nothing_is_written_to_it() -> None:
    """A frame in the clear would be a broken record there."""
    listener, address = listening()
    with listener, socket.create_connection(listener.getsockname()) as client, listener.accept()[0]:
        callers = Callers([address], ciphered=[address])
        assert [True, True] == [callers.announce_end() for _ in range(2)]
        callers.close()
        assert b"" == client.recv(100)


def test_sockets_of_others_are_left_as_they_are() -> None:
    """Only connections to the given addresses are closed, and only sockets that listen there stop."""
    (ours, address), (other, _) = listening(), listening()
    with ours, other, socket.create_connection(other.getsockname()) as client, other.accept()[0] as served:
        callers = Callers([address])
        callers.stop_listening()
        callers.close()
        served.send(b"x")
        assert b"x" == client.recv(10)
        socket.create_connection(other.getsockname()).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
