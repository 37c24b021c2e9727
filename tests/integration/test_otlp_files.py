"""Trace files of an instrumented application through `betrace-kms sign`, `keys` and `verify`."""

import base64
import json
import os
import pty
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, Tracer

from tests.daemon import COMMAND
from tests.integration.conftest import Run

ORDERS = 2_000
"""Of the shop below; each is five spans or six."""


class LinesExporter(SpanExporter):
    """Writes what OpenTelemetry's OTLP encoder gives as the collector's file exporter does: a document a line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        document = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
        for span in spans_of(document):
            for holder in (span, *span.get("links", ())):
                for name in ("traceId", "spanId", "parentSpanId"):
                    if name in holder:
                        holder[name] = base64.b64decode(holder[name]).hex()
        self._file.write(json.dumps(document, separators=(",", ":")) + "\n")
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._file.close()


class OutOfStock(Exception):
    """The shop has none left."""


def order(tracer: Tracer, number: int) -> None:
    """Sell something: what an instrumented shop does for one order."""
    with tracer.start_as_current_span("POST /orders", kind=SpanKind.SERVER) as request:
        request.set_attributes({"http.status": 201, "order.total": number * 1.1, "order.express": number % 2 == 0})
        with tracer.start_as_current_span("auth.check") as check:
            check.set_attributes(
                {
                    "compliance.framework": "soc2",
                    "compliance.control": "CC6_1",
                    "compliance.evidenceType": "audit_trail",
                    "compliance.result": "success",
                    "user.roles": ["buyer", "größe \U0001f600"],
                }
            )
        with tracer.start_as_current_span("stock.reserve", kind=SpanKind.CLIENT) as reserve:
            reserve.set_attributes({"stock.levels": [1, 2**53 + 1, -number], "stock.weights": [0.5, 1e16, 1.0]})
            reserve.add_event("reserved", {"shelf": number % 7})
        try:
            with tracer.start_as_current_span("payment.charge", kind=SpanKind.CLIENT):
                if number % 5 == 0:
                    raise OutOfStock(f"none left for {number}")
        except OutOfStock as error:
            request.set_status(Status(StatusCode.ERROR, str(error)))
            with tracer.start_as_current_span("order.cancel"):
                pass
        links = [Link(request.get_span_context(), {"link.reason": "order"})]
        with tracer.start_as_current_span("mail.enqueue", kind=SpanKind.PRODUCER, links=links):
            pass


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the instrumented shop exported."""
    path = tmp_path_factory.mktemp("shop") / "traces.jsonl"
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(LinesExporter(path), max_queue_size=7 * ORDERS))
    for number in range(ORDERS):
        order(provider.get_tracer("shop", "1.0"), number)
    provider.shutdown()
    return path


