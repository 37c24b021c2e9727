"""Server reflection for grpcurl, ghz and buf curl: grpc.reflection.v1, and v1alpha for clients that are older.

The messages of both versions are the same on the wire, so the library's v1alpha serves both. It is completed where it
falls short: protobuf's upb finds no method, field or oneof by its name, and an idle stream would hold up a stop.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection_pb2 as pb
from grpc_reflection.v1alpha._async import ReflectionServicer

_POOL = descriptor_pool.Default()
_ALPHA = pb.DESCRIPTOR.services_by_name["ServerReflection"].full_name
_V1 = "grpc.reflection.v1.ServerReflection"
_V1_FILE = "grpc/reflection/v1/reflection.proto"
_METHOD = "ServerReflectionInfo"


def add_reflection(server: grpc.aio.Server, services: Sequence[str], drained: asyncio.Event) -> None:
    """Let a server describe these services and its reflection. Streams end when `drained` is set."""
    _describe_v1()
    servicer = _Reflection((*services, _V1, _ALPHA), drained)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=pb.ServerReflectionRequest.FromString,
        response_serializer=pb.ServerReflectionResponse.SerializeToString,
    )
    handlers = {_METHOD: handler}
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, handlers) for name in (_V1, _ALPHA))
    )


def _describe_v1() -> None:
    """Add the description of v1 to protobuf's pool: that of v1alpha under its own name."""
    try:
        _POOL.FindFileByName(_V1_FILE)
    except KeyError:
        alpha = descriptor_pb2.FileDescriptorProto()
        pb.DESCRIPTOR.CopyToProto(alpha)
        file = descriptor_pb2.FileDescriptorProto.FromString(alpha.SerializeToString())
        file.name, file.package = _V1_FILE, "grpc.reflection.v1"
        for message in file.message_type:
            for field in message.field:
                if not field.type_name:
                    continue
                field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
        for service in file.service:
            for method in service.method:
                method.input_type = method.input_type.replace(".v1alpha.", ".v1.")
                method.output_type = method.output_type.replace(".v1alpha.", ".v1.")
        file.ClearField("options")
        _POOL.Add(file)


_Library: Any = ReflectionServicer  # its types leave out what is completed here


class _Reflection(_Library):  # type: ignore[misc]
    def __init__(self, services: Sequence[str], drained: asyncio.Event) -> None:
        super().__init__(services)
        self._drained = drained

    async def ServerReflectionInfo(
        self, request_iterator: AsyncIterator[pb.ServerReflectionRequest], context: Any
    ) -> AsyncIterator[pb.ServerReflectionResponse]:
        """Answer until the caller has asked all, or the server drains."""
        drained = asyncio.ensure_future(self._drained.wait())
        answers = super().ServerReflectionInfo(request_iterator, context)
        following: asyncio.Future[pb.ServerReflectionResponse | None] | None = None
        try:
            while True:
                following = asyncio.ensure_future(_first_of(answers))
                await asyncio.wait({following, drained}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done() or (answer := following.result()) is None:
                    return
                yield answer
        finally:
            for waiting in (drained, following):
                if waiting is not None:
                    waiting.cancel()

    def _file_containing_symbol(self, request: pb.ServerReflectionRequest, name: str) -> pb.ServerReflectionResponse:
        answer: pb.ServerReflectionResponse = super()._file_containing_symbol(request, name)
        if answer.HasField("error_response") and (file := _file_of_part(name)) is not None:
            answer = self._file_by_filename(request, file.name)
        return answer


async def _first_of(answers: AsyncIterator[pb.ServerReflectionResponse]) -> pb.ServerReflectionResponse | None:
    async for answer in answers:
        return answer
    return None


def _file_of_part(name: str) -> FileDescriptor | None:
    """Return the file of a method, field, oneof or enum value, by the name of what it is a part of."""
    owner, _, part = name.rpartition(".")
    for find, parts in (
        (_POOL.FindServiceByName, ("methods_by_name",)),
        (
            _POOL.FindMessageTypeByName,
            ("fields_by_name", "oneofs_by_name", "enum_values_by_name", "extensions_by_name"),
        ),
        (_POOL.FindEnumTypeByName, ("values_by_name",)),
    ):
        try:
            found = find(owner)
        except KeyError:
            continue
        if any(part in getattr(found, each) for each in parts):
            return found.file
    return None
