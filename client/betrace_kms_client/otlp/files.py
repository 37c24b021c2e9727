"""Trace files, line by line: what is read is one line, or one document that takes several, and the same is written.

Memory is bounded by the longest line, which has a limit, and by what `grouped` puts together. A document that is not on
one line is read whole.

Any line may be damaged, the first one too: it must be named, and the others must be of use. So a file holds JSON lines
as soon as some line is a whole document with signals; only if none is, its text may be one document.

JSON lets an object have a member twice, and readers differ in which they take; that would let a signed file show
different spans to different readers, so such lines are refused, as are spans where only some readers find them (under
the original protobuf names, or the names before OTLP 0.15).
"""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, BinaryIO

import orjson
from betrace_kms_evidence import InvalidSpan

from betrace_kms_client.otlp.encodings import DamagedInput, InvalidInput
from betrace_kms_client.otlp.values import items_of

MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""Of a line, or of a document that takes several: read, it takes about ten times as much memory."""
MAX_LEVELS = 254
"""What orjson writes; it reads more."""

_SIGNALS = frozenset({"resourceSpans", "resourceLogs", "resourceMetrics", "resourceProfiles"})
_RESOURCE = frozenset({"resource", "scopeSpans", "schemaUrl"})
_SCOPE = frozenset({"scope", "spans", "schemaUrl"})
_GROUP_BYTES = 8 * 1024 * 1024
_OBJECT_BYTES = 200
"""What a line takes beside its text, so that blank lines without end are bounded too."""
_WHITE_SPACE = b" \t\r\n"
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|([\[{]+)|([\]}]+)', re.DOTALL)


class InvalidLine(ValueError):
    """A line whose spans cannot be found for certain. The message says why."""


@dataclass(slots=True)
class Line:
    """A line (counted from 1), its bytes, its document and the spans in it; `problem` says why there are none."""

    number: int
    raw: bytes = field(repr=False)
    document: Any = field(default=None, repr=False)
    spans: list[dict[str, Any]] = field(default_factory=list, repr=False)
    problem: str = ""

    def text(self) -> bytes:
        """Return the document as text, in the form in which it was; a line with a problem stays as it is."""
        if self.document is None or self.problem:
            return self.raw
        text = _written(self.document, indented=_is_indented(_body(self.raw)))
        return text + b"\n" if self.raw.endswith(b"\n") else text


def read_first(source: BinaryIO) -> tuple[list[bytes], bool]:
    """Read as far as it takes to decide whether this is a trace file: to its first good line, or else everything.

    Lines before that one may be damaged. What is read comes back in pieces, each a line, or a document that takes
    several. An input without anything is a trace file without spans. Raises InvalidInput.
    """
    pieces: list[bytes] = []
    size = 0
    for raw in _raw_lines(source):
        pieces.append(raw)
        if _is_traces(raw):
            return pieces, True
        size += len(raw) + _OBJECT_BYTES
        if size > MAX_DOCUMENT_BYTES:
            raise InvalidInput(
                f"the first {len(pieces):,} lines of the input hold no trace document: give one of at most"
                f" {MAX_DOCUMENT_BYTES // 1024**2} MiB, or JSON lines"
            )
    blank = next((index for index, raw in enumerate(pieces) if _body(raw)), len(pieces))
    document = b"".join(pieces[blank:])
    if _is_traces(document):
        return [*pieces[:blank], document], True
    return pieces, not document


def lines_of(head: Iterable[bytes], rest: BinaryIO) -> Iterator[Line]:
    """Give the lines of a trace file of which `head` is read already, blank ones too."""
    number = 1
    try:
        for raw in chain(head, _raw_lines(rest)):
            yield _parsed(number, raw) if _body(raw) else Line(number, raw)
            number += raw.count(b"\n")
    except DamagedInput as damage:
        yield Line(number, b"", problem=str(damage))


def nesting(text: bytes) -> int:
    """Return how many levels of objects and lists a JSON text has."""
    level = deepest = 0
    for token in _TOKENS.finditer(text):
        if opening := token[1]:
            level += len(opening)
            deepest = max(deepest, level)
        elif closing := token[2]:
            level -= len(closing)
    return deepest


def grouped(lines: Iterable[Line], spans: int) -> Iterator[list[Line]]:
    """Put lines together until they hold at least so many spans, or eight megabytes."""
    group: list[Line] = []
    count = size = 0
    for line in lines:
        group.append(line)
        count += len(line.spans)
        size += len(line.raw) + _OBJECT_BYTES
        if count >= spans or size >= _GROUP_BYTES:
            yield group
            group, count, size = [], 0, 0
    if group:
        yield group


def _raw_lines(source: BinaryIO) -> Iterator[bytes]:
    while raw := source.readline(MAX_DOCUMENT_BYTES + 1):
        if len(raw) > MAX_DOCUMENT_BYTES:
            raise InvalidInput(
                f"a line of the input is longer than {MAX_DOCUMENT_BYTES // 1024**2} MiB: write smaller documents"
            )
        yield raw
    source.read(1)  # raises what ended the input too early


def _body(raw: bytes) -> bytes:
    """Return a text without the white space around it, and without byte order marks: a file that was put together from
    others may have one in any line.
    """
    body = raw.strip(_WHITE_SPACE)
    while body.startswith(BOM_UTF8):
        body = body.removeprefix(BOM_UTF8).lstrip(_WHITE_SPACE)
    return body


def _is_traces(raw: bytes) -> bool:
    body = _body(raw)
    if not body.startswith(b"{"):
        return False
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return not _SIGNALS.isdisjoint(document)


def too_deep(text: bytes) -> str:
    """Say how deeply a text is nested that cannot be read because of that."""
    return f"the document is nested {nesting(text):,} levels deep, and at most {MAX_LEVELS} levels are read"


def _parsed(number: int, raw: bytes) -> Line:
    body = _body(raw)
    try:
        document = orjson.loads(body)
        _refuse_ambiguous(document, body)
        return Line(number, raw, document, _spans(document))
    except orjson.JSONDecodeError as error:
        # orjson has no class for it
        problem = too_deep(body) if "depth limit" in error.msg else f"not JSON: {error.msg}"
        return Line(number, raw, problem=problem)
    except (InvalidLine, InvalidSpan) as error:
        return Line(number, raw, problem=str(error))


def _spans(document: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    _refuse_others(document, _SIGNALS, "the document")
    for resource in items_of(document.get("resourceSpans"), "resourceSpans"):
        _refuse_others(resource, _RESOURCE, "an item of resourceSpans")
        for scope in items_of(resource.get("scopeSpans"), "scopeSpans"):
            _refuse_others(scope, _SCOPE, "an item of scopeSpans")
            found.extend(items_of(scope.get("spans"), "spans"))
    if not all(isinstance(span, dict) for span in found):
        raise InvalidLine("an item of spans is not a JSON object")
    return found


def _refuse_others(value: Any, known: frozenset[str], place: str) -> None:
    if not isinstance(value, dict):
        raise InvalidLine(f"{place} is not a JSON object")
    if unknown := value.keys() - known:
        raise InvalidLine(f"{place} has a member {min(unknown)!r}, which may hide spans from some readers")


def _is_indented(raw: bytes) -> bool:
    return b"\n" in raw


def _written(document: Any, *, indented: bool) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 if indented else 0)


def _refuse_ambiguous(document: Any, raw: bytes) -> None:
    """Refuse a text that orjson read in a way in which another reader might not.

    What orjson writes again in the same way holds nothing of that kind; only a text in another form, as before the
    first signature, needs the slow reader.
    """
    try:
        if _written(document, indented=_is_indented(raw)) != raw:
            json.loads(raw, object_pairs_hook=_unique, parse_int=_exact)
    except (TypeError, RecursionError) as cause:  # orjson writes fewer levels than it reads
        raise InvalidLine(too_deep(raw)) from cause


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidLine(f"an object has the member {twice!r} twice")
    return members


def _exact(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= (number := int(digits)) < 2**64:
        raise InvalidLine("a number has more than 64 bits")
    return number
