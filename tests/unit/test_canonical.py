"""The canonical span: what is signed, byte for byte."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from betrace.kms.v1 import span_pb2 as pb
from betrace_kms_evidence import InvalidSpan, canonical_span
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

TENANT = "acme"
KEY_ID = "00112233445566778899aabbccddeeff"
TRACE_ID = bytes(range(1, 17))
SPAN_ID = bytes(range(1, 9))
NUMBERS: Sequence[Mapping[str, str]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "rfc8785_numbers.json").read_text("utf-8")
)["vectors"]

Value = pb.AttributeValue
Tagged = tuple[str, Any]
"""A value in this file's own model: the name of its type, and plain Python."""


def span(**fields: Any) -> pb.ComplianceSpan:
    return pb.ComplianceSpan(**{"trace_id": TRACE_ID, "span_id": SPAN_ID, **fields})


def canonical(of: pb.ComplianceSpan) -> str:
    return canonical_span(TENANT, KEY_ID, of).decode()


def minimal(attributes: str = "{}") -> str:
    return (
        f'{{"attributes":{attributes},"control":null,"durationNano":null,"error":null,"evidenceType":null,'
        f'"framework":null,"keyId":"{KEY_ID}","name":null,"parentSpanId":null,"result":null,'
        '"spanId":"0102030405060708","startTimeUnixNano":null,"tenantId":"acme",'
        '"traceId":"0102030405060708090a0b0c0d0e0f10"}'
    )


def kvlist(*pairs: tuple[str, Value]) -> Value:
    return Value(kvlist_value=pb.KeyValueList(values=[pb.KeyValue(key=key, value=value) for key, value in pairs]))


def array(*values: Value) -> Value:
    return Value(array_value=pb.ArrayValue(values=values))


def field(number: int, content: bytes) -> bytes:
    """Write a length-delimited protobuf field of number 1 to 15 and less than 16 KiB."""
    size = len(content)
    return bytes((number << 3 | 2, *((size,) if size < 128 else (size & 127 | 128, size >> 7)))) + content


def utf16_units(text: str) -> tuple[int, ...]:
    raw = text.encode("utf-16-be")
    return struct.unpack(f">{len(raw) // 2}H", raw)


def as_message(tagged: Tagged) -> Value:
    kind, plain = tagged
    if kind == "empty":
        return Value()
    if kind == "array":
        return array(*map(as_message, plain))
    if kind == "kvlist":
        return kvlist(*((key, as_message(item)) for key, item in plain.items()))
    return Value(**{f"{kind}_value": plain})


def as_json(tagged: Tagged) -> dict[str, Any]:
    kind, plain = tagged
    match kind:
        case "empty":
            return {}
        case "array":
            return {"arrayValue": {"values": [as_json(item) for item in plain]}}
        case "kvlist":
            keys = sorted(plain, key=utf16_units)
            return {"kvlistValue": {"values": [{"key": key, "value": as_json(plain[key])} for key in keys]}}
        case "int":
            return {"intValue": f"{plain}"}
        case "bytes":
            return {"bytesValue": base64_of(plain)}
    return {f"{kind}Value": plain}


def base64_of(raw: bytes) -> str:
    """Encode by RFC 4648, section 4, from its table."""
    table = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    bits = "".join(f"{byte:08b}" for byte in raw)
    sextets = [bits[at : at + 6].ljust(6, "0") for at in range(0, len(bits), 6)]
    return "".join(table[int(sextet, 2)] for sextet in sextets) + "=" * (-len(raw) % 3)


texts = st.text(max_size=8) | st.sampled_from(["", "\r", "1", "\x80", "ö", "€", "דּ", "😀", '"\\/\x00\x1f\x7f', "￿"])
leaves = (
    st.tuples(st.just("string"), texts)
    | st.tuples(st.just("bool"), st.booleans())
    | st.tuples(st.just("int"), st.integers(-(2**63), 2**63 - 1))
    | st.tuples(st.just("double"), st.floats(allow_nan=False, allow_infinity=False))
    | st.tuples(st.just("bytes"), st.binary(max_size=8))
    | st.just(("empty", None))
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.tuples(st.just("array"), st.lists(inner, max_size=3))
        | st.tuples(st.just("kvlist"), st.dictionaries(texts, inner, max_size=3))
    ),
    max_leaves=6,
)
ids = st.binary(min_size=8, max_size=8).filter(any)
trace_ids = st.binary(min_size=16, max_size=16).filter(any)
times = st.integers(-62_135_596_800 * 10**9, 253_402_300_799 * 10**9 + 999_999_999)
durations = st.integers(-315_576_000_000 * 10**9 - 999_999_999, 315_576_000_000 * 10**9 + 999_999_999)


