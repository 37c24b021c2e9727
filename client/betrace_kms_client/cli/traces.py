"""What sign and verify do with OTLP/JSON trace files."""

import json
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import click

from betrace_kms_client.cli.outputs import replacing
from betrace_kms_client.otlp import Line, grouped, lines_of, sign_lines, verify_lines
from betrace_kms_client.otlp.signing import BATCH_SPANS, Sign
from betrace_kms_client.otlp.verifying import VALID, Judge

_LONG_FILE = 4 * 1024 * 1024
_ID = re.compile(r"[0-9A-Fa-f]{1,32}", re.ASCII)
_CLEAR = "\r\x1b[K"


def sign_traces(head: Iterable[bytes], source: BinaryIO, output: Path | None, sign: Sign) -> bool:
    """Write the file with signatures; name on stderr each span that has none. Return whether all have one."""
    complete, empty = True, True
    with replacing(output) as out, _progress(source) as (groups, clear):
        for group in groups(lines_of(head, source)):
            unsigned = sign_lines(group, sign, _now)
            for each in unsigned:
                clear()
                click.echo(f"betrace-kms: {_place(each.line, each.place, each.members)}: {each.reason}", err=True)
            complete = complete and not unsigned
            empty = empty and not any(line.spans or line.problem for line in group)
            out.writelines(line.text() for line in group)
    if empty:
        click.echo("betrace-kms: no spans", err=True)
    return complete


def verify_traces(head: Iterable[bytes], source: BinaryIO, judge: Judge) -> bool:
    """Name each span that is not VALID, then sum up. Return whether there are spans, and all are VALID."""
    verdicts: Counter[str] = Counter()
    with _progress(source) as (groups, clear):
        for group in groups(lines_of(head, source)):
            for finding in verify_lines(group, judge):
                verdicts[finding.verdict] += 1
                if finding.verdict != VALID:
                    clear()
                    detail = f" ({finding.detail})" if finding.detail else ""
                    place = _place(finding.line, finding.place, finding.members)
                    click.echo(f"{place}: {finding.verdict}{detail}")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items(), key=_valid_first))
    click.echo(f"{verdicts.total()} spans: {counts}" if verdicts else "no spans")
    return set(verdicts) == {VALID}


def _valid_first(item: tuple[str, int]) -> tuple[bool, str]:
    return item[0] != VALID, item[0]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _place(line: int, place: int, members: dict[str, Any]) -> str:
    """Say where a span is; nothing of the file reaches a terminal unescaped."""
    if not place:
        return f"line {line}"
    trace_id, span_id = _shown_id(members.get("traceId")), _shown_id(members.get("spanId"))
    name = json.dumps(members.get("name"))
    return f"line {line}, span {place}: trace {trace_id}, span {span_id}, {name}"


def _shown_id(value: Any) -> str:
    return value if isinstance(value, str) and _ID.fullmatch(value) else json.dumps(value)


_Groups = Callable[[Iterable[Line]], Iterator[list[Line]]]


@contextmanager
def _progress(source: BinaryIO) -> Iterator[tuple[_Groups, Callable[[], None]]]:
    """Give what groups lines, with a bar on stderr if it is a terminal and the file is long, and what clears the bar's
    line before something else is written.
    """
    length = _length(source)
    shown = length > _LONG_FILE and sys.stderr.isatty()
    with click.progressbar(length=length, file=sys.stderr) if shown else nullcontext() as bar:

        def groups(lines: Iterable[Line]) -> Iterator[list[Line]]:
            for group in grouped(lines, BATCH_SPANS):
                yield group
                if bar is not None:
                    bar.update(sum(len(line.raw) for line in group))

        def clear() -> None:
            if bar is not None:
                click.echo(_CLEAR, err=True, nl=False)

        yield groups, clear


def _length(source: BinaryIO) -> int:
    """Return the size of a regular file, 0 for anything else."""
    try:
        status = os.fstat(source.fileno())
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
