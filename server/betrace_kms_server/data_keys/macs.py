"""The use cases of MACs: compute one, many, verify one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from betrace_kms_server.core.errors import KmsError, NoBranchKeyStore
from betrace_kms_server.core.key_event import KeyEvent
from betrace_kms_server.data_keys.batches import Turns
from betrace_kms_server.data_keys.branch_keys import BranchKeys
from betrace_kms_server.data_keys.mac_keys import MacKey, Purpose


@dataclass(frozen=True, slots=True)
class Mac:
    """A MAC, and the master key behind its key."""

    mac: bytes
    master_key_arn: str


@dataclass(frozen=True, slots=True)
class MacItem:
    """A message, and what its MAC is for."""

    purpose: Purpose
    message: bytes = field(repr=False)


class Macs:
    """MACs of all tenants, under their beacon keys; None where there is no store to keep them."""

    def __init__(self, branch_keys: BranchKeys | None) -> None:
        self._branch_keys = branch_keys

    async def generate(self, tenant_id: str, item: MacItem, event: KeyEvent | None = None) -> Mac:
        """Return the MAC of a message. The tenant's first one makes its key."""
        beacon = await self._keys.beacon(tenant_id, event)
        return Mac(beacon.key_for(item.purpose).mac(item.message, item.purpose.bits), beacon.master_key_arn)

    async def generate_batch(
        self, tenant_id: str, items: Sequence[MacItem | KmsError], turns: Turns, event: KeyEvent | None = None
    ) -> list[Mac | KmsError]:
        """Return for each item its MAC, or the error that it would meet alone; errors among `items` stay."""
        if not any(isinstance(item, MacItem) for item in items):
            return [item for item in items if isinstance(item, KmsError)]
        try:
            beacon = await self._keys.beacon(tenant_id, event)
        except KmsError as error:
            return [item if isinstance(item, KmsError) else error for item in items]
        keys: dict[str, MacKey] = {}
        outcomes: list[Mac | KmsError] = []
        for item in items:
            if isinstance(item, KmsError):
                outcomes.append(item)
                continue
            purpose = item.purpose
            if (key := keys.get(purpose.name)) is None:
                key = keys[purpose.name] = beacon.key_for(purpose)
            outcomes.append(Mac(key.mac(item.message, purpose.bits), beacon.master_key_arn))
            if turns.over:
                await turns.next()
        return outcomes

    async def verify(
        self, tenant_id: str, item: MacItem, mac: bytes, event: KeyEvent | None = None
    ) -> tuple[bool, str]:
        """Return whether a MAC is the message's, and the master key behind its key; "" if the tenant has none."""
        beacon = await self._keys.existing_beacon(tenant_id, event)
        if beacon is None:
            return False, ""
        key = beacon.key_for(item.purpose)
        return key.matches(item.message, item.purpose.bits, mac), beacon.master_key_arn

    @property
    def _keys(self) -> BranchKeys:
        if self._branch_keys is None:
            raise NoBranchKeyStore
        return self._branch_keys
