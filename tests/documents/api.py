"""Writes docs/api.md: every call, message and enum of the protos, with their comments as they stand there.

protoc-gen-doc would need Go wherever a proto changes; the compiler of grpcio-tools is here already. Run it by
`make api-docs`.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import _proto, protoc

from tests.interop.tools import ROOT

DOCUMENT = ROOT / "docs" / "api.md"
_PACKAGE = "betrace.kms.v1"
_FILES = tuple(f"betrace/kms/v1/{name}.proto" for name in ("key_management", "span", "admin"))
_HEAD = """\
# API

The calls, messages and fields of `betrace.kms.v1`. `make api-docs` makes this page from
[the protos](../protos/betrace/kms/v1); change their comments, and not this page. [clients.md](clients.md) has what to
give to gRPC, [troubleshooting.md](troubleshooting.md) what each error means. A daemon describes itself, too:

```bash
grpcurl -plaintext 127.0.0.1:50051 describe betrace.kms.v1.EncryptRequest
```
"""
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6
_PART = 2
"""Numbers of descriptor.proto, of which the path to a comment consists: a field, value or method is the second of its
parent's fields."""


def api_document() -> str:
    """Return the text of docs/api.md."""
    files = [file for file in _descriptors().file if file.package == _PACKAGE]
    files.sort(key=lambda file: _FILES.index(file.name))
    sections = chain(*map(_services, files), ["## Messages\n"], *map(_messages, files))
    return "\n".join([_HEAD, *sections])


def _descriptors() -> FileDescriptorSet:
    with TemporaryDirectory() as folder:
        output = Path(folder) / "descriptors"
        includes = (f"-I{ROOT / 'protos'}", f"-I{Path(next(iter(_proto.__path__)))}")
        flags = ("--include_source_info", f"--descriptor_set_out={output}")
        if protoc.main(["protoc", *includes, *flags, *_FILES]):
            raise SystemExit("protoc refused the protos: see above")
        return FileDescriptorSet.FromString(output.read_bytes())


def _comment(file: FileDescriptorProto, *path: int) -> Sequence[str]:
    """Return the paragraphs and the list items of the comment before a definition."""
    for location in file.source_code_info.location:
        if tuple(location.path) == path:
            parts = re.split(r"\n\n|\n(?= - )", location.leading_comments)
            return [" ".join(part.split()) for part in parts if part.strip()]
    return []


def _services(file: FileDescriptorProto) -> Iterator[str]:
    for number, service in enumerate(file.service):
        yield from (f"## {service.name}\n", *_paragraphs(_comment(file, _SERVICE, number)))
        yield from _methods(file, number, service)


def _methods(file: FileDescriptorProto, number: int, service: ServiceDescriptorProto) -> Iterator[str]:
    for place, method in enumerate(service.method):
        yield from (f"### {method.name}\n", *_paragraphs(_comment(file, _SERVICE, number, _PART, place)))
        yield f"Takes {_link(method.input_type)}, returns {_link(method.output_type)}.\n"


def _messages(file: FileDescriptorProto) -> Iterator[str]:
    for number, message in enumerate(file.message_type):
        yield from (f"### {message.name}\n", *_paragraphs(_comment(file, _MESSAGE, number)))
        yield from _fields(file, number, message)
    for number, enum in enumerate(file.enum_type):
        yield from (f"### {enum.name}\n", *_paragraphs(_comment(file, _ENUM, number)))
        yield from _values(file, number, enum)


def _fields(file: FileDescriptorProto, number: int, message: DescriptorProto) -> Iterator[str]:
    if not message.field:
        yield "It has no fields.\n"
        return
    yield "| field | number | type | |\n|---|---|---|---|"
    for place, field in enumerate(message.field):
        text = _cell(_comment(file, _MESSAGE, number, _PART, place))
        yield f"| `{field.name}` | {field.number} | {_type(field, message)} | {text} |"
    yield ""


def _values(file: FileDescriptorProto, number: int, enum: EnumDescriptorProto) -> Iterator[str]:
    yield "| value | number | |\n|---|---|---|"
    for place, value in enumerate(enum.value):
        yield f"| `{value.name}` | {value.number} | {_cell(_comment(file, _ENUM, number, _PART, place))} |"
    yield ""


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    entries = {f".{_PACKAGE}.{message.name}.{nested.name}": nested for nested in message.nested_type}
    if field.type_name in entries:
        key, value = entries[field.type_name].field
        return f"map of {_type(key, message)} to {_type(value, message)}"
    scalar = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    name = _link(field.type_name) if field.type_name else scalar
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    if field.proto3_optional:
        return f"optional {name}"
    if field.HasField("oneof_index"):
        return f"{name}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return name


def _link(type_name: str) -> str:
    name = type_name.removeprefix(f".{_PACKAGE}.")
    return f"`{name[1:]}`" if name.startswith(".") else f"[{name}](#{name.lower()})"


def _paragraphs(paragraphs: Sequence[str]) -> Iterator[str]:
    return (f"{paragraph}\n" for paragraph in paragraphs)


def _cell(paragraphs: Sequence[str]) -> str:
    return " ".join(paragraphs).replace("|", "\\|")


if __name__ == "__main__":
    DOCUMENT.write_text(api_document(), "utf-8")
    sys.stdout.write(f"wrote {DOCUMENT.relative_to(ROOT)}\n")
