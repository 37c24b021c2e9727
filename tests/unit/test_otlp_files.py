"""Trace files: lines and documents, what is refused, and how batches are cut."""

import io
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from betrace.kms.v1 import span_pb2 as pb
from betrace_kms_client.cli.traces import sign_traces, verify_traces
from betrace_kms_client.otlp import Line, grouped, lines_of, read_first, sign_lines, verify_lines
from betrace_kms_client.otlp.signing import batches
from betrace_kms_client.results import SignedSpan, SpanRefusal, SpanSignature, Verdict


def span(number: int = 1) -> dict[str, Any]:
    """Return a small span."""
    return {"traceId": f"{number:032x}", "spanId": f"{number:016x}", "name": "work"}


def document(*spans: Any) -> dict[str, Any]:
    """Return a document with these spans."""
    scope = {"scope": {"name": "s"}, "spans": list(spans)}
    return {"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": [scope]}]}


def lines(*texts: bytes) -> list[Line]:
    """Read lines as from a file."""
    source = io.BytesIO(b"".join(texts))
    head, is_traces = read_first(source)
    assert is_traces
    return list(lines_of(head, source))


def signing(spans: Sequence[pb.ComplianceSpan]) -> list[SpanSignature | SpanRefusal]:
    """Sign everything but spans with the name `bad`."""
    return [
        SpanRefusal("INVALID_ARGUMENT", "no")
        if each.name == "bad"
        else SpanSignature(bytes(64), "k", "Ed25519", "", b"")
        for each in spans
    ]


@pytest.mark.parametrize(
    ("text", "is_traces"),
    [
        (orjson.dumps(document(span())), True),
        (orjson.dumps(document(span()), option=orjson.OPT_INDENT_2), True),
        (b'\n\n{"resourceLogs": []}\n{"resourceSpans": []}', True),
        (orjson.dumps(span()), False),
        (b"{\n}", False),
        (b"[]", False),
        (b"", True),
        (b"\n \r\n", True),
        (b"\xef\xbb\xbf", True),
        (b'rubbish\n{"resourceSpans": []}\n', True),
        (b'{}\n{"resourceSpans": []}\n', True),
        (b'{"resourceSpans": [', False),
        (b"\0\0\0", False),
    ],
)
def test_a_trace_file_is_told_by_its_first_good_document(text: bytes, is_traces: bool) -> None:
    """And of what is none, everything is read."""
    head, found = read_first(io.BytesIO(text))
    assert found is is_traces
    assert found or b"".join(head) == text


@pytest.mark.parametrize("indented", [False, True])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_document_is_written_in_the_form_that_it_had(indented: bool, end: bytes) -> None:
    """On one line or indented, with or without the last newline."""
    text = orjson.dumps(document(span()), option=orjson.OPT_INDENT_2 if indented else 0) + end
    assert [text] == [line.text() for line in lines(text)]


def test_lines_keep_their_numbers_and_what_is_no_span() -> None:
    """Blank lines, other signals and rubbish are written as they are."""
    texts = (b"\n", orjson.dumps(document(span())) + b"\n", b"  \n", b'{"resourceLogs":[]}\n', b"rubbish\n", b"[]")
    read = lines(*texts)
    assert list(texts) == [line.text() for line in read]
    assert [(2, 1)] == [(line.number, len(line.spans)) for line in read if line.spans]
    assert [5, 6] == [line.number for line in read if line.problem]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'{"resourceSpans":[],"resourceSpans":[]}', "the member 'resourceSpans' twice"),
        (b'{"resourceSpans":[],"a\\u0062":1,"ab":2}', "the member 'ab' twice"),
        (b'{"resourceSpans":[],"resource_spans":[]}', "a member 'resource_spans'"),
        (b'{"resourceSpans":[{"instrumentationLibrarySpans":[]}]}', "a member 'instrumentationLibrarySpans'"),
        (b'{"resourceSpans":[{"scopeSpans":[{"Spans":[]}]}]}', "a member 'Spans'"),
        (b'{"resourceSpans":[{"scopeSpans":[{"spans":[5]}]}]}', "is not a JSON object"),
        (b'{"resourceSpans":[5]}', "is not a JSON object"),
        (b'{"resourceSpans":5}', "must be a JSON list"),
        (b'{"resourceSpans":[{"resource":18446744073709551616}]}', "more than 64 bits"),
        (b'{"resourceSpans":[{"resource":' + b"[" * 900 + b"]" * 900 + b"}]}", "nested 903 levels deep"),
    ],
)
def test_spans_that_only_some_readers_find_are_refused(text: bytes, problem: str) -> None:
    """The line is named, and stays as it is."""
    (line,) = lines(text)
    assert problem in line.problem
    assert (line.spans, line.text()) == ([], text)


