"""Server reflection (grpc.reflection.v1 and v1alpha): tools get services, methods and messages from the daemon.

The servicer of grpcio-reflection serves v1alpha only, finds no methods (its descriptor pool, upb, knows none by name),
describes whatever the process has imported, and keeps idle streams open while the server stops. Here an index is made
of the files behind the services that are served, with every name in them, and `drain` ends the streams.

Both versions have the same messages under the same field numbers, so one code answers both. Stubs of v1 cannot be
generated beside our own: a folder `grpc/reflection` would compete with the package `grpc`. Its file descriptor is
therefore made from that of v1alpha.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2 as pb

_Context = grpc.aio.ServicerContext[Any, Any]
_ALWAYS = (error_details_pb2.DESCRIPTOR, descriptor_pb2.DESCRIPTOR)
"""Files that no service imports: details of our errors, and options of descriptors."""
_SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


def _file_of_v1() -> FileDescriptorProto:
    v1alpha = FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    return text_format.Parse(text_format.MessageToString(v1alpha).replace("v1alpha", "v1"), FileDescriptorProto())


class DescriptorIndex:
    """The files behind `services`, by their names and by every name that they define.

    A name is what a DescriptorPool calls it: `package.Message.field`, `package.Service.Method`. A value of an enum
    stands beside its enum (`package.VALUE`), but tools also print and ask for `package.Enum.VALUE`.
    """

    def __init__(self, services: Iterable[str], pool: DescriptorPool | None = None) -> None:
        pool = pool or descriptor_pool.Default()
        self._files: dict[str, FileDescriptorProto] = {}
        for file in (*(pool.FindFileContainingSymbol(service) for service in services), *_ALWAYS):
            self._add(file)
        v1 = _file_of_v1()
        self._files[v1.name] = v1
        self._symbols: dict[str, str] = {}
        self._extensions: dict[str, dict[int, str]] = {}
        """Message -> number of an extension of it -> file that defines the extension."""
        for name, proto in self._files.items():
            for symbol, defined in _definitions(proto):
                self._symbols[symbol] = name
                if isinstance(defined, DescriptorProto):
                    self._extensions.setdefault(symbol, {})
                elif isinstance(defined, FieldDescriptorProto) and defined.extendee:
                    self._extensions.setdefault(defined.extendee.lstrip("."), {})[defined.number] = name

    def file(self, name: str) -> list[bytes] | None:
        """Return a file and all that it depends on, itself first; None if there is none of this name."""
        if name not in self._files:
            return None
        found = [name]
        for each in found:  # grows while it is read
            found += [dependency for dependency in self._files[each].dependency if dependency not in found]
        return [self._files[each].SerializeToString() for each in found]

    def symbol(self, symbol: str) -> list[bytes] | None:
        """Return the file that defines a name, as `file` does."""
        return self.file(self._symbols.get(symbol, ""))

    def extension(self, message: str, number: int) -> list[bytes] | None:
        """Return the file that defines an extension of a message, as `file` does."""
        return self.file(self._extensions.get(message, {}).get(number, ""))

    def extension_numbers(self, message: str) -> list[int] | None:
        """Return the numbers of a message's extensions; None if there is no such message."""
        numbers = self._extensions.get(message)
        return None if numbers is None else sorted(numbers)

    def _add(self, file: FileDescriptor) -> None:
        if file.name not in self._files:
            self._files[file.name] = FileDescriptorProto.FromString(file.serialized_pb)
            for dependency in file.dependencies:
                self._add(dependency)


