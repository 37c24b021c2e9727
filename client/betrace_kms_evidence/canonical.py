"""The canonical span: the one byte string that stands for a compliance span, and that gets signed.

It is a JSON object in the JSON Canonicalization Scheme (RFC 8785), whose members are, in order:

====================  =====================================================================================
``attributes``        object: name -> value, members ordered by UTF-16 code units (RFC 8785, section 3.2.3)
``control``           string or null
``durationNano``      string: signed decimal nanoseconds; or null
``error``             string or null
``evidenceType``      string or null
``framework``         string or null
``keyId``             string: id of the signing key
``name``              string or null
``parentSpanId``      string: 16 lower-case hexadecimal digits; or null
``result``            string or null
``spanId``            string: 16 lower-case hexadecimal digits
``startTimeUnixNano`` string: signed decimal nanoseconds since the Unix epoch; or null
``tenantId``          string
``traceId``           string: 32 lower-case hexadecimal digits
====================  =====================================================================================

A value is an object whose only member names its type, as in OTLP/JSON: ``{"stringValue": "a"}``, ``{"boolValue":
true}``, ``{"intValue": "42"}`` (64-bit integers are strings, because JSON numbers lose them), ``{"doubleValue": 1.5}``,
``{"bytesValue": "AAE="}`` (base64 with padding), ``{"arrayValue": {"values": [..]}}``, ``{"kvlistValue": {"values":
[{"key": .., "value": ..}]}}`` with the pairs ordered as the members of an object, and ``{}`` for OpenTelemetry's empty
value.

Two spans with equal canonical bytes are the same evidence, so whatever could hide in a span is refused: duplicate keys
of a key-value list, fields that this version does not know, NaN and the infinities, and ids of a wrong length.

orjson writes the text. It differs from RFC 8785 in two ways, both handled here: it does not order members by UTF-16
code units, so they are inserted in that order; and it writes some doubles in another form (1.0, 1e16, 1e-6, -0.0), so
those are formatted by the rfc8785 package.
"""

from binascii import b2a_base64
from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from typing import Any

import orjson
import rfc8785
from betrace.kms.v1 import span_pb2 as pb
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

_NANOS = 1_000_000_000
_ALL_ZERO = (bytes(8), bytes(16))
_LEAST, _MOST = 1e-4, 1e15
"""Between these, orjson writes doubles that are no integers as RFC 8785 does."""
_FIRST_SECOND, _LAST_SECOND = (
    -62_135_596_800,
    253_402_300_799,
)  # 0001-01-01 to 9999-12-31 (google/protobuf/timestamp.proto)
_DURATION_SECONDS = 315_576_000_000  # about 10,000 years (google/protobuf/duration.proto)


class InvalidSpan(ValueError):
    """The span has no canonical form. The message says which field to fix, and never quotes a value."""


def canonical_span(
    tenant_id: str, key_id: str, span: pb.ComplianceSpan, *, unknown_fields_checked: bool = False
) -> bytes:
    """Return the canonical JSON (UTF-8) of a span as signed by one key of one tenant.

    `unknown_fields_checked` skips the search for unknown fields, because `has_unknown_fields` found none in the whole
    request. Raises InvalidSpan for a span that has no canonical form; see the module's description.
    """
    try:
        if not unknown_fields_checked and has_unknown_fields(span):
            raise InvalidSpan(
                "span holds fields that this version does not know and could not sign; upgrade betrace-kms"
            )
        return orjson.dumps(_members(tenant_id, key_id, span))
    except (TypeError, RecursionError) as cause:
        raise InvalidSpan("span is nested too deeply, or holds text that is not UTF-8") from cause


def has_unknown_fields(message: Message) -> bool:
    """Return whether a message holds, however deep, what a newer sender put in and this version would leave unsigned.

    Dropping unknown fields and comparing sizes is the cheapest way to find them; a message that had some
    gets them back.
    """
    wire = message.SerializeToString()
    message.DiscardUnknownFields()
    if message.ByteSize() == len(wire):
        return False
    message.ParseFromString(wire)
    return True


