"""The signing exporter inside the real OpenTelemetry SDK, before a real OTLP/gRPC receiver, beside a real daemon."""

import json
import socket
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import (
    KeyManagementServiceServicer,
    add_KeyManagementServiceServicer_to_server,
)
from betrace_kms_client import KmsClient
from betrace_kms_client.otel import COOL_DOWN, MAX_BYTES, SigningSpanExporter
from betrace_kms_client.otlp.mapping import span_from_otlp
from betrace_kms_client.otlp.signature import signature_of
from betrace_kms_evidence import SpanVerifier, read_jwks
from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from tests.daemon import COMMAND, Process, spawned

BATCH = 10
ON_DEMAND = 3_600_000.0
"""Milliseconds between exports: longer than a test, so that only a full batch, a flush or the end exports."""
Outgoing = dict[str, dict[str, str]]
"""Name of a span -> its signature attributes."""


class Receiver(TraceServiceServicer):
    """An OTLP/gRPC receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.requests: list[otlp.ExportTraceServiceRequest] = []
        self._arrived = threading.Condition()

    def Export(self, request: otlp.ExportTraceServiceRequest, context: Any) -> otlp.ExportTraceServiceResponse:
        """Keep a request."""
        with self._arrived:
            self.requests.append(request)
            self._arrived.notify_all()
        return otlp.ExportTraceServiceResponse()

    def wait_for(self, count: int) -> None:
        """Wait until that many spans have arrived."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.spans()) >= count, 30)

    def spans(self) -> list[dict[str, Any]]:
        """Return all spans as OTLP/JSON, in the order in which they came."""
        return [
            span
            for line in self.lines()
            for resource in json.loads(line)["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]

    def lines(self) -> list[str]:
        """Return a line for each request, as the collector's file exporter writes it: OTLP/JSON with hex ids."""
        return [
            json.dumps(_hexadecimal(MessageToDict(request, use_integers_for_enums=True))) for request in self.requests
        ]


def _hexadecimal(value: Any) -> Any:
    if isinstance(value, list):
        return [_hexadecimal(item) for item in value]
    if isinstance(value, dict):
        ids = ("traceId", "spanId", "parentSpanId")
        return {name: b64decode(item).hex() if name in ids else _hexadecimal(item) for name, item in value.items()}
    return value


@contextmanager
def serving(service: Any, add: Any) -> Iterator[str]:
    """Serve on a free port of this machine, and give host:port."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        add(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


@pytest.fixture
def receiver() -> Receiver:
    """What the application's spans arrive at."""
    return Receiver()


@pytest.fixture
def inner(receiver: Receiver) -> Iterator[OTLPSpanExporter]:
    """OpenTelemetry's own exporter, which the signing one wraps."""
    with serving(receiver, add_TraceServiceServicer_to_server) as address:
        yield OTLPSpanExporter(endpoint=f"http://{address}", insecure=True)


@pytest.fixture
def target(tmp_path: Path) -> str:
    """Where daemons of a test listen, one after the other."""
    return f"unix:{tmp_path / 'kms.sock'}"


@contextmanager
def daemon(tmp_path: Path, target: str) -> Iterator[Process]:
    """Run a daemon as a process of its own."""
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", target) as process:
        process.wait_for("serving")
        yield process


@contextmanager
def application(exporter: SpanExporter, batch: int = BATCH) -> Iterator[TracerProvider]:
    """Give an application's tracer provider: full batches go out in a thread of its own, the rest at the end."""
    provider = TracerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_export_batch_size=batch, schedule_delay_millis=ON_DEMAND)
    )
    yield provider
    provider.shutdown()


def work(provider: TracerProvider, numbers: Sequence[int]) -> list[str]:
    """Do something that makes spans, and return their names."""
    tracer = provider.get_tracer("shop", "1.0")
    names = [f"order {number}" for number in numbers]
    for name in names:
        with tracer.start_as_current_span(name, kind=SpanKind.SERVER) as span:
            span.set_attribute("compliance.framework", "soc2")
            span.set_attribute("user", "alice")
    return names