def _definitions(file: FileDescriptorProto) -> Iterator[tuple[str, Message]]:
    """Give every name that a file defines, and what it is."""

    def of_enums(scope: str, enums: Iterable[EnumDescriptorProto]) -> Iterator[tuple[str, Message]]:
        for enum in enums:
            yield scope + enum.name, enum
            for value in enum.value:
                yield scope + value.name, value
                yield f"{scope}{enum.name}.{value.name}", value

    def of_message(scope: str, message: DescriptorProto) -> Iterator[tuple[str, Message]]:
        inside = f"{scope}{message.name}."
        yield scope + message.name, message
        for member in (*message.field, *message.extension):
            yield inside + member.name, member
        yield from ((inside + oneof.name, oneof) for oneof in message.oneof_decl)
        yield from of_enums(inside, message.enum_type)
        for nested in message.nested_type:
            yield from of_message(inside, nested)

    package = f"{file.package}." if file.package else ""
    for message in file.message_type:
        yield from of_message(package, message)
    yield from of_enums(package, file.enum_type)
    yield from ((package + extension.name, extension) for extension in file.extension)
    for service in file.service:
        yield package + service.name, service
        yield from ((f"{package}{service.name}.{method.name}", method) for method in service.method)


class Reflection:
    """Answers both versions for the services of one server. An instance belongs to one event loop."""

    def __init__(self, services: Iterable[str]) -> None:
        described = (*services, _SERVICES[1])
        self._services = sorted({*described, *_SERVICES})
        self._index = DescriptorIndex(described)
        self._drained = asyncio.Event()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve both versions on a server that has not started yet."""
        method = grpc.stream_stream_rpc_method_handler(
            self.ServerReflectionInfo,
            request_deserializer=pb.ServerReflectionRequest.FromString,
            response_serializer=pb.ServerReflectionResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers(
            tuple(
                grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": method}) for service in _SERVICES
            )
        )

    def drain(self) -> None:
        """End every stream: an idle one would hold up the stop of the server for its whole grace."""
        self._drained.set()

    async def ServerReflectionInfo(
        self, requests: AsyncIterator[pb.ServerReflectionRequest], context: _Context
    ) -> AsyncIterator[pb.ServerReflectionResponse]:
        """Answer each request, until the caller is done or the server drains."""
        drained = asyncio.ensure_future(self._drained.wait())
        reading: asyncio.Future[pb.ServerReflectionRequest | None] | None = None
        try:
            while True:
                reading = asyncio.ensure_future(_next(requests))
                await asyncio.wait({reading, drained}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done() or (request := reading.result()) is None:
                    return
                yield self.answer(request)
        finally:
            for waiting in (drained, reading):
                if waiting is not None:
                    waiting.cancel()

    def answer(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        """Return the answer to one request; what is not there is an answer too, with the code NOT_FOUND."""
        answer = pb.ServerReflectionResponse(valid_host=request.host, original_request=request)
        files: list[bytes] | None = None
        match request.WhichOneof("message_request"):
            case "list_services":
                answer.list_services_response.service.extend(
                    pb.ServiceResponse(name=service) for service in self._services
                )
                return answer
            case "all_extension_numbers_of_type":
                asked = request.all_extension_numbers_of_type
                if (numbers := self._index.extension_numbers(asked)) is not None:
                    answer.all_extension_numbers_response.base_type_name = asked
                    answer.all_extension_numbers_response.extension_number.extend(numbers)
                    return answer
            case "file_by_filename":
                asked = request.file_by_filename
                files = self._index.file(asked)
            case "file_containing_symbol":
                asked = request.file_containing_symbol
                files = self._index.symbol(asked)
            case "file_containing_extension":
                extension = request.file_containing_extension
                asked = f"extension {extension.extension_number} of {extension.containing_type}"
                files = self._index.extension(extension.containing_type, extension.extension_number)
            case _:
                answer.error_response.error_code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
                answer.error_response.error_message = "the request asks for nothing: set one field of message_request"
                return answer
        if files is None:
            answer.error_response.error_code = grpc.StatusCode.NOT_FOUND.value[0]
            answer.error_response.error_message = f"not found: {asked}"
        else:
            answer.file_descriptor_response.file_descriptor_proto.extend(files)
        return answer


async def _next(requests: AsyncIterator[pb.ServerReflectionRequest]) -> pb.ServerReflectionRequest | None:
    async for request in requests:
        return request
    return None
