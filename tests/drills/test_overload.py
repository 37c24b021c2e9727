"""The drill of ten times the callers in short form; its figures are those of `make drill-overload`."""

from pathlib import Path

from tests.drills.overload import Outcome, drill


def test_overload_is_survived(tmp_path: Path) -> None:
    """Calls are answered during it and after it, and so are probes."""
    lines = list(drill(tmp_path, callers=[8], connections=[50], seconds=1.0))
    assert 3 == len(lines)
    assert all(" 0 a second" not in line for line in lines)


def test_return_is_when_goodput_is_back_for_half_a_second() -> None:
    """On average, and never if it does not come back."""
    outcome = Outcome(0.0, {}, [0, 200, 0, 0, 100, 100, 100, 100, 100, 100])
    assert (0.9, None) == (outcome.back_after(1000), outcome.back_after(1001))
