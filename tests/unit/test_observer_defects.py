"""Defects of observers, interceptors and handlers over a real server: what the caller gets, and what the log has."""

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import structlog.testing
from betrace.kms.v1 import admin_pb2 as pb
from betrace.kms.v1 import admin_pb2_grpc
from betrace_kms_server.core.errors import AuditUnavailable, KmsError
from betrace_kms_server.core.key_event import KeyEvent, current_event
from betrace_kms_server.rpc import interceptors
from betrace_kms_server.rpc.admin import AdminService
from betrace_kms_server.rpc.health import HealthService
from betrace_kms_server.rpc.interceptors import ErrorInterceptor
from betrace_kms_server.telemetry.figures import CallStats
from betrace_kms_server.telemetry.observers import CallObserver, KmsCallObserver, recorder
from grpc_health.v1 import health_pb2, health_pb2_grpc

SECRET = "internal text that is no business of the caller's"
INTERNAL = (grpc.StatusCode.INTERNAL, "internal error")
ADMIN = "/betrace.kms.v1.KmsAdminService"


def defect(*_: Any, **__: Any) -> Any:
    raise AttributeError(SECRET)


def nothing(*_: Any, **__: Any) -> None: ...


def stats(*, observe: Callable[..., Any] = nothing) -> Any:
    return SimpleNamespace(observe=observe)


class Trail:
    """An audit trail that keeps its events, and fails where it is told to."""

    def __init__(self, *, required: bool = False, check: Any = nothing, record: Any = None) -> None:
        self.events: list[KeyEvent] = []
        self.required, self.check, self.record = required, check, record or self.events.append
        self.setting = "kms.audit.required"

    async def commit(self, event: KeyEvent) -> bool:
        return self.record(event) is None


def tracing(*, begin_call: Any = nothing, span: Any = None) -> Any:
    return SimpleNamespace(begin_call=begin_call if span is None else lambda *_: span)


def span(**methods: Any) -> Any:
    context = SimpleNamespace(trace_id=1)
    alike = {"set_attribute": nothing, "set_status": nothing, "end": nothing, "get_span_context": lambda: context}
    return SimpleNamespace(**{**alike, **methods})


@asynccontextmanager
async def served(observer: Any, **methods: Any) -> AsyncIterator[grpc.aio.Channel]:
    """Serve the operator's service with these methods of a lifecycle, and health, behind the interceptor."""

    async def invalidate(tenant_id: str) -> int:
        return 3

    lifecycle: Any = SimpleNamespace(invalidate=invalidate, **methods)
    rotation: Any = None
    stop: Any = None
    status: Any = dict
    shredder: Any = None
    service = AdminService(
        "local",
        validate=defect,
        status=status,
        lifecycle=lifecycle,
        rotation=rotation,
        stop=stop,
        shredder=shredder,
    )
    server = grpc.aio.server(interceptors=[ErrorInterceptor(observer)])
    admin_pb2_grpc.add_KmsAdminServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(), server)
    with tempfile.TemporaryDirectory(prefix="kms") as folder:
        server.add_insecure_port(f"unix:{folder}/admin.sock")
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{folder}/admin.sock") as channel:
            yield channel
        await server.stop(None)


async def outcome(call: Any) -> Any:
    """Return the number of entries that a call dropped, or its status and message."""
    try:
        return (await call).entries
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details()


def invalidate(channel: grpc.aio.Channel) -> Any:
    return admin_pb2_grpc.KmsAdminServiceStub(channel).InvalidateTenant(pb.InvalidateTenantRequest(tenant_id="acme"))


@pytest.mark.parametrize(
    "observer",
    [
        lambda trail: CallObserver(stats(observe=defect), trail, tracing()),
        lambda trail: CallObserver(stats(), trail, tracing(begin_call=defect)),
        lambda trail: CallObserver(stats(), trail, tracing(span=span(get_span_context=defect))),
        lambda trail: CallObserver(stats(), trail, tracing(span=span(set_attribute=defect))),
        lambda trail: CallObserver(stats(), trail, tracing(span=span(end=defect))),
    ],
    ids=["metrics", "a call's span", "its trace id", "an attribute", "the end of the span"],
)
async def test_an_observer_that_fails_takes_nothing_with_it(observer: Callable[[Any], CallObserver]) -> None:
    """The caller gets its answer, the audit trail its line, and the log one error for two calls."""
    trail = Trail()
    with structlog.testing.capture_logs() as logs:
        async with served(observer(trail)) as channel:
            answers = [await outcome(invalidate(channel)), await outcome(invalidate(channel))]
    assert [3, 3] == answers
    assert [("InvalidateTenant", "acme", "OK")] * 2 == [
        (event.operation, event.tenant_id, event.result) for event in trail.events
    ]
    assert ["An observer failed: calls go on without it"] == [entry["event"] for entry in logs]


