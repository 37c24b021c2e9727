"""How a span of OTLP/JSON becomes a ComplianceSpan, so that nothing in it can be altered unnoticed.

======================================  ==================================================================
OTLP                                    ComplianceSpan
======================================  ==================================================================
traceId, spanId, parentSpanId, name     trace_id, span_id, parent_span_id, name; empty is unset
startTimeUnixNano                       start_time; 0 is unset
endTimeUnixNano                         duration (end - start) if both are set and end >= start,
                                        or else attribute ``otlp.endTimeUnixNano`` (string); 0 is unset
attribute compliance.framework, if a    framework; likewise compliance.control, compliance.result,
string                                  compliance.error and compliance.evidenceType
compliance.evidence_type, if a string   evidence_type, and it stays an attribute, which signs its spelling
span.signature and those beside it      nothing: they are what signing gave (signature.py)
every other attribute                   the attribute as it is
kind                                    ``otlp.kind`` (int)
status                                  ``otlp.status``: key-value list of code (int) and message (string)
events                                  ``otlp.events``: array of key-value lists of timeUnixNano (string),
                                        name, attributes (key-value list), droppedAttributesCount (int)
links                                   ``otlp.links``: array of key-value lists of traceId, spanId (lower
                                        case hexadecimal), traceState, attributes, droppedAttributesCount,
                                        flags
traceState, flags, dropped..Count       ``otlp.traceState`` (string), ``otlp.flags`` (int), ...
======================================  ==================================================================

A member with protobuf's default (0, "", no items) is the same as an absent one, as for every OTLP reader. Two spans
that differ in anything else give different ComplianceSpans: attributes that begin with ``otlp.``, keys that come twice
and members that this module does not know are refused.
"""

from collections.abc import Callable, Mapping
from typing import Any

from betrace.kms.v1 import span_pb2 as pb
from betrace_kms_evidence import InvalidSpan

from betrace_kms_client.otlp.signature import is_signature_attribute
from betrace_kms_client.otlp.values import (
    id_of,
    integer_of,
    items_of,
    members_of,
    read_pairs,
    read_pairs_into,
    read_value,
    text_of,
)

_NANOS = 1_000_000_000
_UINT32, _UINT64 = 2**32 - 1, 2**64 - 1
_RESERVED = "otlp."
_FIELDS = {
    "compliance.framework": "framework",
    "compliance.control": "control",
    "compliance.evidenceType": "evidence_type",
    "compliance.evidence_type": "evidence_type",
    "compliance.result": "result",
    "compliance.error": "error",
}
_KEPT = "compliance.evidence_type"
_KINDS = {
    f"SPAN_KIND_{name}": number
    for number, name in enumerate(("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"))
}
_CODES = {"STATUS_CODE_UNSET": 0, "STATUS_CODE_OK": 1, "STATUS_CODE_ERROR": 2}


def span_from_otlp(members: Any) -> pb.ComplianceSpan:
    """Return what is signed of a span of OTLP/JSON. Raises InvalidSpan, naming what to fix."""
    members = members_of(members, _SPAN, "span")
    span = pb.ComplianceSpan(trace_id=id_of(members.get("traceId"), 16, "traceId"))
    span.span_id = id_of(members.get("spanId"), 8, "spanId")
    if parent := id_of(members.get("parentSpanId"), 8, "parentSpanId"):
        span.parent_span_id = parent
    if name := text_of(members.get("name"), "name"):
        span.name = name
    _read_attributes(members.get("attributes"), span)
    _read_times(members, span)
    for member, read in _BOUND.items():
        if member in members:
            value = pb.AttributeValue()
            read(members[member], value, member)
            if value.WhichOneof("value"):
                span.attributes[_RESERVED + member].CopyFrom(value)
    return span


