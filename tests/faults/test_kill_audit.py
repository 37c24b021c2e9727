"""kill -9 under load leaves no answered call without its line. `make drill-audit` does it 100 times."""

from pathlib import Path

import pytest

from tests.faults.kill_audit import Drill


@pytest.mark.parametrize("mode", ["required", "durable"])
def test_every_answered_call_has_its_line_after_a_kill(tmp_path: Path, mode: str) -> None:
    """Three kills at random moments; each answered call is in the trail, and the chain is whole."""
    drill = Drill(tmp_path, mode, seed=1)
    drill.run(3)
    assert not drill.report.lost
    assert len(drill.report.answered) > 30
    assert drill.report.verdict.endswith("intact")
