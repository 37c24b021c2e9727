"""bench.compare says what got slower, and only that."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import compare, records
from bench.records import Case, Record

CASE = Case("SignSpan", payload=348)
RECORD = Record(
    CASE,
    "ours",
    rounds=20,
    server_cpu_us=200.0,
    quartiles=(195.0, 205.0),
    ratio=2.0,
    ratio_quartiles=(1.95, 2.05),
    ratio_to="echo",
    rss_kib=100_000,
)
MACHINE = {"machine": {"cpu": "a", "python": "3.11", "commit": "1"}}


def run(
    tmp_path: Path, before: list[Record], after: list[Record], *flags: str, machine: dict[str, dict[str, str]] = MACHINE
) -> tuple[int, str]:
    """Compare two files, and return the exit code and what was printed."""
    paths = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    records.write(paths[0], MACHINE, before)
    records.write(paths[1], machine, after)
    done = CliRunner().invoke(compare.main, [*map(str, paths), *flags])
    return done.exit_code, done.output


def test_equal_runs_pass(tmp_path: Path) -> None:
    """A run compared with itself has no changes."""
    code, printed = run(tmp_path, [RECORD], [RECORD])
    assert (0, "2 figures compared: 0 grew by more than 10%, 0 shrank, 0 measurements are missing\n") == (code, printed)


def test_a_larger_ratio_fails(tmp_path: Path) -> None:
    """A ratio that grew past the threshold is named with its case, and the exit code is 1."""
    slow = replace(RECORD, ratio=2.3, ratio_quartiles=(2.25, 2.35))
    code, printed = run(tmp_path, [RECORD], [slow])
    assert 1 == code
    line = "slower: SignSpan (tcp, 16 in flight, 348 bytes, batch 1), ours: ratio to echo 2 -> 2.3 (+15.0%)"
    assert line == printed.splitlines()[0]
    assert 0 == run(tmp_path, [RECORD], [slow], "--threshold", "0.2")[0]
    assert "faster: SignSpan" in run(tmp_path, [slow], [RECORD])[1]


def test_a_slower_machine_is_no_change(tmp_path: Path) -> None:
    """CPU counts only where no baseline ran in the same rounds."""
    slow = replace(RECORD, server_cpu_us=400.0, quartiles=(395.0, 405.0))
    assert 0 == run(tmp_path, [RECORD], [slow])[0]
    alone = {"ratio": None, "ratio_quartiles": None, "ratio_to": None}
    code, printed = run(tmp_path, [replace(RECORD, **alone)], [replace(slow, **alone)])  # type: ignore[arg-type]
    assert (1, True) == (code, "CPU us 200 -> 400 (+100.0%)" in printed)


def test_a_change_within_the_spread_does_not_count(tmp_path: Path) -> None:
    """Quartiles that overlap say that the machine was uneven."""
    uneven = replace(RECORD, ratio=2.3, ratio_quartiles=(2.0, 2.6))
    assert 0 == run(tmp_path, [RECORD], [uneven])[0]


@pytest.mark.parametrize(
    "grown",
    [replace(RECORD, rss_kib=120_000), replace(RECORD, server_cpu_us=None, ratio=None, p99_ratio=3.0)],
    ids=["memory", "p99"],
)
def test_memory_and_tails_count_too(tmp_path: Path, grown: Record) -> None:
    """Memory is compared beside the rest, and the tail where nothing else was measured."""
    before = replace(grown, rss_kib=100_000, p99_ratio=1.0)
    code, printed = run(tmp_path, [before], [grown])
    assert 1 == code
    assert printed.startswith("slower:")


def test_what_is_missing_fails(tmp_path: Path) -> None:
    """A measurement that is gone is no success; a new one is none of this run's business."""
    other = replace(RECORD, case=replace(CASE, concurrency=64))
    assert 1 == run(tmp_path, [RECORD, other], [RECORD])[0]
    assert 0 == run(tmp_path, [RECORD], [RECORD, other])[0]
    assert 1 == run(tmp_path, [replace(RECORD, side="bao")], [RECORD])[0], "nothing was compared"


def test_another_machine_is_said(tmp_path: Path) -> None:
    """Another version is named; another commit is the point of the comparison."""
    machine = {"machine": {"cpu": "a", "python": "3.12", "commit": "2"}}
    _, printed = run(tmp_path, [RECORD], [RECORD], machine=machine)
    assert "note: not the same python: 3.11 -> 3.12" == printed.splitlines()[0]
    assert "commit" not in printed


def test_an_unreadable_file_has_a_code_of_its_own(tmp_path: Path) -> None:
    """A file of something else is not `slower`."""
    (tmp_path / "c.jsonl").write_text("{}\n")
    records.write(tmp_path / "a.jsonl", MACHINE, [RECORD])
    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "c.jsonl")]
    assert 2 == CliRunner().invoke(compare.main, paths).exit_code
    assert 2 == CliRunner().invoke(compare.main, [paths[0], str(tmp_path / "none")]).exit_code
