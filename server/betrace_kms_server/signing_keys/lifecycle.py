"""What happens to signing keys after they were made: rotation, revocation, invalidation.

A public key stays for ever, whatever happens to its private half. Every change is one transaction of the key store, and
compares first: daemons that rotate a tenant at once make exactly one new key. What is cached is dropped here at once,
and by the other daemons when they see the tenant's new generation.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from betrace_kms_server.core.changes import Changes
from betrace_kms_server.core.errors import NoSigningKey, StoreUnavailable
from betrace_kms_server.core.key_event import KeyEvent, Recorder, ignore, part_of
from betrace_kms_server.core.keys import StoredKey
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.signing_keys.seeds import new_key
from betrace_kms_server.stores.protocol import KeyStore

_ATTEMPTS = 5
"""How often a revocation is tried that other daemons' changes get in the way of."""


class Rotating(Protocol):
    """Keys of another kind that a tenant may have, and that are rotated with its signing key."""

    async def rotate(
        self, tenant_id: str, *, if_older_than_ms: int | None = None, event: KeyEvent | None = None
    ) -> bool | None:
        """Give a tenant a new key, unless its key is young enough. None if the tenant has none."""

    def created_before(self, time_ms: int) -> AsyncIterator[str]:
        """Yield the tenants whose key is older than a time (milliseconds since the Unix epoch), in any order."""


class Lifecycle:
    """Changes keys of one store. `changed` gets each tenant whose keys were changed, and returns what it dropped.

    `others` are keys that are rotated too; `now` is seconds since the Unix epoch.
    """

    def __init__(
        self,
        provider: KeyProvider,
        store: KeyStore,
        changed: Callable[[str], Awaitable[int]],
        *,
        now: Callable[[], float],
        record: Recorder = ignore,
        others: Rotating | None = None,
    ) -> None:
        self._provider = provider
        self._others = others
        self._store = store
        self._changed = changed
        self._now = now
        self._record = record
        self._changes = Changes()

    async def rotate(
        self, tenant_id: str, *, if_older_than_ms: int | None = None, event: KeyEvent | None = None
    ) -> bool:
        """Give a tenant new keys in place of those that are not young enough. Returns whether this call made one.

        Raises NoSigningKey if the tenant never had a key. If another daemon is faster, its key is the tenant's.
        """
        return await self._changes.whole(self._rotate(tenant_id, if_older_than_ms, event), event)

    async def due(self, time_ms: int) -> AsyncIterator[str]:
        """Yield the tenants that have a key older than a time; one that has two such keys comes twice."""
        async for tenant_id in self._store.created_before(time_ms):
            yield tenant_id
        if self._others is not None:
            async for tenant_id in self._others.created_before(time_ms):
                yield tenant_id

    async def revoke(self, tenant_id: str, key_id: str, event: KeyEvent | None = None) -> str:
        """Revoke a key, and return the id of the tenant's active key: a new one if the revoked key was active.

        A key that is revoked already stays as it is. Raises NoSigningKey for a key that the tenant never had.
        """
        return await self._changes.whole(self._revoke(tenant_id, key_id, event), event)

    async def invalidate(self, tenant_id: str) -> int:
        """Drop what is cached for a tenant, here and in other daemons. Returns the number of entries dropped here."""
        return await self._changes.whole(self._invalidate(tenant_id), None)

    async def close(self) -> None:
        """Let what has begun come to its end."""
        await self._changes.close()

    async def _rotate(self, tenant_id: str, if_older_than_ms: int | None, event: KeyEvent | None) -> bool:
        outcomes = [await self._rotate_signing_key(tenant_id, if_older_than_ms, event)]
        if self._others is not None:
            outcomes.append(await self._others.rotate(tenant_id, if_older_than_ms=if_older_than_ms, event=event))
        if outcomes.count(None) == len(outcomes):
            raise NoSigningKey("the tenant has no signing key to rotate: it gets its first one when it first signs")
        return any(outcomes)

    async def _rotate_signing_key(
        self, tenant_id: str, if_older_than_ms: int | None, event: KeyEvent | None
    ) -> bool | None:
        former = await self._store.active(tenant_id)
        if former is None:
            return None
        try:
            if if_older_than_ms is not None and former.create_time_ms >= if_older_than_ms:
                return False
            successor = await self._new_key(former, not_before_ms=if_older_than_ms or 0)
            rotated = await self._store.rotate(former, successor)
            if rotated:
                self._record(part_of(event, "RotateKey", tenant_id, successor.key_id))
            return rotated
        finally:  # also after an error, which does not say that nothing was stored
            await self._changed(tenant_id)

    async def _revoke(self, tenant_id: str, key_id: str, event: KeyEvent | None) -> str:
        try:
            for _ in range(_ATTEMPTS):
                key = await self._store.get(tenant_id, key_id)
                if key is None:
                    raise NoSigningKey(f"the tenant has no signing key {key_id}: GetPublicKeys lists its keys")
                if key.status == "revoked" or await self._mark_revoked(key, event):
                    active = await self._store.active(tenant_id)
                    return active.key_id if active else ""
            raise StoreUnavailable("the tenant's keys are changed by others all the time: try again in a moment")
        finally:
            await self._changed(tenant_id)

    async def _invalidate(self, tenant_id: str) -> int:
        try:
            await self._store.raise_generation(tenant_id)
        finally:
            dropped = await self._changed(tenant_id)
        return dropped

    async def _mark_revoked(self, key: StoredKey, event: KeyEvent | None) -> bool:
        successor = await self._new_key(key) if key.status == "active" else None
        if not await self._store.revoke(key, self._now_ms(), successor):
            return False
        self._record(part_of(event, "RevokeKey", key.tenant_id, key.key_id))
        if successor:
            self._record(part_of(event, "RotateKey", key.tenant_id, successor.key_id))
        return True

    async def _new_key(self, former: StoredKey, *, not_before_ms: int = 0) -> StoredKey:
        """Return a successor. Its create time is later than the former key's, also where the clock was set back.

        So a run of the rotation never finds its own key too old, and a tenant's keys have an order.
        """
        create_time_ms = max(self._now_ms(), former.create_time_ms + 1, not_before_ms)
        key, _ = await new_key(self._provider, former.tenant_id, create_time_ms)
        return key

    def _now_ms(self) -> int:
        return int(self._now() * 1000)