@st.composite
def spans(draw: st.DrawFn) -> tuple[pb.ComplianceSpan, dict[str, Any]]:
    """Draw a span, and the JSON value that its canonical form must be of."""
    names = {
        "name": "name",
        "framework": "framework",
        "control": "control",
        "evidence_type": "evidenceType",
        "result": "result",
        "error": "error",
    }
    plain: dict[str, Any] = {member: draw(st.none() | texts) for member in names}
    trace_id, span_id, parent = draw(trace_ids), draw(ids), draw(st.none() | ids)
    time, length = draw(st.none() | times), draw(st.none() | durations)
    attributes = draw(st.dictionaries(texts, values, max_size=4))
    message = pb.ComplianceSpan(
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=parent,
        attributes={name: as_message(value) for name, value in attributes.items()},
        **{name: text for name, text in plain.items() if text is not None},
    )
    if time is not None:
        message.start_time.CopyFrom(Timestamp(seconds=time // 10**9, nanos=time % 10**9))
    if length is not None:
        sign = -1 if length < 0 else 1
        message.duration.CopyFrom(Duration(seconds=sign * (abs(length) // 10**9), nanos=sign * (abs(length) % 10**9)))
    return message, {
        **{names[name]: text for name, text in plain.items()},
        "traceId": trace_id.hex(),
        "spanId": span_id.hex(),
        "parentSpanId": None if parent is None else parent.hex(),
        "startTimeUnixNano": None if time is None else str(time),
        "durationNano": None if length is None else str(length),
        "attributes": {name: as_json(value) for name, value in attributes.items()},
        "tenantId": TENANT,
        "keyId": KEY_ID,
    }


def test_member_order_and_every_field() -> None:
    """Every field has its member, and members come in the order of RFC 8785."""
    full = span(
        parent_span_id=bytes(range(0xF1, 0xF9)),
        name="user.login",
        framework="soc2",
        control="CC6_1",
        evidence_type="audit_trail",
        start_time=Timestamp(seconds=1_700_000_000, nanos=5),
        duration=Duration(seconds=1, nanos=500_000_000),
        result="failure",
        error="wrong password",
        attributes={"user": Value(string_value="ann")},
    )
    assert (
        '{"attributes":{"user":{"stringValue":"ann"}},"control":"CC6_1","durationNano":"1500000000",'
        '"error":"wrong password","evidenceType":"audit_trail","framework":"soc2",'
        f'"keyId":"{KEY_ID}","name":"user.login","parentSpanId":"f1f2f3f4f5f6f7f8","result":"failure",'
        '"spanId":"0102030405060708","startTimeUnixNano":"1700000000000000005","tenantId":"acme",'
        '"traceId":"0102030405060708090a0b0c0d0e0f10"}'
    ) == canonical(full)


def test_unset_is_null() -> None:
    """A field that is not set is null, and no member is ever left out."""
    assert minimal() == canonical(span())


@pytest.mark.parametrize("name", ["name", "framework", "control", "evidence_type", "result", "error"])
def test_empty_text_is_not_null(name: str) -> None:
    """An empty string is evidence of its own, other than an unset field."""
    member = {"evidence_type": "evidenceType"}.get(name, name)
    assert minimal().replace(f'"{member}":null', f'"{member}":""') == canonical(span(**{name: ""}))


def test_zero_time_is_not_null() -> None:
    """The epoch and a duration of zero are values, other than unset ones."""
    expected = minimal()
    for member in ("startTimeUnixNano", "durationNano"):
        expected = expected.replace(f'"{member}":null', f'"{member}":"0"')
    assert expected == canonical(span(start_time=Timestamp(), duration=Duration()))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Value(), "{}"),
        (Value(string_value=""), '{"stringValue":""}'),
        (Value(string_value="text"), '{"stringValue":"text"}'),
        (Value(string_value="1"), '{"stringValue":"1"}'),
        (Value(bool_value=True), '{"boolValue":true}'),
        (Value(bool_value=False), '{"boolValue":false}'),
        (Value(int_value=0), '{"intValue":"0"}'),
        (Value(int_value=2**63 - 1), '{"intValue":"9223372036854775807"}'),
        (Value(int_value=-(2**63)), '{"intValue":"-9223372036854775808"}'),
        (Value(double_value=1.5), '{"doubleValue":1.5}'),
        (Value(bytes_value=b""), '{"bytesValue":""}'),
        (Value(bytes_value=b"\x00\x01"), '{"bytesValue":"AAE="}'),
        (Value(bytes_value=b"\xfb\xff"), '{"bytesValue":"+/8="}'),
        (array(), '{"arrayValue":{"values":[]}}'),
        (
            array(Value(int_value=2), Value(), Value(int_value=1)),
            '{"arrayValue":{"values":[{"intValue":"2"},{},{"intValue":"1"}]}}',
        ),
        (kvlist(), '{"kvlistValue":{"values":[]}}'),
        (
            kvlist(("b", Value(bool_value=True)), ("a", Value())),
            '{"kvlistValue":{"values":[{"key":"a","value":{}},{"key":"b","value":{"boolValue":true}}]}}',
        ),
        (
            array(kvlist(("k", array(Value(string_value="deep"))))),
            '{"arrayValue":{"values":[{"kvlistValue":{"values":[{"key":"k","value":'
            '{"arrayValue":{"values":[{"stringValue":"deep"}]}}}]}}]}}',
        ),
    ],
)
def test_value_types(value: Value, text: str) -> None:
    """Every value is an object whose only member names its type."""
    assert minimal(f'{{"a":{text}}}') == canonical(span(attributes={"a": value}))


def test_a_pair_without_value_holds_the_empty_value() -> None:
    """A pair whose value is not set is that pair with OpenTelemetry's empty value."""
    value = Value(kvlist_value=pb.KeyValueList(values=[pb.KeyValue(key="k")]))
    assert minimal('{"a":{"kvlistValue":{"values":[{"key":"k","value":{}}]}}}') == canonical(
        span(attributes={"a": value})
    )


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (1.0, "1"),
        (-1.0, "-1"),
        (0.1, "0.1"),
        (123456.789, "123456.789"),
        (1e16, "10000000000000000"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (1e-4, "0.0001"),
        (1e-6, "0.000001"),
        (1.5e-6, "0.0000015"),
        (1e-7, "1e-7"),
        (5e-324, "5e-324"),
        (2.2250738585072014e-308, "2.2250738585072014e-308"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (-1.7976931348623157e308, "-1.7976931348623157e+308"),
    ],
)
def test_doubles(number: float, text: str) -> None:
    """Doubles have ECMAScript's form (RFC 8785, section 3.2.2.3)."""
    value = Value(double_value=number)
    assert minimal(f'{{"a":{{"doubleValue":{text}}}}}') == canonical(span(attributes={"a": value}))


@pytest.mark.parametrize("vector", NUMBERS, ids=lambda vector: vector["ieee754"])
def test_doubles_of_the_rfc(vector: Mapping[str, str]) -> None:
    """The serialisation samples of RFC 8785, appendix B, come out as printed there."""
    (number,) = struct.unpack(">d", bytes.fromhex(vector["ieee754"]))
    value = Value(double_value=number)
    assert minimal(f'{{"a":{{"doubleValue":{vector["json"]}}}}}') == canonical(span(attributes={"a": value}))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_numbers_that_json_lacks_are_refused(number: float, depth: int) -> None:
    """NaN and the infinities are refused at any depth; the message names the attribute."""
    value = Value(double_value=number)
    for _ in range(depth):
        value = array(kvlist(("k", value)))
    with pytest.raises(InvalidSpan, match="attribute 'load' holds NaN or an infinity"):
        canonical(span(attributes={"load": value}))


def test_text_is_escaped_as_little_as_json_allows() -> None:
    """Only what RFC 8785, section 3.2.2.2, escapes is escaped, in lower case; all else is plain UTF-8."""
    name = '\x00\x08\t\n\x0b\x0c\r\x1f "\\/\x7f\x80é€\u2028😀'
    escaped = r"\u0000\b\t\n\u000b\f\r\u001f \"\\/" + "\x7f\x80é€\u2028😀"
    assert minimal().replace('"name":null', f'"name":"{escaped}"') == canonical(span(name=name))


def test_text_is_not_normalised() -> None:
    """Two ways to write one letter are two texts (RFC 8785, section 3.1: no Unicode normalisation)."""
    assert canonical(span(name="é")) != canonical(span(name="e\u0301"))


def test_names_are_in_utf16_order() -> None:
    """Attributes and pairs are ordered by UTF-16 code units: the sample of RFC 8785, section 3.2.3."""
    in_order = ["\r", "1", "\x80", "ö", "€", "😀", "\ufb33"]
    one = Value(bool_value=True)
    pairs = ",".join(
        f'{{"key":{json.dumps(key, ensure_ascii=False)},"value":{{"boolValue":true}}}}' for key in in_order
    )
    members = ",".join(f'{json.dumps(key, ensure_ascii=False)}:{{"boolValue":true}}' for key in in_order)
    assert minimal(f'{{{members},"￿":{{"kvlistValue":{{"values":[{pairs}]}}}}}}') == canonical(
        span(
            attributes={**dict.fromkeys(sorted(in_order), one), "￿": kvlist(*((key, one) for key in sorted(in_order)))}
        )
    )


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("second", [Value(int_value=1), Value(int_value=2), Value()])
def test_duplicate_keys_are_refused(second: Value, depth: int) -> None:
    """A key-value list with two pairs of one key is refused at any depth, even if the pairs are equal."""
    value = kvlist(("k", Value(int_value=1)), ("other", Value()), ("k", second))
    for _ in range(depth):
        value = array(kvlist(("k", value)))
    with pytest.raises(InvalidSpan, match="attribute 'roles' holds a key-value list with a duplicate key"):
        canonical(span(attributes={"roles": value}))


UNKNOWN = field(15, b"x")


@pytest.mark.parametrize(
    "hidden",
    [
        pytest.param(UNKNOWN, id="span"),
        pytest.param(field(8, UNKNOWN), id="start_time"),
        pytest.param(field(9, UNKNOWN), id="duration"),
        pytest.param(field(12, field(1, b"a") + field(2, field(1, b"v")) + UNKNOWN), id="attribute"),
        pytest.param(field(12, field(1, b"a") + field(2, field(1, b"v") + UNKNOWN)), id="value"),
        pytest.param(field(12, field(1, b"a") + field(2, UNKNOWN)), id="empty value"),
        pytest.param(field(12, field(1, b"a") + field(2, field(5, UNKNOWN))), id="array"),
        pytest.param(field(12, field(1, b"a") + field(2, field(5, field(1, UNKNOWN)))), id="item"),
        pytest.param(field(12, field(1, b"a") + field(2, field(6, UNKNOWN))), id="kvlist"),
        pytest.param(field(12, field(1, b"a") + field(2, field(6, field(1, UNKNOWN)))), id="pair"),
    ],
)
def test_unknown_fields_are_refused(hidden: bytes) -> None:
    """A field that this version does not know would be left unsigned, so the span is refused, however deep it is."""
    received = pb.ComplianceSpan.FromString(field(1, TRACE_ID) + field(2, SPAN_ID) + hidden)
    for _ in range(2):  # a refusal takes nothing out of the span, so another try is refused as well
        with pytest.raises(InvalidSpan, match="fields that this version does not know"):
            canonical(received)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trace_id": b""}, "span.trace_id must be 16 bytes, not 0"),
        ({"trace_id": TRACE_ID[:-1]}, "span.trace_id must be 16 bytes, not 15"),
        ({"trace_id": TRACE_ID + b"1"}, "span.trace_id must be 16 bytes, not 17"),
        ({"trace_id": bytes(16)}, "span.trace_id must not be all zero"),
        ({"span_id": b""}, "span.span_id must be 8 bytes, not 0"),
        ({"span_id": SPAN_ID[:-1]}, "span.span_id must be 8 bytes, not 7"),
        ({"span_id": SPAN_ID + b"1"}, "span.span_id must be 8 bytes, not 9"),
        ({"span_id": bytes(8)}, "span.span_id must not be all zero"),
        ({"parent_span_id": b""}, "span.parent_span_id must be 8 bytes, not 0"),
        ({"parent_span_id": SPAN_ID + b"1"}, "span.parent_span_id must be 8 bytes, not 9"),
        ({"parent_span_id": bytes(8)}, "span.parent_span_id must not be all zero"),
    ],
)
def test_bad_ids_are_refused(fields: Mapping[str, bytes], message: str) -> None:
    """An id of a wrong length or of zeros only is refused, and the message names the field."""
    with pytest.raises(InvalidSpan) as refused:
        canonical(span(**fields))
    assert message == str(refused.value)


