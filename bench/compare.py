"""Says what got slower from one run to another: `python -m bench.compare A.jsonl B.jsonl`.

Compared is the ratio to the baseline that ran in the same rounds (the echo), where there is one: it holds from one day
and machine to another. Where there is none, it is server CPU; and for what waits beside others, the ratio of the 99th
percentiles. Memory is compared as it is. A change counts when it is larger than the threshold and the quartiles of both
runs do not overlap: what a machine's mood makes is no change.

Exit code: 0 if nothing got slower, 1 if something did or is missing from B, 2 if a file cannot be read.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bench import records
from bench.records import Case, Record

_OF_THE_RUN = ("commit", "load_average")


@dataclass(frozen=True, slots=True)
class Change:
    """What one measurement says in both runs."""

    case: Case
    side: str
    figure: str
    """ratio, CPU us, p99 ratio or MiB."""
    before: float
    after: float
    within_spread: bool
    """Whether the quartiles of the runs overlap."""

    @property
    def share(self) -> float:
        """By how much of the value before it grew: 0.1 is 10 %, negative is less."""
        return self.after / self.before - 1

    def is_slower(self, threshold: float) -> bool:
        """Return whether it grew past the threshold, and by more than its spread."""
        return self.share > threshold and not self.within_spread

    def is_faster(self, threshold: float) -> bool:
        """Return whether it shrank as much."""
        return self.before / self.after - 1 > threshold and not self.within_spread

    def __str__(self) -> str:
        case = self.case
        place = [case.transport, f"{case.concurrency} in flight", f"{case.payload} bytes", f"batch {case.batch}"]
        place += [f"{case.tenants} tenants"] if case.tenants > 1 else []
        place += [case.variant] if case.variant else []
        what = f"{case.row} ({', '.join(part for part in place if part)}), {self.side}"
        return f"{what}: {self.figure} {self.before:.4g} -> {self.after:.4g} ({self.share:+.1%})"


def changes(before: Record, after: Record) -> Iterator[Change]:
    """Return what can be compared of two measurements of one case and side."""

    def change(figure: str, old: float, new: float, spread: bool) -> Change:
        return Change(before.case, before.side, figure, old, new, spread)

    if before.ratio and after.ratio and before.ratio_to == after.ratio_to:
        overlap = _overlap(before.ratio_quartiles, after.ratio_quartiles)
        yield change(f"ratio to {before.ratio_to}", before.ratio, after.ratio, overlap)
    elif before.server_cpu_us and after.server_cpu_us:
        overlap = _overlap(before.quartiles, after.quartiles)
        yield change("CPU us", before.server_cpu_us, after.server_cpu_us, overlap)
    elif before.p99_ratio and after.p99_ratio:
        yield change("p99 ratio", before.p99_ratio, after.p99_ratio, False)
    if before.rss_kib and after.rss_kib:
        yield change("MiB", before.rss_kib / 1024, after.rss_kib / 1024, False)


def _overlap(one: tuple[float, float] | None, other: tuple[float, float] | None) -> bool:
    return bool(one and other and one[0] <= other[1] and other[0] <= one[1])


def compared(before: Sequence[Record], after: Sequence[Record]) -> tuple[list[Change], list[Record]]:
    """Return the changes, and what the second run lacks."""
    now = {(record.case, record.side): record for record in after}
    found = [
        change
        for record in before
        if (record.case, record.side) in now
        for change in changes(record, now[record.case, record.side])
    ]
    return found, [record for record in before if (record.case, record.side) not in now]


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return in what the machines differ, beside the commit and what else ran."""
    names = [name for name in {**before, **after} if name not in _OF_THE_RUN and before.get(name) != after.get(name)]
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in names]


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--threshold", default=0.1, show_default=True, help="Growth that counts as slower: 0.1 is 10 %.")
@click.option("--side", default="ours", show_default=True, help="Whose measurements are compared; '' for all.")
def main(before: Path, after: Path, threshold: float, side: str) -> None:
    """Say what got slower, and end with code 1 if something did."""
    try:
        (old_machine, old), (new_machine, new) = records.read(before), records.read(after)
    except (OSError, ValueError) as cause:
        click.echo(str(cause), err=True)
        sys.exit(2)
    for difference in differences(old_machine, new_machine):
        click.echo(f"note: not the same {difference}")
    found, missing = compared(
        [record for record in old if not side or record.side == side],
        [record for record in new if not side or record.side == side],
    )
    slower = sorted((each for each in found if each.is_slower(threshold)), key=lambda each: -each.share)
    faster = sorted((each for each in found if each.is_faster(threshold)), key=lambda each: each.share)
    for label, some in (("slower", slower), ("faster", faster)):
        for each in some:
            click.echo(f"{label}: {each}")
    for record in missing:
        click.echo(f"missing: {record.case.row} of {record.side}: {record.case}")
    click.echo(
        f"{len(found)} figures compared: {len(slower)} grew by more than {threshold:.0%}, {len(faster)} shrank,"
        f" {len(missing)} measurements are missing"
    )
    sys.exit(1 if slower or missing or not found else 0)


if __name__ == "__main__":
    main()
