"""Traces: a span for each sampled call, and one below it for each call to KMS that it waited for.

OpenTelemetry's own interceptor costs a quarter of the throughput, sampled or not. Here a call that its caller did not
sample costs a comparison of one character of its `traceparent` (https://www.w3.org/TR/trace-context/).
"""

import re
from collections.abc import Mapping

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT = "traceparent"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_UNSAMPLED_ENDINGS = frozenset("02468ace")


def trace_id_of(traceparent: str | bytes) -> str:
    """Return the trace id (32 hexadecimal digits) of a W3C traceparent, or nothing for what is none."""
    found = _TRACEPARENT.match(traceparent) if isinstance(traceparent, str) else None
    return found[1] if found else ""


def trace_id_in(span: Span) -> str:
    """Return the trace id of a span (32 hexadecimal digits)."""
    return format_trace_id(span.get_span_context().trace_id)


class Tracing:
    """Makes spans and sends them by `exporter`; OTEL_TRACES_SAMPLER says which calls are sampled."""

    def __init__(self, exporter: SpanExporter, resource: Resource, *, follows_parent: bool = True) -> None:
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("betrace-kms")
        self._propagator = TraceContextTextMapPropagator()
        self._follows_parent = follows_parent

    def begin_call(self, service: str, method: str, metadata: Mapping[str, str]) -> Span | None:
        """Return a span for a call, or None if it is not sampled."""
        traceparent = metadata.get(TRACEPARENT)
        if self._follows_parent and traceparent and traceparent[-1:] in _UNSAMPLED_ENDINGS:
            return None
        span = self._tracer.start_span(
            f"{service}/{method}",
            context=self._propagator.extract(metadata),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        return span if span.is_recording() else None

    def begin_kms(self, parent: Span, action: str, region: str) -> Span:
        """Return a span for a call to KMS that `parent` waits for."""
        return self._tracer.start_span(
            f"KMS {action}",
            context=set_span_in_context(parent),
            kind=SpanKind.CLIENT,
            attributes={"rpc.system": "aws-api", "rpc.service": "KMS", "rpc.method": action, "cloud.region": region},
        )

    def shutdown(self) -> None:
        """Send what is left, and stop. May take as long as the exporter does."""
        self._provider.shutdown()


def failed(span: Span, reason: str) -> None:
    """Mark a span as failed, by the error's machine-readable name."""
    span.set_attribute("error.type", reason)
    span.set_status(Status(StatusCode.ERROR, reason))