def test_ids_may_hold_zeros() -> None:
    """One bit is enough of an id."""
    ids = {"trace_id": bytes(15) + b"\x01", "span_id": b"\x80" + bytes(7)}
    text = canonical(span(**ids))
    assert '"spanId":"8000000000000000"' in text
    assert '"traceId":"00000000000000000000000000000001"' in text


@pytest.mark.parametrize(
    ("seconds", "nanos", "text"),
    [
        (-62_135_596_800, 0, "-62135596800000000000"),
        (-1, 999_999_999, "-1"),
        (0, 1, "1"),
        (1_700_000_000, 123_456_789, "1700000000123456789"),
        (253_402_300_799, 999_999_999, "253402300799999999999"),
        (-62_135_596_801, 999_999_999, None),
        (253_402_300_800, 0, None),
        (0, -1, None),
        (0, 1_000_000_000, None),
    ],
)
def test_start_time(seconds: int, nanos: int, text: str | None) -> None:
    """A Timestamp is exact nanoseconds from year 1 to 9999; one that breaks its own rules is refused."""
    timed = span(start_time=Timestamp(seconds=seconds, nanos=nanos))
    if text is None:
        with pytest.raises(InvalidSpan, match=r"span\.start_time is not a valid"):
            canonical(timed)
    else:
        assert minimal().replace('"startTimeUnixNano":null', f'"startTimeUnixNano":"{text}"') == canonical(timed)


