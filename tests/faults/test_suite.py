"""Some faults of each family do what docs/reliability.md expects. `make test-faults` injects all, for longer."""

from pathlib import Path

import pytest

from tests.faults import suite
from tests.faults.outcome import Outcome
from tests.faults.suite import FAMILIES, TABLE, read_table, row, write_table

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("family", FAMILIES)
async def test_faults_do_what_is_expected(tmp_path: Path, family: str) -> None:
    """Some faults of a family, for a short time: nothing is as it must not be."""
    found = [outcome async for outcome in FAMILIES[family].run(tmp_path, FAMILIES[family].SHORT, 0.6)]
    assert list(FAMILIES[family].SHORT) == [outcome.fault for outcome in found]
    assert [f"{outcome.fault}: {problem}" for outcome in found for problem in outcome.problems] == []


def test_table_has_a_row_for_each_fault() -> None:
    """The table of docs/reliability.md has the faults of the suite with what is expected, in order, and no others."""
    rows = read_table()
    assert [fault for family in FAMILIES.values() for fault in family.FAULTS] == list(rows)
    for name, family in FAMILIES.items():
        for fault, expected in family.FAULTS.items():
            assert rows[fault].startswith(f"| {fault} | {expected} | `tests/faults/{name}.py` | ")


def test_writer_changes_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new figure replaces the last one, rows come in the suite's order, former faults go, and the text stays."""
    (first, one), (second, other), *_ = [(name, fault) for name, each in FAMILIES.items() for fault in each.FAULTS]
    old, new = (row(first, Outcome(one, each)) for each in ("3 % served", "100 % served"))
    last = row(second, Outcome(other, "99 % served"))
    before, after = "# Reliability\n\nWhat it is.\n\n", "\n\nText with a | in it.\n\n| another | table |\n"
    table = "| fault | expected | injected by | last figure |\n|---|---|---|---|\n"
    document = tmp_path / "reliability.md"
    document.write_text(f"{before}{table}{last}\n{old}\n| a former fault | x | y | z |{after}")
    monkeypatch.setattr(suite, "TABLE", document)
    rows = {**read_table(), one: new}
    assert {other: last, one: new, "a former fault": "| a former fault | x | y | z |"} == rows
    write_table(rows)
    assert f"{before}{table}{new}\n{last}{after}" == document.read_text()


def test_tests_that_the_document_names_exist() -> None:
    """Each file of a test, and each target of the Makefile, that docs/reliability.md names is there."""
    words = TABLE.read_text("utf-8").split("`")[1::2]
    files = [word for word in words if word.startswith("tests/")]
    targets = [word.removeprefix("make ").split()[0] for word in words if word.startswith("make ")]
    assert files
    assert targets
    assert [file for file in files if not (ROOT / file).is_file()] == []
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert [target for target in targets if f"\n{target}:" not in makefile] == []
