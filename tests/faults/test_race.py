"""Daemons that race on one table agree. `make drill-race` runs two thousand of these."""

from collections.abc import Awaitable, Callable

import pytest

from tests.faults.race import races
from tests.faults.race_branch_keys import Report, dynamodb_races, sqlite_races


@pytest.mark.timeout(300)
@pytest.mark.parametrize("store", ["dynamodb", "postgresql"])
async def test_daemons_that_race_on_one_store_agree(store: str, request: pytest.FixtureRequest) -> None:
    """Twenty tenants, four daemons: one first key, every rotation once, every signature verifies, no call fails."""
    report = await races(20, server=request.getfixturevalue("postgres") if store == "postgresql" else None)
    assert not report.divergences
    assert not report.refused
    assert report.tenants == 20
    assert report.signatures == 20 * 4 * 3
    assert report.rotations >= 20


@pytest.mark.timeout(300)
@pytest.mark.parametrize("races", [dynamodb_races, sqlite_races])
async def test_races_for_branch_keys_lose_no_message(races: Callable[[int], Awaitable[Report]]) -> None:
    """Four tenants, four callers: one branch key, each rotation one version with its row, every message opens."""
    report = await races(4)
    assert not report.divergences
    assert not report.refused
    assert (report.tenants, report.messages) == (4, 4 * 4 * 3)
    assert report.rotations >= 4
