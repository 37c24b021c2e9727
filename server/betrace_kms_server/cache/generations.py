"""Generations: how soon one daemon learns that another changed a tenant's keys.

Every rotation, revocation and invalidation raises the tenant's generation in the key store. Before a tenant's cached
keys are used, the generation must have been read within `max_age`: one cheap read of the store and no call to KMS,
shared by all who wait for it. A generation that is not the one that was known drops what is cached for the tenant.

While the store cannot be read, what is cached serves to the end of its time to live: an outage of the store must not be
one of ours. That is the bound within which a revocation may be overlooked. Nor does a caller wait for a store that
hangs: after a second it goes on with what is cached, and what the read brings later counts from then on.

The same read says whether the tenant is to be shredded. `sealing` is the gate of the keys that encrypt and decrypt: it
refuses a tenant that is not open, and one of which that could not be read for `max_stale` seconds. What is said of a
tenant that was not read yet is the list of all shreddings, see `listed`.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import structlog

from betrace_kms_server.core.errors import KeyDamaged, KmsError, StoreUnavailable
from betrace_kms_server.core.shredding import TenantHead
from betrace_kms_server.stores.protocol import KeyStore

log = structlog.get_logger()

RETRY_SECONDS = 5.0
"""How soon a store that could not be read is asked again about a tenant, at most."""
_PATIENCE_SECONDS, _PATIENCE_WHILE_FAILING = 1.0, 0.25
"""How long a caller waits for a read of the store, and for a store that could not be read a moment ago."""
_UNKNOWN = -1


@dataclass(slots=True)
class _Known:
    head: TenantHead
    read_at: float
    """When the head was read; minus infinity if it never was."""
    good_until: float
    open_until: float
    """Until when keys that encrypt and decrypt may be used without a word of `sealing.revalidate`."""
    problem: str = ""
    """What was logged about the tenant's own row; empty while it can be read."""


