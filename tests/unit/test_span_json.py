"""The JSON form of a span: what is written is read back, and a bad member is named."""

import json
import math
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from betrace.kms.v1 import span_pb2 as pb
from betrace_kms_evidence import InvalidSpan, canonical_span, span_from_json, span_to_json
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

IDS: Mapping[str, Any] = {"traceId": "0102030405060708090a0b0c0d0e0f10", "spanId": "0102030405060708"}
FULL: Mapping[str, Any] = {
    **IDS,
    "parentSpanId": "f1f2f3f4f5f6f7f8",
    "name": "user.login",
    "framework": "soc2",
    "control": "CC6_1",
    "evidenceType": "audit_trail",
    "startTimeUnixNano": "1700000000000000005",
    "durationNano": "-1500000000",
    "result": "failure",
    "error": "wrong password",
    "attributes": {
        "string": {"stringValue": "ann"},
        "bool": {"boolValue": False},
        "int": {"intValue": "-9223372036854775808"},
        "double": {"doubleValue": 0.5},
        "bytes": {"bytesValue": "+/8="},
        "empty": {},
        "array": {"arrayValue": {"values": [{"intValue": "2"}, {}, {"stringValue": ""}]}},
        "kvlist": {"kvlistValue": {"values": [{"key": "a", "value": {}}, {"key": "b", "value": {"boolValue": True}}]}},
    },
}


def full_span() -> pb.ComplianceSpan:
    """Build the span that FULL describes."""
    value = pb.AttributeValue
    pairs = [pb.KeyValue(key="a", value=value()), pb.KeyValue(key="b", value=value(bool_value=True))]
    return pb.ComplianceSpan(
        trace_id=bytes(range(1, 17)),
        span_id=bytes(range(1, 9)),
        parent_span_id=bytes(range(0xF1, 0xF9)),
        name="user.login",
        framework="soc2",
        control="CC6_1",
        evidence_type="audit_trail",
        start_time=Timestamp(seconds=1_700_000_000, nanos=5),
        duration=Duration(seconds=-1, nanos=-500_000_000),
        result="failure",
        error="wrong password",
        attributes={
            "string": value(string_value="ann"),
            "bool": value(bool_value=False),
            "int": value(int_value=-(2**63)),
            "double": value(double_value=0.5),
            "bytes": value(bytes_value=b"\xfb\xff"),
            "empty": value(),
            "array": value(
                array_value=pb.ArrayValue(values=[value(int_value=2), value(), value(string_value="")]),
            ),
            "kvlist": value(kvlist_value=pb.KeyValueList(values=pairs)),
        },
    )


def member_of(name: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return values.map(lambda value: {name: value})


def with_floats(members: Mapping[str, Any]) -> Any:
    """Give the members with every number as a double, because 1e16 is written without exponent."""
    return json.loads(json.dumps(members), parse_int=float)


def pairs_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    keys = sorted(plain, key=lambda key: key.encode("utf-16-be"))
    return {"values": [{"key": key, "value": plain[key]} for key in keys]}


texts = st.text(max_size=6)
doubles = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)  # JSON has no -0.0
leaves: st.SearchStrategy[dict[str, Any]] = (
    st.just({})
    | member_of("stringValue", texts)
    | member_of("boolValue", st.booleans())
    | member_of("intValue", st.integers(-(2**63), 2**63 - 1).map(str))
    | member_of("doubleValue", doubles)
    | member_of("bytesValue", st.binary(max_size=6).map(lambda raw: b64encode(raw).decode()))
)
values = st.recursive(
    leaves,
    lambda inner: (
        member_of("arrayValue", st.fixed_dictionaries({"values": st.lists(inner, max_size=3)}))
        | member_of("kvlistValue", st.dictionaries(texts, inner, max_size=3).map(pairs_of))
    ),
    max_leaves=5,
)
hexadecimal = st.binary(min_size=8, max_size=8).filter(any).map(bytes.hex)
spans = st.fixed_dictionaries(
    {"traceId": st.tuples(hexadecimal, hexadecimal).map("".join), "spanId": hexadecimal},
    optional={
        "parentSpanId": hexadecimal,
        "startTimeUnixNano": st.integers(-62_135_596_800 * 10**9, 253_402_300_800 * 10**9 - 1).map(str),
        "durationNano": st.integers(-315_576_000_000 * 10**9, 315_576_000_000 * 10**9).map(str),
        "attributes": st.dictionaries(texts, values, min_size=1, max_size=3),
        **dict.fromkeys(("name", "framework", "control", "evidenceType", "result", "error"), texts),
    },
)