def evidence(spans: Sequence[dict[str, Any]]) -> Outgoing:
    """Return the signature attributes of each span, by its name."""
    return {
        span["name"]: {
            item["key"]: item["value"]["stringValue"]
            for item in span["attributes"]
            if item["key"].startswith("span.signature")
        }
        for span in spans
    }


def statuses(spans: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the signature status of each span, by its name."""
    return {name: attributes["span.signature.status"] for name, attributes in evidence(spans).items()}


def key_set(target: str) -> str:
    """Return the tenant's public keys."""
    with KmsClient(target) as client:
        return client.get_public_keys("acme").jwks


def verdicts(spans: Sequence[dict[str, Any]], jwks: str) -> dict[str, str]:
    """Verify offline; return the verdict of each span that is signed, by its name."""
    verifier = SpanVerifier(read_jwks(jwks))
    signed = {span["name"]: (span, signature_of(span)) for span in spans}
    return {
        name: verifier.verify(span_from_otlp(span), found.signature, found.key_id, found.proof)
        for name, (span, found) in signed.items()
        if found is not None
    }


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the seconds."""
        return self.now


def test_no_span_is_lost_when_the_daemon_is_killed_half_way(
    tmp_path: Path, target: str, receiver: Receiver, inner: OTLPSpanExporter
) -> None:
    """All spans arrive; those from before are signed and verify, those from after say so, and the counters agree."""
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("shop")
    exporter = SigningSpanExporter(inner, tenant_id="acme", target=target, timeout=30, meter=meter)
    with daemon(tmp_path, target) as process, application(exporter) as provider:
        before = work(provider, range(100))
        receiver.wait_for(100)
        jwks = key_set(target)
        process.process.kill()
        process.process.wait()
        after = work(provider, range(100, 205))
    spans = receiver.spans()
    assert [span["name"] for span in spans] == before + after
    assert statuses(spans) == dict.fromkeys(before, "signed") | dict.fromkeys(after, "signing_failed")
    assert verdicts(spans, jwks) == dict.fromkeys(before, "VALID")
    assert {error.get("span.signature.error") for error in evidence(spans[100:]).values()} == {
        f"Unavailable: no daemon answers at {target}: start it, or give the address that it listens on"
    }
    assert (exporter.signed, exporter.failed) == (100, 105)
    assert counted(reader) == {"signed": 100, "signing_failed": 105}


def counted(reader: InMemoryMetricReader) -> dict[str, int]:
    """Return what the counter of spans says, by status."""
    data = json.loads(reader.get_metrics_data().to_json())  # type: ignore[union-attr]
    (metric,) = data["resource_metrics"][0]["scope_metrics"][0]["metrics"]
    assert metric["name"] == "betrace_kms_spans_total"
    return {point["attributes"]["status"]: point["value"] for point in metric["data"]["data_points"]}


def test_signing_resumes_when_the_daemon_is_back_and_the_cool_down_is_over(
    tmp_path: Path, target: str, receiver: Receiver, inner: OTLPSpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """Until then spans go out unsigned, without a call; trouble and recovery are logged once each."""
    clock = Clock()
    exporter = SigningSpanExporter(inner, tenant_id="acme", target=target, timeout=30, clock=clock)
    with application(exporter) as provider:
        away = work(provider, range(BATCH))
        receiver.wait_for(BATCH)
        clock.now += COOL_DOWN
        away += work(provider, range(BATCH, 2 * BATCH))
        receiver.wait_for(2 * BATCH)
        with daemon(tmp_path, target):
            clock.now += COOL_DOWN / 2
            cooling = work(provider, range(2 * BATCH, 3 * BATCH))
            receiver.wait_for(3 * BATCH)
            clock.now += COOL_DOWN / 2
            back = work(provider, range(3 * BATCH, 5 * BATCH))
            receiver.wait_for(5 * BATCH)
            jwks = key_set(target)
    assert statuses(receiver.spans()) == (
        dict.fromkeys(away + cooling, "signing_failed") | dict.fromkeys(back, "signed")
    )
    assert verdicts(receiver.spans(), jwks) == dict.fromkeys(back, "VALID")
    records = [record for record in caplog.records if record.name == "betrace_kms_client.otel"]
    assert [record.getMessage().partition(":")[0] for record in records] == [
        "Spans go out unsigned, and signing is tried every 5 s",
        "Spans are signed again",
    ]


def test_spans_come_out_beside_a_daemon_that_accepts_and_never_answers(
    receiver: Receiver, inner: OTLPSpanExporter
) -> None:
    """One call waits for its timeout; then spans go out unsigned at once."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        exporter = SigningSpanExporter(inner, tenant_id="acme", target=target, timeout=0.2, clock=Clock())
        with application(exporter) as provider:
            names = work(provider, range(95))
    assert statuses(receiver.spans()) == dict.fromkeys(names, "signing_failed")
    assert {error["span.signature.error"].partition(":")[0] for error in evidence(receiver.spans()).values()} == {
        "DeadlineExceeded"
    }


class Stub(KeyManagementServiceServicer):
    """A daemon that answers when it is told to, with as many results as it is told to, and notes what it was asked."""

    def __init__(self, surplus: int = 0) -> None:
        self.asked = threading.Event()
        self.answer = threading.Event()
        self.surplus = surplus

    def SignSpans(self, request: pb.SignSpansRequest, context: Any) -> pb.SignSpansResponse:
        """Wait, and answer."""
        self.asked.set()
        assert self.answer.wait(30)
        result = pb.SignSpanResult(signature=bytes(64), key_id="key", algorithm="Ed25519")
        return pb.SignSpansResponse(results=[result] * (len(request.spans) + self.surplus))


def test_the_application_does_not_wait_for_the_daemon(receiver: Receiver, inner: OTLPSpanExporter) -> None:
    """While a call to the daemon is in flight, the application ends span after span."""
    stub = Stub()  # type: ignore[abstract]
    with serving(stub, add_KeyManagementServiceServicer_to_server) as target:
        exporter = SigningSpanExporter(inner, tenant_id="acme", target=target, timeout=60)
        with application(exporter) as provider:
            first = work(provider, range(BATCH))
            assert stub.asked.wait(30)
            rest = work(provider, range(BATCH, 300))
            arrived_while_waiting = receiver.spans()
            stub.answer.set()
    assert arrived_while_waiting == []
    assert statuses(receiver.spans()) == dict.fromkeys(first + rest, "signed")


def test_an_answer_that_does_not_fit_is_no_answer(receiver: Receiver, inner: OTLPSpanExporter) -> None:
    """Results cannot be told apart from each other, so with one too many none is used."""
    stub = Stub(surplus=1)  # type: ignore[abstract]
    stub.answer.set()
    with serving(stub, add_KeyManagementServiceServicer_to_server) as target:
        exporter = SigningSpanExporter(inner, tenant_id="acme", target=target, timeout=30)
        with application(exporter) as provider:
            names = work(provider, range(3))
    errors = {name: error["span.signature.error"] for name, error in evidence(receiver.spans()).items()}
    assert errors == dict.fromkeys(names, "InternalError: the daemon gave 4 results for 3 spans")


@pytest.mark.parametrize("proofs", [False, True])
def test_exported_spans_verify_from_the_file_that_a_collector_writes(
    tmp_path: Path, target: str, receiver: Receiver, inner: OTLPSpanExporter, proofs: bool
) -> None:
    """`betrace-kms verify` needs the file and the public keys; a changed event is noticed."""
    exporter = SigningSpanExporter(inner, tenant_id="acme", target=target, timeout=30, proofs=proofs)
    with daemon(tmp_path, target):
        with application(exporter) as provider:
            tracer = provider.get_tracer("shop")
            with tracer.start_as_current_span("parent") as parent:
                link = Link(parent.get_span_context(), {"why": "retry", "n": 2})
                with tracer.start_as_current_span("child", kind=SpanKind.CLIENT, links=[link]) as child:
                    child.set_attributes({"b": True, "i": -(2**63), "d": 1e16, "zero": -0.0, "s": "ü\U0001f600"})
                    child.set_attribute("list", ["a", "b"])
                    child.add_event("paid", {"amount": 12.5})
                    child.set_status(Status(StatusCode.ERROR, "declined"))
        jwks = key_set(target)
    good, bad, keys = tmp_path / "good.jsonl", tmp_path / "bad.jsonl", tmp_path / "keys.json"
    text = "\n".join(receiver.lines())
    good.write_text(text)
    bad.write_text(text.replace("12.5", "12.6"))
    keys.write_text(jwks)
    assert {"span.signature.proof" in each for each in evidence(receiver.spans()).values()} == {proofs}
    assert [verify(good, keys).returncode, verify(bad, keys).returncode] == [0, 1]
    (child_span,) = [span for span in receiver.spans() if span["name"] == "child"]
    report = verify(bad, keys)
    assert child_span["spanId"] in report.stdout + report.stderr


def verify(file: Path, keys: Path) -> "subprocess.CompletedProcess[str]":
    """Run the command that an auditor runs."""
    return subprocess.run(
        [str(COMMAND), "verify", "--jwks", str(keys), str(file)], capture_output=True, text=True, check=False
    )


def test_what_the_sdk_dropped_is_signed_too(
    tmp_path: Path, target: str, receiver: Receiver, inner: OTLPSpanExporter
) -> None:
    """An over-full span keeps its counts of dropped attributes, events and links on its way through."""
    exporter = SigningSpanExporter(inner, tenant_id="acme", target=target, timeout=30)
    with daemon(tmp_path, target):
        with application(exporter) as provider, provider.get_tracer("shop").start_as_current_span("full") as span:
            for number in range(200):
                span.set_attribute(f"a{number}", number)
                span.add_event("e")
        jwks = key_set(target)
    (full,) = receiver.spans()
    assert (full["droppedAttributesCount"], full["droppedEventsCount"]) == (72, 72)
    assert verdicts([full], jwks) == {"full": "VALID"}


def ended(*names: str, **attributes: str | float) -> tuple[ReadableSpan, ...]:
    """Return ended spans of the SDK."""
    made = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(made))
    for name in names:
        provider.get_tracer("shop").start_span(name, attributes=attributes).end()
    return made.get_finished_spans()


