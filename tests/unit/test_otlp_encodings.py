"""Trace files in other encodings, and damaged ones: what is read, what is named, and with which words."""

import bz2
import gzip
import io
import itertools
import lzma
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from betrace_kms_client.otlp import InvalidInput, Line, decoded, encodings, files, grouped, lines_of, read_first
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

BOM = b"\xef\xbb\xbf"
ZSTD = bytes.fromhex("28b52ffd240061000068656c6c6f")


def document(number: int, *, indented: bool = False) -> bytes:
    """Return a trace document with one span."""
    spans = [{"traceId": f"{number:032x}", "spanId": f"{number:016x}", "name": "work"}]
    content = {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": spans}]}]}
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 if indented else 0)


GOOD = document(1) + b"\n" + document(2) + b"\n" + document(3) + b"\n"


def protobuf(name: str = "", value: str = "shop") -> bytes:
    """Return a request as OTLP's binary form has it."""
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add()
    if name:
        spans.resource.attributes.add(key=name).value.string_value = value
    spans.scope_spans.add().spans.add(trace_id=bytes(range(16)), span_id=bytes(range(8)), name="work")
    return request.SerializeToString()


def prefixed(message: bytes) -> bytes:
    """Put a message behind its length, as the collector's file exporter does."""
    return len(message).to_bytes(4, "big") + message


def read(data: bytes) -> list[Line]:
    """Read a trace file."""
    source = decoded(io.BytesIO(data))
    head, is_traces = read_first(source)
    assert is_traces
    return list(lines_of(head, source))


def found(lines: list[Line]) -> tuple[int, list[int]]:
    """Return how many spans there are, and which lines have a problem."""
    return sum(len(line.spans) for line in lines), [line.number for line in lines if line.problem]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", (0, [])),
        (b"\n", (0, [])),
        (b" \t \r\n  ", (0, [])),
        (BOM, (0, [])),
        (BOM + BOM + b"\n", (0, [])),
        (BOM + GOOD, (3, [])),
        (BOM + BOM + GOOD, (3, [])),
        (GOOD + BOM + GOOD, (6, [])),
        (BOM + document(1, indented=True), (1, [])),
        (b"\n\n" + BOM + document(1, indented=True) + b"\n", (1, [])),
        (GOOD.replace(b"\n", b"\r\n"), (3, [])),
        (b"\r\n \n\r\n" + GOOD, (3, [])),
        (bytes(64) + b"\n" + GOOD, (3, [1])),
        (b'{"resourceSpans":[{"resource":\n' + GOOD, (3, [1])),
        (b"2026-01-01T00:00:00Z stdout F " + GOOD, (2, [1])),
        (BOM + b"rubbish\n" + GOOD, (3, [1])),
        (b"rubbish\n\n\0\0\nrubbish\n" + GOOD + b"rubbish", (3, [1, 3, 4, 8])),
        (b"\n\nrubbish\r\n" + GOOD, (3, [3])),
        (b"null\n[]\n5\n" + GOOD, (3, [1, 2, 3])),
        (b"{\n" + GOOD, (3, [1])),
        (b"[" * 5000 + b"\n" + GOOD, (3, [1])),
        (b"\xff\xfa\x80\n" + GOOD, (3, [1])),
        (gzip.compress(GOOD, mtime=0), (3, [])),
        (gzip.compress(GOOD, mtime=0) + gzip.compress(GOOD, mtime=0), (6, [])),
        (gzip.compress(GOOD, mtime=0) + bytes(512), (3, [])),
        (gzip.compress(BOM + b"rubbish\n" + GOOD, mtime=0), (3, [1])),
        (gzip.compress(document(1, indented=True), mtime=0), (1, [])),
        (gzip.compress(b"", mtime=0), (0, [])),
        (gzip.compress(GOOD, mtime=0) + b"rubbish", (3, [4])),
        (gzip.compress(GOOD.rstrip(), mtime=0) + b"rubbish", (3, [3])),
        (gzip.compress(GOOD, mtime=0)[:-1], (3, [4])),
        (gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), (3, [4])),
    ],
)
def test_what_is_good_is_read_and_damaged_lines_are_named(data: bytes, expected: tuple[int, list[int]]) -> None:
    """Whichever line it is, the first one too; byte order marks, CRLF and blank lines are no damage."""
    assert expected == found(read(data))


def test_a_cut_gzip_file_gives_the_lines_before_the_cut() -> None:
    """The line that the cut is in is named, and so is the cut."""
    packer = zlib.compressobj(wbits=31)
    data = packer.compress(GOOD + GOOD[:40]) + packer.flush(zlib.Z_SYNC_FLUSH)
    assert ((3, [4, 4]), "the gzip data is cut off here") == (found(read(data)), read(data)[-1].problem.split(":")[0])


