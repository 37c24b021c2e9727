"""The drill of cold and abusive tenants in short form; its figures are those of `make drill-cold`."""

import asyncio

from tests.drills.cold import abusive_tenant, cold_tenants, daemon


def test_cold_tenants_do_not_starve_warm_calls() -> None:
    """All cold tenants are served, and warm calls beside them; `make drill-cold` says how long those took."""
    with daemon() as process:
        figures = asyncio.run(cold_tenants(process.address, 300))
    assert {"OK": 300} == figures.outcomes
    assert figures.warm


def test_cold_calls_that_wait_shed_no_warm_ones() -> None:
    """Only calls that would wait too are refused, and a probe or a warm call none of them."""
    with daemon(KMS_SERVER_MAX_CALLS_IN_FLIGHT="30") as process:
        figures = asyncio.run(cold_tenants(process.address, 300))
    assert {"OK", "RESOURCE_EXHAUSTED"} == set(figures.outcomes)
    assert figures.warm


def test_abusive_tenant_takes_no_call_of_others() -> None:
    """While one tenant asks for more than KMS allows, every cold call of the others is served."""
    with daemon(quota=50) as process:
        figures = asyncio.run(abusive_tenant(process.address, 24, 3.0))
    assert 24 == figures.outcomes["other OK"]
    assert [] == [name for name in figures.outcomes if name.startswith(("other", "warm")) and name != "other OK"]