async def test_an_audit_trail_that_fails_is_logged_once() -> None:
    """A trail that is not required may fail, as a full disk may."""
    with structlog.testing.capture_logs() as logs:
        async with served(CallObserver(stats(), Trail(record=defect), None)) as channel:  # type: ignore[arg-type]
            answers = [await outcome(invalidate(channel)), await outcome(invalidate(channel))]
    assert [3, 3] == answers
    assert ["audit trail"] == [entry["observer"] for entry in logs]


async def test_a_call_that_must_be_recorded_and_was_not_has_no_answer() -> None:
    """With kms.audit.required the caller gets AUDIT_UNAVAILABLE, and not the defect's text."""
    trail: Any = Trail(required=True, record=defect)
    async with served(CallObserver(stats(), trail, None)) as channel:
        code, details = await outcome(invalidate(channel))
        refused = admin_pb2_grpc.KmsAdminServiceStub(channel).InvalidateTenant(
            pb.InvalidateTenantRequest(tenant_id="!")
        )
        assert "the call could not be recorded" == (await outcome(refused))[1].partition(",")[0]
    assert grpc.StatusCode.UNAVAILABLE == code
    assert "the change was made and stays, but it could not be recorded" == details.partition(", and")[0]


@pytest.mark.parametrize(
    ("record", "status"), [(defect, "UNAVAILABLE"), (nothing, "OK")], ids=["not recorded", "recorded"]
)
async def test_metrics_have_the_status_that_the_caller_got(record: Any, status: str) -> None:
    """A call whose line is not written is counted once, as what its caller got, and its span says so, too."""
    trail: Any = Trail(required=True, record=record)
    counted = CallStats()
    attributes: dict[str, Any] = {}
    observer = CallObserver(counted, trail, tracing(span=span(set_attribute=attributes.__setitem__)))
    async with served(observer) as channel:
        await outcome(invalidate(channel))
    assert [("InvalidateTenant", status)] == list(counted.counts)
    assert status == attributes["rpc.grpc.status"]


@pytest.mark.parametrize("status", ["CANCELLED", "DEADLINE_EXCEEDED"])
def test_call_without_an_answer_does_not_wait_for_its_line(status: str) -> None:
    """It is recorded all the same."""
    trail: Any = Trail(required=True)
    observer = CallObserver(CallStats(), trail, None)
    assert observer.end("Encrypt", status, 0.1, KeyEvent("Encrypt", "acme"), reason=status) is None
    assert [status] == [event.result for event in trail.events]


async def test_a_check_that_fails_by_a_defect_is_opaque() -> None:
    """A call is not admitted when nobody knows whether it may be."""
    trail: Any = Trail(check=defect)
    async with served(CallObserver(stats(), trail, None)) as channel:
        assert INTERNAL == await outcome(invalidate(channel))


async def test_a_refusal_stays_a_refusal_while_observers_fail() -> None:
    """The status of the call is the handler's, whatever its observers do."""
    trail: Any = Trail(record=defect)
    observer = CallObserver(stats(observe=defect), trail, tracing(begin_call=defect))
    async with served(observer) as channel:
        call = admin_pb2_grpc.KmsAdminServiceStub(channel).InvalidateTenant(pb.InvalidateTenantRequest(tenant_id="!"))
        code, details = await outcome(call)
    assert (grpc.StatusCode.INVALID_ARGUMENT, True) == (code, "tenant_id" in details)


@pytest.mark.parametrize(("method", "answer"), [("begin", 3), ("admit", INTERNAL), ("end", 3)])
async def test_no_text_of_an_observer_reaches_the_caller(
    monkeypatch: pytest.MonkeyPatch, method: str, answer: object
) -> None:
    """An observer that raises where ours do not is logged; only a call that nobody admitted has no answer."""
    monkeypatch.setattr(interceptors, "_logged", set())
    observer = SimpleNamespace(**{"keeps_events": True, "begin": nothing, "admit": nothing, "end": nothing})
    setattr(observer, method, defect)
    with structlog.testing.capture_logs() as logs:
        async with served(observer) as channel:
            assert answer == await outcome(invalidate(channel))
    assert 1 == len(logs)


