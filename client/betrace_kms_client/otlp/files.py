"""Trace files, line by line: what is read is one line, or one document that takes several, and the same is written.

Memory is bounded by the longest line, and by what `grouped` puts together. A document that is not on one line is read
whole.

JSON lets an object have a member twice, and readers differ in which they take; that would let a signed file show
different spans to different readers, so such lines are refused, as are spans where only some readers find them (under
the original protobuf names, or the names before OTLP 0.15).
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import orjson
from betrace_kms_evidence import InvalidSpan

from betrace_kms_client.otlp.values import items_of

_SIGNALS = frozenset({"resourceSpans", "resourceLogs", "resourceMetrics", "resourceProfiles"})
_RESOURCE = frozenset({"resource", "scopeSpans", "schemaUrl"})
_SCOPE = frozenset({"scope", "spans", "schemaUrl"})
_GROUP_BYTES = 8 * 1024 * 1024


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
        text = _written(self.document, indented=_is_indented(self.raw))
        return text + b"\n" if self.raw.endswith(b"\n") else text


def read_first(source: BinaryIO) -> tuple[bytes, bool]:
    """Read as far as it takes to tell whether this is a trace file: a line of JSON, or else everything."""
    head = source.readline()
    while head and not head.strip():
        head += source.readline()
    try:
        document = orjson.loads(head)
    except orjson.JSONDecodeError:
        head += source.read()
        try:
            document = orjson.loads(head)
        except orjson.JSONDecodeError:
            return head, False
    return head, isinstance(document, dict) and not _SIGNALS.isdisjoint(document)


def lines_of(head: bytes, rest: BinaryIO) -> Iterator[Line]:
    """Give the lines of a trace file of which `head` is read already, blank ones too."""
    blank = len(head) - len(head.lstrip())
    number = 1
    for raw in head[:blank].splitlines(keepends=True):
        yield Line(number, raw)
        number += 1
    yield _parsed(number, head[blank:])
    for number, raw in enumerate(rest, number + 1):  # noqa: B020 - it goes on from the number before
        yield _parsed(number, raw) if raw.strip() else Line(number, raw)


def grouped(lines: Iterable[Line], spans: int) -> Iterator[list[Line]]:
    """Put lines together until they hold at least so many spans, or eight megabytes."""
    group: list[Line] = []
    count = size = 0
    for line in lines:
        group.append(line)
        count += len(line.spans)
        size += len(line.raw)
        if count >= spans or size >= _GROUP_BYTES:
            yield group
            group, count, size = [], 0, 0
    if group:
        yield group


def _parsed(number: int, raw: bytes) -> Line:
    try:
        document = orjson.loads(raw)
        _refuse_ambiguous(document, raw)
        return Line(number, raw, document, _spans(document))
    except orjson.JSONDecodeError as error:
        return Line(number, raw, problem=f"not JSON: {error.msg}")
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
    return b"\n" in raw.strip()


def _written(document: Any, *, indented: bool) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 if indented else 0)


def _refuse_ambiguous(document: Any, raw: bytes) -> None:
    """Refuse a text that orjson read in a way in which another reader might not.

    What orjson writes again in the same way holds nothing of that kind; only a text in another form, as before the
    first signature, needs the slow reader.
    """
    try:
        if _written(document, indented=_is_indented(raw)) != raw.strip():
            json.loads(raw, object_pairs_hook=_unique, parse_int=_exact)
    except (TypeError, RecursionError) as cause:  # orjson writes fewer levels than it reads
        raise InvalidLine("the document is nested too deeply") from cause


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
