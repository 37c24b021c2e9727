"""Traces: a span for each sampled call, and one below it for each call to KMS that it waited for.

OpenTelemetry's own interceptor costs a quarter of the throughput, sampled or not, and a span more than any other part
of a call. Here a call that its caller did not sample costs a comparison of one character of its `traceparent`
(https://www.w3.org/TR/trace-context/), and one that is in no trace yet a random number.
"""

import random
import re
from collections.abc import Mapping

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT = "traceparent"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_UNSAMPLED_ENDINGS = frozenset("02468ace")
DEFAULT_SHARE = 0.1
"""Share of the calls in no trace that become a span if OTEL_TRACES_SAMPLER is not set: each span costs 160 us."""


def trace_id_of(traceparent: str | bytes) -> str:
    """Return the trace id (32 hexadecimal digits) of a W3C traceparent, or nothing for what is none."""
    found = _TRACEPARENT.match(traceparent) if isinstance(traceparent, str) else None
    return found[1] if found else ""


def trace_id_in(span: Span) -> str:
    """Return the trace id of a span (32 hexadecimal digits)."""
    return format_trace_id(span.get_span_context().trace_id)


def share_of_roots(environ: Mapping[str, str]) -> float | None:
    """Return which share of the calls in no trace become a span, by the OTEL_* variables, and follow parents otherwise.

    None for a sampler that does not follow parents: the SDK then decides about each call.
    """
    sampler = environ.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    ratio = float(environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or 1)
    shares = {
        "": DEFAULT_SHARE,
        "parentbased_always_on": 1.0,
        "parentbased_always_off": 0.0,
        "parentbased_traceidratio": ratio,
    }
    return shares.get(sampler)


class Tracing:
    """Makes spans and sends them by `exporter`. `root_share` is what `share_of_roots` returns."""

    def __init__(self, exporter: SpanExporter, resource: Resource, root_share: float | None) -> None:
        sampler = None if root_share is None else ParentBased(ALWAYS_ON if root_share else ALWAYS_OFF)
        self._provider = TracerProvider(sampler, resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("betrace-kms")
        self._propagator = TraceContextTextMapPropagator()
        self._root_share = root_share

    def begin_call(self, service: str, method: str, metadata: Mapping[str, str]) -> Span | None:
        """Return a span for a call, or None if it is not sampled."""
        share = self._root_share
        if share is not None:
            traceparent = metadata.get(TRACEPARENT, "")
            if not trace_id_of(traceparent):
                if random.random() >= share:  # noqa: S311  # a sample, no secret
                    return None
            elif traceparent[-1:] in _UNSAMPLED_ENDINGS:
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
