"""The key store in one SQLite file: for one daemon, on a volume that outlives the pod.

A commit is durable when it returns: rollback journal and ``synchronous=EXTRA``, which also syncs the folder after the
journal is gone (https://www.sqlite.org/pragma.html#pragma_synchronous). No WAL: SQLite before 3.51.3 can corrupt one,
and with one connection it gains nothing. A unique index on the active key makes two creations agree on one winner.

Every change is one statement, which aiosqlite's thread runs to its end also when the caller has gone: there is never a
transaction open between two awaits. sqlite_schema.py has the tables.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite

from betrace_kms_server.core.errors import KeyDamaged, StartRefused, StoreUnavailable
from betrace_kms_server.core.keys import KeyStatus, StoredKey, WrappedKey
from betrace_kms_server.host.process import descriptor_shortage
from betrace_kms_server.stores.sqlite.schema import SCHEMA_VERSION, create_file, prepare

DATABASE_FILE = "keystore.db"
_EXTRA = 3  # what PRAGMA synchronous answers
_STATEMENT_SECONDS = 5.0
"""A volume that hangs must not hang the callers."""
_PAGE_ROWS = 500
"""Rows that one statement reads when all are wanted, so that others get their turn in between."""
_SELECT = (
    "SELECT rowid, tenant_id, key_id, provider, wrapped_seed, master_key_arn, public_key, status, create_time_ms,"
    " rotate_time_ms, revoke_time_ms, checksum FROM signing_keys WHERE "
)
_INSERT = (
    "INSERT INTO signing_keys (tenant_id, status, rotate_time_ms, revoke_time_ms, key_id, provider, master_key_arn,"
    " wrapped_seed, public_key, create_time_ms, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT DO NOTHING RETURNING TRUE"
)


class SqliteStore:
    """A KeyStore in one file. See `open_sqlite`."""

    shared = False
    """See KeyStore. Its daemon holds a lock on the folder."""

    def __init__(self, database: aiosqlite.Connection) -> None:
        self._database = database

    async def active(self, tenant_id: str) -> StoredKey | None:
        """See KeyStore."""
        return await self._one("tenant_id = ? AND status = 'active'", tenant_id)

    async def get(self, tenant_id: str, key_id: str) -> StoredKey | None:
        """See KeyStore."""
        return await self._one("tenant_id = ? AND key_id = ?", tenant_id, key_id)

    async def all(self, tenant_id: str) -> Sequence[StoredKey]:
        """See KeyStore."""
        rows = await self._fetch(_SELECT + "tenant_id = ? ORDER BY create_time_ms, key_id", tenant_id)
        return [_stored_key(row) for row in rows]

    async def create(self, key: StoredKey) -> StoredKey:
        """See KeyStore."""
        await self.add(key)
        winner = await self.active(key.tenant_id)
        if winner is None:
            raise StoreUnavailable("the key store did not keep a key that it was given: look at its volume")
        return winner

    async def rotate(self, former: StoredKey, successor: StoredKey) -> bool:
        """See KeyStore."""
        time_ms = successor.create_time_ms
        await self._succeed(former, "rotated", successor, rotate_time_ms=time_ms)
        retired = await self.get(successor.tenant_id, former.key_id)
        return retired is not None and retired.rotate_time_ms == time_ms and await self._holds(successor)

    async def revoke(self, key: StoredKey, revoke_time_ms: int, successor: StoredKey | None) -> bool:
        """See KeyStore. Raises ValueError unless the key is active and has a successor, or is neither."""
        if (key.status == "active") != (successor is not None):
            raise ValueError("an active key is revoked with a successor, and any other key without one")
        if key.status != "revoked":
            await self._succeed(key, "revoked", successor, revoke_time_ms=revoke_time_ms)
        revoked = await self.get(key.tenant_id, key.key_id)
        landed = revoked is not None and revoked.revoke_time_ms == revoke_time_ms
        return landed and (successor is None or await self._holds(successor))

    async def generation(self, tenant_id: str) -> int:
        """See KeyStore."""
        rows = await self._fetch("SELECT generation FROM tenants WHERE tenant_id = ?", tenant_id)
        return int(rows[0][0]) if rows else 0

    async def raise_generation(self, tenant_id: str) -> None:
        """See KeyStore."""
        await self._fetch(
            "INSERT INTO tenants (tenant_id, generation) VALUES (?, 1)"
            " ON CONFLICT (tenant_id) DO UPDATE SET generation = generation + 1",
            tenant_id,
        )

    async def created_before(self, time_ms: int) -> AsyncIterator[str]:
        """See KeyStore."""
        after = 0
        while page := await self._fetch(
            "SELECT rowid, tenant_id FROM signing_keys WHERE status = 'active' AND create_time_ms < ? AND rowid > ?"
            " ORDER BY rowid LIMIT ?",
            time_ms,
            after,
            _PAGE_ROWS,
        ):
            for _, tenant_id in page:
                yield tenant_id
            after = page[-1][0]

    async def rows(self) -> AsyncIterator[StoredKey]:
        """See KeyStore."""
        after = 0
        while page := await self._fetch(_SELECT + "rowid > ? ORDER BY rowid LIMIT ?", after, _PAGE_ROWS):
            for row in page:
                yield _stored_key(row)
            after = page[-1][0]

    async def add(self, key: StoredKey) -> bool:
        """See KeyStore."""
        times = key.rotate_time_ms, key.revoke_time_ms
        return bool(await self._fetch(_INSERT, key.tenant_id, key.status, *times, *_as_created(key)))

    async def replace(self, stored: StoredKey, replacement: StoredKey) -> None:
        """See KeyStore."""
        await self._fetch(
            "UPDATE signing_keys SET master_key_arn = ?, wrapped_seed = ?, checksum = ?"
            " WHERE tenant_id = ? AND key_id = ? AND checksum = ?",
            replacement.wrapped_seed.master_key_arn,
            replacement.wrapped_seed.blob,
            replacement.checksum(),
            stored.tenant_id,
            stored.key_id,
            stored.checksum(),
        )

    async def wrapped_by_other_keys(self, master_key_arn: str) -> Sequence[tuple[str, str]]:
        """See KeyStore."""
        rows = await self._fetch("SELECT tenant_id, key_id FROM signing_keys WHERE master_key_arn <> ?", master_key_arn)
        return [(tenant_id, key_id) for tenant_id, key_id in rows]

    async def wrapped_by(self) -> AbstractSet[tuple[str, str]]:
        """See KeyStore."""
        rows = await self._fetch("SELECT DISTINCT provider, master_key_arn FROM signing_keys")
        return {(provider, arn) for provider, arn in rows}

    async def check(self) -> None:
        """See KeyStore. Writes the schema version over itself: one commit, like that of a key, that changes nothing."""
        ((synchronous,),) = await self._fetch("PRAGMA synchronous")
        if synchronous != _EXTRA:
            raise StoreUnavailable("the key store's commits would not survive a loss of power: restart the daemon")
        await self._fetch(f"PRAGMA user_version={SCHEMA_VERSION}")

    async def _succeed(
        self,
        former: StoredKey,
        status: KeyStatus,
        successor: StoredKey | None,
        *,
        rotate_time_ms: int | None = None,
        revoke_time_ms: int | None = None,
    ) -> None:
        """Retire a key and make its successor active, unless the former key has another status by now."""
        await self._fetch(
            "INSERT INTO succession VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (successor or former).tenant_id,
            former.key_id,
            "active" if status == "rotated" else former.status,
            status,
            rotate_time_ms,
            revoke_time_ms,
            *(_as_created(successor) if successor else (None,) * 7),
        )

    async def _holds(self, key: StoredKey) -> bool:
        """Tell whether a key is there, whatever became of it since, or whichever master key wraps it now."""
        row = await self.get(key.tenant_id, key.key_id)
        return row is not None and row.public_key == key.public_key

    async def _one(self, condition: str, *parameters: str) -> StoredKey | None:
        rows = await self._fetch(_SELECT + condition, *parameters)
        return _stored_key(rows[0]) if rows else None

    async def _fetch(self, statement: str, *parameters: object) -> Sequence[sqlite3.Row]:
        """Run one statement; in autocommit mode what it wrote is durable when it returns."""
        try:
            async with asyncio.timeout(_STATEMENT_SECONDS):
                return list(await self._database.execute_fetchall(statement, parameters))
        except (sqlite3.Error, TimeoutError) as cause:
            if getattr(cause, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
                raise StoreUnavailable(
                    "the key store is damaged: stop the daemon and restore the store from a backup"
                ) from cause
            if shortage := descriptor_shortage():
                raise StoreUnavailable(shortage, place="process") from cause
            name = getattr(cause, "sqlite_errorname", type(cause).__name__)
            raise StoreUnavailable(
                f"the key store does not answer ({name}): check that its volume is there, writable and not full"
            ) from cause


def _as_created(key: StoredKey) -> tuple[object, ...]:
    """Return the columns that a key's status does not touch, in the order of `_INSERT` and of sqlite_schema.py."""
    return (
        key.key_id,
        key.provider,
        key.wrapped_seed.master_key_arn,
        key.wrapped_seed.blob,
        key.public_key,
        key.create_time_ms,
        key.checksum(),
    )