@pytest.mark.parametrize(
    ("seconds", "nanos", "text"),
    [
        (0, -5, "-5"),
        (-1, -500_000_000, "-1500000000"),
        (-1, 0, "-1000000000"),
        (315_576_000_000, 999_999_999, "315576000000999999999"),
        (-315_576_000_000, -999_999_999, "-315576000000999999999"),
        (315_576_000_001, 0, None),
        (-315_576_000_001, 0, None),
        (0, 1_000_000_000, None),
        (0, -1_000_000_000, None),
        (1, -1, None),
        (-1, 1, None),
    ],
)
def test_duration(seconds: int, nanos: int, text: str | None) -> None:
    """A Duration is exact nanoseconds of one sign, to about 10,000 years; one that breaks its rules is refused."""
    lasting = span(duration=Duration(seconds=seconds, nanos=nanos))
    if text is None:
        with pytest.raises(InvalidSpan, match=r"span\.duration is not a valid"):
            canonical(lasting)
    else:
        assert minimal().replace('"durationNano":null', f'"durationNano":"{text}"') == canonical(lasting)


def test_no_message_quotes_a_value() -> None:
    """A refusal may be logged and shown, so it holds names and never values."""
    secret = Value(string_value="s3cret")
    bad = [
        span(attributes={"a": array(secret, Value(double_value=float("nan")))}),
        span(attributes={"a": kvlist(("s3cret", secret), ("s3cret", secret))}),
        span(trace_id=b"s3cret"),
        pb.ComplianceSpan.FromString(span(name="s3cret").SerializeToString() + UNKNOWN),
    ]
    for refused in bad:
        with pytest.raises(InvalidSpan) as caught:
            canonical(refused)
        assert "s3cret" not in str(caught.value)
        assert b"s3cret".hex() not in str(caught.value)


