"""Quotas of calls: what a call and a batch cost, how long a refusal is true, and how many tenants are remembered."""

import pytest
from betrace_kms_server.access.quotas import CallQuota
from betrace_kms_server.core import token_bucket
from betrace_kms_server.core.errors import InvalidRequest, QuotaExceeded


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quota(clock: Clock) -> CallQuota:
    """Two calls a second, four at once."""
    return CallQuota(2, 4, clock)


def refused(quota: CallQuota, items: int = 1) -> float:
    """Return after how many seconds the refused call passes."""
    with pytest.raises(QuotaExceeded) as refusal:
        quota.spend("acme", items)
    assert refusal.value.retry_after is not None
    return refusal.value.retry_after


def test_tenant_is_refused_until_the_time_that_it_is_given(quota: CallQuota, clock: Clock) -> None:
    """After the burst; a moment before that time it is refused still, and other tenants never are."""
    for _ in range(4):
        quota.spend("acme")
    assert 0.5 == refused(quota)
    quota.spend("other")
    clock.now += 0.49
    assert pytest.approx(0.01) == refused(quota)
    clock.now += 0.01
    quota.spend("acme")
    assert 0.5 == refused(quota)


def test_batch_costs_its_items(quota: CallQuota, clock: Clock) -> None:
    """A batch that finds too few tokens is refused, takes none, and hears how long it takes until there are enough."""
    quota.spend("acme", 3)
    assert 1.0 == refused(quota, 3)
    quota.spend("acme", 1)
    assert 1.5 == refused(quota, 3)


def test_batch_of_more_than_the_burst_passes_and_is_paid_for(quota: CallQuota, clock: Clock) -> None:
    """It needs a full bucket; then the tenant waits until all of it is paid, so that the rate holds."""
    quota.spend("acme", 1)
    assert 0.5 == refused(quota, 10)
    clock.now += 0.5
    quota.spend("acme", 10)
    assert 3.5 == refused(quota)
    clock.now += 3.5
    quota.spend("acme")


def test_ten_thousand_tenants_are_remembered(quota: CallQuota) -> None:
    """Of more, the least recently used go, and are as good as new."""
    for tenant in ("acme", "idle"):
        quota.spend(tenant, 4)
    for number in range(2 * token_bucket.MAX_TENANTS):
        quota.spend(f"tenant-{number}")
        if number % 1000 == 0:
            refused(quota)
    assert token_bucket.MAX_TENANTS == len(quota._buckets)
    quota.spend("idle", 4)


def test_what_is_no_tenant_id_is_not_remembered(quota: CallQuota) -> None:
    """An id may be as long as a request; only a valid one gets a bucket."""
    with pytest.raises(InvalidRequest):
        quota.spend("x" * 1_000_000)
    assert 0 == len(quota._buckets)
