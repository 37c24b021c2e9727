"""KeyCaches: the four caches of keys that a daemon has, and the gate before them, as one thing.

Data keys, signing keys, public keys and branch keys are bounded and expire separately. Where other daemons write to the
key store, one gate decides for all of them whether what is cached of a tenant may be used. Every cache but those of
signing keys and public keys is also behind the gate that refuses tenants that are shredded: evidence outlives the data.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from betrace_kms_server.cache.gate import OPEN, Gate, OwnShreddings
from betrace_kms_server.cache.generations import Generations
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.key_event import Recorder, ignore
from betrace_kms_server.core.shredding import TenantHead
from betrace_kms_server.stores.protocol import KeyStore

TENANTS_PER_ENTRY = 10
"""How many tenants' generations are known for each entry that a cache may have."""


class KeyCaches:
    """Caches in front of one key store. Times to live are in seconds; see KeyCache for the rest."""

    def __init__(
        self,
        store: KeyStore,
        *,
        encryption_ttl: float,
        signing_ttl: float,
        public_ttl: float,
        max_size: int,
        branch_max_size: int = 10_000,
        version_check_seconds: float,
        max_stale_seconds: float = 3600.0,
        record: Recorder = ignore,
        request_check: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.generations = Generations(
            store,
            self.drop,
            max_age=version_check_seconds,
            max_stale=max_stale_seconds,
            limit=TENANTS_PER_ENTRY * max(max_size, branch_max_size),
            clock=clock,
        )
        self._store = store
        self._clock = clock
        self._own = OwnShreddings()
        gate: Gate = self.generations if store.shared else OPEN
        sealing: Gate = self.generations.sealing if store.shared else self._own

        def cache(kind: str, ttl: float, max_size: int = max_size, gate: Gate = sealing) -> KeyCache:
            return KeyCache(
                kind,
                ttl=ttl,
                max_size=max_size,
                clock=clock,
                jitter=jitter,
                record=record,
                request_check=request_check,
                gate=gate,
            )

        self.encryption = cache("encryption", encryption_ttl)
        self.signing = cache("signing", signing_ttl, gate=gate)
        self.public = cache("public", public_ttl, gate=gate)
        self.branch = cache("branch", encryption_ttl, branch_max_size)

    def __iter__(self) -> Iterator[KeyCache]:
        return iter((*self._secret, self.public))

    @property
    def _secret(self) -> Sequence[KeyCache]:
        return self.encryption, self.signing, self.branch

    async def changed(self, tenant: str) -> int:
        """Drop what is cached for a tenant whose keys this daemon has just changed. Returns the number of entries."""
        return await self.generations.changed(tenant)

    async def list_shreddings(self) -> Mapping[str, TenantHead]:
        """Read all shreddings from the key store, so that tenants that were not read yet are known too."""
        began = self._clock()
        found = {head.tenant_id: head async for head in self._store.shreddings()}
        self.generations.listed(found, began)
        self._own.listed(found)
        return found

    async def shredding_changed(self, tenant: str, head: TenantHead | None) -> int:
        """Take what this daemon made of a tenant, if that landed, and drop what is cached for it.

        Returns the number of entries.
        """
        if head is not None:
            self.generations.shredding_changed(head)
            self._own.changed(head)
        return await self.generations.changed(tenant)

    def drop(self, tenant: str) -> int:
        """Drop what is cached for a tenant, and disown its loads. Returns the number of entries."""
        return sum(cache.invalidate(tenant) for cache in self)

    def purge(self, master_key_arn: str) -> int:
        """Drop what a master key wrapped that may not be used any more. Returns the number of entries."""
        return sum(cache.purge(master_key_arn) for cache in self._secret)

    def lock(self) -> int:
        """Drop every key that is secret, and load none until `unlock`. Returns the number of entries.

        Public keys stay, so that signatures can be verified also while the key store does not answer.
        """
        return sum(cache.lock() for cache in self._secret)

    def unlock(self) -> None:
        """Load keys again."""
        for cache in self._secret:
            cache.unlock()

    def drop_expired(self) -> int:
        """Drop what expired and was not asked for since. Returns the number of entries."""
        return sum(cache.drop_expired() for cache in self)

    async def close(self) -> None:
        """End all loads and reads of generations, and empty the caches."""
        for cache in self:
            await cache.close()
        await self.generations.close()
