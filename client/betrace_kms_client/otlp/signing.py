"""Signing the spans of a group of lines, in calls of bounded size."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_evidence import InvalidSpan

from betrace_kms_client.otlp.files import Line
from betrace_kms_client.otlp.mapping import span_from_otlp
from betrace_kms_client.otlp.signature import attach_failure, attach_signature
from betrace_kms_client.results import SpanRefusal, SpanSignature

BATCH_SPANS = 500
BATCH_BYTES = 2 * 1024 * 1024
"""Half of what a daemon takes in one call unless configured otherwise (kms.server.max-message-bytes)."""

T = TypeVar("T")
Sign = Callable[[Sequence[ComplianceSpan]], Sequence[SpanSignature | SpanRefusal]]


@dataclass(frozen=True, slots=True)
class Unsigned:
    """A span that was not signed: the number of its line, its place among the spans of that line (from 1), and why.

    With place 0 it is the line whose spans are unknown; `members` is empty then.
    """

    line: int
    place: int
    members: dict[str, Any]
    reason: str


def sign_lines(lines: Sequence[Line], sign: Sign, time: Callable[[], str]) -> list[Unsigned]:
    """Sign all spans of these lines in place, and report which were not; `time` gives RFC 3339 text.

    What `sign` raises is raised, and the lines are then of no use.
    """
    refused: list[Unsigned] = []
    good: list[tuple[Unsigned, ComplianceSpan]] = []
    for line in lines:
        if line.problem:
            refused.append(Unsigned(line.number, 0, {}, line.problem))
        for place, members in enumerate(line.spans, 1):
            try:
                span = span_from_otlp(members)
            except InvalidSpan as error:
                refused.append(_failed(Unsigned(line.number, place, members, str(error)), time()))
            else:
                good.append((Unsigned(line.number, place, members, ""), span))
    for batch in batches(good, lambda item: item[1].ByteSize()):
        results = sign([span for _, span in batch])
        now = time()
        for (where, _), result in zip(batch, results, strict=True):
            if isinstance(result, SpanSignature):
                attach_signature(where.members, result, now)
            else:
                refused.append(
                    _failed(Unsigned(where.line, where.place, where.members, f"{result.status}: {result.message}"), now)
                )
    return sorted(refused, key=lambda unsigned: (unsigned.line, unsigned.place))


def _failed(unsigned: Unsigned, time: str) -> Unsigned:
    attach_failure(unsigned.members, unsigned.reason, time)
    return unsigned


def batches(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Cut into lists of at most 500 items and, unless it is a single item, 2 MiB."""
    batch: list[T] = []
    total = 0
    for item in items:
        more = size(item)
        if batch and (len(batch) == BATCH_SPANS or total + more > BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += more
    if batch:
        yield batch
