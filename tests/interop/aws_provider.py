"""Lets Terraform check and plan a configuration without the AWS provider: a plug-in that has its schema and no more.

No package registry has the provider as a binary. Its schema is all that `terraform validate` needs, and all that
`terraform test` needs of a provider that it mocks: aws_schema.json, which aws_schema_extract.py makes.

Terraform connects to the plug-in as to one in a debugger (TF_REATTACH_PROVIDERS). The messages are those of its plug-in
protocol, version 5, docs/plugin-protocol/tfplugin5.proto of Terraform, as far as a schema needs them. Values are not
judged: a malformed ARN or a name that is too long passes.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from tests.interop.aws_schema_extract import SCHEMA

_NESTING = {"single": 1, "list": 2, "set": 3, "map": 4, "group": 5}


@contextmanager
def aws_schema() -> Iterator[Mapping[str, str]]:
    """Run the plug-in on a port of 127.0.0.1; gives the variables by which Terraform finds it."""
    schema = json.loads(SCHEMA.read_text("utf-8"))
    answer = _field(1, _schema({"block": {"attributes": {"region": {"type": "string", "optional": True}}}}))
    for number, kind in ((2, "resource"), (3, "data")):
        for name, each in schema[kind].items():
            answer += _field(number, _field(1, name.encode()) + _field(2, _schema(each)))
    answers: Mapping[str, Callable[[bytes, grpc.ServicerContext], bytes]] = {
        "GetSchema": lambda request, _: answer,
        "PrepareProviderConfig": lambda request, _: request,  # both are one DynamicValue
        **dict.fromkeys(
            ("Configure", "Stop", "ValidateResourceTypeConfig", "ValidateDataSourceConfig"), lambda request, _: b""
        ),
    }
    handlers: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(answer) for name, answer in answers.items()}
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("tfplugin5.Provider", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield {
            "TF_REATTACH_PROVIDERS": json.dumps(
                {
                    "hashicorp/aws": {
                        "Protocol": "grpc",
                        "ProtocolVersion": 5,
                        "Pid": os.getpid(),
                        "Test": True,
                        "Addr": {"Network": "tcp", "String": f"127.0.0.1:{port}"},
                    }
                }
            )
        }
    finally:
        server.stop(None).wait()


def _schema(schema: Mapping[str, Any]) -> bytes:
    return _field(1, schema.get("version", 0)) + _field(2, _block(schema["block"]))


def _block(block: Mapping[str, Any]) -> bytes:
    encoded = b""
    for name, attribute in block.get("attributes", {}).items():
        flags = [_field(number, attribute.get(flag, False)) for number, flag in _FLAGS.items()]
        kind = json.dumps(attribute["type"]).encode()
        encoded += _field(2, _field(1, name.encode()) + _field(2, kind) + b"".join(flags))
    for name, nested in block.get("block_types", {}).items():
        bounds = _field(4, nested.get("min_items", 0)) + _field(5, nested.get("max_items", 0))
        inner = _field(2, _block(nested["block"])) + _field(3, _NESTING[nested["nesting_mode"]])
        encoded += _field(3, _field(1, name.encode()) + inner + bounds)
    return encoded


_FLAGS = {4: "required", 5: "optional", 6: "computed", 7: "sensitive", 9: "deprecated", 10: "write_only"}


def _field(number: int, value: bytes | int) -> bytes:
    """Return a field of a protobuf message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))
