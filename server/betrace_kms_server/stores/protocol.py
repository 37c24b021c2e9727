"""What a key store must do for us. tests/contract/test_stores.py holds every store to it.

A store keeps signing keys for ever. It never overwrites a key and never hands out one that is not what was written.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

from betrace_kms_server.core.findings import Finding
from betrace_kms_server.core.keys import StoredKey
from betrace_kms_server.core.lock_state import LockState
from betrace_kms_server.core.shredding import Shredding, TenantHead
from betrace_kms_server.core.tenancy import DataKeyType


class KeyStore(Protocol):
    """Keeps the signing keys of all tenants, their seeds wrapped.

    Every method raises StoreUnavailable if the store cannot be read or written now, and KeyDamaged for a row that is
    not what was written.
    """

    @property
    def shared(self) -> bool:
        """Return whether other daemons may write to this store while this one runs."""

    async def active(self, tenant_id: str) -> StoredKey | None:
        """Return the key that a tenant signs with, or None if it has none yet.

        Raises KeyDamaged if the tenant has had an active key and has none any more: it must not get a new one.
        """

    async def get(self, tenant_id: str, key_id: str) -> StoredKey | None:
        """Return one key of a tenant, whatever its status, or None if the tenant never had it."""

    async def get_many(self, tenant_id: str, key_ids: AbstractSet[str]) -> Mapping[str, StoredKey]:
        """Return those of some keys of a tenant that the store has, in a few reads however many are asked for."""

    async def all(self, tenant_id: str) -> Sequence[StoredKey]:
        """Return every key that a tenant ever had, oldest first."""

    async def create(self, key: StoredKey) -> StoredKey:
        """Make a tenant's first key durable, and return the tenant's active key: this one, or another's that won."""

    async def rotate(self, former: StoredKey, successor: StoredKey) -> bool:
        """Make `successor` the active key in place of `former`, which becomes `rotated` at the successor's create time.

        All of it and a higher generation become durable at once, or nothing does: False if `former` is not active any
        more. A try that is repeated after it had landed is recognised, and is True.
        """

    async def revoke(self, key: StoredKey, revoke_time_ms: int, successor: StoredKey | None) -> bool:
        """Mark a key as revoked, and raise the tenant's generation, at once or not at all.

        An active key needs a successor, which becomes active in the same transaction. False if the key's status is not
        what `key` says any more; True also for a try that had landed before.
        """

    async def generation(self, tenant_id: str) -> int:
        """Return the tenant's generation: 0 at first, and higher after each rotation, revocation and invalidation."""

    async def head(self, tenant_id: str) -> TenantHead:
        """Return the tenant's generation and its shredding, in one read. The record of the shredding is not checked."""

    async def set_shredding(self, tenant_id: str, former: Shredding | None, state: Shredding | None) -> bool:
        """Put a shredding in place of another one (None: the tenant is open), and raise the tenant's generation.

        Both become durable at once, or nothing does: False if the present one is not `former`. True also if it is
        `state` by now.
        """

    def shreddings(self) -> AsyncIterator[TenantHead]:
        """Yield every tenant that has a shredding, in any order; of the head the generation may be missing."""

    async def raise_generation(self, tenant_id: str) -> None:
        """Raise the tenant's generation, so that other daemons drop what they cached for the tenant."""

    def created_before(self, time_ms: int) -> AsyncIterator[str]:
        """Yield the tenants whose active key is older than a time (milliseconds since the Unix epoch), in any order."""

    def rows(self) -> AsyncIterator[StoredKey]:
        """Yield every key of every tenant, in any order: what an export needs."""

    async def add(self, key: StoredKey) -> bool:
        """Put a key back as it was exported, its status and times included. Never overwrites.

        False if the store has a key of this id, or another active key of a tenant whose active key this would be.
        """

    async def replace(self, stored: StoredKey, replacement: StoredKey) -> None:
        """Put the same key, wrapped anew, into a row; a row that is not `stored` any more is left alone."""

    async def wrapped_by_other_keys(self, master_key_arn: str) -> Sequence[tuple[str, str]]:
        """Return (tenant id, key id) of every key that another master key wrapped."""

    async def wrapped_by(self) -> AbstractSet[str]:
        """Return the ARN of every master key that wrapped a key in this store."""

    async def lock_state(self) -> LockState | None:
        """Return the emergency stop that is in force for all daemons on this store, or None."""

    async def set_lock(self, state: LockState | None) -> None:
        """Put an emergency stop in force, durably and in place of any other; None ends it."""

    async def sealing_key_type(self) -> DataKeyType:
        """Return the keyType of new messages by default: `sealing` if the store records that it was made new with it.

        Otherwise daemons of earlier versions, which open no such messages, may be in use: then it is `encryption`.
        """

    async def check(self) -> None:
        """Return if a key that were written now would be durable. Changes no key."""

    async def inspect(self) -> Sequence[Finding]:
        """Return what a production check must know of the store, good or bad. Changes nothing.

        Raises StoreUnavailable if it cannot be found out.
        """