def _members(tenant_id: str, key_id: str, span: pb.ComplianceSpan) -> dict[str, Any]:
    # Reading a field is cheaper than asking whether it is set, so only an empty one is asked.
    has = span.HasField
    attributes = span.attributes
    values = {}
    for name in _in_order(attributes):
        value = attributes[name]
        text = value.string_value  # most are; the others take the long way
        values[name] = {"stringValue": text} if text else _value(value, name)
    return {
        "attributes": values,
        "control": span.control or ("" if has("control") else None),
        "durationNano": _duration(span.duration) if has("duration") else None,
        "error": span.error or ("" if has("error") else None),
        "evidenceType": span.evidence_type or ("" if has("evidence_type") else None),
        "framework": span.framework or ("" if has("framework") else None),
        "keyId": key_id,
        "name": span.name or ("" if has("name") else None),
        "parentSpanId": _id(span.parent_span_id, 8, "parent_span_id") if has("parent_span_id") else None,
        "result": span.result or ("" if has("result") else None),
        "spanId": _id(span.span_id, 8, "span_id"),
        "startTimeUnixNano": nanoseconds(span.start_time, "span.start_time") if has("start_time") else None,
        "tenantId": tenant_id,
        "traceId": _id(span.trace_id, 16, "trace_id"),
    }


def _in_order(names: Iterable[str]) -> list[str]:
    """Sort by UTF-16 code units (RFC 8785, section 3.2.3); for ASCII that is the order of code points."""
    ordered = sorted(names)
    if "".join(ordered).isascii():
        return ordered
    return sorted(ordered, key=lambda name: name.encode("utf-16-be"))


def _id(raw: bytes, size: int, field: str) -> str:
    if len(raw) != size:
        raise InvalidSpan(f"span.{field} must be {size} bytes, not {len(raw)}")
    if raw in _ALL_ZERO:
        raise InvalidSpan(f"span.{field} must not be all zero")
    return raw.hex()


def nanoseconds(time: Timestamp, field: str) -> str:
    """Return the decimal nanoseconds since the Unix epoch. Raises InvalidSpan for a time that is not normalized."""
    seconds, nanos = time.seconds, time.nanos
    if not (_FIRST_SECOND <= seconds <= _LAST_SECOND and 0 <= nanos < _NANOS):
        raise InvalidSpan(f"{field} is not a valid google.protobuf.Timestamp (years 1 to 9999, nanos 0 to 1e9-1)")
    return str(seconds * _NANOS + nanos)


def _duration(length: Duration) -> str:
    seconds, nanos = length.seconds, length.nanos
    if abs(seconds) > _DURATION_SECONDS or abs(nanos) >= _NANOS or seconds * nanos < 0:
        raise InvalidSpan("span.duration is not a valid google.protobuf.Duration (seconds and nanos of one sign)")
    return str(seconds * _NANOS + nanos)


def _value(value: pb.AttributeValue, name: str) -> dict[str, Any]:
    if text := value.string_value:
        return {"stringValue": text}
    if integer := value.int_value:
        return {"intValue": str(integer)}
    if (number := value.double_value) % 1 and _LEAST <= abs(number) < _MOST:
        return {"doubleValue": number}
    kind = value.WhichOneof("value")
    return {} if kind is None else _KINDS[kind](value, name)


def _double(number: float, name: str) -> orjson.Fragment:
    if not isfinite(number):
        raise InvalidSpan(f"attribute {name[:64]!r} holds NaN or an infinity, which JSON cannot carry")
    return orjson.Fragment(rfc8785.dumps(number))


def _pairs(pairs: pb.KeyValueList, name: str) -> list[dict[str, Any]]:
    by_key = {pair.key: pair.value for pair in pairs.values}
    if len(by_key) != len(pairs.values):
        raise InvalidSpan(f"attribute {name[:64]!r} holds a key-value list with a duplicate key")
    return [{"key": key, "value": _value(by_key[key], name)} for key in _in_order(by_key)]


_KINDS: Mapping[str, Callable[[pb.AttributeValue, str], dict[str, Any]]] = {
    "string_value": lambda value, _: {"stringValue": value.string_value},
    "bool_value": lambda value, _: {"boolValue": value.bool_value},
    "int_value": lambda value, _: {"intValue": str(value.int_value)},
    "double_value": lambda value, name: {"doubleValue": _double(value.double_value, name)},
    "array_value": lambda value, name: {
        "arrayValue": {"values": [_value(item, name) for item in value.array_value.values]}
    },
    "kvlist_value": lambda value, name: {"kvlistValue": {"values": _pairs(value.kvlist_value, name)}},
    "bytes_value": lambda value, _: {"bytesValue": b2a_base64(value.bytes_value, newline=False).decode("ascii")},
}
