"""What rpc/wire.py lets through is within the bounds, counted by protobuf itself after parsing."""

from collections.abc import Iterator, Mapping
from typing import Any
from unittest.mock import patch

from betrace.kms.v1 import key_management_pb2 as pb
from betrace_kms_server.core.tenancy import MAX_CONTEXT_PAIRS
from betrace_kms_server.rpc import wire
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

METHODS = [
    (f"/{service.full_name}/{method.name}", GetMessageClass(method.input_type))
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
MAX_WIRE_BYTES = 4 * 1024 * 1024
_LEAST_BYTES = 2
"""What an element of a repeated field takes at least: its tag and its length."""
_BOUNDS: Mapping[str, int] = {
    "attributes": wire.MAX_ATTRIBUTES_OF_SPAN,
    "encryption_context": MAX_CONTEXT_PAIRS,
    "destination_encryption_context": MAX_CONTEXT_PAIRS,
    "spans": wire.MAX_ITEMS,
    "values": wire.MAX_ATTRIBUTES_OF_CALL,
}


def request_within_bounds(data: bytes) -> None:
    """Check a request, parse it if it passes, and count. Raises InvalidRequest, Unreadable, and AssertionError.

    The first byte chooses the method, the second how often the rest is repeated, and two bounds are smaller than the
    daemon's: as they are, no mutation reaches them.
    """
    with patch.multiple(wire, SMALL_BYTES=64, MAX_FIELDS=1_024):
        _check(data)


def _check(data: bytes) -> None:
    if len(data) < 3:
        return
    method, message = METHODS[data[0] % len(METHODS)]
    request = data[2:] * min(1 + 5 * data[1], max(1, MAX_WIRE_BYTES // len(data)))
    check = wire.check_of(method)
    assert check is not None
    check(request)
    try:
        parsed = message.FromString(request)
    except DecodeError:
        return
    for name, count in _counts(parsed):
        # A message of SMALL_BYTES is not counted; no more than this fits in.
        assert count <= max(_BOUNDS.get(name, wire.MAX_FIELDS), wire.SMALL_BYTES // _LEAST_BYTES), f"{count} {name}"


def _counts(message: Message) -> Iterator[tuple[str, int]]:
    """Yield the name and the length of each repeated field, at any depth."""
    field: FieldDescriptor
    value: Any
    for field, value in message.ListFields():
        if field.is_repeated:
            yield field.name, len(value)
            value = value.values() if hasattr(value, "values") else value
        elif field.message_type is not None:
            value = (value,)
        if field.message_type is not None:
            for child in value:
                if isinstance(child, Message):
                    yield from _counts(child)
