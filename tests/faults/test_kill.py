"""kill -9 loses nothing that was acknowledged, whatever was being written. `make drill-kill` does it 1,000 times."""

from pathlib import Path

import pytest

from tests.faults.kill import BRANCH_KEYS, Drill
from tests.faults.kill_files import Kills


def test_nothing_that_was_acknowledged_is_lost_by_a_kill(tmp_path: Path) -> None:
    """Five kills; signatures verify, ciphertexts open, and what was retired, revoked or locked stays so."""
    drill = Drill(tmp_path, seed=1)
    drill.run(5)
    assert not drill.report.lost
    assert drill.report.kills == 5
    counts = drill.report.ledger.counts
    assert min(counts[name] for name in ("created", "rotated", "revoked", "sealed", "sealed again", "locked")) >= 1


def test_no_message_under_a_branch_key_is_lost_by_a_kill(tmp_path: Path) -> None:
    """Kills while branch keys are made and rotated: what was sealed before and after a rotation opens."""
    drill = Drill(tmp_path, seed=3, environ=BRANCH_KEYS)
    for _ in range(10):  # a slow machine may be killed each time before it rotates
        drill.run(1)
        if drill.report.ledger.counts["sealed after a rotation"]:
            break
    assert not drill.report.lost
    assert drill.report.ledger.counts["sealed after a rotation"] >= 1


@pytest.mark.parametrize("what", ["first_starts", "exports_and_imports"])
def test_what_a_kill_leaves_half_made_is_made_whole(tmp_path: Path, what: str) -> None:
    """A first start that was killed starts again; an export that was killed is not there, an import is repeated."""
    report = getattr(Kills(tmp_path, seed=2), what)(2)
    assert not report.lost
    assert report.kills == 2
