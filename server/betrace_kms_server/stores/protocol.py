"""What a key store must do for us. tests/contract/test_stores.py holds every store to it.

A store keeps signing keys for ever. It never overwrites a key and never hands out one that is not what was written.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

from betrace_kms_server.keys import StoredKey


class KeyStore(Protocol):
    """Keeps the signing keys of all tenants, their seeds wrapped.

    Every method raises StoreUnavailable if the store cannot be read or written now, and KeyDamaged for a row that is
    not what was written.
    """

    async def active(self, tenant_id: str) -> StoredKey | None:
        """Return the key that a tenant signs with, or None if it has none yet."""

    async def get(self, tenant_id: str, key_id: str) -> StoredKey | None:
        """Return one key of a tenant, whatever its status, or None if the tenant never had it."""

    async def all(self, tenant_id: str) -> Sequence[StoredKey]:
        """Return every key that a tenant ever had, oldest first."""

    async def create(self, key: StoredKey) -> StoredKey:
        """Make a tenant's first key durable, and return the tenant's active key: this one, or another's that won."""

    async def replace(self, stored: StoredKey, replacement: StoredKey) -> None:
        """Put the same key, wrapped anew, into a row; a row that is not `stored` any more is left alone."""

    async def not_wrapped_by(self, master_key_arn: str) -> Sequence[tuple[str, str]]:
        """Return (tenant id, key id) of every key that another master key wrapped."""

    async def wrapped_by(self) -> AbstractSet[tuple[str, str]]:
        """Return every (provider, master key ARN) that wrapped a key in this store."""

    async def check(self) -> None:
        """Return if a key that were written now would be durable. Changes no key."""
