"""The branch key store beside the key store's tables in one database, for several daemons.

As in store.py every change is one transaction, which locks the branch key's tenant first.
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
from betrace_kms_server.stores.postgresql.database import Connection, Database
from betrace_kms_server.stores.postgresql.store import LOCK_TENANT, PostgresStore
from betrace_kms_server.stores.protocol import KeyStore

RECOVERY_DAYS = 35
"""PostgreSQL cannot be asked how long its backups and its WAL are kept: docs/postgresql.md asks for no more."""
_PAGE_ROWS = 500
_COLUMNS = "SELECT branch_key_id, type, create_time, kms_arn, attributes, enc FROM betrace_kms.branch_keys"
_INSERT = "INSERT INTO betrace_kms.branch_keys VALUES (%s, %s, %s, %s, %s, %s)"
_ADD = _INSERT + " ON CONFLICT DO NOTHING"
_PUT = (
    _INSERT + " ON CONFLICT (branch_key_id, type) DO UPDATE SET create_time = excluded.create_time,"
    " kms_arn = excluded.kms_arn, attributes = excluded.attributes, enc = excluded.enc"
)
_REPLACE = (
    "UPDATE betrace_kms.branch_keys SET create_time = %s, kms_arn = %s, attributes = %s, enc = %s"
    " WHERE branch_key_id = %s AND type = %s AND enc = %s"
)
_DELETE = (
    "DELETE FROM betrace_kms.branch_keys WHERE branch_key_id = %s"
    " AND (type, enc) IN (SELECT * FROM unnest(%s::text[], %s::bytea[]))"
)


class PostgresBranchKeys:
    """A BranchKeyStore in the database of a PostgresStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
        branch_key_id = rows.active.branch_key_id

        async def make(connection: Connection) -> bool:
            found = await connection.execute(
                "SELECT 1 FROM betrace_kms.branch_keys WHERE branch_key_id = %s LIMIT 1", (branch_key_id,)
            )
            if await found.fetchall():
                return False
            await _insert(connection, each_row(rows, beacon))
            return True

        return await self._write(make, rows)

    async def add_version(self, former: BranchKeyRow, rows: VersionRows) -> bool:
        """See BranchKeyStore."""

        async def make(connection: Connection) -> bool:
            found = await connection.execute(
                "SELECT 1 FROM betrace_kms.branch_keys WHERE branch_key_id = %s AND type = %s AND enc = %s",
                (former.branch_key_id, ACTIVE, former.enc),
            )
            if not await found.fetchall():
                return False
            await connection.execute(_INSERT, columns_of(rows.version))
            await connection.execute(_PUT, columns_of(rows.active))
            return True

        return await self._write(make, rows)

    async def destroy(self, branch_key_id: str, still: Callable[[], Awaitable[bool]]) -> int:
        """See BranchKeyStore. The server removes deleted rows from its disk when it vacuums: see docs/postgresql.md."""
        deleted = 0
        while page := await self._database.fetch(
            "SELECT type, enc FROM betrace_kms.branch_keys WHERE branch_key_id = %s LIMIT %s", branch_key_id, _PAGE_ROWS
        ):
            if not await still():
                break
            types, encs = [type_ for type_, _ in page], [enc for _, enc in page]

            async def delete(connection: Connection, types: Sequence[str] = types, encs: Sequence[bytes] = encs) -> int:
                done = await connection.execute(_DELETE, (branch_key_id, types, encs))
                return done.rowcount

            deleted += await self._database.write(delete, (LOCK_TENANT, branch_key_id))
        return deleted

    async def check(self) -> None:
        """See BranchKeyStore. The key store's own check shows whether the database can be written."""

    async def inspect(self) -> Sequence[Finding]:
        """See BranchKeyStore. As `check`."""
        return []

    async def check_destroy(self) -> None:
        """See BranchKeyStore. Deletes rows that there are not: the right to delete is checked before."""

        async def delete(connection: Connection) -> None:
            await connection.execute("DELETE FROM betrace_kms.branch_keys WHERE FALSE")

        await self._database.write(delete)

    async def recovery_days(self) -> int:
        """See BranchKeyStore."""
        return RECOVERY_DAYS

    async def row(self, branch_key_id: str, type_: str) -> BranchKeyRow | None:
        """See BranchKeyStore."""
        rows = await self._database.fetch(_COLUMNS + " WHERE branch_key_id = %s AND type = %s", branch_key_id, type_)
        return row_from(*rows[0]) if rows else None

    async def rows(self) -> AsyncIterator[BranchKeyRow]:
        """See BranchKeyStore."""
        after = ("", "")
        while page := await self._database.fetch(
            _COLUMNS + " WHERE (branch_key_id, type) > (%s, %s) ORDER BY branch_key_id, type LIMIT %s",
            *after,
            _PAGE_ROWS,
        ):
            for row in page:
                yield row_from(*row)
            after = page[-1][:2]

    async def add(self, row: BranchKeyRow) -> bool:
        """See BranchKeyStore."""

        async def put(connection: Connection) -> bool:
            return (await connection.execute(_ADD, columns_of(row))).rowcount == 1

        async def landed() -> bool:
            return await self.row(row.branch_key_id, row.type) == row

        done = await self._database.write(put, (LOCK_TENANT, row.branch_key_id), landed)
        return done or await landed()

    async def replace(self, former: BranchKeyRow, row: BranchKeyRow) -> bool:
        """See BranchKeyStore."""
        condition = former.branch_key_id, former.type, former.enc

        async def put(connection: Connection) -> bool:
            return (await connection.execute(_REPLACE, (*columns_of(row)[2:], *condition))).rowcount == 1

        async def landed() -> bool:
            return await self.row(row.branch_key_id, row.type) == row

        return await self._database.write(put, (LOCK_TENANT, former.branch_key_id), landed)

    async def wrapped_by_other_keys(self, master_key_arn: str) -> Sequence[tuple[str, str]]:
        """See BranchKeyStore."""
        rows = await self._database.fetch(
            "SELECT branch_key_id, type FROM betrace_kms.branch_keys WHERE kms_arn <> %s", master_key_arn
        )
        return [(branch_key_id, type_) for branch_key_id, type_ in rows]

    async def created_before(self, time: str) -> AsyncIterator[str]:
        """See BranchKeyStore."""
        after = ""
        while page := await self._database.fetch(
            "SELECT branch_key_id FROM betrace_kms.branch_keys WHERE type = 'branch:ACTIVE' AND create_time < %s"
            " AND branch_key_id > %s ORDER BY branch_key_id LIMIT %s",
            time,
            after,
            _PAGE_ROWS,
        ):
            for (branch_key_id,) in page:
                yield branch_key_id
            after = page[-1][0]

    async def wrapped_by(self) -> AbstractSet[str]:
        """See BranchKeyStore."""
        rows = await self._database.fetch("SELECT DISTINCT kms_arn FROM betrace_kms.branch_keys")
        return {arn for (arn,) in rows}

    async def _write(self, work: Callable[[Connection], Awaitable[bool]], rows: VersionRows) -> bool:
        """Write a version. Returns whether it is there, made by this try or by an earlier one."""

        async def landed() -> bool:
            return await self.version(rows.version.branch_key_id, rows.version.version) == rows.version

        done = await self._database.write(work, (LOCK_TENANT, rows.version.branch_key_id), landed)
        return done or await landed()

    async def _row_of_all(self, branch_key_id: str, type_: str) -> BranchKeyRow | None:
        """Return a row that every branch key has. Raises KeyDamaged if this one has others only."""
        row = await self.row(branch_key_id, type_)
        if row is None and await self._database.fetch(
            "SELECT 1 FROM betrace_kms.branch_keys WHERE branch_key_id = %s LIMIT 1", branch_key_id
        ):
            row = await self.row(branch_key_id, type_)  # it may have been made meanwhile
            if row is None:
                raise missing_row(branch_key_id, type_)
        return row


def branch_keys_beside(store: KeyStore) -> PostgresBranchKeys | None:
    """Return the branch key store in the database of a key store; None if that is of another kind."""
    return PostgresBranchKeys(store.database) if isinstance(store, PostgresStore) else None


async def _insert(connection: Connection, rows: Iterable[BranchKeyRow]) -> None:
    for row in rows:
        await connection.execute(_INSERT, columns_of(row))
