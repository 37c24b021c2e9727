"""How a span of OTLP/JSON is signed: nothing in it can be altered unnoticed, and what means the same is the same."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from betrace_kms_client.otlp import attach_failure, attach_signature, signature_of, span_from_otlp
from betrace_kms_client.otlp.values import MAX_DEPTH
from betrace_kms_client.results import SpanSignature
from betrace_kms_evidence import (
    ALGORITHM,
    PAYLOAD_TYPE,
    InvalidSpan,
    KeySet,
    PublicKey,
    SpanVerifier,
    canonical_span,
    sign,
    span_to_json,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_ID = "00112233445566778899aabbccddeeff"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
VERIFIER = SpanVerifier(
    KeySet(
        "acme",
        {KEY_ID: PublicKey(KEY_ID, KEY.public_key().public_bytes_raw(), "ACTIVE")},
        {KEY_ID: KEY.public_key()},
    )
)
RICH: dict[str, Any] = {
    "traceId": "0af7651916cd43dd8448eb211c80319c",
    "spanId": "b7ad6b7169203331",
    "parentSpanId": "00f067aa0ba902b7",
    "traceState": "vendor=1",
    "flags": 257,
    "name": "user.login",
    "kind": 2,
    "startTimeUnixNano": "1700000000000000001",
    "endTimeUnixNano": "1700000001500000000",
    "attributes": [
        {"key": "compliance.framework", "value": {"stringValue": "soc2"}},
        {"key": "compliance.control", "value": {"stringValue": "CC6_1"}},
        {"key": "compliance.evidenceType", "value": {"stringValue": "audit_trail"}},
        {"key": "compliance.result", "value": {"stringValue": "failure"}},
        {"key": "compliance.error", "value": {"stringValue": "wrong password"}},
        {"key": "string", "value": {"stringValue": "\u00e9\U0001f600"}},
        {"key": "bool", "value": {"boolValue": True}},
        {"key": "int", "value": {"intValue": "-9223372036854775808"}},
        {"key": "int as number", "value": {"intValue": 7}},
        {"key": "double", "value": {"doubleValue": 1.5}},
        {"key": "bytes", "value": {"bytesValue": "AAEC"}},
        {"key": "array", "value": {"arrayValue": {"values": [{"stringValue": "a"}, {"intValue": "1"}]}}},
        {
            "key": "list",
            "value": {"kvlistValue": {"values": [{"key": "a", "value": {"kvlistValue": {"values": []}}}]}},
        },
        {"key": "nothing", "value": {}},
    ],
    "droppedAttributesCount": 3,
    "events": [
        {
            "timeUnixNano": "1700000000700000000",
            "name": "exception",
            "attributes": [{"key": "exception.type", "value": {"stringValue": "ValueError"}}],
            "droppedAttributesCount": 1,
        },
        {"timeUnixNano": "1700000000800000000", "name": "retry"},
    ],
    "droppedEventsCount": 4,
    "links": [
        {
            "traceId": "0102030405060708090a0b0c0d0e0f10",
            "spanId": "0102030405060708",
            "traceState": "other=2",
            "attributes": [{"key": "reason", "value": {"stringValue": "batch"}}],
            "droppedAttributesCount": 2,
            "flags": 1,
        }
    ],
    "droppedLinksCount": 5,
    "status": {"message": "it failed", "code": 2},
}

SAME = [
    ("attributes", 12, "value", "kvlistValue", "values", 0, "value", "kvlistValue", "values"),
    ("attributes", 13, "value"),
]
"""Places where nothing means the same as what is there: an empty list, an empty value."""


def rich(**members: Any) -> dict[str, Any]:
    """Return a copy of the rich span with other members; None takes one away."""
    changed = {**copy.deepcopy(RICH), **members}
    return {name: value for name, value in changed.items() if value is not None}


def evidence(members: dict[str, Any]) -> bytes:
    """Return what is signed of a span."""
    return canonical_span("acme", KEY_ID, span_from_otlp(members))


def signed(members: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a span with its signature."""
    members = copy.deepcopy(members)
    signature = sign(KEY, evidence(members))
    attach_signature(members, SpanSignature(signature, KEY_ID, ALGORITHM, PAYLOAD_TYPE, b""), "2024-01-01T00:00:00Z")
    return members


