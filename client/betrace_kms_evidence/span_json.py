"""The JSON form of a span, for files and for people.

It has the members of the canonical span (see canonical.py) without ``tenantId`` and ``keyId``; what is unset may be
left out, and member order does not matter. Writing always gives every field that is set.
"""

from collections.abc import Mapping
from typing import Any

import orjson
from betrace.kms.v1 import span_pb2 as pb
from google.protobuf.json_format import ParseDict, ParseError

from betrace_kms_evidence.canonical import InvalidSpan, canonical_span

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
_MEMBERS = {*_TEXTS, *_IDS, "startTimeUnixNano", "durationNano", "attributes"}


def span_to_json(span: pb.ComplianceSpan) -> dict[str, Any]:
    """Return the span's members as plain JSON values. Raises InvalidSpan for a span that has no canonical form."""
    members: dict[str, Any] = orjson.loads(canonical_span("", "", span))
    return {
        name: value for name, value in members.items() if name not in ("tenantId", "keyId") and value not in (None, {})
    }


def span_from_json(members: Mapping[str, Any]) -> pb.ComplianceSpan:
    """Return the span that the JSON members describe. Raises InvalidSpan, naming the member to mend."""
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
        seconds, nanos = divmod(_integer(members["startTimeUnixNano"], "startTimeUnixNano"), _NANOS)
        _set_time(span.start_time, seconds, nanos, "startTimeUnixNano")
    if members.get("durationNano") is not None:
        total = _integer(members["durationNano"], "durationNano")
        sign = -1 if total < 0 else 1
        seconds, nanos = divmod(abs(total), _NANOS)
        _set_time(span.duration, sign * seconds, sign * nanos, "durationNano")
    for name, value in _typed(members.get("attributes") or {}, dict, "attributes").items():
        try:
            ParseDict(value, span.attributes[name])  # AttributeValue's protobuf JSON form is OTLP/JSON's
        except (ParseError, AttributeError, TypeError, ValueError, UnicodeError):
            raise InvalidSpan(f"attribute {name!r} is not a typed value such as {{'stringValue': 'text'}}") from None
    return span


def _typed(value: Any, kind: type, member: str) -> Any:
    if not isinstance(value, kind):
        raise InvalidSpan(f"{member} must be a JSON {'object' if kind is dict else 'string'}")
    return value


def _hex(value: Any, member: str) -> bytes:
    try:
        return bytes.fromhex(_typed(value, str, member))
    except ValueError as cause:
        raise InvalidSpan(f"{member} must be hexadecimal digits") from cause


def _integer(value: Any, member: str) -> int:
    try:
        return int(_typed(str(value) if isinstance(value, int) else value, str, member))
    except ValueError as cause:
        raise InvalidSpan(f"{member} must be a decimal number of nanoseconds, as a string") from cause


def _set_time(field: Any, seconds: int, nanos: int, member: str) -> None:
    try:
        field.seconds, field.nanos = seconds, nanos
    except ValueError as cause:
        raise InvalidSpan(f"{member} is out of range") from cause