def test_reads_every_member() -> None:
    """Every member becomes its field."""
    assert full_span() == span_from_json(FULL)


def test_writes_every_field() -> None:
    """Every field that is set becomes its member."""
    assert FULL == span_to_json(full_span())


def test_member_order_does_not_matter() -> None:
    """A file may have its members in any order."""
    assert full_span() == span_from_json({name: FULL[name] for name in reversed([*FULL])})


def test_what_is_unset_may_be_null_or_left_out() -> None:
    """A member that is null, or not there, leaves its field unset; an empty string sets it."""
    nulls = dict.fromkeys(FULL)
    assert span_from_json(IDS) == span_from_json({**nulls, **IDS})
    assert not span_from_json({**nulls, **IDS}).HasField("name")
    assert span_from_json({**IDS, "name": ""}).HasField("name")


def test_writes_nothing_that_is_unset() -> None:
    """Unset fields have no member; neither tenant nor key belong to the span."""
    assert IDS == span_to_json(span_from_json(IDS))


@pytest.mark.parametrize("member", ["startTimeUnixNano", "durationNano"])
def test_zero_is_kept(member: str) -> None:
    """The epoch and a duration of zero are set, not left out."""
    assert {**IDS, member: "0"} == span_to_json(span_from_json({**IDS, member: "0"}))


@pytest.mark.parametrize("member", ["startTimeUnixNano", "durationNano"])
@pytest.mark.parametrize(
    "spelling", [1, "+1", "01", "-0", " 1", "1 ", "1.0", "1e0", "0x1", "\u0661", "", "1_0", True, 1.0]
)
def test_integers_have_one_spelling(member: str, spelling: Any) -> None:
    """Nanoseconds are a decimal string in its shortest form, as they are signed."""
    with pytest.raises(InvalidSpan, match=member):
        span_from_json({**IDS, member: spelling})


def test_a_time_before_the_epoch() -> None:
    """The nanos of a Timestamp count upwards from its second, also before 1970; those of a Duration share its sign."""
    span = span_from_json({**IDS, "startTimeUnixNano": "-1", "durationNano": "-1"})
    assert Timestamp(seconds=-1, nanos=999_999_999) == span.start_time
    assert Duration(seconds=0, nanos=-1) == span.duration


@settings(max_examples=150, deadline=None)
@given(spans)
def test_round_trip(members: dict[str, Any]) -> None:
    """Reading and writing undo each other, through JSON text as well, and keep what is signed."""
    span = span_from_json(members)
    assert with_floats(members) == with_floats(span_to_json(span))
    again = span_from_json(orjson.loads(orjson.dumps(span_to_json(span))))
    assert span == again
    assert canonical_span("acme", "key", span) == canonical_span("acme", "key", again)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        *((name, 1) for name in ("name", "framework", "control", "evidenceType", "result", "error")),
        ("name", ["text"]),
        ("name", {}),
        ("name", True),
        ("traceId", 1),
        ("traceId", "0102030405060708090a0b0c0d0e0f1"),
        ("spanId", "010203040506070g"),
        ("parentSpanId", "zz"),
        ("parentSpanId", b"\x01" * 8),
        ("startTimeUnixNano", "soon"),
        ("startTimeUnixNano", ""),
        ("startTimeUnixNano", "1.5"),
        ("startTimeUnixNano", 1.5),
        ("startTimeUnixNano", True),
        ("startTimeUnixNano", "9" * 40),
        ("startTimeUnixNano", "9" * 5000),
        ("durationNano", "1s"),
        ("durationNano", [1]),
        ("durationNano", "-" + "9" * 40),
        ("attributes", "text"),
        ("attributes", [{"key": "a", "value": {}}]),
    ],
)
def test_a_bad_member_is_named(member: str, value: object) -> None:
    """A member of a wrong type or form is refused, and the message begins with its name."""
    with pytest.raises(InvalidSpan, match=f"^{member} must be|^{member} is out of range"):
        span_from_json({**IDS, member: value})


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "text",
        True,
        [1],
        {"stringvalue": "a"},
        {"stringValue": 1},
        {"stringValue": "\ud800"},
        {"stringValue": "a", "intValue": "1"},
        {"boolValue": "true"},
        {"intValue": "x"},
        {"intValue": "9223372036854775808"},
        {"intValue": 1.5},
        {"doubleValue": "x"},
        {"bytesValue": 1},
        {"arrayValue": [{"intValue": "1"}, 2]},
        {"arrayValue": {"values": [None]}},
        {"arrayValue": {"values": [{"intvalue": "1"}]}},
        {"kvlistValue": {"values": [{"name": "a"}]}},
        {"kvlistValue": {"a": {"intValue": "1"}}},
    ],
    ids=repr,
)
def test_a_bad_attribute_is_named(value: object) -> None:
    """An attribute that is no typed value is refused by name, however deep the mistake is."""
    with pytest.raises(InvalidSpan, match=r"^attribute 'user\.id' is not a typed value"):
        span_from_json({**IDS, "attributes": {"ok": {"intValue": "1"}, "user.id": value}})


