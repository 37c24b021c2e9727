"""Signs the spans of an application with the OpenTelemetry SDK, on their way to whatever exports them.

::

    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = SigningSpanExporter(OTLPSpanExporter(), tenant_id="acme", target="unix:/run/betrace-kms/kms.sock")
    provider.add_span_processor(BatchSpanProcessor(exporter))

Evidence is an extra, the span is not: every span that comes in goes out, in its place. What could not be signed says so
in `span.signature.status`. Signing takes at most `timeout` seconds of the processor's thread for a batch; after a
failure the daemon is left alone for `cool_down` seconds, in which spans go out unsigned at once, so that a daemon that
is away does not make the processor's queue overflow.
"""

import inspect
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic, time_ns

from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_evidence import InvalidSpan
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.context import (
    _SUPPRESS_INSTRUMENTATION_KEY,  # private, and yet what every exporter of OpenTelemetry imports
    attach,
    detach,
    set_value,
)
from opentelemetry.metrics import Meter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from betrace_kms_client.channel import DEFAULT_TARGET
from betrace_kms_client.errors import InternalError, KmsClientError
from betrace_kms_client.otel_mapping import span_from_sdk, with_outcome
from betrace_kms_client.results import SpanRefusal, SpanSignature
from betrace_kms_client.sync_client import KmsClient

SIGNING_TIMEOUT = 1.0
COOL_DOWN = 5.0
MAX_SPANS = 1000
"""Spans that SignSpans takes in one call."""
MAX_BYTES = 3 * 1024 * 1024
"""Bytes of spans in one call: the daemon takes messages of 4 MiB unless configured otherwise."""
_COUNTER = "betrace_kms_spans_total"

_log = logging.getLogger(__name__)
_Outcome = SpanSignature | str
"""A signature, or why there is none."""


