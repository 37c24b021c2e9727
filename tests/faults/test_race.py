"""Daemons that race on one table agree. `make drill-race` runs two thousand of these."""

import pytest

from tests.faults.race import races


@pytest.mark.timeout(300)
async def test_daemons_that_race_on_one_table_agree() -> None:
    """Twenty tenants, four daemons: one first key, every rotation once, every signature verifies, no call fails."""
    report = await races(20)
    assert not report.divergences
    assert not report.refused
    assert report.tenants == 20
    assert report.signatures == 20 * 4 * 3
    assert report.rotations >= 20
