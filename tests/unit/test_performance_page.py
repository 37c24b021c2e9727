"""docs/performance.md shows what docs/performance/results.jsonl says, and nothing else."""

import re
from pathlib import Path

import pytest

from bench import plan, records, tables
from bench.records import Case, Record

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = ROOT / "docs/performance.md", ROOT / "docs/performance/results.jsonl"


def test_the_page_has_the_figures_of_the_results() -> None:
    """Whoever changes one runs `make bench-plot`."""
    text = PAGE.read_text("utf-8")
    assert tables.page(text, *records.read(RESULTS)) == text
    assert set(tables.TABLES) == set(re.findall(r"<!-- measured: ([a-z-]+) -->", text))


def test_the_results_have_every_case_of_the_plan() -> None:
    """A row that is planned was measured: of the daemon and of the echo."""
    _, found = records.read(RESULTS)
    measured = {(each.case.row, each.case.batch, each.case.tenants, each.case.variant, each.side) for each in found}
    for case in (*plan.wire(), *plan.tenants()):
        for side in ("ours", "echo"):
            assert (case.row, case.batch, case.tenants, case.variant, side) in measured


def test_figures_that_the_page_shows_are_there() -> None:
    """Each picture has an SVG and a PNG."""
    for name in re.findall(r"\(performance/(\w+)\.svg\)", PAGE.read_text("utf-8")):
        assert (RESULTS.parent / f"{name}.svg").is_file()
        assert (RESULTS.parent / f"{name}.png").is_file()


def test_a_table_is_written_between_its_marks() -> None:
    """What stood there goes, what stands around stays."""
    page = "before\n<!-- measured: beside -->\nold\n<!-- /measured -->\nafter\n"
    empty = page.replace("old\n", "")
    case = Case("SignSpan", concurrency=1, variant="4 MiB beside")
    made = tables.page(page, {}, [Record(case, "ours", rounds=1, p50_ms=1.0, p99_ms=2.0, p99_ratio=1.25)])
    assert made.startswith("before\n<!-- measured: beside -->\n| call of another caller |")
    assert "| SignSpan, ours | 1.00 | 2.00 | 1.25 |\n<!-- /measured -->\nafter\n" in made
    assert "old" not in made
    two = tables.page(empty + page, {}, [])
    assert (2, 2) == (two.count("after\n"), two.count("| call of another caller |")), "a mark without a table"
    assert made == tables.page(made, {}, [Record(case, "ours", rounds=1, p50_ms=1.0, p99_ms=2.0, p99_ratio=1.25)])


def test_an_item_of_a_batch_is_set_against_a_call_of_its_own() -> None:
    """EncryptBatch is compared with Encrypt of 64 bytes over TCP with 16 in flight."""
    cases = {
        Case("EncryptBatch", payload=64, batch=100): 16.0,
        Case("Encrypt", payload=1024): 320.0,
        Case("Encrypt", payload=64, transport="unix"): 80.0,
        Case("Encrypt", payload=64): 160.0,
    }
    found = [Record(case, "ours", rounds=1, server_cpu_us=cpu, quartiles=(cpu, cpu)) for case, cpu in cases.items()]
    made = tables.page("<!-- measured: batch -->\n<!-- /measured -->\n", {}, found)
    assert "| EncryptBatch of 100 | 16.0 | 16.0-16.0 | 0.10 |  |" in made


def test_an_unknown_table_is_an_error() -> None:
    """A misspelt mark does not stay empty."""
    with pytest.raises(KeyError):
        tables.page("<!-- measured: nothing -->\n<!-- /measured -->\n", {}, [])


@pytest.mark.parametrize(("count", "expected"), [(64, "64 B"), (1024, "1 KiB"), (2**22, "4 MiB"), (1500, "1500 B")])
def test_sizes_are_written_as_people_say_them(count: int, expected: str) -> None:
    """Only whole units are used."""
    assert expected == tables.size(count)
