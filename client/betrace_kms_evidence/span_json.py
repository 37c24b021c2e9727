"""The JSON form of a span, for files and for people.

It has the members of the canonical span (see canonical.py) without ``tenantId`` and ``keyId``, in the same spelling
(strict_json.py); those that are null may be left out, and member order does not matter. Writing always gives every
field that is set.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from betrace.kms.v1 import span_pb2 as pb

from betrace_kms_evidence.canonical import InvalidSpan, canonical_span
from betrace_kms_evidence.strict_json import InvalidDocument, base64_bytes, decimal

_NANOS = 1_000_000_000
_TEXTS = {
    "name": "name",
    "framework": "framework",
    "control": "control",
    "evidenceType": "evidence_type",
    "result": "result",
    "error": "error",
}
_IDS = {"traceId": "trace_id", "spanId": "span_id", "parentSpanId": "parent_span_id"}
_HEX = re.compile(r"([0-9a-f]{2})+", re.ASCII)
MAX_DEPTH = 32
"""Levels of lists in lists that a value may have."""
_FIRST_TIME, _LAST_TIME = -62_135_596_800 * _NANOS, 253_402_300_800 * _NANOS - 1
"""Years 1 to 9999, as google.protobuf.Timestamp has them."""
_LONGEST = 315_576_000_000 * _NANOS + _NANOS - 1
"""Nanoseconds of the longest google.protobuf.Duration."""
_JSON_NAMES = {str: "string", dict: "object", list: "array", bool: "true or false"}
_MEMBERS = {*_TEXTS, *_IDS, "startTimeUnixNano", "durationNano", "attributes"}


def span_to_json(span: pb.ComplianceSpan) -> dict[str, Any]:
    """Return the span's members as plain JSON values. Raises InvalidSpan for a span that has no canonical form."""
    members: dict[str, Any] = orjson.loads(canonical_span("", "", span))
    return {
        name: value for name, value in members.items() if name not in ("tenantId", "keyId") and value not in (None, {})
    }


def span_from_json(members: Mapping[str, Any]) -> pb.ComplianceSpan:
    """Return the span that the JSON members describe. Raises InvalidSpan, naming the member to fix."""
    if unknown := set(members) - _MEMBERS:
        raise InvalidSpan(f"span has no member {min(unknown)!r}; it may have {', '.join(sorted(_MEMBERS))}")
    span = pb.ComplianceSpan()
    for member, field in _TEXTS.items():
        if members.get(member) is not None:
            setattr(span, field, _typed(members[member], str, member))
    for member, field in _IDS.items():
        if members.get(member) is not None:
            setattr(span, field, _hex(members[member], member))
    if members.get("startTimeUnixNano") is not None:
        seconds, nanos = divmod(
            _integer(members["startTimeUnixNano"], "startTimeUnixNano", low=_FIRST_TIME, high=_LAST_TIME), _NANOS
        )
        _set_time(span.start_time, seconds, nanos, "startTimeUnixNano")
    if members.get("durationNano") is not None:
        total = _integer(members["durationNano"], "durationNano", low=-_LONGEST, high=_LONGEST)
        sign = -1 if total < 0 else 1
        seconds, nanos = divmod(abs(total), _NANOS)
        _set_time(span.duration, sign * seconds, sign * nanos, "durationNano")
    if members.get("attributes") is not None:
        for name, value in _typed(members["attributes"], dict, "attributes").items():
            try:
                _read_value(value, span.attributes[_typed(name, str, "attributes")])
            except (LookupError, OverflowError, RecursionError, TypeError, ValueError):
                raise InvalidSpan(
                    f"attribute {name!r} is not a typed value such as {{'stringValue': 'text'}}"
                ) from None
    return span


def _read_value(typed: Any, value: pb.AttributeValue, depth: int = 0) -> None:
    """Read one typed value of OTLP/JSON; raises some ValueError, TypeError or LookupError if it is none."""
    if depth > MAX_DEPTH:
        raise ValueError
    if not isinstance(typed, dict) or len(typed) > 1:
        raise TypeError
    for kind, content in typed.items():
        if kind == "arrayValue":
            value.array_value.SetInParent()
            for item in _only(content, "values", list):
                _read_value(item, value.array_value.values.add(), depth + 1)
        elif kind == "kvlistValue":
            value.kvlist_value.SetInParent()
            for pair in _only(content, "values", list):
                added = value.kvlist_value.values.add(key=_typed(pair["key"], str, "key"))
                added.value.SetInParent()
                _read_value(pair["value"], added.value, depth + 1)
                if len(pair) != 2:
                    raise TypeError
        else:
            field, read = _SCALARS[kind]
            setattr(value, field, read(content))


def _only(content: Any, member: str, kind: type) -> Any:
    """Return the only member of an object."""
    if not isinstance(content, dict) or set(content) != {member}:
        raise TypeError
    return _typed(content[member], kind, member)


def _double(content: Any) -> float:
    if isinstance(content, bool) or not isinstance(content, int | float):
        raise TypeError
    return float(content)


_SCALARS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "stringValue": ("string_value", lambda content: _typed(content, str, "stringValue")),
    "boolValue": ("bool_value", lambda content: _typed(content, bool, "boolValue")),
    "intValue": ("int_value", lambda content: decimal(content, "intValue", low=-(2**63), high=2**63 - 1)),
    "doubleValue": ("double_value", _double),
    "bytesValue": ("bytes_value", lambda content: base64_bytes(content, "bytesValue")),
}


def _typed(value: Any, kind: type, member: str) -> Any:
    if not isinstance(value, kind):
        raise InvalidSpan(f"{member} must be a JSON {_JSON_NAMES[kind]}")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as cause:
            raise InvalidSpan(f"{member} is not valid Unicode") from cause
    return value


def _hex(value: Any, member: str) -> bytes:
    if not _HEX.fullmatch(_typed(value, str, member)):
        raise InvalidSpan(f"{member} must be lower-case hexadecimal digits, two for each byte")
    return bytes.fromhex(value)


def _integer(value: Any, member: str, *, low: int, high: int) -> int:
    try:
        return decimal(value, member, low=low, high=high)
    except InvalidDocument as cause:
        raise InvalidSpan(str(cause)) from cause


def _set_time(field: Any, seconds: int, nanos: int, member: str) -> None:
    try:
        field.seconds, field.nanos = seconds, nanos
    except ValueError as cause:
        raise InvalidSpan(f"{member} is out of range") from cause
