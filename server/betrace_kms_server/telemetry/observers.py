"""Observes the calls that the daemon answers, and those that it makes to KMS, for figures, audit trail and traces.

An observer's defect is its own: it is logged once, the other observers go on, and the caller gets its answer. Only an
audit line that must be written (`kms.audit.required`) and cannot be takes the answer with it.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import structlog

from betrace_kms_server.audit.trail import AuditTrail
from betrace_kms_server.core.errors import AuditUnavailable, KmsError
from betrace_kms_server.core.key_event import KeyEvent, Recorder, current_event, ignore
from betrace_kms_server.telemetry.figures import CallStats
from betrace_kms_server.telemetry.tracing import TRACEPARENT, Tracing, failed, trace_id_in, trace_id_of

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class MessageShape:
    """What the messages of a method have: asking protobuf for a field that is not there costs microseconds.

    A handler declares its own, by `observed_as`.
    """

    key_type: str | None = None
    """Kind of the key that the method asks a cache for, if it asks one."""
    tenant: bool = True
    request_key_id: bool = False
    response_key_id: bool = False
    batch: str = ""
    """The field of the request that holds the items of a batch, if it is one."""
    results: bool = False
    """The response has `results`, each with a key id."""

    def items(self, request: Any) -> int:
        """Return how many items a request has: 1, unless it is a batch."""
        return len(getattr(request, self.batch)) if self.batch else 1


NO_SHAPE = MessageShape(tenant=False)
H = TypeVar("H", bound=Callable[..., Any])


def observed_as(shape: MessageShape) -> Callable[[H], H]:
    """Declare what the messages of a handler have."""

    def declare(handler: H) -> H:
        handler.shape = shape  # type: ignore[attr-defined]
        return handler

    return declare


REQUEST_ID = "x-request-id"
"""Metadata by which a caller names its call."""
_UNAUDITED = frozenset({"GetStatus"})
_ALWAYS_ADMITTED = frozenset({"GetStatus", "Validate", "Lock"})
_CHANGES = frozenset({"RotateKeys", "RevokeKey", "InvalidateTenant", "Lock", "Unlock", "ShredTenant"})
"""Calls whose work stays done when their answer is dropped, and which a caller must not repeat blindly."""
_WITHOUT_AN_ANSWER = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", AuditUnavailable.reason})
"""How calls end that no line must precede: no one waits for the answer, or `admit` refused them."""
_ID_CHARACTERS = 128
_CALLER_CHARACTERS = 200


class Contained:
    """A context that no defect of an observer leaves. Each kind is logged once, not in every call."""

    def __init__(self, observer: str) -> None:
        self._observer = observer
        self._logged: set[type[Exception]] = set()

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.note(error)
        return True

    def note(self, error: Exception) -> None:
        """Log a defect. For hot paths, where `try` is free and a context is not."""
        if type(error) not in self._logged:
            self._logged.add(type(error))
            log.error("An observer failed: calls go on without it", observer=self._observer, exc_info=error)


def recorder(audit: AuditTrail | None) -> Recorder:
    """Return what records the daemon's own work in the audit trail, if there is one. Never raises."""
    if audit is None:
        return ignore
    contained = Contained("audit trail")

    def record(event: KeyEvent) -> None:
        with contained:
            audit.record(event)

    return record