def _read_attributes(attributes: Any, span: pb.ComplianceSpan) -> None:
    items = [item for item in items_of(attributes, "attributes") if not is_signature_attribute(item)]
    for key, value in read_pairs(items, "attributes"):
        if key.startswith(_RESERVED):
            raise InvalidSpan(f"attribute {key!r} begins with {_RESERVED!r}, which is kept for members of the span")
        field = _FIELDS.get(key)
        text = value.get("stringValue") if field and isinstance(value, dict) and len(value) == 1 else None
        if field and isinstance(text, str):
            if span.HasField(field):  # type: ignore[arg-type]
                raise InvalidSpan("span has compliance.evidenceType and compliance.evidence_type; leave one out")
            setattr(span, field, text)
            if key != _KEPT:
                continue
        read_value(value, span.attributes[key], f"attribute {key!r}")


def _read_times(members: Mapping[str, Any], span: pb.ComplianceSpan) -> None:
    start = integer_of(members.get("startTimeUnixNano"), 0, _UINT64, "startTimeUnixNano")
    end = integer_of(members.get("endTimeUnixNano"), 0, _UINT64, "endTimeUnixNano")
    if start:
        span.start_time.seconds, span.start_time.nanos = divmod(start, _NANOS)
    if start and end >= start:
        span.duration.SetInParent()
        span.duration.seconds, span.duration.nanos = divmod(end - start, _NANOS)
    elif end:
        span.attributes[_RESERVED + "endTimeUnixNano"].string_value = str(end)


def _text(content: Any, into: pb.AttributeValue, place: str) -> None:
    if text := text_of(content, place):
        into.string_value = text


def _uint32(content: Any, into: pb.AttributeValue, place: str) -> None:
    if number := integer_of(content, 0, _UINT32, place):
        into.int_value = number


def _time(content: Any, into: pb.AttributeValue, place: str) -> None:
    if nanos := integer_of(content, 0, _UINT64, place):
        into.string_value = str(nanos)


def _hex(size: int) -> "_Reader":
    def read(content: Any, into: pb.AttributeValue, place: str) -> None:
        if raw := id_of(content, size, place):
            into.string_value = raw.hex()

    return read


def _enum(names: Mapping[str, int]) -> "_Reader":
    def read(content: Any, into: pb.AttributeValue, place: str) -> None:
        number = names.get(content) if isinstance(content, str) else None
        if number is None:
            number = integer_of(content, -(2**31), 2**31 - 1, place)
        if number:
            into.int_value = number

    return read


def _pairs(content: Any, into: pb.AttributeValue, place: str) -> None:
    if items_of(content, place):
        read_pairs_into(content, into.kvlist_value, place)


def _message(readers: "Mapping[str, _Reader]") -> "_Reader":
    """Read an object into a key-value list of those members that are set; an empty object gives nothing."""

    def read(content: Any, into: pb.AttributeValue, place: str) -> None:
        for name, member in members_of(content, readers.keys(), place).items():
            value = pb.AttributeValue()
            readers[name](member, value, f"{place}.{name}")
            if value.WhichOneof("value"):
                into.kvlist_value.values.add(key=name, value=value)

    return read


def _list(item_reader: "_Reader") -> "_Reader":
    def read(content: Any, into: pb.AttributeValue, place: str) -> None:
        for item in items_of(content, place):
            item_reader(item, into.array_value.values.add(), f"an item of {place}")

    return read


_Reader = Callable[[Any, pb.AttributeValue, str], None]
_EVENT: Mapping[str, _Reader] = {
    "timeUnixNano": _time,
    "name": _text,
    "attributes": _pairs,
    "droppedAttributesCount": _uint32,
}
_LINK: Mapping[str, _Reader] = {
    "traceId": _hex(16),
    "spanId": _hex(8),
    "traceState": _text,
    "attributes": _pairs,
    "droppedAttributesCount": _uint32,
    "flags": _uint32,
}
_BOUND: Mapping[str, _Reader] = {
    "kind": _enum(_KINDS),
    "status": _message({"code": _enum(_CODES), "message": _text}),
    "events": _list(_message(_EVENT)),
    "links": _list(_message(_LINK)),
    "traceState": _text,
    "flags": _uint32,
    "droppedAttributesCount": _uint32,
    "droppedEventsCount": _uint32,
    "droppedLinksCount": _uint32,
}
_TIMES = {"startTimeUnixNano", "endTimeUnixNano"}
_SPAN = frozenset({"traceId", "spanId", "parentSpanId", "name", "attributes", *_TIMES, *_BOUND})
