"""The baseline: a grpc.aio server that answers as many bytes as it is asked for, and does nothing else.

    python -m bench.echo_server --listen 127.0.0.1:0 --listen unix:/tmp/echo.sock

It has the channel arguments, the event loop and the allocator settings of `betrace-kms serve`, and no interceptor, no
protobuf, no counter. The method names the size of the answer, `/bench.Echo/1024`, so that one server stands beside any
RPC: the request is the same bytes, and the answer as many. What it costs is what grpc.aio itself costs.
"""

import json
from typing import Any

import click
import grpc
import uvloop
from betrace_kms_server.host import process
from betrace_kms_server.rpc.server import channel_options

MAX_PAYLOAD_BYTES = 4 * 1024 * 1024
SERVICE = "bench.Echo"


class Echo(grpc.GenericRpcHandler):
    """Finds a handler for each size; as many are kept as sizes were asked for."""

    def __init__(self) -> None:
        self._handlers: dict[str, Any] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method."""
        method: str = handler_call_details.method
        return self._handlers.get(method) or self._handlers.setdefault(method, _handler(method))


def method(size: int) -> str:
    """Return the method whose answer has this many bytes."""
    return f"/{SERVICE}/{size}"


def _handler(name: str) -> Any:
    service, _, size = name[1:].rpartition("/")
    if service != SERVICE or not size.isdecimal():
        return None
    answer = bytes(int(size))

    async def reply(_request: bytes, _context: Any) -> bytes:
        return answer

    return grpc.unary_unary_rpc_method_handler(reply)


async def serve(listen: list[str]) -> None:
    """Serve until the process is killed; print the addresses as JSON when calls may come."""
    server = grpc.aio.server(options=channel_options(MAX_PAYLOAD_BYTES))
    server.add_generic_rpc_handlers((Echo(),))
    bound = []
    for address in listen:
        port = server.add_insecure_port(address)
        bound.append(address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}")
    await server.start()
    print(json.dumps({"addresses": bound}), flush=True)
    await server.wait_for_termination()


@click.command()
@click.option("--listen", multiple=True, default=["127.0.0.1:0"], show_default=True)
def main(listen: tuple[str, ...]) -> None:
    """Echo until killed."""
    process.tune_malloc()
    process.raise_open_files()
    uvloop.run(serve(list(listen)))


if __name__ == "__main__":
    main()
