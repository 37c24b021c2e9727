"""The branch key store beside the key store's tables in one SQLite file: for one daemon.

As in store.py every change is one statement: it is durable when it returns, or nothing of it is.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from uuid import UUID

from betrace_kms_server.core.branch_rows import (
    ACTIVE,
    BEACON,
    BranchKeyRow,
    VersionRows,
    type_of,
)
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.stores.branch_columns import columns_of, row_from
from betrace_kms_server.stores.branch_keys import each_row, missing_row
from betrace_kms_server.stores.sqlite.store import SqliteStore, unless_known

_PAGE_ROWS = 500
_CREATE = (
    "INSERT INTO branch_keys SELECT * FROM (VALUES (?, ?, ?, ?, ?, ?), (?, ?, ?, ?, ?, ?), (?, ?, ?, ?, ?, ?))"
    " WHERE NOT EXISTS (SELECT 1 FROM branch_keys WHERE branch_key_id = ?)"
)
_ADD = "INSERT INTO branch_keys VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING 1"
_REPLACE = (
    "UPDATE branch_keys SET create_time = ?, kms_arn = ?, attributes = ?, enc = ?"
    " WHERE branch_key_id = ? AND type = ? AND enc = ? RETURNING 1"
)
_ADD_VERSION = (
    "INSERT INTO branch_keys SELECT * FROM (VALUES (?, ?, ?, ?, ?, ?), (?, ?, ?, ?, ?, ?))"
    " WHERE EXISTS (SELECT 1 FROM branch_keys WHERE branch_key_id = ? AND type = 'branch:ACTIVE' AND enc = ?)"
    " ON CONFLICT (branch_key_id, type) DO UPDATE SET create_time = excluded.create_time,"
    " kms_arn = excluded.kms_arn, attributes = excluded.attributes, enc = excluded.enc"
    " WHERE excluded.type = 'branch:ACTIVE'"
)

_DELETE = "DELETE FROM branch_keys WHERE branch_key_id = ? AND (type, enc) IN (VALUES {}) RETURNING 1"


class SqliteBranchKeys:
    """A BranchKeyStore in the file of a SqliteStore."""

    def __init__(self, store: SqliteStore) -> None:
        self._fetch = store.fetch

    async def active(self, branch_key_id: str) -> BranchKeyRow | None:
        """See BranchKeyStore."""
        return await self._row_of_all(branch_key_id, ACTIVE)

    async def beacon(self, branch_key_id: str) -> BranchKeyRow | None:
        """See BranchKeyStore."""
        return await self._row_of_all(branch_key_id, BEACON)

    async def version(self, branch_key_id: str, version: UUID) -> BranchKeyRow | None:
        """See BranchKeyStore."""
        return await self.row(branch_key_id, type_of(version))

    async def create(self, rows: VersionRows, beacon: BranchKeyRow) -> bool:
        """See BranchKeyStore."""
        return await self._write(_CREATE, rows, each_row(rows, beacon), rows.active.branch_key_id)

    async def add_version(self, former: BranchKeyRow, rows: VersionRows) -> bool:
        """See BranchKeyStore."""
        return await self._write(_ADD_VERSION, rows, each_row(rows), former.branch_key_id, former.enc)

    async def destroy(self, branch_key_id: str, still: Callable[[], Awaitable[bool]]) -> int:
        """See BranchKeyStore. What is deleted is overwritten with zeros: see schema.py."""
        deleted = 0
        while page := await self._fetch(
            "SELECT type, enc FROM branch_keys WHERE branch_key_id = ? LIMIT ?", branch_key_id, _PAGE_ROWS
        ):
            if not await still():
                break
            places = ", ".join(["(?, ?)"] * len(page))
            row = [column for each in page for column in each]
            deleted += len(await self._fetch(_DELETE.format(places), branch_key_id, *row))
        return deleted

    async def check(self) -> None:
        """See BranchKeyStore. The key store's own check shows whether its file can be written."""

    async def inspect(self) -> Sequence[Finding]:
        """See BranchKeyStore. As `check`."""
        return []

    async def check_destroy(self) -> None:
        """See BranchKeyStore. As `check`."""

    async def recovery_days(self) -> int:
        """See BranchKeyStore. What is deleted is overwritten."""
        return 0

    async def row(self, branch_key_id: str, type_: str) -> BranchKeyRow | None:
        """See BranchKeyStore."""
        rows = await self._fetch(
            "SELECT branch_key_id, type, create_time, kms_arn, attributes, enc FROM branch_keys"
            " WHERE branch_key_id = ? AND type = ?",
            branch_key_id,
            type_,
        )
        return row_from(*rows[0]) if rows else None

    async def rows(self) -> AsyncIterator[BranchKeyRow]:
        """See BranchKeyStore."""
        after = 0
        while page := await self._fetch(
            "SELECT rowid, branch_key_id, type, create_time, kms_arn, attributes, enc FROM branch_keys WHERE rowid > ?"
            " ORDER BY rowid LIMIT ?",
            after,
            _PAGE_ROWS,
        ):
            for _, *columns in page:
                yield row_from(*columns)
            after = page[-1][0]

    async def add(self, row: BranchKeyRow) -> bool:
        """See BranchKeyStore."""
        return bool(await self._fetch(_ADD, *columns_of(row))) or await self.row(row.branch_key_id, row.type) == row

    async def replace(self, former: BranchKeyRow, row: BranchKeyRow) -> bool:
        """See BranchKeyStore."""
        condition = former.branch_key_id, former.type, former.enc
        return bool(await self._fetch(_REPLACE, *columns_of(row)[2:], *condition))

    async def wrapped_by_other_keys(self, master_key_arn: str) -> Sequence[tuple[str, str]]:
        """See BranchKeyStore."""
        rows = await self._fetch("SELECT branch_key_id, type FROM branch_keys WHERE kms_arn <> ?", master_key_arn)
        return [(branch_key_id, type_) for branch_key_id, type_ in rows]

    async def created_before(self, time: str) -> AsyncIterator[str]:
        """See BranchKeyStore."""
        after = 0
        while page := await self._fetch(
            "SELECT rowid, branch_key_id FROM branch_keys WHERE type = 'branch:ACTIVE' AND create_time < ?"
            " AND rowid > ? ORDER BY rowid LIMIT ?",
            time,
            after,
            _PAGE_ROWS,
        ):
            for _, branch_key_id in page:
                yield branch_key_id
            after = page[-1][0]

    async def wrapped_by(self) -> AbstractSet[str]:
        """See BranchKeyStore."""
        return {arn for (arn,) in await self._fetch("SELECT DISTINCT kms_arn FROM branch_keys")}

    async def _write(
        self, statement: str, rows: VersionRows, written: Iterable[BranchKeyRow], *condition: object
    ) -> bool:
        """Write rows if the condition holds. Returns whether they are there, which a version, made once, shows."""
        columns = [column for row in written for column in columns_of(row)]
        unknown = await unless_known(self._fetch(statement, *columns, *condition))
        landed = await self.version(rows.version.branch_key_id, rows.version.version) == rows.version
        if unknown and not landed:
            raise unknown
        return landed

    async def _row_of_all(self, branch_key_id: str, type_: str) -> BranchKeyRow | None:
        """Return a row that every branch key has. Raises KeyDamaged if this one has others only."""
        row = await self.row(branch_key_id, type_)
        if row is None and await self._fetch("SELECT 1 FROM branch_keys WHERE branch_key_id = ?", branch_key_id):
            row = await self.row(branch_key_id, type_)  # it may have been made meanwhile
            if row is None:
                raise missing_row(branch_key_id, type_)
        return row
