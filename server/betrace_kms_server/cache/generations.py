"""Generations: how soon one daemon learns that another changed a tenant's keys.

Every rotation, revocation and invalidation raises the tenant's generation in the key store. Before a tenant's cached
keys are used, the generation must have been read within `max_age`: one cheap read of the store and no call to KMS,
shared by all who wait for it. A generation that is not the one that was known drops what is cached for the tenant.

While the store cannot be read, what is cached serves to the end of its time to live: an outage of the store must not be
one of ours. That is the bound within which a revocation may be overlooked.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from betrace_kms_server.core.errors import KeyDamaged, KmsError
from betrace_kms_server.stores.protocol import KeyStore

log = structlog.get_logger()

RETRY_SECONDS = 5.0
"""How soon a store that could not be read is asked again about a tenant, at most."""
_PATIENCE_SECONDS = 0.25
"""How long a caller waits for a store that could not be read a moment ago."""
_UNKNOWN = -1


@dataclass(slots=True)
class _Known:
    generation: int
    good_until: float
    problem: str = ""
    """What was logged about the tenant's own row; empty while it can be read."""


class Generations:
    """The gate of the caches: see gate.Gate.

    `drop` drops what is cached for a tenant; `max_age` is in seconds of `clock`; `limit` bounds the tenants known.
    """

    def __init__(
        self,
        store: KeyStore,
        drop: Callable[[str], int],
        *,
        max_age: float,
        limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._drop = drop
        self._max_age = max_age
        self._limit = limit
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._checks: dict[str, asyncio.Task[None]] = {}
        self._failing = False

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
        # While the store is away, no one waits for it to run out of time.
        await asyncio.wait([check], timeout=_PATIENCE_SECONDS if self._failing else None)

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
        if after is not None and (before is None or before.generation != after):
            self._drop(tenant)

    async def _read(self, tenant: str) -> int | None:
        """Read a generation and keep it; None if the store cannot be read."""
        began = self._clock()
        try:
            generation = await self._store.generation(tenant)
        except Exception as error:  # noqa: BLE001  # also a defect, or each warm call would read the store; logged below
            former = self._known.get(tenant)
            retry_at = self._clock() + min(RETRY_SECONDS, self._max_age)
            self._keep(tenant, _Known(former.generation if former else _UNKNOWN, retry_at, self._report(former, error)))
            return None
        self._report_recovery()
        self._keep(tenant, _Known(generation, began + self._max_age))
        return generation

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
