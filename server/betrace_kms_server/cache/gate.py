"""What stands before the caches, where other daemons may have changed a tenant's keys, or a tenant is shredded."""

from collections.abc import Mapping
from typing import Protocol

from betrace_kms_server.core.shredding import TenantHead


class Gate(Protocol):
    """Lets a tenant's entries be used only while it is known that no other daemon changed the tenant's keys."""

    def is_open(self, tenant: str) -> bool:
        """Return at once whether the entries may be used."""

    async def revalidate(self, tenant: str) -> None:
        """Find out, and drop the tenant's entries if they are out of date. What is left may be used then.

        Raises an error if no key of the tenant may be used, be it cached or not.
        """


class _OpenGate:
    def is_open(self, tenant: str) -> bool:
        return True

    async def revalidate(self, tenant: str) -> None: ...


OPEN = _OpenGate()
"""For keys that no other daemon changes."""


class OwnShreddings:
    """The gate of keys that encrypt and decrypt, on a store that only this daemon writes to. Knows all shreddings."""

    def __init__(self) -> None:
        self._heads: dict[str, TenantHead] = {}

    def listed(self, shreddings: Mapping[str, TenantHead]) -> None:
        """Take all shreddings of the store."""
        self._heads = dict(shreddings)

    def changed(self, head: TenantHead) -> None:
        """Take what has become of one tenant."""
        if head.record is None:
            self._heads.pop(head.tenant_id, None)
        else:
            self._heads[head.tenant_id] = head

    def is_open(self, tenant: str) -> bool:
        """See Gate."""
        return tenant not in self._heads

    async def revalidate(self, tenant: str) -> None:
        """See Gate. Raises TenantPendingShred, TenantShredded or KeyDamaged."""
        if (head := self._heads.get(tenant)) is not None:
            head.check_open()
