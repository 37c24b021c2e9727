"""Reflection over a real server: both versions, every kind of name, and what is not there."""

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import admin_pb2, key_management_pb2
from betrace_kms_server.rpc.health import KEY_MANAGEMENT
from betrace_kms_server.rpc.reflection import DescriptorIndex, Reflection
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2

V1, V1ALPHA = "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"
KEY_MANAGEMENT_FILE = "betrace/kms/v1/key_management.proto"
NOT_FOUND, INVALID_ARGUMENT = grpc.StatusCode.NOT_FOUND.value[0], grpc.StatusCode.INVALID_ARGUMENT.value[0]

Ask = Callable[..., Any]
"""Sends one request, whose fields are given, and returns the answer."""

HEALTH = "grpc.health.v1.Health"


@asynccontextmanager
async def served(reflection: Reflection) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    reflection.add_to(server)
    with tempfile.TemporaryDirectory(prefix="kms") as folder:
        server.add_insecure_port(f"unix:{folder}/kms.sock")
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{folder}/kms.sock") as channel:
            yield channel
        await server.stop(None)


def asking(channel: grpc.aio.Channel, service: str, request_type: Any, response_type: Any) -> Ask:
    method = channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=request_type.SerializeToString,
        response_deserializer=response_type.FromString,
    )

    async def ask(**fields: Any) -> Any:
        (answer,) = [answer async for answer in method(iter([request_type(**fields)]))]
        return answer

    return ask


@pytest.fixture(params=[V1, V1ALPHA])
async def ask(request: pytest.FixtureRequest) -> AsyncIterator[Ask]:
    """Give a client of either version; that of v1 knows only what the daemon itself says of v1."""
    async with served(Reflection((KEY_MANAGEMENT, HEALTH))) as channel:
        v1alpha = asking(
            channel, V1ALPHA, reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse
        )
        if request.param == V1ALPHA:
            yield v1alpha
            return
        answer = await v1alpha(file_containing_symbol=V1)
        pool = DescriptorPool()
        for file in answer.file_descriptor_response.file_descriptor_proto:
            pool.AddSerializedFile(file)
        method = pool.FindServiceByName(V1).methods_by_name["ServerReflectionInfo"]
        assert (method.client_streaming, method.server_streaming) == (True, True)
        yield asking(channel, V1, GetMessageClass(method.input_type), GetMessageClass(method.output_type))


def files(answer: Any) -> list[str]:
    """Return the names of the files in an answer, in their order."""
    return [FileDescriptorProto.FromString(file).name for file in answer.file_descriptor_response.file_descriptor_proto]


async def test_services_are_listed(ask: Ask) -> None:
    """Everything that is served, and nothing that is not."""
    answer = await ask(list_services="*", host="here")
    assert [KEY_MANAGEMENT, HEALTH, V1, V1ALPHA] == [service.name for service in answer.list_services_response.service]
    assert ("here", "here") == (answer.valid_host, answer.original_request.host)


def every_symbol(file: FileDescriptorProto) -> Iterator[str]:
    """Give the names of a file without nested types or extensions in the way that protobuf's documents form them."""
    for message in file.message_type:
        name = f"{file.package}.{message.name}"
        yield name
        yield from (f"{name}.{field.name}" for field in message.field)
        yield from (f"{name}.{oneof.name}" for oneof in message.oneof_decl)
        for nested in message.nested_type:
            yield f"{name}.{nested.name}"
            yield f"{name}.{nested.name}.value"
    for enum in file.enum_type:
        yield f"{file.package}.{enum.name}"
        for value in enum.value:
            yield f"{file.package}.{value.name}"
            yield f"{file.package}.{enum.name}.{value.name}"
    for service in file.service:
        yield f"{file.package}.{service.name}"
        yield from (f"{file.package}.{service.name}.{method.name}" for method in service.method)


async def test_every_name_is_found_with_its_file_first(ask: Ask) -> None:
    """Services, methods, messages, fields, oneofs, map entries, enums and their values; dependencies follow."""
    file = FileDescriptorProto.FromString(key_management_pb2.DESCRIPTOR.serialized_pb)
    symbols = list(every_symbol(file))
    assert {
        "betrace.kms.v1.KeyManagementService.Encrypt",
        "betrace.kms.v1.AES_256",
        "betrace.kms.v1.EncryptRequest.EncryptionContextEntry.value",
    } <= set(symbols)
    found = {symbol: files(await ask(file_containing_symbol=symbol)) for symbol in symbols}
    assert {symbol: KEY_MANAGEMENT_FILE for symbol in symbols} == {symbol: names[0] for symbol, names in found.items()}
    assert {"betrace/kms/v1/span.proto", "google/protobuf/timestamp.proto"} <= set(found[symbols[0]])
    assert {len(names) for names in found.values()} == {len(set(names)) for names in found.values()}