@pytest.mark.parametrize("name", ["traceID", "trace_id", "tenantId", "keyId", "", "Name"])
def test_an_unknown_member_is_named(name: str) -> None:
    """A member that would be left unsigned is refused, and the message tells which there are."""
    with pytest.raises(
        InvalidSpan, match=f"^span has no member '{name}'; it may have attributes, control, .*, traceId$"
    ):
        span_from_json({**IDS, name: "value"})


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_writing_refuses_what_cannot_be_signed(number: float) -> None:
    """A span without a canonical form has no JSON form either."""
    span = span_from_json(IDS)
    span.attributes["load"].double_value = number
    with pytest.raises(InvalidSpan, match="attribute 'load'"):
        span_to_json(span)


def test_messages_do_not_quote_values() -> None:
    """A refusal may be logged and shown, so it holds names and never values."""
    secret = "s3cret"
    for bad in (
        {"traceId": secret},
        {"startTimeUnixNano": secret},
        {"name": [secret]},
        {"attributes": secret},
        {"attributes": {"a": {"intValue": secret}}},
        {"attributes": {"a": {secret: "b"}}},
    ):
        with pytest.raises(InvalidSpan) as refused:
            span_from_json(bad)
        assert secret not in str(refused.value)


@pytest.mark.parametrize(
    "members",
    [
        {"name": "\ud800"},
        {"attributes": {"\ud800": {}}},
        {"attributes": []},
        {"attributes": ""},
        {"attributes": 0},
        {"attributes": {"a": ""}},
        {"attributes": {"a": []}},
        {"attributes": {"a": {"stringValue": None}}},
        {"attributes": {"a": {"stringValue": "\ud800"}}},
        {"attributes": {"a": {"stringValue": "x", "intValue": "1"}}},
        {"attributes": {"a": {"boolValue": "true"}}},
        {"attributes": {"a": {"intValue": "1_0"}}},
        {"attributes": {"a": {"intValue": True}}},
        {"attributes": {"a": {"intValue": str(2**63)}}},
        {"attributes": {"a": {"doubleValue": 10**400}}},
        {"attributes": {"a": {"doubleValue": "NaN"}}},
        {"attributes": {"a": {"bytesValue": "!!"}}},
        {"attributes": {"a": {"bytesValue": "AAE"}}},
        {"attributes": {"a": {"arrayValue": []}}},
        {"attributes": {"a": {"arrayValue": {"values": [1]}}}},
        {"attributes": {"a": {"arrayValue": {"other": []}}}},
        {"attributes": {"a": {"kvlistValue": {"values": [{"key": "k"}]}}}},
        {"attributes": {"a": {"kvlistValue": {"values": [{"key": "k", "value": {}, "x": 1}]}}}},
        {"attributes": {"a": {"nullValue": None}}},
        {"startTimeUnixNano": "1_0"},
        {"startTimeUnixNano": " 1 "},
        {"startTimeUnixNano": "\u0661"},
        {"startTimeUnixNano": True},
        {"traceId": "01 02"},
        {"traceId": "012"},
    ],
)
def test_nothing_is_guessed(members: dict[str, Any]) -> None:
    """Evidence that is not exactly of the form is refused: a lenient reader would sign something else."""
    with pytest.raises(InvalidSpan):
        span_from_json({"traceId": "01" * 16, "spanId": "02" * 8} | members)


@pytest.mark.parametrize("kind", ["arrayValue", "kvlistValue"])
def test_empty_lists_have_their_member(kind: str) -> None:
    """`values` is there even if it is empty, as in what is signed."""
    with pytest.raises(InvalidSpan):
        span_from_json({**IDS, "attributes": {"a": {kind: {}}}})
    assert {"a": {kind: {"values": []}}} == span_to_json(
        span_from_json({**IDS, "attributes": {"a": {kind: {"values": []}}}})
    )["attributes"]
