"""Budgets of calls to KMS: who is refused, for how long, and whose work is not."""

import pytest
from betrace_kms_server.core.errors import BudgetExceeded, DoesNotOpen
from betrace_kms_server.core.key_event import KeyEvent, current_event
from betrace_kms_server.core.keys import WrappedKey
from betrace_kms_server.providers.budget import BudgetedProvider
from betrace_kms_server.providers.local import LocalProvider


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def budgeted(clock: Clock, *, burst: int = 3, per_second: int = 0) -> BudgetedProvider:
    return BudgetedProvider(
        LocalProvider(bytes(32)), tenant_per_second=2, tenant_burst=burst, per_second=per_second, clock=clock
    )


async def test_tenant_spends_its_own_budget_only() -> None:
    """After its burst a tenant is refused, with the time until a token; others are not."""
    clock = Clock()
    provider = budgeted(clock)
    for _ in range(3):
        await provider.generate_data_key(32, {"tenantId": "a"})
    with pytest.raises(BudgetExceeded) as refused:
        await provider.generate_data_key(32, {"tenantId": "a"})
    assert (0.5, {"budget": "tenant"}) == (refused.value.retry_after, refused.value.metadata)
    await provider.generate_data_key(32, {"tenantId": "b"})
    clock.now += 0.5
    await provider.generate_data_key(32, {"tenantId": "a"})
    assert {"tenant": 1, "daemon": 0} == provider.budget_refusals


async def test_what_does_not_open_counts() -> None:
    """Blobs of a caller's making cost a token each, so they cannot make KMS calls without end."""
    provider = budgeted(Clock())
    for expected in [DoesNotOpen] * 3 + [BudgetExceeded]:
        with pytest.raises(expected):
            await provider.unwrap(WrappedKey(b"rubbish", provider.master_key_arn), {"tenantId": "a"})


async def test_budget_of_the_daemon_is_for_all_tenants() -> None:
    """Past it every tenant is refused; what is refused takes no token of the tenant."""
    provider = budgeted(Clock(), per_second=2)
    for tenant in ("a", "b"):
        await provider.generate_data_key(32, {"tenantId": tenant})
    with pytest.raises(BudgetExceeded, match=r"kms\.budget\.per-second"):
        await provider.generate_data_key(32, {"tenantId": "c"})
    assert {"tenant": 0, "daemon": 1} == provider.budget_refusals


async def test_own_work_is_not_refused() -> None:
    """A refresh or a rotation is no call of the tenant's."""
    provider = budgeted(Clock(), burst=1)
    token = current_event.set(KeyEvent("RefreshKey", "a"))
    for _ in range(5):
        await provider.generate_data_key(32, {"tenantId": "a"})
    current_event.reset(token)
    await provider.generate_data_key(32, {"tenantId": "a"})
