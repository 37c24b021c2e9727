"""kill -9 while keys are made and rotated loses nothing that was acknowledged. `make drill-kill` does it 500 times."""

from pathlib import Path

from tests.faults.kill import Drill


def test_nothing_that_was_acknowledged_is_lost_by_a_kill(tmp_path: Path) -> None:
    """Eight kills at random moments; every acknowledged signature verifies, and every tenant has one active key."""
    drill = Drill(tmp_path, seed=1)
    drill.run(8)
    assert not drill.report.lost
    assert drill.report.kills == 8
    assert len(drill.report.signatures) > 20
    assert drill.report.rotations > 10
