"""kill -9 loses nothing that was acknowledged, whatever was being written. `make drill-kill` does it 1,000 times."""

from collections import Counter
from pathlib import Path

import pytest

from tests.faults.kill import BATCH, BRANCH_KEYS, Drill
from tests.faults.kill_files import Kills


def test_nothing_that_was_acknowledged_is_lost_by_a_kill(tmp_path: Path) -> None:
    """Signatures verify, ciphertexts open, and what was retired, revoked or locked stays so."""
    drill = Drill(tmp_path, seed=1)
    counts = killed_until(drill, {"created", "rotated", "revoked", "sealed", "sealed again", "locked"})
    assert counts["created"] > drill.report.kills


def test_no_message_under_a_branch_key_is_lost_by_a_kill(tmp_path: Path) -> None:
    """Kills while branch keys are made, have new versions and seal: what was sealed before and after opens."""
    drill = Drill(tmp_path, seed=3, environ=BRANCH_KEYS)
    counts = killed_until(drill, {"versions", "batches", "batches of a new branch key", "locked"})
    assert len(drill.report.ledger.sealed) >= BATCH * (counts["batches"] + counts["batches of a new branch key"])


def killed_until(drill: Drill, operations: set[str]) -> Counter[str]:
    """Kill five times, and again until each of these was acknowledged: a slow machine may come to few of them."""
    for _ in range(10):
        drill.run(5)
        assert not drill.report.lost
        if operations <= set(drill.report.ledger.counts):
            break
    assert operations <= set(drill.report.ledger.counts)
    return drill.report.ledger.counts


@pytest.mark.parametrize("what", ["first_starts", "exports_and_imports"])
def test_what_a_kill_leaves_half_made_is_made_whole(tmp_path: Path, what: str) -> None:
    """A first start that was killed starts again; an export that was killed is not there, an import is repeated."""
    report = getattr(Kills(tmp_path, seed=2), what)(2)
    assert not report.lost
    assert report.kills == 2