def test_groups_are_bounded() -> None:
    """Lines come together until they hold enough spans."""
    text = orjson.dumps(document(span(), span(2))) + b"\n"
    assert [3, 3, 1] == [len(group) for group in grouped(lines(*[text] * 7), 5)]


def test_batches_are_bounded_by_count_and_bytes() -> None:
    """At most 500, and 2 MiB unless it is one span."""
    megabyte = 1024 * 1024
    assert [500, 500, 1] == [len(batch) for batch in batches(range(1001), lambda _: 1)]
    assert [[1], [3], [1, 1], [1]] == list(batches([1, 3, 1, 1, 1], lambda size: size * megabyte))


def test_what_cannot_be_signed_is_named_and_the_rest_is_signed() -> None:
    """By the mapping, by the daemon, and a line whose spans cannot be told."""
    read = lines(orjson.dumps(document(span(), {**span(2), "flags": "x"}, {**span(3), "name": "bad"})), b"\nrubbish")
    unsigned = sign_lines(read, signing, lambda: "2024-01-01T00:00:00Z")
    assert [(1, 2), (1, 3), (2, 0)] == [(each.line, each.place) for each in unsigned]
    statuses = [
        {item["key"]: item["value"]["stringValue"] for item in each["attributes"]}
        for each in orjson.loads(read[0].text())["resourceSpans"][0]["scopeSpans"][0]["spans"]
    ]
    assert ["signed", "signing_failed", "signing_failed"] == [each["span.signature.status"] for each in statuses]
    assert [None, "flags must be an integer from 0 to 4294967295, as a number or a decimal string"] == [
        each.get("span.signature.error") for each in statuses[:2]
    ]


def test_findings_are_in_order_whoever_makes_them() -> None:
    """Missing, refused and judged spans, in the order of the file."""
    read = lines(
        orjson.dumps(document(span(), {**span(2), "name": "bad"})) + b"\n",
        b"rubbish\n",
        orjson.dumps(document(span(3), span(4))),
    )
    sign_lines(read, signing, lambda: "2024-01-01T00:00:00Z")
    read[2].spans[1]["extra"] = 1

    def judge(spans: Sequence[SignedSpan]) -> list[Verdict | SpanRefusal]:
        return [Verdict(True, "VALID"), SpanRefusal("INVALID_ARGUMENT", "no")]

    assert [
        (1, 1, "VALID"),
        (1, 2, "MISSING_SIGNATURE"),
        (2, 0, "REFUSED"),
        (3, 1, "REFUSED"),
        (3, 2, "REFUSED"),
    ] == [(each.line, each.place, each.verdict) for each in verify_lines(read, judge)]


def test_memory_does_not_grow_with_a_file_of_lines(tmp_path: Path) -> None:
    """Twenty thousand spans in 20 MB are signed, written and judged in a few megabytes."""
    path, out = tmp_path / "traces.jsonl", tmp_path / "signed.jsonl"
    filler = [{"key": "filler", "value": {"stringValue": "x" * 800}}]
    with path.open("wb") as file:
        for number in range(1, 2001):
            spans = ({**span(number * 10 + index), "attributes": filler} for index in range(10))
            file.write(orjson.dumps(document(*spans)) + b"\n")
    tracemalloc.start()
    try:
        with path.open("rb") as file:
            head, _ = read_first(file)
            assert sign_traces(head, file, out, signing)
        with out.open("rb") as file:
            head, _ = read_first(file)
            assert verify_traces(head, file, lambda spans: [Verdict(True, "VALID")] * len(spans))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 15_000_000
    assert peak < 8_000_000