def spans_of(document: Any) -> Iterator[Any]:
    """Give the spans of a document."""
    for resource in document["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            yield from scope["spans"]


def without_signatures(document: Any) -> Any:
    """Take the signature attributes away."""
    for span in spans_of(document):
        span["attributes"] = [
            item
            for item in span["attributes"]
            if item["key"] != "span.signature" and not item["key"].startswith("span.signature.")
        ]
        if not span["attributes"]:
            del span["attributes"]
    return document


def documents(path: Path) -> list[Any]:
    """Read JSON lines."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("proofs", [False, True], ids=["each", "proofs"])
def test_ten_altered_spans_of_a_real_application_are_named(
    run: Run, traces: Path, tmp_path: Path, proofs: bool
) -> None:
    """Over ten thousand spans verify by the daemon and offline; ten altered ones do not."""
    mode = ["--proofs"] if proofs else []
    done = run("sign", "--tenant", "acme", *mode, str(traces), "-o", "signed.jsonl")
    assert (done.returncode, done.stderr) == (0, b"")
    run("keys", "--tenant", "acme", "--jwks", "-o", "jwks.json")
    lines = documents(tmp_path / "signed.jsonl")
    places = [
        (number, place, span) for number, line in enumerate(lines, 1) for place, span in enumerate(spans_of(line), 1)
    ]
    count = len(places)
    assert count >= 10_000

    whole = run("verify", "--jwks", "jwks.json", "signed.jsonl")
    assert (f"{count} spans: {count} VALID\n".encode(), 0) == (whole.stdout, whole.returncode)

    altered = sorted(random.Random(4).sample(range(count), 10))  # noqa: S311 - which spans is no secret
    for index, alter in zip(altered, ALTERATIONS, strict=True):
        alter(places[index][2])
    (tmp_path / "altered.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    expected = "".join(
        f"line {line}, span {place}: trace {span['traceId']}, span {span['spanId']}, {json.dumps(span['name'])}:"
        " BAD_SIGNATURE\n"
        for line, place, span in (places[index] for index in altered)
    )
    expected += f"{count} spans: {count - 10} VALID, 10 BAD_SIGNATURE\n"
    for how in (["--tenant", "acme"], ["--jwks", "jwks.json"]):
        found = run("verify", *how, "altered.jsonl")
        assert (expected, 1) == (found.stdout.decode(), found.returncode)

    assert documents(traces) == [without_signatures(line) for line in documents(tmp_path / "signed.jsonl")]


ALTERATIONS: Sequence[Callable[[Any], object]] = [
    lambda span: span.update(name=span["name"] + " "),
    lambda span: span.update(kind=span["kind"] % 5 + 1),
    lambda span: span.update(endTimeUnixNano=str(int(span["endTimeUnixNano"]) + 1)),
    lambda span: span.update(startTimeUnixNano=str(int(span["startTimeUnixNano"]) - 1)),
    lambda span: span["attributes"].insert(0, {"key": "added", "value": {"boolValue": True}}),
    lambda span: span.update(status={"code": 1, "message": "fine"}),
    lambda span: span.setdefault("events", []).append({"name": "added"}),
    lambda span: span.setdefault("links", []).append({"traceId": "01" * 16, "spanId": "01" * 8}),
    lambda span: span.update(traceState="a=b"),
    lambda span: span.update(droppedEventsCount=1),
]


def a_span(number: int, *attributes: Any) -> dict[str, Any]:
    """Return a span."""
    return {"traceId": f"{number:032x}", "spanId": f"{number:016x}", "name": "work", "attributes": [*attributes]}


def a_document(*spans: Any) -> dict[str, Any]:
    """Return a document with these spans."""
    return {"resourceSpans": [{"scopeSpans": [{"spans": [*spans]}]}]}


def test_a_document_is_signed_in_place_and_again(run: Run, tmp_path: Path) -> None:
    """One indented document stays one; the second signature replaces the first."""
    path = tmp_path / "trace.json"
    before = a_document(a_span(1), a_span(2))
    path.write_bytes(orjson.dumps(before, option=orjson.OPT_INDENT_2))
    for mode in ([], ["--proofs"]):
        assert run("sign", "--tenant", "acme", *mode, "trace.json", "-o", "trace.json").returncode == 0
    after = orjson.loads(path.read_bytes())
    names = [[item["key"] for item in span["attributes"]] for span in spans_of(after)]
    assert (
        names
        == [[f"span.signature{rest}" for rest in ("", ".algorithm", ".key_id", ".timestamp", ".status", ".proof")]] * 2
    )
    assert path.read_bytes().startswith(b'{\n  "resourceSpans"')
    assert run("verify", "--tenant", "acme", "trace.json").stdout == b"2 spans: 2 VALID\n"


def test_what_cannot_be_signed_is_named_and_the_rest_is_signed(run: Run) -> None:
    """By pipe too; verify tells it is missing, and a span that nobody ever signed."""
    lines = (
        a_document(a_span(1), a_span(2, {"key": "otlp.x", "value": {}})),
        a_document({**a_span(3), "spanId": "00" * 8, "name": "\x1b[2J"}),
    )
    done = run("sign", "--tenant", "acme", stdin=b"\n".join(map(orjson.dumps, lines)))
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        f"betrace-kms: line 1, span 2: trace {2:032x}, span {2:016x}, \"work\": attribute 'otlp.x' begins with 'otlp.',"
        " which is kept for members of the span",
        f'betrace-kms: line 2, span 1: trace {3:032x}, span {"00" * 8}, "\\u001b[2J": INVALID_ARGUMENT:'
        " span.span_id must not be all zero",
    ]
    found = run("verify", "--tenant", "acme", stdin=done.stdout)
    assert (found.returncode, found.stdout.decode().splitlines()[-1]) == (1, "3 spans: 1 VALID, 2 MISSING_SIGNATURE")


def test_keys_of_others_and_revoked_keys_are_told(run: Run, tmp_path: Path) -> None:
    """By the key set, and by the daemon."""
    signed = run("sign", "--tenant", "acme", stdin=orjson.dumps(a_document(a_span(1)))).stdout
    single = run(
        "sign", "--tenant", "acme", "--proofs", stdin=orjson.dumps({"traceId": "01" * 16, "spanId": "01" * 8})
    ).stdout
    run("sign", "--tenant", "other", stdin=orjson.dumps(a_document(a_span(1))))
    own, other = (orjson.loads(run("keys", "--tenant", tenant, "--jwks").stdout) for tenant in ("acme", "other"))
    own["keys"][0]["status"] = "REVOKED"
    (tmp_path / "revoked.json").write_bytes(orjson.dumps(own))
    (tmp_path / "other.json").write_bytes(orjson.dumps(other))
    ways = (["--jwks", "revoked.json"], ["--jwks", "other.json"], ["--tenant", "other"])
    verdicts = ["KEY_REVOKED", "UNKNOWN_KEY", "UNKNOWN_KEY"]
    assert [f"1 spans: 1 {verdict}" for verdict in verdicts] == [
        run("verify", *way, stdin=signed).stdout.decode().splitlines()[-1] for way in ways
    ]
    assert verdicts == [run("verify", *way, stdin=single).stdout.decode().strip() for way in ways]


def test_a_failed_call_leaves_no_file(run: Run, traces: Path, tmp_path: Path) -> None:
    """Exit code 3; the file that was there stays, and nothing is beside it."""
    (tmp_path / "out.jsonl").write_bytes(b"before")
    done = run("sign", "--tenant", "acme", "--timeout", "1", str(traces), "-o", "out.jsonl", addr="127.0.0.1:1")
    assert (done.returncode, b"no daemon answers" in done.stderr) == (3, True)
    assert [("out.jsonl", b"before")] == [(path.name, path.read_bytes()) for path in tmp_path.iterdir()]


def test_a_file_without_spans_is_no_evidence(run: Run) -> None:
    """An emptied file must not pass."""
    done = run("verify", "--tenant", "acme", stdin=b'{"resourceSpans":[]}')
    assert (done.stdout, done.returncode) == (b"no spans\n", 1)


def test_a_long_file_has_a_bar_on_a_terminal(run: Run, traces: Path, tmp_path: Path) -> None:
    """It is on stderr, and not in what verify says."""
    run("keys", "--tenant", "acme", "--jwks", "-o", "jwks.json")
    leader, follower = pty.openpty()
    command = [str(COMMAND), "verify", "--jwks", str(tmp_path / "jwks.json"), str(traces)]
    with (tmp_path / "out").open("wb") as out, subprocess.Popen(command, stdout=out, stderr=follower) as process:
        os.close(follower)
        shown = b"".join(iter(lambda: read_terminal(leader), b""))
        process.wait(timeout=60)
    os.close(leader)
    assert (b"100%" in shown, process.returncode) == (True, 1)
    assert (tmp_path / "out").read_bytes().splitlines()[-1].endswith(b"MISSING_SIGNATURE")


def read_terminal(leader: int) -> bytes:
    """Read what a program wrote to its terminal; nothing once it ended."""
    try:
        return os.read(leader, 65536)
    except OSError:
        return b""