def test_spans_that_cannot_be_signed_fail_alone(tmp_path: Path, target: str) -> None:
    """NaN has no canonical form, and a span larger than a call is not sent; the rest of the batch is signed."""
    outgoing = InMemorySpanExporter()
    exporter = SigningSpanExporter(outgoing, tenant_id="acme", target=target, timeout=30)
    spans = [
        *ended("nan", ratio=float("nan")),
        *ended("good", ratio=0.5),
        *ended("huge", text="x" * MAX_BYTES),
        *ended("large 1", "large 2", "large 3", text="x" * (MAX_BYTES // 2)),
    ]
    with daemon(tmp_path, target):
        exporter.export(spans)
    exporter.shutdown()
    errors = {
        span.name: str((span.attributes or {}).get("span.signature.error", ""))
        for span in outgoing.get_finished_spans()
    }
    assert {name: error.partition(":")[0] for name, error in errors.items()} == {
        "nan": "InvalidSpan",
        "good": "",
        "huge": "InvalidSpan",
        "large 1": "",
        "large 2": "",
        "large 3": "",
    }
    assert (exporter.signed, exporter.failed) == (4, 2)


def test_a_batch_may_be_larger_than_a_call(tmp_path: Path, target: str) -> None:
    """2,500 spans take three calls, and come out in their order."""
    names = [f"order {number}" for number in range(2500)]
    outgoing = InMemorySpanExporter()
    exporter = SigningSpanExporter(outgoing, tenant_id="acme", target=target, timeout=30)
    with daemon(tmp_path, target):
        result = exporter.export(ended(*names))
    exporter.shutdown()
    assert (result, exporter.signed, exporter.failed) == (SpanExportResult.SUCCESS, 2500, 0)
    assert [span.name for span in outgoing.get_finished_spans()] == names


@pytest.fixture
def traced_grpc(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """OpenTelemetry's instrumentation of gRPC, and the spans that it makes."""
    made = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(made))
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    instrumentor = GrpcInstrumentorClient()  # type: ignore[no-untyped-call]
    instrumentor.instrument()
    yield made
    instrumentor.uninstrument()


def test_calls_to_the_daemon_are_not_traced(tmp_path: Path, target: str, traced_grpc: InMemorySpanExporter) -> None:
    """With gRPC instrumented, signing makes no spans of its own, which would have to be signed in turn."""
    exporter = SigningSpanExporter(InMemorySpanExporter(), tenant_id="acme", target=target, timeout=30)
    with daemon(tmp_path, target):
        exporter.export(ended("order"))
        key_set(target)
    exporter.shutdown()
    assert exporter.signed == 1
    assert [span.name for span in traced_grpc.get_finished_spans()] == [
        "/betrace.kms.v1.KeyManagementService/GetPublicKeys"
    ]


class Recording(SpanExporter):
    """An exporter that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Fail, as an exporter that is shut down does."""
        self.told.append(" ".join(str((span.attributes or {})["span.signature.error"]) for span in spans))
        return SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Say that there was too little time."""
        self.told.append(f"flush {timeout_millis}")
        return False

    def shutdown(self) -> None:
        """Note it."""
        self.told.append("shutdown")


class Patient(Recording):
    """An exporter that may be given time to shut down, as OpenTelemetry's own."""

    def shutdown(self, timeout_millis: float = 30_000) -> None:
        """Note it."""
        self.told.append(f"shutdown {timeout_millis}")


@pytest.mark.parametrize(("kind", "shutdown"), [(Recording, "shutdown"), (Patient, "shutdown 3000")])
def test_flush_shutdown_and_results_pass_through(kind: type[Recording], shutdown: str) -> None:
    """Also if nothing was ever signed; after the shutdown spans are still handed on, and the inner exporter refuses."""
    told = kind()
    exporter = SigningSpanExporter(told, tenant_id="acme")
    flushed = exporter.force_flush(2000)
    exporter.shutdown(3000)
    exporter.shutdown()
    result = exporter.export(ended("order"))
    assert (flushed, result) == (False, SpanExportResult.FAILURE)
    assert told.told == ["flush 2000", shutdown, "the exporter is shut down"]


FORKING = """
import os, sys
from betrace_kms_client.otel import SigningSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

target, before = sys.argv[1], int(sys.argv[2])
exporter = SigningSpanExporter(InMemorySpanExporter(), tenant_id="acme", target=target, timeout=30)
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(BatchSpanProcessor(exporter))
for _ in range(before):
    provider.get_tracer("shop").start_span("order").end()
provider.force_flush()
child = os.fork()
for _ in range(3):
    provider.get_tracer("shop").start_span("order").end()
provider.shutdown()
os.write(1, f"{'parent' if child else 'child'} {exporter.signed} {exporter.failed}\\n".encode())
if child:
    sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.parametrize("before", [0, 2])
def test_every_process_of_a_forking_server_signs(tmp_path: Path, target: str, before: int) -> None:
    """On both sides of the fork, whether or not the parent has a connection by then; each counts its own spans."""
    command = [sys.executable, "-c", FORKING, target, str(before)]
    with daemon(tmp_path, target):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, sorted(done.stdout.splitlines())) == (0, ["child 3 0", f"parent {before + 3} 0"])