class CallObserver:
    """Observes the calls that the daemon answers. Without an audit trail and traces a call costs two counters."""

    def __init__(self, stats: CallStats, audit: AuditTrail | None, tracing: Tracing | None) -> None:
        self._stats = stats
        self._audit = audit
        self._tracing = tracing
        self._in_metrics, self._in_events = Contained("metrics"), Contained("events")
        self._in_traces, self._in_audit = Contained("traces"), Contained("audit trail")
        self.keeps_events = audit is not None or tracing is not None

    def admit(self, method: str) -> None:
        """Raise AuditUnavailable if a call must be audited and cannot be. Operators may always ask, and lock."""
        if self._audit is not None and method not in _ALWAYS_ADMITTED:
            self._audit.check()

    def begin(
        self, service: str, method: str, shape: MessageShape, request: Any, metadata: Iterable[Any], peer: str
    ) -> KeyEvent:
        """Return the event of a call, and make it the current one. Never raises: what failed is missing in it."""
        event = KeyEvent(method, "")
        current_event.set(event)
        texts: dict[str, Any] = {}
        try:
            texts = dict(metadata)
            event.caller = f"{peer} {texts.get('user-agent', '')}"[:_CALLER_CHARACTERS]
            if (request_id := texts.get(REQUEST_ID)) is not None:
                event.request_id = str(request_id)[:_ID_CHARACTERS]
            if (traceparent := texts.get(TRACEPARENT)) is not None:
                event.trace_id = trace_id_of(traceparent)
            if shape.tenant:
                event.tenant_id = request.tenant_id[:_ID_CHARACTERS]
            if shape.request_key_id:
                event.key_id = request.key_id[:_ID_CHARACTERS]
            event.items = shape.items(request)
        except Exception as error:  # noqa: BLE001  # it is logged
            self._in_events.note(error)
        if self._tracing is not None:
            with self._in_traces:
                event.span = self._tracing.begin_call(service, method, texts)
                if event.span is not None:
                    event.trace_id = trace_id_in(event.span)
        return event

    def end(
        self,
        method: str,
        status: str,
        seconds: float,
        event: KeyEvent | None,
        shape: MessageShape = NO_SHAPE,
        reason: str = "OK",
        response: Any = None,
    ) -> Coroutine[Any, Any, None] | None:
        """Note how a call ended.

        Returns what must end before the answer leaves, if its line must be written first (`kms.audit.required`):
        it raises AuditUnavailable, and notes the call so, if the line is not written.
        """
        if event is None:
            self._count(method, status, seconds, reason)
            return None
        event.result = reason
        if response is not None:
            try:
                if shape.response_key_id:
                    event.key_id = response.key_id
                elif shape.results:
                    event.key_id = next((result.key_id for result in response.results if result.key_id), "")
            except Exception as error:  # noqa: BLE001  # it is logged
                self._in_events.note(error)
            if event.cache_hit is None and shape.key_type:
                event.cache_hit = True
        audit = self._audit if method not in _UNAUDITED else None
        if audit is not None and audit.required and method not in _ALWAYS_ADMITTED and reason not in _WITHOUT_AN_ANSWER:
            return self._end_recorded(audit, method, status, seconds, event, shape)
        self._count(method, status, seconds, reason)
        if event.span is not None:
            with self._in_traces:
                _finish(event, shape.key_type, status, seconds, reason)
        if audit is not None:
            try:
                audit.record(event)
            except Exception as error:  # noqa: BLE001  # it is logged
                self._in_audit.note(error)
        return None

    async def _end_recorded(
        self, audit: AuditTrail, method: str, status: str, seconds: float, event: KeyEvent, shape: MessageShape
    ) -> None:
        began, outcome, reason = time.perf_counter(), "CANCELLED", "CANCELLED"
        try:
            try:
                written = await audit.commit(event)
            except Exception as error:  # noqa: BLE001  # it is logged
                self._in_audit.note(error)
                written = False
            if not written:
                outcome, reason = "UNAVAILABLE", AuditUnavailable.reason
                changed = status == "OK" and method in _CHANGES
                raise AuditUnavailable(
                    f"the {'change was made and stays, but it' if changed else 'call'} could not be recorded, and"
                    f" {audit.setting} is set: the daemon's log says why"
                )
            outcome, reason = status, event.result
        finally:
            seconds += time.perf_counter() - began
            self._count(method, outcome, seconds, reason)
            if event.span is not None:
                with self._in_traces:
                    _finish(event, shape.key_type, outcome, seconds, reason)

    def _count(self, method: str, status: str, seconds: float, reason: str) -> None:
        try:
            self._stats.observe(method, status, seconds, reason)
        except Exception as error:  # noqa: BLE001  # it is logged
            self._in_metrics.note(error)


UNOBSERVED = CallObserver(CallStats(), None, None)
"""For calls of services that are not ours."""


def _outcome(error: BaseException) -> str:
    if isinstance(error, KmsError):
        return error.reason
    return "CANCELLED" if isinstance(error, asyncio.CancelledError) else "INTERNAL"


def _finish(event: KeyEvent, key_type: str | None, status: str, seconds: float, reason: str) -> None:
    span = event.span
    if event.cache_hit is not None:
        span.set_attribute("cache.hit", event.cache_hit)
    if key_type:
        span.set_attribute("key.type", key_type)
    span.set_attribute("latency_ms", seconds * 1000)
    span.set_attribute("rpc.grpc.status", status)
    if reason != "OK":
        failed(span, reason)
    span.end()


class KmsCallObserver:
    """Observes the daemon's calls to KMS: see key_event.KmsObserver."""

    def __init__(self, stats: CallStats, tracing: Tracing | None) -> None:
        self._stats = stats
        self._tracing = tracing
        self._contained = Contained("calls to KMS")

    def __call__(self, action: str, region: str) -> "_ObservedKmsCall":
        """Return the context of one call."""
        event = current_event.get()
        parent = event.span if event is not None else None
        span = None
        if self._tracing is not None and parent is not None:
            with self._contained:
                span = self._tracing.begin_kms(parent, action, region)
        return _ObservedKmsCall(self._stats, self._contained, action, event, span)


class _ObservedKmsCall:
    def __init__(self, stats: CallStats, contained: Contained, action: str, event: KeyEvent | None, span: Any) -> None:
        self._stats = stats
        self._contained = contained
        self._action = action
        self._event = event
        self._span = span

    def answered(self, request_id: str | None) -> None:
        if request_id is None:
            return
        if self._event is not None:
            self._event.kms_request_ids.append(request_id)
        if self._span is not None:
            with self._contained:
                self._span.set_attribute("aws.request_id", request_id)

    def __enter__(self) -> "_ObservedKmsCall":
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        outcome = "OK" if error is None else _outcome(error)
        with self._contained:
            self._stats.observe(self._action, outcome, time.perf_counter() - self._began)
        if self._span is not None:
            with self._contained:
                if error is not None:
                    failed(self._span, outcome)
                self._span.end()
