"""What becomes of a line of an export that is put back: nothing is overwritten, and each line for itself."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from betrace_kms_server.core.branch_rows import ACTIVE, BEACON, KMS_ARN, BranchKeyRow
from betrace_kms_server.core.errors import KeyDamaged, TenantPendingShred, TenantShredded
from betrace_kms_server.core.keys import StoredKey
from betrace_kms_server.stores.branch_key_export import is_row, row_of
from betrace_kms_server.stores.branch_keys import BranchKeyStore
from betrace_kms_server.stores.export import key_of
from betrace_kms_server.stores.protocol import KeyStore

_ADDED, _RETIRED, _THERE, DIFFERENT, REFUSED = OUTCOMES = (
    "added",
    "added as rotated",
    "already there",
    "different",
    "refused",
)
"""What may become of a line, in the words of the summary."""
_LIFE = ("active", "rotated", "revoked")
"""A key's statuses in the order in which it has them."""
_Outcome = tuple[str, str]
"""What became of a line, and what is to be said about it, if anything."""


class Restore:
    """Puts lines back into a key store and the branch key store beside it, if there is one."""

    def __init__(self, store: KeyStore, branch_keys: BranchKeyStore | None, logical_name: str) -> None:
        self._store = store
        self._branch_keys = branch_keys
        self._logical_name = logical_name

    async def line(self, line: bytes) -> _Outcome:
        """Put the key of a line back."""
        try:
            if is_row(line):
                return await self._put_row(row_of(line, self._logical_name))
            return await self._put_key(key_of(line))
        except (ValueError, KeyDamaged, TenantPendingShred, TenantShredded) as refusal:
            return REFUSED, str(refusal)

    async def _put_key(self, key: StoredKey) -> _Outcome:
        if await self._store.add(key):
            return _ADDED, ""
        there = await self._store.get(key.tenant_id, key.key_id)
        if there is not None:
            return _compared(key, there)
        retired = replace(key, status="rotated", rotate_time_ms=int(time.time() * 1000))
        if await self._store.add(retired):
            return _RETIRED, f"tenant {key.tenant_id} has another active key, so key {key.key_id} was added as rotated"
        raise ValueError(
            f"key {key.key_id} of tenant {key.tenant_id} was made by somebody else meanwhile: import again"
        )

    async def _put_row(self, row: BranchKeyRow) -> _Outcome:
        store, id_ = self._branch_keys, row.branch_key_id
        if store is None:
            raise ValueError("is of a branch key: set kms.branch-keys.table to the table that it belongs into")
        await self._check_open(id_)
        there = await store.row(id_, row.type)
        if there is None:
            if row.type == ACTIVE:
                await _check_complete(store, row)
            if not await store.add(row):
                raise ValueError(f"branch key {id_} was changed by somebody else meanwhile: import again")
            try:
                await self._check_open(id_)
            except (TenantPendingShred, TenantShredded):
                await store.destroy(id_, self._is_shredded(id_))  # it may have come after all others were destroyed
                raise
            return _ADDED, ""
        if there == row:
            return _THERE, ""
        if row.type == ACTIVE and there.version != row.version:
            await _check_complete(store, row)
            return _RETIRED, f"branch key {id_} has another active version, so version {row.version} only opens"
        differs = {name for name, value in row.attributes.items() if there.attributes.get(name) != value} - {KMS_ARN}
        what = "another key" if differs else "wrapped otherwise"
        return DIFFERENT, f"row {row.type} of branch key {id_} is {what} in the store, which was left as it is"

    async def _check_open(self, tenant_id: str) -> None:
        (await self._store.head(tenant_id)).check_open()

    def _is_shredded(self, tenant_id: str) -> Callable[[], Awaitable[bool]]:
        async def still() -> bool:
            found = (await self._store.head(tenant_id)).shredding()
            return found is not None and found.status != "pending"

        return still


async def _check_complete(store: BranchKeyStore, active: BranchKeyRow) -> None:
    """Raise ValueError if a branch key lacks what must be there before its active row is."""
    for type_ in (active.attributes["version"], BEACON):
        if await store.row(active.branch_key_id, type_) is None:
            raise ValueError(
                f"branch key {active.branch_key_id} lacks the row {type_}, which comes before this one in an export:"
                " import the whole export"
            )


def _compared(key: StoredKey, there: StoredKey) -> _Outcome:
    about = f"key {key.key_id} of tenant {key.tenant_id}"
    if key.checksum() != there.checksum():
        what = "wrapped otherwise" if key.public_key == there.public_key else "another key"
        return DIFFERENT, f"{about} is {what} in the store, which was left as it is"
    if _LIFE.index(key.status) > _LIFE.index(there.status):
        return DIFFERENT, f"{about} is {key.status} here and {there.status} in the store, which was left as it is"
    return _THERE, ""