class SigningSpanExporter(SpanExporter):
    """Hands spans on to `exporter`, signed by the daemon at `target` for one tenant.

    With `proofs` a batch gets one signature and each span an inclusion proof. `signed` and `failed` count the spans of
    this process; a `meter` gets the same as the counter betrace_kms_spans_total, by status.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        *,
        tenant_id: str,
        target: str = DEFAULT_TARGET,
        timeout: float = SIGNING_TIMEOUT,
        proofs: bool = False,
        cool_down: float = COOL_DOWN,
        meter: Meter | None = None,
        clock: Callable[[], float] = monotonic,
        wall_clock_ns: Callable[[], int] = time_ns,
    ) -> None:
        self._exporter = exporter
        self._tenant_id = tenant_id
        self._target = target
        self._timeout = timeout
        self._proofs = proofs
        self._cool_down = cool_down
        self._clock = clock
        self._wall_clock_ns = wall_clock_ns
        self._counter = (
            None if meter is None else meter.create_counter(_COUNTER, "{span}", "Spans handed on, by status.")
        )
        self._shut_down = False
        self._begin_in_this_process()

    def _begin_in_this_process(self) -> None:
        self.signed = 0
        self.failed = 0
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._client: KmsClient | None = None
        self._trouble = ""
        self._silent_until = float("-inf")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sign the spans, or mark them as unsigned, and hand all of them on in their order."""
        if self._pid != os.getpid():  # forked: the parent's connection and lock are of no use, nor safe to close, here
            self._parents = self._client
            self._begin_in_this_process()
        outcomes = self._outcomes(spans)
        self._count(outcomes)
        now = Timestamp()
        now.FromNanoseconds(self._wall_clock_ns())
        time = now.ToJsonString()
        return self._exporter.export(
            [with_outcome(span, outcome, time) for span, outcome in zip(spans, outcomes, strict=True)]
        )

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Pass on; nothing is held back here."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000) -> None:
        """Close the connection, which ends a call in flight, and shut the inner exporter down."""
        if self._shut_down:
            return
        self._shut_down = True
        if self._pid == os.getpid():
            self._disconnect()
        if "timeout_millis" in inspect.signature(self._exporter.shutdown).parameters:
            self._exporter.shutdown(timeout_millis=timeout_millis)  # type: ignore[call-arg]  # newer than the interface
        else:
            self._exporter.shutdown()

    def _outcomes(self, spans: Sequence[ReadableSpan]) -> list[_Outcome]:
        if trouble := self._trouble_now():
            return [trouble] * len(spans)
        mapped = [_mapped(span) for span in spans]
        parts = _parts([span for span in mapped if isinstance(span, ComplianceSpan)])
        deadline = self._clock() + self._timeout
        answers = iter([answer for part in parts for answer in self._ask(part, deadline)])
        return [next(answers) if isinstance(span, ComplianceSpan) else span for span in mapped]

    def _ask(self, spans: Sequence[ComplianceSpan], deadline: float) -> list[_Outcome]:
        if trouble := self._trouble_now():
            return [trouble] * len(spans)
        try:
            with _untraced():
                results = self._connected().sign_spans(
                    self._tenant_id, spans, proofs=self._proofs, timeout=max(0.0, deadline - self._clock())
                )
            outcomes = [_reason(result) for result in results]
            if len(outcomes) != len(spans):
                raise InternalError(f"the daemon gave {len(outcomes)} results for {len(spans)} spans")
        except Exception as error:  # noqa: BLE001  # no defect of ours or of gRPC's may cost the application a span
            trouble = f"{type(error).__name__}: {error}" if isinstance(error, KmsClientError) else type(error).__name__
            self._fall_silent(trouble)
            return [trouble] * len(spans)
        self._recover()
        return outcomes

    def _connected(self) -> KmsClient:
        with self._lock:
            if self._client is None:
                # An application that ends must not wait for a daemon: its spans go out unsigned.
                self._client = KmsClient(self._target, timeout=self._timeout, wait_for_ready=False)
            return self._client

    def _disconnect(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _trouble_now(self) -> str:
        if self._shut_down:
            return "the exporter is shut down"
        return self._trouble if self._clock() < self._silent_until else ""

    def _fall_silent(self, trouble: str) -> None:
        # A channel that failed waits up to two minutes before it connects again; a new one connects at once.
        self._disconnect()
        if not self._trouble:
            _log.warning("Spans go out unsigned, and signing is tried every %g s: %s", self._cool_down, trouble)
        self._trouble = trouble
        self._silent_until = self._clock() + self._cool_down

    def _recover(self) -> None:
        if self._trouble:
            _log.warning("Spans are signed again")
        self._trouble = ""

    def _count(self, outcomes: Sequence[_Outcome]) -> None:
        failed = sum(isinstance(outcome, str) for outcome in outcomes)
        signed = len(outcomes) - failed
        with self._lock:
            self.signed += signed
            self.failed += failed
        if self._counter is not None:
            for status, count in (("signed", signed), ("signing_failed", failed)):
                if count:
                    self._counter.add(count, {"status": status})


def _mapped(span: ReadableSpan) -> ComplianceSpan | str:
    """Return what to sign, or why the span cannot be signed."""
    try:
        mapped = span_from_sdk(span)
    except InvalidSpan as error:
        return f"InvalidSpan: {error}"
    except Exception as error:  # noqa: BLE001  # whatever an application put into a span, the span goes out
        return f"InvalidSpan: it has no OTLP form ({type(error).__name__})"
    size = mapped.ByteSize()
    return mapped if size <= MAX_BYTES else f"InvalidSpan: {size} bytes are more than the {MAX_BYTES} of a call"


def _parts(spans: Sequence[ComplianceSpan]) -> Iterator[list[ComplianceSpan]]:
    """Split into what single calls take."""
    part: list[ComplianceSpan] = []
    size = 0
    for span in spans:
        length = span.ByteSize()
        if len(part) == MAX_SPANS or size + length > MAX_BYTES:
            yield part
            part, size = [], 0
        part.append(span)
        size += length
    if part:
        yield part


def _reason(result: SpanSignature | SpanRefusal) -> _Outcome:
    return f"{result.status}: {result.message}" if isinstance(result, SpanRefusal) else result


@contextmanager
def _untraced() -> Iterator[None]:
    """Keep instrumented gRPC from making spans of our own calls, which would then be exported too."""
    token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        yield
    finally:
        detach(token)
