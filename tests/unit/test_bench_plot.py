"""The figures can be drawn from what was measured; matplotlib comes with `make bench-plot` only."""

import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs requirements/plot.txt: make bench-plot")

from bench import plot, records

RESULTS = Path(__file__).parents[2] / "docs/performance/results.jsonl"


def test_figures_are_drawn_and_name_the_machine(tmp_path: Path) -> None:
    """Each figure is a PNG and an SVG with a curve or bar for what it shows; the same results make the same file."""
    described, found = records.read(RESULTS)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        plot.draw(tmp_path / folder, described, found)
    for name in plot.FIGURES:
        assert (tmp_path / "one" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        drawn = (tmp_path / "one" / f"{name}.svg").read_text("utf-8")
        assert drawn == (tmp_path / "two" / f"{name}.svg").read_text("utf-8")
        texts = "\n".join(re.findall(r"<!-- (.*?) -->", drawn))
        assert described["grpcio"] in texts
        assert plot.FIGURES[name][0] in texts
    calls = (tmp_path / "one" / "calls.svg").read_text("utf-8")
    assert {"SignSpan", "Encrypt", "VerifyMac"} <= set(re.findall(r"<!-- (\w+) -->", calls))
