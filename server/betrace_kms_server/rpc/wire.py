"""Counts what a request holds before protobuf parses it: a few bytes can be an entry that takes microseconds to parse.

protobuf needs 1 to 2 s for 300,000 pairs of an encryption context, and the event loop waits. So the bytes of a large
request are walked field by field (https://protobuf.dev/programming-guides/encoding), and the walk ends at the first
bound that is passed. Texts and bytes are passed over, and so are messages of at most `SMALL_BYTES`: what one of them
can hold does not matter, and how many there are is counted. protobuf merges what a field that is not repeated is given
again, so a span could come in a thousand small parts; such a request is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from betrace.kms.v1 import key_management_pb2, span_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from betrace_kms_server.core.errors import InvalidRequest
from betrace_kms_server.core.tenancy import MAX_CONTEXT_PAIRS

SMALL_BYTES = 4_096
MAX_ITEMS = 1_000
"""Of a batch."""
MAX_ATTRIBUTES_OF_SPAN = 1_024
MAX_ATTRIBUTES_OF_CALL = 16_384
"""Of all that is walked, with what lists and maps hold."""
MAX_DEPTH = 32
MAX_FIELDS = 65_536
"""Of the messages that are walked."""

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_ATTRIBUTES = span_pb2.ComplianceSpan.DESCRIPTOR.fields_by_name["attributes"].full_name
_IN_ATTRIBUTES = frozenset({span_pb2.ArrayValue.DESCRIPTOR, span_pb2.KeyValueList.DESCRIPTOR})


class Unreadable(Exception):
    """Not the wire format as proto3 has it. Groups, which protobuf still passes over, are none of it."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a message's fields are, by the numbers of those that hold messages."""

    children: Mapping[int, "_Shape"] = field(repr=False)
    bounds: Mapping[int, tuple[int, str]]
    """How many a message may have of each of them, and what they are called."""
    attributes: frozenset[int]
    """Fields that count as attributes of the call."""


@dataclass(slots=True)
class _Walk:
    """What was counted so far, in the whole request."""

    data: bytes = field(repr=False)
    fields: int = 0
    attributes: int = 0


def check_of(method: str) -> Callable[[bytes], None] | None:
    """Return what checks a request of a method ("/package.Service/Method") of KeyManagementService; None for others.

    It raises InvalidRequest, which names the bound that the request passes, and Unreadable for bytes that it cannot
    walk to their end: what was not counted must not be parsed.
    """
    shape = _SHAPES.get(method)
    if shape is None:
        return None

    def check(wire: bytes) -> None:
        if len(wire) > SMALL_BYTES:
            try:
                _walk(_Walk(wire), shape, 0, len(wire), 1)
            except IndexError:  # it ends within a field
                raise Unreadable from None

    return check


def _walk(walk: _Walk, shape: _Shape, at: int, end: int, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"the request is nested more than {MAX_DEPTH} deep: flatten its attributes")
    counts: dict[int, int] = {}
    data = walk.data
    while at < end:
        walk.fields += 1
        if walk.fields > MAX_FIELDS:
            raise InvalidRequest(f"the request has more than {MAX_FIELDS:,} fields: send less in one call")
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _LEN:
            size, at = _varint(data, at)
            child = shape.children.get(number)
            if child is not None:
                _count(walk, shape, number, counts)
                if size > SMALL_BYTES:
                    _walk(walk, child, at, min(at + size, end), depth + 1)
            at += size
        elif kind == _VARINT:
            _, at = _varint(data, at)
        elif kind in (_I64, _I32):
            at += 8 if kind == _I64 else 4
        else:
            raise Unreadable
    if at > end:
        raise Unreadable


def _count(walk: _Walk, shape: _Shape, number: int, counts: dict[int, int]) -> None:
    limit, what = shape.bounds[number]
    counts[number] = found = counts.get(number, 0) + 1
    if found > limit == 1:
        raise InvalidRequest(f"the request gives {what} more than once: give it whole")
    if found > limit:
        raise InvalidRequest(f"the request has more than {limit:,} {what}: send fewer")
    if number in shape.attributes:
        walk.attributes += 1
        if walk.attributes > MAX_ATTRIBUTES_OF_CALL:
            raise InvalidRequest(
                f"the request has more than {MAX_ATTRIBUTES_OF_CALL:,} attributes, with what lists and maps in them"
                " hold: send fewer spans in one call"
            )


def _varint(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while True:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
        if shift > 63:
            raise Unreadable


def _bound_of(each: FieldDescriptor) -> tuple[int, str]:
    if not each.is_repeated:
        return 1, each.name
    if each.full_name == _ATTRIBUTES:
        return MAX_ATTRIBUTES_OF_SPAN, "attributes in one span"
    if each.name.endswith("encryption_context"):
        return MAX_CONTEXT_PAIRS, f"pairs in {each.name}"
    if each.name in ("spans", "items"):
        return MAX_ITEMS, each.name
    return MAX_ATTRIBUTES_OF_CALL, f"entries in {each.name}"


def _shape_of(message: Descriptor | None, known: dict[str, _Shape]) -> _Shape:
    if message is None:
        return _Shape({}, {}, frozenset())
    if message.full_name in known:
        return known[message.full_name]
    children: dict[int, _Shape] = {}
    holding: Sequence[FieldDescriptor] = [each for each in message.fields if each.message_type is not None]
    attributes = [
        each.number for each in holding if each.full_name == _ATTRIBUTES or each.containing_type in _IN_ATTRIBUTES
    ]
    shape = known[message.full_name] = _Shape(
        children, {each.number: _bound_of(each) for each in holding}, frozenset(attributes)
    )
    children.update({each.number: _shape_of(each.message_type, known) for each in holding})
    return shape


def _shapes() -> Mapping[str, _Shape]:
    service = key_management_pb2.DESCRIPTOR.services_by_name["KeyManagementService"]
    known: dict[str, _Shape] = {}
    return {f"/{service.full_name}/{method.name}": _shape_of(method.input_type, known) for method in service.methods}


_SHAPES = _shapes()