class Generations:
    """The gate of the caches: see gate.Gate.

    `drop` drops what is cached for a tenant; `max_age` and `max_stale` are in seconds of `clock`; `limit` bounds the
    tenants known.
    """

    def __init__(
        self,
        store: KeyStore,
        drop: Callable[[str], int],
        *,
        max_age: float,
        max_stale: float,
        limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._drop = drop
        self._max_age = min(max_age, max_stale)
        self._max_stale = max_stale
        self._limit = limit
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._checks: dict[str, asyncio.Task[None]] = {}
        self._failing = False
        self._shreddings: Mapping[str, TenantHead] = {}
        self._listed_at = -math.inf
        self.sealing = SealingGate(self)

    def is_open(self, tenant: str) -> bool:
        """See gate.Gate."""
        known = self._known.get(tenant)
        return known is not None and self._clock() < known.good_until

    async def revalidate(self, tenant: str) -> None:
        """See gate.Gate. Callers that come at once share one read, which a caller that leaves does not end."""
        check = self._checks.get(tenant)
        if check is None:
            check = self._checks[tenant] = asyncio.create_task(self._check(tenant), name="read generation")
            check.add_done_callback(lambda _: self._checks.pop(tenant, None))
        await asyncio.wait([check], timeout=_PATIENCE_WHILE_FAILING if self._failing else _PATIENCE_SECONDS)
        if not check.done() and (known := self._known.get(tenant)) is not None and not self.is_open(tenant):
            # No one else waits either: the read ends by its own bound, and then says itself until when this is good.
            known = replace(known, good_until=self._clock() + min(RETRY_SECONDS, self._max_age))
            self._keep(tenant, replace(known, open_until=self._open_until(known)))

    def check_may_seal(self, tenant: str) -> None:
        """Raise why keys of a tenant may not encrypt and decrypt, by what is known, if they may not.

        That is TenantPendingShred, TenantShredded, KeyDamaged or StoreUnavailable.
        """
        known = self._known.get(tenant)
        head, read_at = (known.head, known.read_at) if known is not None else (_unread(tenant), -math.inf)
        if read_at == -math.inf:
            head, read_at = self._shreddings.get(tenant, head), self._listed_at
        head.check_open()
        if self._clock() - read_at >= self._max_stale:
            raise StoreUnavailable(
                "whether the tenant is to be shredded could not be read from the key store for"
                " kms.cache.max-stale-seconds, so nothing is encrypted or decrypted for it: check that the key store"
                " answers, and try again later"
            )

    def listed(self, shreddings: Mapping[str, TenantHead], began: float) -> None:
        """Take the list of all shreddings, which was read from `began` on."""
        self._shreddings, self._listed_at = shreddings, began

    def shredding_changed(self, head: TenantHead) -> None:
        """Take what this daemon made of a tenant: it holds also if the store cannot be read now."""
        others = {name: each for name, each in self._shreddings.items() if name != head.tenant_id}
        self._shreddings = others if head.record is None else {**others, head.tenant_id: head}
        if (known := self._known.get(head.tenant_id)) is not None:
            known = replace(known, head=replace(known.head, record=head.record))
            self._keep(head.tenant_id, replace(known, open_until=self._open_until(known)))

    async def changed(self, tenant: str) -> int:
        """Drop what is cached for a tenant whose keys this daemon has just changed. Returns the number of entries."""
        try:
            if self._store.shared:
                await self._read(tenant)
        finally:
            dropped = self._drop(tenant)
        return dropped

    async def close(self) -> None:
        """End the reads that run."""
        checks = list(self._checks.values())
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)

    async def _check(self, tenant: str) -> None:
        before = self._known.get(tenant)
        after = await self._read(tenant)
        # Of a tenant that was not known, something may have been loaded by callers who lost patience with this read.
        if after is not None and (before is None or before.head.generation != after):
            self._drop(tenant)

    async def _read(self, tenant: str) -> int | None:
        """Read a generation and keep it; None if the store cannot be read."""
        began = self._clock()
        try:
            head = await self._store.head(tenant)
        except Exception as error:  # noqa: BLE001  # also a defect, or each warm call would read the store; logged below
            former = self._known.get(tenant)
            retry_at = self._clock() + min(RETRY_SECONDS, self._max_age)
            known = former or _Known(_unread(tenant), -math.inf, retry_at, -math.inf)
            known = replace(known, good_until=retry_at, problem=self._report(former, error))
            self._keep(tenant, replace(known, open_until=self._open_until(known)))
            return None
        self._report_recovery()
        known = _Known(head, began, began + self._max_age, -math.inf)
        self._keep(tenant, replace(known, open_until=self._open_until(known)))
        return head.generation

    def _open_until(self, known: _Known) -> float:
        """Return until when a tenant's keys may encrypt and decrypt for sure."""
        head, read_at = known.head, known.read_at
        if read_at == -math.inf:
            head, read_at = self._shreddings.get(head.tenant_id, head), self._listed_at
        return -math.inf if head.record is not None else min(known.good_until, read_at + self._max_stale)

    def _keep(self, tenant: str, known: _Known) -> None:
        self._known[tenant] = known
        self._known.move_to_end(tenant)
        while len(self._known) > self._limit:
            self._drop(self._known.popitem(last=False)[0])  # nothing may stay cached of which nothing is known

    def _report(self, former: _Known | None, error: Exception) -> str:
        """Log once that a generation cannot be read. Returns what is wrong with this tenant's row alone, if anything.

        A damaged row, or a defect that one row meets, says nothing about the store: other tenants' reads go on.
        """
        if isinstance(error, KmsError) and not isinstance(error, KeyDamaged):
            if not self._failing:
                self._failing = True
                log.error(
                    "The key store cannot be read: changes by other daemons are not seen, and cached keys serve to the"
                    " end of their time to live",
                    problem=error.message,
                )
            return former.problem if former else ""
        problem = error.message if isinstance(error, KmsError) else type(error).__name__
        if former is None or former.problem != problem:
            log.error(
                "A tenant's generation cannot be read: changes by other daemons are not seen, and its cached keys serve"
                " to the end of their time to live",
                problem=problem,
                exc_info=None if isinstance(error, KmsError) else error,
            )
        return problem

    def _report_recovery(self) -> None:
        if self._failing:
            self._failing = False
            log.info("The key store can be read again")


class SealingGate:
    """The gate of the caches whose keys encrypt and decrypt: see gate.Gate. `revalidate` raises why they may not."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations
        self._known = generations._known
        self._clock = generations._clock

    def is_open(self, tenant: str) -> bool:
        """See gate.Gate. Costs a hit what `Generations.is_open` does."""
        known = self._known.get(tenant)
        return known is not None and self._clock() < known.open_until

    async def revalidate(self, tenant: str) -> None:
        """See gate.Gate. A tenant that was refused a moment ago costs no read."""
        if not self._generations.is_open(tenant):
            await self._generations.revalidate(tenant)
        self._generations.check_may_seal(tenant)


def _unread(tenant: str) -> TenantHead:
    return TenantHead(tenant, _UNKNOWN)
