"""What is signed of a span of the OpenTelemetry SDK, and what goes out of it."""

import json
from base64 import b64decode
from typing import Any

import pytest
from betrace.kms.v1 import span_pb2 as pb
from betrace_kms_client.otel_mapping import SpanWithSignature, otlp_json, span_from_sdk, with_outcome
from betrace_kms_client.otlp.mapping import span_from_otlp
from betrace_kms_client.otlp.signature import ReadSignature, signature_of
from betrace_kms_client.results import SpanSignature
from betrace_kms_evidence import InvalidSpan, span_to_json
from google.protobuf.json_format import MessageToJson
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

SIGNED = SpanSignature(bytes(range(64)), "0123456789abcdef" * 2, "Ed25519", "type", b"")
TIME = "2025-11-02T10:20:30Z"


def context(span_id: int, *, is_remote: bool = False, **state: str) -> SpanContext:
    """Return the context of a span of one trace."""
    return SpanContext(2**64 + 255, span_id, is_remote, TraceFlags(1), TraceState(list(state.items())))


def rich(**changes: Any) -> ReadableSpan:
    """Return a span with something in every field."""
    members: dict[str, Any] = {
        "name": "user.login",
        "context": context(10, vendor="x"),
        "parent": context(11, is_remote=True),
        "resource": Resource({"service.name": "shop"}),
        "attributes": {
            "compliance.framework": "soc2",
            "compliance.control": "CC6_1",
            "compliance.evidenceType": "audit_trail",
            "compliance.result": "failure",
            "compliance.error": "declined",
            "user": "ü\U0001f600",
            "count": 2**63 - 1,
            "ratio": 0.5,
            "ok": True,
            "tags": ("a", "b"),
        },
        "events": [Event("paid", {"amount": 3}, 1_700_000_000_000_000_001)],
        "links": [Link(context(12), {"why": "retry"})],
        "kind": SpanKind.CLIENT,
        "status": Status(StatusCode.ERROR, "declined"),
        "start_time": 1_700_000_000_000_000_000,
        "end_time": 1_700_000_001_500_000_000,
        "instrumentation_scope": InstrumentationScope("shop", "1.0"),
    }
    return ReadableSpan(**{**members, **changes})


def test_every_member_of_a_span_is_signed() -> None:
    """By the table of docs/otlp-files.md; resource and scope are not part of it."""
    expected = {
        "traceId": "000000000000000100000000000000ff",
        "spanId": "000000000000000a",
        "parentSpanId": "000000000000000b",
        "name": "user.login",
        "framework": "soc2",
        "control": "CC6_1",
        "evidenceType": "audit_trail",
        "result": "failure",
        "error": "declined",
        "startTimeUnixNano": "1700000000000000000",
        "durationNano": "1500000000",
        "attributes": {
            "user": {"stringValue": "ü\U0001f600"},
            "count": {"intValue": "9223372036854775807"},
            "ratio": {"doubleValue": 0.5},
            "ok": {"boolValue": True},
            "tags": {"arrayValue": {"values": [{"stringValue": "a"}, {"stringValue": "b"}]}},
            "otlp.kind": {"intValue": "3"},
            "otlp.flags": {"intValue": str(0x300)},
            "otlp.traceState": {"stringValue": "vendor=x"},
            "otlp.status": pairs(code={"intValue": "2"}, message={"stringValue": "declined"}),
            "otlp.events": {
                "arrayValue": {
                    "values": [
                        pairs(
                            attributes=pairs(amount={"intValue": "3"}),
                            name={"stringValue": "paid"},
                            timeUnixNano={"stringValue": "1700000000000000001"},
                        )
                    ]
                }
            },
            "otlp.links": {
                "arrayValue": {
                    "values": [
                        pairs(
                            attributes=pairs(why={"stringValue": "retry"}),
                            flags={"intValue": str(0x100)},
                            spanId={"stringValue": "000000000000000c"},
                            traceId={"stringValue": "000000000000000100000000000000ff"},
                        )
                    ]
                }
            },
        },
    }
    assert span_to_json(span_from_sdk(rich())) == expected


def pairs(**values: dict[str, Any]) -> dict[str, Any]:
    """Return a key-value list of the canonical span."""
    return {"kvlistValue": {"values": [{"key": key, "value": value} for key, value in values.items()]}}


def test_the_otlp_form_has_hexadecimal_ids_and_numbers_for_enums() -> None:
    """As the OTLP specification asks of OTLP/JSON, in "JSON Protobuf Encoding"."""
    found = otlp_json(rich())
    assert [found["traceId"], found["spanId"], found["parentSpanId"], found["kind"], found["status"]["code"]] == [
        "000000000000000100000000000000ff",
        "000000000000000a",
        "000000000000000b",
        3,
        2,
    ]
    assert [found["links"][0]["traceId"], found["links"][0]["spanId"]] == [
        "000000000000000100000000000000ff",
        "000000000000000c",
    ]