def verdict(members: dict[str, Any]) -> str:
    """Return the verdict on a span; REFUSED if it cannot be judged."""
    try:
        found = signature_of(members)
        if found is None:
            return "MISSING_SIGNATURE"
        return VERIFIER.verify(span_from_otlp(members), found.signature, found.key_id, found.proof)
    except InvalidSpan:
        return "REFUSED"


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Give the path of each value that is neither an object nor a list."""
    if isinstance(value, dict | list):
        for step, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, step))
    else:
        yield path


def containers(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Give the path of each member and item, so that it can be taken away."""
    if isinstance(value, dict | list):
        for step, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, step)
            yield from containers(item, (*path, step))


def holder(members: Any, path: tuple[str | int, ...]) -> Any:
    """Return the object or list that the path's last step is in."""
    for step in path[:-1]:
        members = members[step]
    return members


def another(value: Any) -> Any:
    """Return another value of the same type and, for hexadecimal digits and numbers, form."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value[:-1] + ("1" if value[-1:] != "1" else "2")


@pytest.mark.parametrize("path", list(leaves(RICH)), ids=lambda path: ".".join(map(str, path)))
def test_a_changed_value_is_noticed(path: tuple[str | int, ...]) -> None:
    """Every value of a rich span, and every key of an attribute, changed one at a time."""
    members = signed(RICH)
    assert verdict(members) == "VALID"
    place = holder(members, path)
    place[path[-1]] = another(place[path[-1]])
    assert verdict(members) in ("BAD_SIGNATURE", "REFUSED")


@pytest.mark.parametrize("path", list(containers(RICH)), ids=lambda path: ".".join(map(str, path)))
def test_what_is_taken_away_is_noticed(path: tuple[str | int, ...]) -> None:
    """Every member and every item of a rich span, taken away one at a time."""
    members = signed(RICH)
    del holder(members, path)[path[-1]]
    expected = "VALID" if path in SAME else "ALTERED"
    assert expected == ("VALID" if verdict(members) == "VALID" else "ALTERED")


@pytest.mark.parametrize("place", [(), ("status",), ("events", 0), ("links", 0), ("attributes", 5)])
def test_an_added_member_is_refused(place: tuple[str | int, ...]) -> None:
    """What this version does not know it could not sign."""
    members = signed(RICH)
    holder(members, (*place, "x"))["unknown"] = "value"
    with pytest.raises(InvalidSpan, match="has a member 'unknown' that is not known here"):
        span_from_otlp(members)


@pytest.mark.parametrize(
    ("name", "altered"),
    [
        ("span.signature", "A" * 86 + "=="),
        ("span.signature", "A" * 85 + "B=="),
        ("span.signature", "AAAA"),
        ("span.signature.algorithm", "RS256"),
        ("span.signature.key_id", "0" * 32),
        ("span.signature.status", "signing_failed"),
    ],
)
def test_altered_signature_attributes_are_noticed(name: str, altered: str) -> None:
    """All but the time, which is documented as unsigned."""
    members = signed(RICH)
    next(item for item in members["attributes"] if item["key"] == name)["value"]["stringValue"] = altered
    assert verdict(members) in ("BAD_SIGNATURE", "UNKNOWN_KEY", "REFUSED")


def test_fields_come_from_members_and_compliance_attributes() -> None:
    """The mapping of the documentation, for a span with everything."""
    shown = span_to_json(span_from_otlp(RICH))
    attributes = shown.pop("attributes")
    assert shown == {
        "traceId": RICH["traceId"],
        "spanId": RICH["spanId"],
        "parentSpanId": RICH["parentSpanId"],
        "name": "user.login",
        "framework": "soc2",
        "control": "CC6_1",
        "evidenceType": "audit_trail",
        "result": "failure",
        "error": "wrong password",
        "startTimeUnixNano": "1700000000000000001",
        "durationNano": "1499999999",
    }
    assert attributes["otlp.kind"] == {"intValue": "2"}
    assert attributes["otlp.status"] == {
        "kvlistValue": {
            "values": [
                {"key": "code", "value": {"intValue": "2"}},
                {"key": "message", "value": {"stringValue": "it failed"}},
            ]
        }
    }
    assert {name for name in attributes if name.startswith("otlp.")} == {
        f"otlp.{name}"
        for name in (
            "kind status events links traceState flags droppedAttributesCount droppedEventsCount droppedLinksCount"
        ).split()
    }
    assert attributes["int"] == {"intValue": "-9223372036854775808"}


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "SPAN_KIND_SERVER"},
        {"kind": "2"},
        {"traceId": RICH["traceId"].upper()},
        {"startTimeUnixNano": 1700000000000000001},
        {"status": {"code": "STATUS_CODE_ERROR", "message": "it failed"}},
        {"attributes": RICH["attributes"][::-1]},
    ],
)
def test_other_spellings_are_the_same(changes: dict[str, Any]) -> None:
    """Enums by name, integers as numbers, ids in capitals, attributes in another order."""
    assert evidence(RICH) == evidence(rich(**changes))


@pytest.mark.parametrize("nothing", [{}, {"value": None}, {"value": {}}, {"value": {"stringValue": None}}])
def test_protobuf_defaults_are_the_same_as_absent(nothing: dict[str, Any]) -> None:
    """0, "", null and no items."""
    bare = {"traceId": RICH["traceId"], "spanId": RICH["spanId"], "attributes": [{"key": "a", "value": {}}]}
    defaults: dict[str, Any] = {
        **bare,
        "attributes": [{"key": "a", **nothing}],
        "parentSpanId": "",
        "name": "",
        "traceState": "",
        "kind": 0,
        "flags": "0",
        "startTimeUnixNano": "0",
        "endTimeUnixNano": None,
        "events": [],
        "links": None,
        "status": {"code": 0, "message": ""},
        "droppedLinksCount": 0,
    }
    assert evidence(bare) == evidence(defaults)


@pytest.mark.parametrize(
    ("start", "end", "duration", "kept"),
    [
        ("5", "5", "0", None),
        ("5", "7", "2", None),
        ("5", "4", None, "4"),
        ("5", None, None, None),
        (None, "7", None, "7"),
        (None, None, None, None),
        ("1", str(2**64 - 1), str(2**64 - 2), None),
    ],
)
def test_the_end_is_signed_even_where_there_is_no_duration(
    start: str | None, end: str | None, duration: str | None, kept: str | None
) -> None:
    """An end that is before the start, or has none, is an attribute."""
    shown = span_to_json(span_from_otlp(rich(startTimeUnixNano=start, endTimeUnixNano=end)))
    attribute = shown["attributes"].get("otlp.endTimeUnixNano")
    assert (shown.get("startTimeUnixNano"), shown.get("durationNano")) == (start, duration)
    assert attribute == (None if kept is None else {"stringValue": kept})


def attribute(key: str, **value: Any) -> dict[str, Any]:
    """Return a KeyValue of OTLP/JSON."""
    return {"key": key, "value": value}


def test_compliance_attributes_that_are_no_strings_stay_attributes() -> None:
    """A number is no framework, and is signed as what it is."""
    span = span_from_otlp(rich(attributes=[attribute("compliance.framework", intValue="5")]))
    assert (span.HasField("framework"), span.attributes["compliance.framework"].int_value) == (False, 5)


def test_both_spellings_of_the_evidence_type_are_told_apart() -> None:
    """Either gives the field; together they are refused."""
    camel, snake = (
        attribute("compliance.evidenceType", stringValue="log"),
        attribute("compliance.evidence_type", stringValue="log"),
    )
    one, other = span_from_otlp(rich(attributes=[camel])), span_from_otlp(rich(attributes=[snake]))
    assert (one.evidence_type, other.evidence_type) == ("log", "log")
    assert one != other
    with pytest.raises(InvalidSpan, match="leave one out"):
        span_from_otlp(rich(attributes=[camel, snake]))


def nested(depth: int) -> dict[str, Any]:
    """Return a value in so many lists."""
    value: dict[str, Any] = {"boolValue": True}
    for _ in range(depth):
        value = {"arrayValue": {"values": [value]}}
    return value


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"attributes": [attribute("otlp.kind", intValue="2")]}, "kept for members of the span"),
        ({"attributes": [attribute("a", intValue="2"), attribute("a", intValue="2")]}, "has the key 'a' twice"),
        ({"attributes": {"a": "b"}}, "attributes must be a JSON list"),
        ({"attributes": [5]}, "must be a JSON object"),
        ({"attributes": [{"key": ["a"]}]}, "must be a JSON string"),
        ({"attributes": [attribute("a", intValue=1.5)]}, "must be an integer"),
        ({"attributes": [attribute("a", intValue=True)]}, "must be an integer"),
        ({"attributes": [attribute("a", intValue=str(2**63))]}, "must be an integer"),
        ({"attributes": [attribute("a", boolValue="true")]}, "must be true or false"),
        ({"attributes": [attribute("a", doubleValue="NaN")]}, "NaN or an infinity"),
        ({"attributes": [attribute("a", doubleValue="x")]}, "must be a number"),
        ({"attributes": [attribute("a", bytesValue="AAE")]}, "must be base64"),
        ({"attributes": [attribute("a", bytesValue="AAF=")]}, "must be base64"),
        ({"attributes": [attribute("a", otherValue="AAF=")]}, "of type 'otherValue'"),
        ({"attributes": [attribute("a", intValue="1", boolValue=True)]}, "must be one typed value"),
        ({"attributes": [attribute("a", **nested(MAX_DEPTH + 1))]}, "nested too deeply"),
        ({"traceId": "CvdlGRbNQ92ESOshHIAxnA=="}, "traceId must be 32 hexadecimal digits"),
        ({"spanId": 5}, "spanId must be a JSON string"),
        ({"kind": "SERVER"}, "kind must be an integer"),
        ({"flags": 2**32}, "flags must be an integer"),
        ({"endTimeUnixNano": "-1"}, "endTimeUnixNano must be an integer"),
        ({"events": [None]}, "must be a JSON object"),
        ({"links": [{"spanId": "01"}]}, "links.spanId must be 16 hexadecimal digits"),
    ],
)
def test_what_cannot_be_signed_is_named(changes: dict[str, Any], text: str) -> None:
    """One clear line says what to mend."""
    with pytest.raises(InvalidSpan) as raised:
        span_from_otlp(rich(**changes))
    assert text in str(raised.value)


def test_the_deepest_value_reaches_a_daemon() -> None:
    """Protobuf readers take a hundred nested messages, and the canonical form its levels."""
    deepest = nested(MAX_DEPTH)
    events = [{"attributes": [attribute("a", **deepest)]}]
    span = span_from_otlp(rich(attributes=[attribute("a", **deepest)], events=events))
    assert type(span).FromString(span.SerializeToString()) == span
    assert canonical_span("acme", KEY_ID, span)


def test_signing_again_replaces_and_signs_the_same() -> None:
    """The signature attributes are never part of what is signed."""
    once = signed(RICH)
    twice = signed(once)
    failed = copy.deepcopy(twice)
    attach_failure(failed, "away", "2024-01-01T00:00:00Z")
    assert once == twice
    assert evidence(once) == evidence(RICH) == evidence(failed)
    assert signature_of(failed) is None
    assert {item["key"] for item in failed["attributes"]} - {item["key"] for item in RICH["attributes"]} == {
        "span.signature.status",
        "span.signature.error",
        "span.signature.timestamp",
    }


@pytest.mark.parametrize("item", [attribute("span.signature", intValue="5"), attribute("span.signature.key_id")])
def test_a_signature_attribute_is_one_string(item: dict[str, Any]) -> None:
    """Neither another type nor a second one passes."""
    with pytest.raises(InvalidSpan, match="must be a string"):
        signature_of({"attributes": [item]})
    members = signed(RICH)
    members["attributes"].append(attribute("span.signature.key_id", stringValue=KEY_ID))
    with pytest.raises(InvalidSpan, match="twice"):
        signature_of(members)