def test_the_span_is_left_as_it_was() -> None:
    """Looking at a span changes nothing in it, not even what is set."""
    full = span(name="", attributes={"a": kvlist(("b", Value()), ("a", Value()))}, start_time=Timestamp())
    before = pb.ComplianceSpan.FromString(full.SerializeToString())
    canonical(full)
    assert before == full


@settings(max_examples=200, deadline=None)
@given(spans())
def test_equals_rfc8785_of_a_plain_value(drawn: tuple[pb.ComplianceSpan, dict[str, Any]]) -> None:
    """Whatever the span, its bytes are RFC 8785's for the JSON value that the format's description tells."""
    message, expected = drawn
    assert rfc8785.dumps(expected) == canonical_span(TENANT, KEY_ID, message)


@settings(max_examples=100, deadline=None)
@given(spans())
def test_survives_the_wire(drawn: tuple[pb.ComplianceSpan, dict[str, Any]]) -> None:
    """A span that was sent has the bytes of the span that was built."""
    message, _ = drawn
    assert canonical(message) == canonical(pb.ComplianceSpan.FromString(message.SerializeToString()))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_order_on_the_wire_never_matters(data: st.DataObject) -> None:
    """Attributes, pairs and fields may arrive in any order: the bytes are the same."""
    drawn = data.draw(st.dictionaries(texts, leaves, min_size=2, max_size=5))
    pairs = [(name, as_message(value)) for name, value in drawn.items()]

    def shuffled() -> pb.ComplianceSpan:
        pairs_of_list = kvlist(*data.draw(st.permutations(pairs)))
        attributes = [*pairs, ("longer than any drawn name", pairs_of_list)]
        written = [
            field(12, field(1, name.encode()) + field(2, value.SerializeToString())) for name, value in attributes
        ]
        written += [field(1, TRACE_ID), field(2, SPAN_ID), field(4, b"name")]
        return pb.ComplianceSpan.FromString(b"".join(data.draw(st.permutations(written))))

    assert canonical(shuffled()) == canonical(shuffled())


