"""BudgetedProvider: token buckets on the calls to KMS that are made for callers, for each tenant and for the daemon.

Whatever is asked of the provider for a tenant takes a token, also a Decrypt of what does not open. Without a token the
call is refused at once, with the time until there is one. The daemon's own work (a refresh, a rotation, wrapping again)
takes no token of a tenant and is not refused: it waits for one of the daemon's.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from betrace_kms_server.core.errors import BudgetExceeded, KmsError
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.core.key_event import DAEMON, current_event
from betrace_kms_server.core.keys import DataKey, KeyMaterial, WrappedKey
from betrace_kms_server.core.shedding import check_may_wait
from betrace_kms_server.core.tenancy import Context, tenant_of
from betrace_kms_server.core.token_bucket import TenantBuckets, TokenBucket
from betrace_kms_server.providers.breaker import State
from betrace_kms_server.providers.protocol import KeyProvider


class BudgetedProvider:
    """A provider whose calls are counted against budgets, in calls a second; 0 is no budget."""

    def __init__(
        self,
        provider: KeyProvider,
        *,
        tenant_per_second: int,
        tenant_burst: int,
        per_second: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._provider = provider
        self._daemon = TokenBucket(per_second, per_second, clock) if per_second else None
        self._tenants = TenantBuckets(tenant_per_second, tenant_burst, clock) if tenant_per_second else None
        self.budget_refusals = {"tenant": 0, "daemon": 0}
        """Calls that were refused, by whose budget was used up."""

    @property
    def name(self) -> str:
        """See KeyProvider."""
        return self._provider.name

    @property
    def master_key_arn(self) -> str:
        """See KeyProvider."""
        return self._provider.master_key_arn

    @property
    def decrypt_key_arns(self) -> Sequence[str]:
        """See KeyProvider."""
        return self._provider.decrypt_key_arns

    @property
    def serving_region(self) -> str:
        """See KeyProvider."""
        return self._provider.serving_region

    @property
    def breakers(self) -> Mapping[str, State]:
        """See KeyProvider."""
        return self._provider.breakers

    @property
    def credential_attempts(self) -> Mapping[str, int]:
        """See KeyProvider."""
        return self._provider.credential_attempts

    @property
    def clock_skew_seconds(self) -> float | None:
        """See KeyProvider."""
        return self._provider.clock_skew_seconds

    def is_current(self, arn: str) -> bool:
        """See KeyProvider."""
        return self._provider.is_current(arn)

    def unwrapping_key_for(self, arn: str) -> str | None:
        """See KeyProvider."""
        return self._provider.unwrapping_key_for(arn)

    async def generate_data_key(self, number_of_bytes: int, context: Context) -> DataKey:
        """See KeyProvider. Raises BudgetExceeded."""
        await self._spend(context)
        return await self._provider.generate_data_key(number_of_bytes, context)

    async def wrap(self, key: KeyMaterial, context: Context) -> WrappedKey:
        """See KeyProvider. Raises BudgetExceeded."""
        await self._spend(context)
        return await self._provider.wrap(key, context)

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> KeyMaterial:
        """See KeyProvider. Raises BudgetExceeded."""
        await self._spend(context)
        return await self._provider.unwrap(wrapped, context)

    async def check(self, arn: str | None = None) -> None:
        """See KeyProvider. A check takes no token: a budget says nothing of KMS."""
        await self._provider.check(arn)

    def remedy(self, error: KmsError) -> str | None:
        """See KeyProvider."""
        return self._provider.remedy(error)

    @property
    def latency_advice(self) -> str:
        """See KeyProvider."""
        return self._provider.latency_advice

    async def inspect(self) -> Sequence[Finding]:
        """See KeyProvider."""
        return await self._provider.inspect()

    async def _spend(self, context: Context) -> None:
        event = current_event.get()
        if event is not None and event.caller == DAEMON:
            if self._daemon is not None:
                delay = self._daemon.delay()
                self._daemon.take()
                await asyncio.sleep(delay)
            return
        check_may_wait()
        tenant = None if self._tenants is None else self._tenants.of(tenant_of(context))
        for scope, bucket in (("tenant", tenant), ("daemon", self._daemon)):
            if bucket is not None and (delay := bucket.delay()) > 0:
                self.budget_refusals[scope] += 1
                raise BudgetExceeded(scope, delay)
        for bucket in (tenant, self._daemon):
            if bucket is not None:
                bucket.take()
