"""Reads of one tenant's keys that are wanted at the same time, as one read of the key store.

A read begins only after it was asked for: who asks while one is under way gets the next. So a cache that loads through
this never gets what was read before it decided to load.
"""

import asyncio
from collections.abc import Mapping

from betrace_kms_server.core.errors import KeyDamaged
from betrace_kms_server.core.keys import StoredKey
from betrace_kms_server.stores.protocol import KeyStore


class BatchedReads:
    """Reads keys of one tenant."""

    def __init__(self, store: KeyStore, tenant_id: str) -> None:
        self._store = store
        self._tenant_id = tenant_id
        self._wanted: set[str] = set()
        self._next: asyncio.Task[Mapping[str, StoredKey]] | None = None

    async def get(self, key_id: str) -> StoredKey | None:
        """Return a key as `KeyStore.get` does, read together with those that others ask for now."""
        if self._next is None:
            self._next = asyncio.create_task(self._read(), name="read public keys")
        self._wanted.add(key_id)
        try:
            return (await asyncio.shield(self._next)).get(key_id)
        except KeyDamaged:  # which may be another's key
            return await self._store.get(self._tenant_id, key_id)

    async def _read(self) -> Mapping[str, StoredKey]:
        wanted, self._wanted, self._next = self._wanted, set(), None
        return await self._store.get_many(self._tenant_id, wanted)
