"""What a branch key store must do for us. tests/contract/test_branch_key_stores.py holds every store to it.

A store keeps every version of a branch key. It knows nothing of KMS: what it returns is authenticated by unwrapping it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol
from uuid import UUID

from betrace_kms_server.core.branch_rows import ID, TYPE, BranchKeyRow, VersionRows
from betrace_kms_server.core.errors import KeyDamaged
from betrace_kms_server.core.findings import Finding


class BranchKeyStore(Protocol):
    """Keeps branch keys, wrapped.

    Every method raises StoreUnavailable if the store cannot be read or written now, and KeyDamaged for a row that
    cannot be one of a branch key.
    """

    async def active(self, branch_key_id: str) -> BranchKeyRow | None:
        """Return the row of a branch key's newest version, or None if there is no row of this branch key.

        Raises KeyDamaged if there are rows and none is active: a new branch key must not take their place.
        """

    async def beacon(self, branch_key_id: str) -> BranchKeyRow | None:
        """Return the row of a branch key's beacon key, or None if there is no row of this branch key.

        Raises KeyDamaged if there are other rows: what was computed with the beacon key would be lost with it.
        """

    async def version(self, branch_key_id: str, version: UUID) -> BranchKeyRow | None:
        """Return the row of one version, or None if there is none."""

    async def create(self, rows: VersionRows, beacon: BranchKeyRow) -> bool:
        """Make a branch key durable, all three rows at once or none. False if there is one of this id."""

    async def add_version(self, former: BranchKeyRow, rows: VersionRows) -> bool:
        """Put a new version beside the others and in place of the active row, both at once or neither.

        False if the active row is not `former` any more. A try that is repeated after it had landed is True.
        """

    async def destroy(self, branch_key_id: str, still: Callable[[], Awaitable[bool]]) -> int:
        """Delete every row of a branch key, damaged ones too. Returns how many this call deleted.

        `still` is asked after rows were read and before they are deleted, and False ends it. A row that is not what was
        read any more is read again. So only rows are deleted that were there when `still` said that they are to go.
        """

    async def check(self) -> None:
        """Return if a row that were written now would be durable. Changes none."""

    async def inspect(self) -> Sequence[Finding]:
        """Return what a production check must know of the store, good or bad. Changes nothing.

        Raises StoreUnavailable if it cannot be found out.
        """

    async def check_destroy(self) -> None:
        """Return if rows could be deleted now. Deletes none."""

    async def recovery_days(self) -> int:
        """Return for how many days the store can bring back what was deleted; the most, if it cannot be asked."""

    async def row(self, branch_key_id: str, type_: str) -> BranchKeyRow | None:
        """Return one row, whatever other rows there are."""

    def rows(self) -> AsyncIterator[BranchKeyRow]:
        """Yield every row of every branch key, in any order: what an export needs."""

    async def add(self, row: BranchKeyRow) -> bool:
        """Put a row back as it was exported. False if there is another of its branch key and type, which stays."""

    async def replace(self, former: BranchKeyRow, row: BranchKeyRow) -> bool:
        """Put the same key, wrapped anew, in place of a row. False if the row is not `former` any more."""

    async def wrapped_by_other_keys(self, master_key_arn: str) -> Sequence[tuple[str, str]]:
        """Return (branch key id, type) of every row that another master key wrapped."""

    def created_before(self, time: str) -> AsyncIterator[str]:
        """Yield the branch keys whose newest version is older than a `create-time`, in any order."""

    async def wrapped_by(self) -> AbstractSet[str]:
        """Return the ARN of every master key that wrapped a row, as the rows name it."""


def row_of(attributes: Mapping[str, str], enc: bytes) -> BranchKeyRow:
    """Return a row that a store read. Raises KeyDamaged if it cannot be one."""
    row = BranchKeyRow(attributes, enc)
    if not row.is_whole():
        raise damaged_row(attributes.get(ID, ""), attributes.get(TYPE, ""))
    return row


def damaged_row(branch_key_id: str, type_: str) -> KeyDamaged:
    """Return the error for a row that is not what was written."""
    return KeyDamaged(
        f"the row {type_} of branch key {branch_key_id} is damaged in the branch key store, or of another kind: restore"
        " the store from a backup; the key was neither used nor replaced"
    )


def missing_row(branch_key_id: str, type_: str) -> KeyDamaged:
    """Return the error for a branch key that has rows, and not one that every branch key has."""
    return KeyDamaged(
        f"branch key {branch_key_id} has rows, but no row {type_} in the branch key store: restore the store from a"
        " backup; no new key was made"
    )


def each_row(rows: VersionRows, beacon: BranchKeyRow | None = None) -> Iterable[BranchKeyRow]:
    """Return the rows that one write makes."""
    return (rows.version, rows.active) if beacon is None else (rows.version, rows.active, beacon)
