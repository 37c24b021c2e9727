"""Requests of every method, sent as bytes through a real connection to a daemon.

It can run in this process, because a fuzzer that is guided by coverage must see which of its code a request reaches.
"""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from betrace.kms.v1 import admin_pb2, key_management_pb2
from betrace_kms_server.telemetry import logs
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tests.daemon import running
from tests.fuzz.targets import Target

OUR_FAULT = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)
METHODS: Mapping[str, MethodDescriptor] = {
    method.name: method
    for module in (key_management_pb2, admin_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
_SIZES = {"trace_id": 16, "span_id": 8, "parent_span_id": 8, "signature": 64, "root_hash": 32}
_TEXTS = {"tenant_id": "acme", "key_id": "0" * 32}
_SECONDS = 20


def seeds_of(method: MethodDescriptor) -> list[bytes]:
    """Return requests to begin with: one with every field, and one with the tenant only."""
    whole, least = GetMessageClass(method.input_type)(), GetMessageClass(method.input_type)()
    _fill(whole, depth=3)
    if "tenant_id" in method.input_type.fields_by_name:
        least.tenant_id = "acme"  # type: ignore[attr-defined]
    return [whole.SerializeToString(), least.SerializeToString()]


def _fill(message: Message, depth: int) -> None:
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is None:
                value["name"] = "value"
            elif depth:
                _fill(value["name"], depth - 1)
        elif field.message_type is not None:
            if depth:
                _fill(value.add() if field.is_repeated else value, depth - 1)
        elif field.is_repeated:
            value.append(_scalar(field))
        else:
            setattr(message, field.name, _scalar(field))


def _scalar(field: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b"t" * _SIZES.get(field.name, 32)
    return _TEXTS.get(field.name, "text") if field.type == FieldDescriptor.TYPE_STRING else 1


@contextmanager
def request_targets(address: str, data_dir: Path) -> Iterator[Mapping[str, Target]]:
    """Yield a target for each method of a daemon, by the method's name."""
    with grpc.insecure_channel(address) as public, grpc.insecure_channel(f"unix:{data_dir}/admin.sock") as admin:
        yield {
            name: _target(method, admin if "Admin" in method.containing_service.name else public)
            for name, method in METHODS.items()
        }


@contextmanager
def targets_in_this_process(folder: Path) -> Iterator[Mapping[str, Target]]:
    """Run a daemon in a thread, and yield a target for each of its methods."""
    logs.configure("console", "error")
    started, ends = threading.Event(), asyncio.Event()
    address, loop = "", asyncio.new_event_loop()

    async def serve() -> None:
        nonlocal address
        async with running(folder / "data", kms_server_listen=f"unix:{folder}/kms.sock") as daemon:
            address = daemon.addresses[0]
            started.set()
            await ends.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(_SECONDS), "the daemon does not start"
    try:
        with request_targets(address, folder / "data") as targets:
            yield targets
    finally:
        loop.call_soon_threadsafe(ends.set)
        thread.join(_SECONDS)
        loop.close()


def _target(method: MethodDescriptor, channel: grpc.Channel) -> Target:
    path = f"/{method.containing_service.full_name}/{method.name}"
    call: Any = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)

    def send(request: bytes) -> None:
        answer = call.future(request, timeout=_SECONDS)
        assert answer.code() not in OUR_FAULT, f"{answer.code()}: {answer.details()}"

    return Target(send, seeds_of(method))