def _stored_key(row: sqlite3.Row) -> StoredKey:
    _, tenant_id, key_id, provider, wrapped_seed, arn, public_key, status, created, rotated, revoked, checksum = row
    key = StoredKey(
        tenant_id, key_id, provider, WrappedKey(wrapped_seed, arn), public_key, status, created, rotated, revoked
    )
    if key.checksum() != checksum:
        raise KeyDamaged(
            f"signing key {key_id} is damaged in the key store: restore the store from a backup; the key was neither"
            " used nor replaced"
        )
    return key


@asynccontextmanager
async def open_sqlite(path: Path) -> AsyncIterator[SqliteStore]:
    """Open the store's file, making it if it is missing. Raises StartRefused for one that is damaged or not ours."""
    try:
        if not path.exists():  # noqa: ASYNC240  # at start, before there are calls to hold up
            create_file(path)
    except (OSError, sqlite3.Error) as cause:
        raise StartRefused(f"the key store {path} cannot be made: {cause}") from cause
    # A row whose text is no UTF-8 any more must be readable as far as to see that it is damaged.
    database = aiosqlite.connect(path, isolation_level=None, timeout=2.0)
    try:
        async with database:
            database.text_factory = lambda raw: raw.decode("utf-8", "replace")
            await prepare(database, path)
            yield SqliteStore(database)
    except sqlite3.Error as cause:
        raise StartRefused(
            f"the key store {path} is damaged or cannot be opened ({cause}): restore it from a backup; nothing was"
            " changed"
        ) from cause
