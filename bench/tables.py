"""Writes the tables of docs/performance.md: `python -m bench.tables RESULTS.jsonl docs/performance.md`.

A table stands between `<!-- measured: NAME -->` and `<!-- /measured -->`. So that no figure is older than another,
all tables come from one file, and a test compares the page with it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bench import plan, records, sizing
from bench.records import Case, Record
from bench.terminal import number, spread
from bench.workloads import KINDS

_MARKED = re.compile(r"(<!-- measured: ([a-z-]+) -->\n)(?:.*?\n)??(<!-- /measured -->)", re.DOTALL)
Found = Mapping[tuple[Case, str], Record]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def size(count: int) -> str:
    """Return a size in bytes as people say it."""
    for unit, scale in (("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale and count % scale == 0:
            return f"{count // scale} {unit}"
    return f"{count} B"


def machine(described: Mapping[str, Any], found: Found) -> str:
    """Return the machine as a sentence."""
    names = {"cpu": "{}", "cores": "{} cores", "memory_mib": "{} MiB of memory", "kernel": "Linux {}"}
    first = ", ".join(text.format(described[name]) for name, text in names.items() if described.get(name))
    rest = [f"{name.replace('_', ' ')} {value}" for name, value in described.items() if name not in names]
    return f"{first}; {', '.join(rest)}."


def order(case: Case) -> tuple[int, str, int, int, int, int]:
    """Return where a case stands in a table: by the call, and then by what varies."""
    row = list(KINDS).index(case.row) if case.row in KINDS else len(KINDS)
    return row, case.transport, case.payload, case.batch, case.tenants, case.concurrency


def _calls(cases: Callable[[Case], bool], first: str, label: Callable[[Case], str]) -> Callable[[Any, Found], str]:
    def table(_described: Mapping[str, Any], found: Found) -> str:
        head = [first, "CPU of an item, us", "quartiles", "the echo, us", "ratio", "quartiles", "items a second"]
        rows = []
        for (case, side), record in sorted(found.items(), key=lambda each: order(each[0][0])):
            if side == "ours" and cases(case):
                echo = found.get((case, "echo"))
                rows.append(
                    [
                        label(case),
                        number(record.server_cpu_us),
                        spread(record.quartiles),
                        number(echo.server_cpu_us if echo else None),
                        number(record.ratio, 2),
                        spread(record.ratio_quartiles, 2),
                        number(record.per_second, 0),
                        number(record.p50_ms, 2),
                        number(record.p99_ms, 2),
                    ]
                )
        return markdown([*head, "p50, ms", "p99, ms"], rows)

    return table


def is_base(case: Case) -> bool:
    """Return whether a case is the base point of its row."""
    if case.row not in KINDS:
        return False
    base = plan.base(case.row)
    return (case.transport, case.concurrency, case.batch, case.tenants, case.variant) == (
        base.transport,
        base.concurrency,
        base.batch,
        1,
        "",
    ) and (not base.payload or case.payload == base.payload)


def _unary(case: Case) -> bool:
    return case.row in KINDS and not case.variant and case.tenants == 1 and KINDS[case.row].batch == 1


def _wire(case: Case) -> str:
    return f"{case.row}, {case.transport}, {case.concurrency} in flight"


def _in_flight(case: Case) -> bool:
    if case.row not in ("SignSpan", "Encrypt", "Decrypt"):
        return False
    return _unary(case) and case.payload == (KINDS[case.row].payload or case.payload)


def _payload(case: Case) -> bool:
    return (
        case.row in ("Encrypt", "Decrypt")
        and _unary(case)
        and (case.transport, case.concurrency) in (("tcp", 16), ("tcp", plan.LARGE_IN_FLIGHT))
    )


def _batch(case: Case) -> bool:
    return case.row in ("SignSpans", "SignSpans, proofs", "EncryptBatch", "DecryptBatch") and not case.variant


def _alone(case: Case, payload: int) -> bool:
    place = (case.transport, case.concurrency, case.tenants, case.variant)
    return place == ("tcp", 16, 1, "") and payload in (0, case.payload)


def batches(_described: Mapping[str, Any], found: Found) -> str:
    """Return what an item of a batch costs beside a call of its own."""
    mine = [record for (_, side), record in found.items() if side == "ours"]

    def alone(row: str, payload: int) -> float | None:
        calls = (each for each in mine if each.case.row == row and _alone(each.case, payload))
        return next((each.server_cpu_us for each in calls), None)

    single = {"SignSpan": alone("SignSpan", 0), "Encrypt": alone("Encrypt", 64), "Decrypt": alone("Decrypt", 64)}
    of = {
        "SignSpans": "SignSpan",
        "SignSpans, proofs": "SignSpan",
        "EncryptBatch": "Encrypt",
        "DecryptBatch": "Decrypt",
    }
    rows = []
    some = [record for record in mine if _batch(record.case) and record.server_cpu_us]
    for record in sorted(some, key=lambda each: order(each.case)):
        one = single[of[record.case.row]]
        rows.append(
            [
                f"{record.case.row} of {record.case.batch}",
                number(record.server_cpu_us),
                spread(record.quartiles),
                number((record.server_cpu_us or 0) / one, 2) if one else "",
                number(record.per_second, 0),
            ]
        )
    return markdown(["call", "CPU of an item, us", "quartiles", "of a call for each", "items a second"], rows)


def beside(_described: Mapping[str, Any], found: Found) -> str:
    """Return what small calls take beside large ones."""
    rows = [
        [
            f"{case.row}, {side}",
            number(record.p50_ms, 2),
            number(record.p99_ms, 2),
            number(record.p99_ratio, 2),
        ]
        for (case, side), record in found.items()
        if case.variant == "4 MiB beside"
    ]
    return markdown(["call of another caller", "p50, ms", "p99, ms", "p99, ratio"], rows)


def start(_described: Mapping[str, Any], found: Found) -> str:
    """Return what a start costs, and the memory afterwards and with many tenants."""
    rows = [
        [
            {"ours": "the daemon, provider local, until SERVING", "echo": "the echo, until it listens"}[side],
            number((record.server_cpu_us or 0) / 1e6, 2),
            number((record.p50_ms or 0) / 1e3, 2),
            number((record.rss_kib or 0) / 1024, 0),
        ]
        for (case, side), record in found.items()
        if case.row == "start"
    ]
    rows += [
        [f"the daemon, {case.tenants:,} tenants, {case.row}", "", "", number((record.rss_kib or 0) / 1024, 0)]
        for (case, side), record in found.items()
        if side == "ours" and case.variant == plan.PYTHON and case.tenants > 1
    ]
    return markdown(["", "CPU, s", "wall, s", "resident memory, MiB"], rows)


def libraries(_described: Mapping[str, Any], found: Found) -> str:
    """Return what runs in one process, and a KMS without a daemon."""
    rows = [
        [
            f"{case.row}, {size(case.payload)}{f', {case.variant}' if case.variant else ''}",
            side,
            number(record.server_cpu_us),
            spread(record.quartiles),
            number(record.per_second, 0),
            number(record.p50_ms, 2),
        ]
        for (case, side), record in found.items()
        if not case.transport and case.row != "start"
    ]
    return markdown(["work", "by", "CPU, us", "quartiles", "a second", "p50, ms"], rows)


def million(_described: Mapping[str, Any], found: Found) -> str:
    """Return what a million spans a second would take."""
    base = {case.row: record for (case, side), record in found.items() if side == "ours" and is_base(case)}
    return markdown(sizing.HEAD, sizing.rows(base))


TABLES: Mapping[str, Callable[[Mapping[str, Any], Found], str]] = {
    "machine": machine,
    "calls": _calls(is_base, "call", lambda case: case.row + (f" of {case.batch}" if case.batch > 1 else "")),
    "in-flight": _calls(_in_flight, "call", _wire),
    "payload": _calls(_payload, "call", lambda case: f"{case.row}, {size(case.payload)}, {case.concurrency} in flight"),
    "batch": batches,
    "tenants": _calls(
        lambda case: case.variant == plan.PYTHON, "call", lambda case: f"{case.row}, tenants: {case.tenants:,}"
    ),
    "guarded": _calls(
        lambda case: case.variant in (plan.AUDIT, plan.GUARDED),
        "call",
        lambda case: f"{case.row}{f' of {case.batch}' if case.batch > 1 else ''}, {case.variant}",
    ),
    "beside": beside,
    "start": start,
    "libraries": libraries,
    "million": million,
}


def page(text: str, described: Mapping[str, Any], measured: Sequence[Record]) -> str:
    """Return a page with its tables written anew. Raises KeyError for a table that is not known."""
    found = {(record.case, record.side): record for record in measured}
    return _MARKED.sub(lambda mark: f"{mark[1]}{TABLES[mark[2]](described, found)}\n{mark[3]}", text)


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True))
@click.argument("document", type=click.Path(path_type=Path, exists=True))
def main(results: Path, document: Path) -> None:
    """Write the tables of a page."""
    described, measured = records.read(results)
    document.write_text(page(document.read_text("utf-8"), described, measured), "utf-8")
    click.echo(f"Wrote the tables of {document}")


if __name__ == "__main__":
    main()
