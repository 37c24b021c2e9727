"""Quotas: how many calls a tenant may make, warm ones included. Budgets (providers/budget.py) bound calls to KMS."""

import time
from collections.abc import Callable

from betrace_kms_server.core.errors import QuotaExceeded
from betrace_kms_server.core.tenancy import check_tenant_id
from betrace_kms_server.core.token_bucket import TenantBuckets


class CallQuota:
    """Admits `per_second` calls of each tenant, and `burst` at once. A batch counts as many calls as it has items."""

    def __init__(self, per_second: int, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._buckets = TenantBuckets(per_second, burst, clock)

    def spend(self, tenant_id: str, items: int = 1) -> None:
        """Take what a call costs. Raises QuotaExceeded, and InvalidRequest for what is no tenant id.

        A batch of more than `burst` items passes when the quota is untouched, and the tenant's next call waits for
        all of them.
        """
        bucket = self._buckets.of(check_tenant_id(tenant_id))  # an id that is not checked has no bound
        if (delay := bucket.delay(items)) > 0:
            raise QuotaExceeded(delay)
        bucket.take(items)
