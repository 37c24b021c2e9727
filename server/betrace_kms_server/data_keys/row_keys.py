"""The keys in rows of a branch key store: unwrapped, and wrapped anew under another master key.

KMS authenticates all that a row says, so a row that does not unwrap is KeyDamaged and stays as it is.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from cryptography.hazmat.primitives.constant_time import bytes_eq

from betrace_kms_server.core.branch_rows import KMS_ARN, BranchKeyRow, row_context
from betrace_kms_server.core.errors import DoesNotOpen, KeyDamaged, MasterKeyUnusable
from betrace_kms_server.core.key_event import KeyEvent, Recorder, ignore, recorded
from betrace_kms_server.core.keys import KeyMaterial, WrappedKey
from betrace_kms_server.core.master_keys import step_to_configure
from betrace_kms_server.core.moving import Report, move_keys, not_configured, unreported
from betrace_kms_server.data_keys.hierarchy import BRANCH_KEY_BYTES
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.stores.branch_keys import BranchKeyStore

_Name = tuple[str, str]
"""Branch key id and type of a row."""


class RowKeys:
    """Keys in the rows of one store, by its logical name, which is part of each row's encryption context."""

    def __init__(self, provider: KeyProvider, logical_name: str) -> None:
        self._provider = provider
        self._logical_name = logical_name

    def context(self, attributes: Mapping[str, str]) -> Mapping[str, str]:
        """Return the encryption context of a row with these attributes."""
        return row_context(attributes, self._logical_name)

    async def unwrap(self, row: BranchKeyRow) -> tuple[KeyMaterial, str]:
        """Return the key (32 bytes) that a row wraps, and the master key behind it."""
        arn = self._provider.unwrapping_key_for(row.kms_arn)
        if arn is None:
            raise MasterKeyUnusable(
                f"branch key {row.branch_key_id} was wrapped by {row.kms_arn}, which is not configured:"
                f" {step_to_configure(row.kms_arn, self._provider.name)}"
            )
        try:
            material = await self._provider.unwrap(WrappedKey(row.enc, arn), self.context(row.attributes))
        except DoesNotOpen as cause:
            raise self.does_not_open(row) from cause
        if len(material) != BRANCH_KEY_BYTES:
            raise self.does_not_open(row)
        return material, arn

    def does_not_open(self, row: BranchKeyRow) -> KeyDamaged:
        """Return the error for a row that is not what was written."""
        return KeyDamaged(
            f"the row {row.type} of branch key {row.branch_key_id} does not unwrap: check that"
            f" kms.branch-keys.logical-name, {self._logical_name}, is that of the store, or restore the branch key"
            " store from a backup; the key was neither used nor replaced"
        )

    async def wrapped_anew(self, row: BranchKeyRow, material: KeyMaterial) -> BranchKeyRow:
        """Return a row with the same key under today's master key, which has been unwrapped again."""
        attributes = {**row.attributes, KMS_ARN: self._provider.master_key_arn}
        wrapped = await self._provider.wrap(material, self.context(attributes))
        anew = BranchKeyRow(attributes, wrapped.blob)
        again, _ = await self.unwrap(anew)
        if not bytes_eq(bytes(again.raw), bytes(material.raw)):
            raise self.does_not_open(anew)
        return anew


async def rewrap_branch_keys(
    provider: KeyProvider,
    store: BranchKeyStore,
    logical_name: str,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    record: Recorder = ignore,
    report: Report = unreported,
) -> None:
    """Wrap every row of a former master key under today's: see `move_keys`.

    Until all rows of a branch key have moved, some are under either master key, and each says under which.
    """
    keys = RowKeys(provider, logical_name)

    async def unwrap(name: _Name) -> tuple[BranchKeyRow, KeyMaterial] | None:
        row = await store.row(*name)
        if row is None or provider.is_current(row.kms_arn):
            return None
        if provider.unwrapping_key_for(row.kms_arn) is None:
            raise not_configured(row.kms_arn, provider.name)
        material, _ = await recorded(KeyEvent("UnwrapBranchKey", *name), record, keys.unwrap(row))
        return row, material

    async def rewrap(name: _Name, found: tuple[BranchKeyRow, KeyMaterial]) -> None:
        anew = await recorded(KeyEvent("RewrapBranchKey", *name), record, keys.wrapped_anew(*found))
        await store.replace(found[0], anew)

    await move_keys(
        "branch keys",
        lambda: store.wrapped_by_other_keys(provider.master_key_arn),
        unwrap,
        rewrap,
        sleep=sleep,
        report=report,
    )