@pytest.mark.parametrize("end", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("start", ["", "\n", "\ufeff"], ids=["plain", "blank line", "mark"])
@pytest.mark.parametrize("indented", [False, True])
def test_other_unicode_is_named(end: str, start: str, indented: bool) -> None:
    """With a byte order mark and without, and in gzip."""
    data = (start + document(1, indented=indented).decode()).encode(end)
    for form in (data, gzip.compress(data, mtime=0)):
        with pytest.raises(InvalidInput, match=f"is {end[:6].upper()}, and JSON is UTF-8: convert it with `iconv"):
            decoded(io.BytesIO(form))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (ZSTD, "compressed with zstd: decompress it with `zstd -dc`"),
        (bytes.fromhex("502a4d1804000000") + bytes(4) + ZSTD, "compressed with zstd"),
        (prefixed(ZSTD) * 2, "zstd behind length prefixes, as the OpenTelemetry collector's file exporter"),
        (bz2.compress(GOOD), "compressed with bzip2"),
        (bz2.compress(b""), "compressed with bzip2"),
        (lzma.compress(GOOD), "compressed with xz"),
        (bytes.fromhex("04224d186440a7"), "compressed with lz4"),
        (b"PK\x03\x04\x14", "compressed with zip"),
        (gzip.compress(gzip.compress(GOOD, mtime=0), mtime=0), "compressed with gzip twice"),
        (protobuf(), "protobuf's binary form"),
        (protobuf("service.name"), "protobuf's binary form"),
        (protobuf("service.name", "x" * 100_000), "protobuf's binary form"),
        (prefixed(protobuf()), "protobuf's binary form"),
        (prefixed(protobuf("service.name", "x" * 0x41_0000)), "protobuf's binary form"),
        (gzip.compress(protobuf("service.name"), mtime=0), "protobuf's binary form"),
    ],
)
def test_other_encodings_are_named_with_what_to_do(data: bytes, words: str) -> None:
    """And not called damaged JSON."""
    with pytest.raises(InvalidInput, match=words):
        decoded(io.BytesIO(data))


@pytest.mark.parametrize("blank", [*itertools.product(b" \n\r\t", repeat=3)])
@pytest.mark.parametrize("rest", [GOOD, document(1, indented=True), b"\x01\x12\n" + GOOD], ids=["lines", "one", "bad"])
def test_blank_lines_are_not_taken_for_protobuf(blank: tuple[int, ...], rest: bytes) -> None:
    """Whose first byte is a newline."""
    head, is_traces = read_first(decoded(io.BytesIO(bytes(blank) + rest)))
    assert (True, True) == (is_traces, bool(head))


class Endless(io.BufferedIOBase):
    """An input that goes on for ever."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read1(self, size: int = -1, /) -> bytes:
        data = self._rest or next(self._chunks)
        self._rest = data[size:]
        return data[:size]


def zeros() -> Iterator[bytes]:
    """Give /dev/zero."""
    while True:
        yield bytes(4096)


def bomb(text: bytes) -> Callable[[], Iterator[bytes]]:
    """Return what gives gzip of a text that never ends."""

    def packed() -> Iterator[bytes]:
        packer = zlib.compressobj(wbits=31)
        while True:
            yield from filter(None, [packer.compress(text * (65536 // len(text)))])

    return packed


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        (zeros, "a line of the input is longer than 1 MiB"),
        (lambda: itertools.repeat(b"\n" * 4096), "hold no trace document"),
        (lambda: itertools.repeat(b"rubbish\n" * 512), "hold no trace document"),
        (bomb(b"\0"), "a line of the input is longer than 1 MiB"),
        (bomb(document(1) + b"\n"), "the gzip data inflates to more than"),
        (bomb(document(1) + b"\n" * 9), "the gzip data inflates to more than"),
    ],
    ids=["zeros", "blank lines", "rubbish", "bomb of one line", "bomb of lines", "bomb of blank lines too"],
)
def test_an_input_without_end_is_refused_in_bounded_memory(
    chunks: Callable[[], Iterator[bytes]], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines, documents and what gzip inflates to have limits; smaller ones here."""
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 1024 * 1024)
    monkeypatch.setattr(encodings, "MAX_INFLATED_BYTES", 2 * 1024 * 1024)
    monkeypatch.setattr(encodings, "MIN_INFLATED_BYTES", 1024 * 1024)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput, match=words):
            consume(decoded(Endless(chunks())))  # type: ignore[arg-type] # what of a BinaryIO is needed
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 1024 * 1024


def consume(source: Any) -> None:
    """Read a trace file as the command does."""
    head, _ = read_first(source)
    for _ in grouped(lines_of(head, source), 500):
        pass


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        (b"{}", 1),
        (b"5", 0),
        (b'{"a":[[]],"b":{}}', 3),
        (rb'["[[[\"[[",["\\"],[[]]]', 3),
        (b"[" * 5000 + b"]" * 5000, 5000),
        (b'[[["' + b"[" * 99, 3),
        (b'["' + rb"\"" * 500_000, 1),
    ],
)
def test_nesting_is_counted_outside_of_strings(text: bytes, levels: int) -> None:
    """Damaged text has a depth too."""
    assert levels == files.nesting(text)
