"""Judging the spans of a group of lines, with a key set or by the daemon."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from betrace_kms_evidence import InvalidSpan, SpanVerifier

from betrace_kms_client.otlp.files import Line
from betrace_kms_client.otlp.mapping import span_from_otlp
from betrace_kms_client.otlp.signature import signature_of
from betrace_kms_client.otlp.signing import batches
from betrace_kms_client.results import SignedSpan, SpanRefusal, Verdict

VALID = "VALID"
MISSING_SIGNATURE = "MISSING_SIGNATURE"
REFUSED = "REFUSED"
"""The span, or the line, is not such as sign writes; it cannot be judged."""

Judge = Callable[[Sequence[SignedSpan]], Sequence[Verdict | SpanRefusal]]


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict on a span: the number of its line, and its place among the spans of that line (from 1).

    With place 0 it is the line whose spans are unknown; `members` is empty then.
    """

    line: int
    place: int
    members: dict[str, Any]
    verdict: str
    detail: str = ""


def judge_offline(verifier: SpanVerifier) -> Judge:
    """Return what judges by a key set, without the daemon."""

    def judge(spans: Sequence[SignedSpan]) -> list[Verdict | SpanRefusal]:
        return [_judged(verifier, signed) for signed in spans]

    return judge


def _judged(verifier: SpanVerifier, signed: SignedSpan) -> Verdict | SpanRefusal:
    try:
        reason = verifier.verify(signed.span, signed.signature, signed.key_id, signed.proof)
    except InvalidSpan as error:
        return SpanRefusal("INVALID_ARGUMENT", str(error))
    return Verdict(reason == VALID, reason)


def verify_lines(lines: Sequence[Line], judge: Judge) -> list[Finding]:
    """Return a finding for each span of these lines, in order. What `judge` raises is raised."""
    findings: list[Finding] = []
    signed: list[tuple[int, SignedSpan]] = []
    for line in lines:
        if line.problem:
            findings.append(Finding(line.number, 0, {}, REFUSED, line.problem))
        for place, members in enumerate(line.spans, 1):
            verdict, detail = MISSING_SIGNATURE, ""
            try:
                if found := signature_of(members):
                    span = span_from_otlp(members)
                    signed.append((len(findings), SignedSpan(span, found.signature, found.key_id, found.proof)))
            except InvalidSpan as error:
                verdict, detail = REFUSED, str(error)
            findings.append(Finding(line.number, place, members, verdict, detail))
    for batch in batches(signed, lambda item: item[1].span.ByteSize()):
        results = judge([span for _, span in batch])
        for (index, _), result in zip(batch, results, strict=True):
            at = findings[index]
            verdict, detail = (
                (result.reason, "") if isinstance(result, Verdict) else (REFUSED, f"{result.status}: {result.message}")
            )
            findings[index] = Finding(at.line, at.place, at.members, verdict, detail)
    return findings
