"""What stands before the caches, where other daemons may have changed a tenant's keys."""

from typing import Protocol


class Gate(Protocol):
    """Lets a tenant's entries be used only while it is known that no other daemon changed the tenant's keys."""

    def is_open(self, tenant: str) -> bool:
        """Return at once whether the entries may be used."""

    async def revalidate(self, tenant: str) -> None:
        """Find out, and drop the tenant's entries if they are out of date. What is left may be used then."""


class _OpenGate:
    def is_open(self, tenant: str) -> bool:
        return True

    async def revalidate(self, tenant: str) -> None: ...


OPEN = _OpenGate()
"""For keys that no other daemon changes."""