class Unmapped(KmsError):
    """An error that somebody forgot in the table of statuses."""

    reason = "UNMAPPED"


async def test_an_error_without_a_status_is_opaque() -> None:
    """A KmsError that rpc/status.py does not know is a defect of ours."""

    async def revoke(*_: str) -> str:
        raise Unmapped(SECRET)

    async with served(CallObserver(CallStats(), None, None), revoke=revoke) as channel:
        request = pb.RevokeKeyRequest(tenant_id="acme", key_id="0" * 32)
        assert INTERNAL == await outcome(admin_pb2_grpc.KmsAdminServiceStub(channel).RevokeKey(request))


async def test_an_answer_that_cannot_be_written_is_opaque(monkeypatch: pytest.MonkeyPatch) -> None:
    """Putting the answer into bytes is behind the edge too."""

    async def no_message(*_: Any) -> str:
        return SECRET

    monkeypatch.setattr(AdminService, "InvalidateTenant", no_message)
    async with served(CallObserver(CallStats(), None, None)) as channel:
        assert INTERNAL == await outcome(invalidate(channel))


@pytest.mark.parametrize("method", [f"{ADMIN}/InvalidateTenant", "/grpc.health.v1.Health/Watch"])
async def test_bytes_that_are_no_message_are_refused(method: str) -> None:
    """A malformed request is the caller's fault, in a stream as well."""
    async with served(CallObserver(CallStats(), None, None)) as channel:
        call: Any = channel.unary_stream if method.endswith("Watch") else channel.unary_unary
        answer = call(method)(b"\xff\xff")
        assert grpc.StatusCode.INVALID_ARGUMENT == await answer.code()


async def test_the_text_of_a_stream_that_fails_does_not_reach_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers of streams are behind the same edge."""
    monkeypatch.setattr(HealthService, "_state", defect)
    with structlog.testing.capture_logs() as logs:
        async with served(CallObserver(CallStats(), None, None)) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.Watch(health_pb2.HealthCheckRequest()).read()
    assert INTERNAL == (raised.value.code(), raised.value.details())
    assert ["internal error"] == [entry["event"] for entry in logs]


@pytest.mark.parametrize(
    "observe",
    [
        lambda: KmsCallObserver(stats(observe=defect), None),
        lambda: KmsCallObserver(stats(), SimpleNamespace(begin_kms=defect)),  # type: ignore[arg-type]
        lambda: KmsCallObserver(stats(), SimpleNamespace(begin_kms=lambda *_: span(set_attribute=defect))),  # type: ignore[arg-type]
        lambda: KmsCallObserver(stats(), SimpleNamespace(begin_kms=lambda *_: span(end=defect))),  # type: ignore[arg-type]
    ],
    ids=["metrics", "a span", "an attribute", "the end of the span"],
)
@pytest.mark.parametrize("error", [None, TimeoutError])
async def test_a_call_to_kms_survives_its_observer(
    observe: Callable[[], KmsCallObserver], error: type[Exception] | None
) -> None:
    """KMS's answer, good or bad, is what it was, and its request id is in the event."""
    event = KeyEvent("Encrypt", "acme", span=span())
    current_event.set(event)
    raised = None
    with structlog.testing.capture_logs() as logs:
        try:
            with observe()("Encrypt", "us-east-1") as call:
                call.answered("request-1")
                if error is not None:
                    raise error
        except TimeoutError as caught:
            raised = type(caught)
    assert (error, ["request-1"]) == (raised, event.kms_request_ids)
    assert ["An observer failed: calls go on without it"] == [entry["event"] for entry in logs]


def test_recording_the_daemons_own_work_never_raises() -> None:
    """Refreshes and rotations end as they did, with an audit trail that fails too; the log has it once."""
    trail: Any = Trail(record=defect)
    record = recorder(trail)
    with structlog.testing.capture_logs() as logs:
        record(KeyEvent("RefreshKey", "acme"))
        record(KeyEvent("RotateKey", "acme"))
    assert ["audit trail"] == [entry["observer"] for entry in logs]


async def test_what_is_no_defect_passes() -> None:
    """A refusal to admit is the caller's to see."""

    def refuse() -> None:
        raise AuditUnavailable("make room")

    trail: Any = Trail(check=refuse)
    async with served(CallObserver(stats(), trail, None)) as channel:
        assert (grpc.StatusCode.UNAVAILABLE, "make room") == await outcome(invalidate(channel))
