"""Values of OTLP/JSON: strict readers, so that two texts give one value only if every OTLP reader agrees.

OTLP/JSON is protobuf's JSON mapping with hexadecimal ids (https://opentelemetry.io/docs/specs/otlp/,
"JSON Protobuf Encoding"). A member that is null is one that is absent; a 64-bit integer is a number or a decimal
string. All readers raise InvalidSpan, naming the place and never quoting a value.
"""

import math
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

from betrace.kms.v1 import span_pb2 as pb
from betrace_kms_evidence import InvalidSpan

MAX_DEPTH = 20
"""Levels of lists in lists; three messages each, of the hundred that protobuf readers accept (with those around)."""

_DECIMAL = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_HEX = re.compile(r"[0-9A-Fa-f]*", re.ASCII)


def members_of(value: Any, known: Set[str], place: str) -> dict[str, Any]:
    """Return the members of an object that are not null; one that is not known is refused."""
    if not isinstance(value, dict):
        raise InvalidSpan(f"{place} must be a JSON object")
    if unknown := value.keys() - known:
        raise InvalidSpan(f"{place} has a member {min(unknown)!r} that is not known here, and could not be signed")
    return {name: member for name, member in value.items() if member is not None}


def items_of(value: Any, place: str) -> list[Any]:
    """Return the items of a list; an absent one is empty."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidSpan(f"{place} must be a JSON list")
    return value


def text_of(value: Any, place: str) -> str:
    """Return a text; an absent one is empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidSpan(f"{place} must be a JSON string")
    return value


def integer_of(value: Any, low: int, high: int, place: str) -> int:
    """Return an integer between `low` and `high`, both included; an absent one is 0."""
    if value is None:
        return 0
    number = None
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and _DECIMAL.fullmatch(value):
        number = int(value)
    if number is None or not low <= number <= high:
        raise InvalidSpan(f"{place} must be an integer from {low} to {high}, as a number or a decimal string")
    return number


def id_of(value: Any, size: int, place: str) -> bytes:
    """Return the bytes of a trace or span id; none for an absent or empty one."""
    digits = text_of(value, place)
    if digits and (len(digits) != 2 * size or not _HEX.fullmatch(digits)):
        raise InvalidSpan(f"{place} must be {2 * size} hexadecimal digits")
    return bytes.fromhex(digits)


def bytes_of(value: Any, place: str) -> bytes:
    """Return the bytes that a base64 text stands for: standard alphabet, padding, no stray bits."""
    text = text_of(value, place)
    try:
        decoded = b64decode(text, validate=True)
    except ValueError:
        decoded = b""
    if b64encode(decoded) != text.encode():
        raise InvalidSpan(f"{place} must be base64 with padding")
    return decoded


def read_value(value: Any, into: pb.AttributeValue, place: str, depth: int = 0) -> None:
    """Read an AnyValue; an absent or empty one is OpenTelemetry's empty value."""
    if value is None:
        return
    if not isinstance(value, dict) or len(value) > 1:
        raise InvalidSpan(f"{place} must be one typed value such as {{'stringValue': 'text'}}")
    if depth > MAX_DEPTH:
        raise InvalidSpan(f"{place} is nested too deeply: more than {MAX_DEPTH} levels")
    for kind, content in value.items():
        if (read := _KINDS.get(kind)) is None:
            raise InvalidSpan(f"{place} has a value of type {kind!r}, which is not known here")
        if content is not None:
            read(content, into, place, depth)


def read_pairs(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Give the keys and unread values of a list of KeyValue; a key that comes twice is refused."""
    seen = set()
    for item in items_of(value, place):
        pair = members_of(item, _PAIR, f"an item of {place}")
        key = text_of(pair.get("key"), f"a key of {place}")
        if key in seen:
            raise InvalidSpan(f"{place} has the key {key!r} twice")
        seen.add(key)
        yield key, pair.get("value")


def read_pairs_into(value: Any, into: pb.KeyValueList, place: str, depth: int = 0) -> None:
    """Read a list of KeyValue."""
    for key, item in read_pairs(value, place):
        pair = into.values.add(key=key)
        pair.value.SetInParent()
        read_value(item, pair.value, place, depth)


def _string(content: Any, into: pb.AttributeValue, place: str, _: int) -> None:
    into.string_value = text_of(content, place)


def _bool(content: Any, into: pb.AttributeValue, place: str, _: int) -> None:
    if not isinstance(content, bool):
        raise InvalidSpan(f"{place} must be true or false")
    into.bool_value = content


def _int(content: Any, into: pb.AttributeValue, place: str, _: int) -> None:
    into.int_value = integer_of(content, -(2**63), 2**63 - 1, place)


def _double(content: Any, into: pb.AttributeValue, place: str, _: int) -> None:
    if content in ("NaN", "Infinity", "-Infinity"):
        raise InvalidSpan(f"{place} holds NaN or an infinity, which cannot be signed")
    if isinstance(content, bool) or not isinstance(content, int | float) or not math.isfinite(content):
        raise InvalidSpan(f"{place} must be a number")
    into.double_value = content


def _bytes(content: Any, into: pb.AttributeValue, place: str, _: int) -> None:
    into.bytes_value = bytes_of(content, place)


def _array(content: Any, into: pb.AttributeValue, place: str, depth: int) -> None:
    into.array_value.SetInParent()
    for item in items_of(members_of(content, _VALUES, place).get("values"), place):
        read_value(item, into.array_value.values.add(), place, depth + 1)


def _kvlist(content: Any, into: pb.AttributeValue, place: str, depth: int) -> None:
    into.kvlist_value.SetInParent()
    read_pairs_into(members_of(content, _VALUES, place).get("values"), into.kvlist_value, place, depth + 1)


_PAIR, _VALUES = frozenset({"key", "value"}), frozenset({"values"})
_KINDS: Mapping[str, Callable[[Any, pb.AttributeValue, str, int], None]] = {
    "stringValue": _string,
    "boolValue": _bool,
    "intValue": _int,
    "doubleValue": _double,
    "bytesValue": _bytes,
    "arrayValue": _array,
    "kvlistValue": _kvlist,
}
