"""How a span of the OpenTelemetry SDK becomes the ComplianceSpan that is signed, and carries its signature.

A span is signed as the OTLP/JSON that it will be exported as, by the mapping of OTLP files (otlp/mapping.py), so that
`betrace-kms verify` accepts it from a file that a collector wrote. Two things keep that true: the OTLP form comes from
the encoder that OpenTelemetry's own OTLP exporters use, and the span that goes out differs from the one that came in
by its ``span.signature`` attributes alone, dropped counts included.
"""

from base64 import b64decode
from collections.abc import Mapping
from typing import Any

from betrace.kms.v1 import span_pb2 as pb
from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from betrace_kms_client.otlp.mapping import span_from_otlp
from betrace_kms_client.otlp.signature import SIGNATURE_ATTRIBUTES, attach_failure, attach_signature
from betrace_kms_client.results import SpanSignature

_IDS = ("traceId", "spanId", "parentSpanId")
_NO_RESOURCE = Resource.get_empty()


class SpanWithSignature(ReadableSpan):
    """A span with other `span.signature` attributes, and maybe another resource, and otherwise as it was."""

    def __init__(self, span: ReadableSpan, signature: Mapping[str, str], resource: Resource | None = None) -> None:
        kept = {name: value for name, value in (span.attributes or {}).items() if name not in SIGNATURE_ATTRIBUTES}
        super().__init__(
            name=span.name,
            context=span.get_span_context(),
            parent=span.parent,
            resource=span.resource if resource is None else resource,
            attributes={**kept, **signature},
            events=span.events,
            links=span.links,
            kind=span.kind,
            status=span.status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )
        self._dropped = (span.dropped_attributes, span.dropped_events, span.dropped_links)

    @property
    def dropped_attributes(self) -> int:
        """How many attributes the SDK's limits took."""
        return self._dropped[0]

    @property
    def dropped_events(self) -> int:
        """How many events the SDK's limits took."""
        return self._dropped[1]

    @property
    def dropped_links(self) -> int:
        """How many links the SDK's limits took."""
        return self._dropped[2]


def span_from_sdk(span: ReadableSpan) -> pb.ComplianceSpan:
    """Return what is signed of an ended span. Raises InvalidSpan, or whatever the SDK's encoder raises."""
    return span_from_otlp(otlp_json(span))


def otlp_json(span: ReadableSpan) -> dict[str, Any]:
    """Return a span as the object that stands for it in OTLP/JSON: ids in hexadecimal digits, enums as numbers."""
    bare = SpanWithSignature(span, {}, _NO_RESOURCE)  # to encode the resource for each span costs as much as the span
    message = encode_spans([bare]).resource_spans[0].scope_spans[0].spans[0]
    members: dict[str, Any] = MessageToDict(message, use_integers_for_enums=True)
    for holder in (members, *members.get("links", ())):
        for name in _IDS:
            if name in holder:
                holder[name] = b64decode(holder[name]).hex()
    return members


def with_outcome(span: ReadableSpan, outcome: SpanSignature | str, time: str) -> SpanWithSignature:
    """Return the span with its signature, or with the reason why it has none; `time` is RFC 3339 text, unsigned."""
    holder: dict[str, Any] = {}
    if isinstance(outcome, str):
        attach_failure(holder, outcome, time)
    else:
        attach_signature(holder, outcome, time)
    return SpanWithSignature(span, {item["key"]: item["value"]["stringValue"] for item in holder["attributes"]})