def in_a_file(span: ReadableSpan) -> dict[str, Any]:
    """Return a span as a file holds it after OpenTelemetry's encoder and a collector: read back from JSON text."""
    message = encode_spans([span]).resource_spans[0].scope_spans[0].spans[0]
    members: dict[str, Any] = json.loads(MessageToJson(message, use_integers_for_enums=True))
    for holder in [members, *members.get("links", [])]:
        for name in {"traceId", "spanId", "parentSpanId"} & set(holder):
            holder[name] = b64decode(holder[name]).hex()
    return members


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = texts.filter(lambda name: not name.startswith(("otlp.", "compliance.", "span.signature")))
scalars = texts | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = scalars | st.binary(max_size=4) | st.lists(texts, max_size=3).map(tuple)
attribute_maps = st.dictionaries(names, values, max_size=4)
nanos = st.integers(0, 2**63)


@given(
    name=texts,
    attributes=attribute_maps,
    framework=st.none() | values,
    parent=st.none() | st.integers(1, 2**64 - 1).map(context),
    events=st.lists(st.builds(Event, texts, attribute_maps, nanos), max_size=2),
    links=st.lists(st.builds(Link, st.integers(1, 2**64 - 1).map(context), attribute_maps), max_size=2),
    kind=st.sampled_from(SpanKind),
    status=st.just(Status()) | texts.map(lambda text: Status(StatusCode.ERROR, text)),
    start_time=nanos,
    end_time=nanos,
    signature=st.sampled_from([SIGNED, "Unavailable: no daemon"]),
)
def test_what_is_signed_is_what_verify_reads_from_a_file(
    attributes: dict[str, Any], framework: Any, signature: SpanSignature | str, **members: Any
) -> None:
    """Whatever the span holds, and whether or not it got a signature on its way."""
    given_ = attributes if framework is None else {**attributes, "compliance.framework": framework}
    span = rich(attributes=given_, **members)
    assert span_from_otlp(in_a_file(with_outcome(span, signature, TIME))) == span_from_sdk(span)


def test_a_signature_is_read_back_as_it_was() -> None:
    """With its proof, in the attributes that `betrace-kms sign` writes."""
    proof = pb.InclusionProof(leaf_index=1, tree_size=2, root_hash=b"r" * 32, hashes=[b"h" * 32])
    proof.sign_time.FromNanoseconds(1_704_164_645_600_000_001)
    proved = SpanSignature(SIGNED.signature, SIGNED.key_id, SIGNED.algorithm, SIGNED.payload_type, b"", proof)
    assert [signature_of(in_a_file(with_outcome(rich(), signed, TIME))) for signed in (SIGNED, proved)] == [
        ReadSignature(SIGNED.signature, SIGNED.key_id),
        ReadSignature(SIGNED.signature, SIGNED.key_id, proof),
    ]


def test_the_attributes_of_a_signed_span() -> None:
    """Its own stay; there is no error."""
    found = dict(with_outcome(rich(attributes={"user": "alice"}), SIGNED, TIME).attributes or {})
    assert found == {
        "user": "alice",
        "span.signature": ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw=="),
        "span.signature.algorithm": "Ed25519",
        "span.signature.key_id": SIGNED.key_id,
        "span.signature.timestamp": TIME,
        "span.signature.status": "signed",
    }


def test_a_failed_span_keeps_no_signature_of_its_own() -> None:
    """What an application writes there would pass for a signature; it may name other attributes as it likes."""
    span = rich(attributes={"span.signature": "forged", "span.signature.proof": "forged", "span.signatures": 2})
    found = dict(with_outcome(span, "Unavailable: no daemon", TIME).attributes or {})
    assert found == {
        "span.signatures": 2,
        "span.signature.timestamp": TIME,
        "span.signature.status": "signing_failed",
        "span.signature.error": "Unavailable: no daemon",
    }


def test_all_else_goes_out_as_it_came_in() -> None:
    """Resource, scope and the counts of what the SDK's limits dropped included."""
    made = InMemorySpanExporter()
    limits = SpanLimits(max_span_attributes=1, max_events=1, max_links=1)
    provider = TracerProvider(resource=Resource({"service.name": "shop"}), span_limits=limits, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(made))
    links = [Link(context(number)) for number in (1, 2, 3, 4)]
    with provider.get_tracer("shop", "1.0").start_as_current_span("full", links=links) as current:
        current.set_attributes({"a": 1, "b": 2})
        for _ in range(3):
            current.add_event("e")
    (span,) = made.get_finished_spans()
    same = SpanWithSignature(span, {})
    assert (span.dropped_attributes, span.dropped_events, span.dropped_links) == (1, 2, 3)
    assert encode_spans([same]) == encode_spans([span])
    assert same.to_json() == span.to_json()


@pytest.mark.parametrize(
    "attributes", [{"otlp.kind": "server"}, {"ratio": float("nan")}, {"ratio": float("inf")}], ids=str
)
def test_a_span_that_could_hide_something_is_refused(attributes: dict[str, Any]) -> None:
    """As in files: no attribute may pass for a member of the span, and every value must have a canonical form."""
    with pytest.raises(InvalidSpan):
        span_from_sdk(rich(attributes=attributes))