@pytest.mark.parametrize(
    "asked",
    [
        {"file_containing_symbol": "betrace.kms.v1.KeyManagementService.Nope"},
        {"file_containing_symbol": "betrace.kms.v1.KeyManagementService.Encrypt.Nope"},
        {"file_containing_symbol": "betrace.kms.v1"},
        {"file_containing_symbol": ""},
        {"file_containing_symbol": "."},
        {"file_by_filename": "nope.proto"},
        {"file_by_filename": ""},
        {"file_containing_extension": {"containing_type": "google.protobuf.MethodOptions", "extension_number": 9}},
        {"file_containing_extension": {"containing_type": "no.Such", "extension_number": 1}},
        {"all_extension_numbers_of_type": "no.Such"},
        {"all_extension_numbers_of_type": KEY_MANAGEMENT},
        {"file_containing_symbol": admin_pb2.DESCRIPTOR.services_by_name["KmsAdminService"].full_name},
        {"file_by_filename": "betrace/kms/v1/admin.proto"},
    ],
    ids=str,
)
async def test_what_is_not_there_is_not_found(ask: Ask, asked: dict[str, Any]) -> None:
    """An answer with NOT_FOUND, not the end of the stream. The admin service is not served here, and not described."""
    answer = await ask(**asked)
    assert NOT_FOUND == answer.error_response.error_code
    assert answer.error_response.error_message.startswith("not found: ")
    assert asked.keys() == {answer.original_request.WhichOneof("message_request")}


async def test_an_empty_request_is_refused_alone(ask: Ask) -> None:
    """A request that asks for nothing is an error response."""
    assert INVALID_ARGUMENT == (await ask()).error_response.error_code


async def test_a_message_without_extensions_has_none(ask: Ask) -> None:
    """No extension is an answer; no message is none."""
    answer = await ask(all_extension_numbers_of_type="betrace.kms.v1.EncryptRequest")
    numbers = answer.all_extension_numbers_response
    assert ("betrace.kms.v1.EncryptRequest", []) == (numbers.base_type_name, list(numbers.extension_number))


async def test_details_of_errors_are_described(ask: Ask) -> None:
    """A tool that prints a refusal asks for the types of its details."""
    assert "google/rpc/error_details.proto" == files(await ask(file_containing_symbol="google.rpc.ErrorInfo"))[0]
    assert (
        "google/protobuf/descriptor.proto" == files(await ask(file_by_filename="google/protobuf/descriptor.proto"))[0]
    )


async def test_one_stream_takes_many_requests() -> None:
    """Answers come in the order of the requests, and an unknown name ends nothing."""
    async with served(Reflection((KEY_MANAGEMENT,))) as channel:
        call = channel.stream_stream(
            f"/{V1}/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        names = [KEY_MANAGEMENT, "no.Such", f"{KEY_MANAGEMENT}.Decrypt"]
        answers = [
            answer
            async for answer in call(
                iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in names])
            )
        ]
    kinds = [answer.WhichOneof("message_response") for answer in answers]
    assert ["file_descriptor_response", "error_response", "file_descriptor_response"] == kinds
    assert names == [answer.original_request.file_containing_symbol for answer in answers]


def extended_file() -> FileDescriptorProto:
    """Make a proto2 file with nested types and extensions at the top and inside a message."""
    file = FileDescriptorProto(name="a/extended.proto")
    base = file.message_type.add(name="Base")
    base.extension_range.add(start=100, end=200)
    nested = base.nested_type.add(name="Inner").nested_type.add(name="Innermost")
    nested.enum_type.add(name="Kind").value.add(name="ONE", number=1)
    string = {"type": FieldDescriptorProto.TYPE_STRING, "label": FieldDescriptorProto.LABEL_OPTIONAL}
    file.extension.add(name="outer", number=150, extendee=".Base", **string)
    file.message_type.add(name="Other").extension.add(name="inner", number=101, extendee=".Base", **string)
    file.service.add(name="Service").method.add(name="Call", input_type=".Base", output_type=".Base")
    return file


def test_nested_types_and_extensions_of_a_file_without_a_package() -> None:
    """Names have no package before them then; extensions are found by number wherever they are defined."""
    pool = DescriptorPool()
    pool.AddSerializedFile(extended_file().SerializeToString())
    index = DescriptorIndex(["Service"], pool)
    whole = [extended_file().SerializeToString()]
    names = ["Base.Inner.Innermost.ONE", "Base.Inner.Innermost.Kind.ONE", "outer", "Other.inner", "Service.Call"]
    assert [whole] * len(names) == [index.symbol(name) for name in names]
    assert [101, 150] == index.extension_numbers("Base")
    assert [whole, whole, None] == [index.extension("Base", number) for number in (101, 150, 102)]