BASE: Mapping[str, Any] = {
    "parent_span_id": SPAN_ID,
    "name": "name",
    "framework": "soc2",
    "control": "CC6_1",
    "evidence_type": "audit_trail",
    "start_time": Timestamp(seconds=1),
    "duration": Duration(seconds=1),
    "result": "success",
    "error": "none",
    "attributes": {"a": Value(string_value="1"), "b": array(Value(int_value=1), Value(int_value=2))},
}


@pytest.mark.parametrize(
    "change",
    [
        {"trace_id": TRACE_ID[::-1]},
        {"span_id": SPAN_ID[::-1]},
        {"parent_span_id": SPAN_ID[::-1]},
        {"parent_span_id": None},
        *(
            {text: new}
            for text in ("name", "framework", "control", "evidence_type", "result", "error")
            for new in ("", "x", None)
        ),
        {"start_time": None},
        {"start_time": Timestamp(seconds=1, nanos=1)},
        {"duration": None},
        {"duration": Duration(seconds=1, nanos=1)},
        {"duration": Duration(seconds=-1)},
        *(
            {"attributes": {**BASE["attributes"], "a": value}}
            for value in (
                Value(),
                Value(string_value="1 "),
                Value(int_value=1),
                Value(double_value=1),
                Value(bool_value=True),
                Value(bytes_value=b"1"),
                array(Value(string_value="1")),
                kvlist(("1", Value())),
            )
        ),
        {"attributes": {"A": Value(string_value="1"), "b": array(Value(int_value=1), Value(int_value=2))}},
        {"attributes": {"a": Value(string_value="1"), "b": array(Value(int_value=2), Value(int_value=1))}},
        {"attributes": {"a": Value(string_value="1")}},
        {"attributes": {}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_change_changes_the_bytes(change: Mapping[str, Any]) -> None:
    """No field can be changed, emptied, unset or given another type without changing what is signed."""
    assert canonical(span(**BASE)) != canonical(span(**{**BASE, **change}))


def test_tenant_and_key_are_part_of_the_bytes() -> None:
    """One span signed for two tenants, or under two keys, is two documents."""
    signed = {canonical_span(tenant, key, span()) for tenant in ("acme", "other") for key in (KEY_ID, KEY_ID[::-1])}
    assert 4 == len(signed)


def test_what_json_cannot_hold_is_an_invalid_span() -> None:
    """Nesting that is too deep, and ids with half a surrogate pair, are told as such."""
    deep = pb.ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8)
    value = deep.attributes["deep"]
    for _ in range(300):
        value = value.array_value.values.add()
    for span, tenant in ((deep, "acme"), (pb.ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8), "\ud800")):
        with pytest.raises(InvalidSpan, match="nested too deeply"):
            canonical_span(tenant, "key", span)
