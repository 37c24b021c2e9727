"""The key store in one SQLite file: for one daemon, on a volume that outlives the pod.

A commit is durable when it returns: rollback journal and ``synchronous=EXTRA``, which also syncs the folder after the
journal is gone (https://www.sqlite.org/pragma.html#pragma_synchronous). No WAL: SQLite before 3.51.3 can corrupt one,
and with one connection it gains nothing. A unique index on the active key makes two creations agree on one winner.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, closing
from pathlib import Path

import aiosqlite

from betrace_kms_server.durable import made_whole
from betrace_kms_server.errors import KeyDamaged, StartRefused, StoreUnavailable
from betrace_kms_server.keys import StoredKey, WrappedKey

DATABASE_FILE = "keystore.db"
_APPLICATION_ID = 0x42544B53  # "BTKS"
_SCHEMA_VERSION = 1
_EXTRA = 3  # what PRAGMA synchronous answers
_STATEMENT_SECONDS = 5.0
"""A volume that hangs must not hang the callers."""
_SCHEMA = """
CREATE TABLE signing_keys (
    tenant_id      TEXT    NOT NULL,
    key_id         TEXT    NOT NULL,
    provider       TEXT    NOT NULL,
    master_key_arn TEXT    NOT NULL,
    wrapped_seed   BLOB    NOT NULL,
    public_key     BLOB    NOT NULL,
    status         TEXT    NOT NULL CHECK (status IN ('active', 'rotated', 'revoked')),
    create_time_ms INTEGER NOT NULL,
    rotate_time_ms INTEGER,
    revoke_time_ms INTEGER,
    checksum       BLOB    NOT NULL,
    PRIMARY KEY (tenant_id, key_id)
) STRICT;
CREATE UNIQUE INDEX one_active_key ON signing_keys (tenant_id) WHERE status = 'active';
"""
_SELECT = (
    "SELECT tenant_id, key_id, provider, wrapped_seed, master_key_arn, public_key, status, create_time_ms,"
    " rotate_time_ms, revoke_time_ms, checksum FROM signing_keys WHERE tenant_id = ? AND "
)


class SqliteStore:
    """A KeyStore in one file. See `open_sqlite`."""

    def __init__(self, database: aiosqlite.Connection) -> None:
        self._database = database

    async def active(self, tenant_id: str) -> StoredKey | None:
        """See KeyStore."""
        return await self._one("status = 'active'", tenant_id)

    async def get(self, tenant_id: str, key_id: str) -> StoredKey | None:
        """See KeyStore."""
        return await self._one("key_id = ?", tenant_id, key_id)

    async def all(self, tenant_id: str) -> Sequence[StoredKey]:
        """See KeyStore."""
        rows = await self._fetch(_SELECT + "TRUE ORDER BY create_time_ms, key_id", tenant_id)
        return [_stored_key(row) for row in rows]

    async def create(self, key: StoredKey) -> StoredKey:
        """See KeyStore."""
        await self._fetch(
            "INSERT INTO signing_keys (tenant_id, key_id, provider, master_key_arn, wrapped_seed, public_key, status,"
            " create_time_ms, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            key.tenant_id,
            key.key_id,
            key.provider,
            key.wrapped_seed.master_key_arn,
            key.wrapped_seed.blob,
            key.public_key,
            key.status,
            key.create_time_ms,
            key.checksum(),
        )
        winner = await self.active(key.tenant_id)
        if winner is None:
            raise StoreUnavailable("the key store did not keep a key that it was given: look at its volume")
        return winner

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

    async def not_wrapped_by(self, master_key_arn: str) -> Sequence[tuple[str, str]]:
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
        await self._fetch(f"PRAGMA user_version={_SCHEMA_VERSION}")

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
            name = getattr(cause, "sqlite_errorname", type(cause).__name__)
            raise StoreUnavailable(
                f"the key store does not answer ({name}): check that its volume is there, writable and not full"
            ) from cause


def _stored_key(row: sqlite3.Row) -> StoredKey:
    tenant_id, key_id, provider, wrapped_seed, arn, public_key, status, created, rotated, revoked, checksum = row
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
            _create(path)
    except (OSError, sqlite3.Error) as cause:
        raise StartRefused(f"the key store {path} cannot be made: {cause}") from cause
    # A row whose text is no UTF-8 any more must be readable as far as to see that it is damaged.
    database = aiosqlite.connect(path, isolation_level=None, timeout=2.0)
    try:
        async with database:
            database.text_factory = lambda raw: raw.decode("utf-8", "replace")
            await _prepare(database, path)
            yield SqliteStore(database)
    except sqlite3.Error as cause:
        raise StartRefused(
            f"the key store {path} is damaged or cannot be opened ({cause}): restore it from a backup; nothing was"
            " changed"
        ) from cause


def _create(path: Path) -> None:
    """Make an empty store, whole or not at all: so a file without a schema is always a damaged one."""
    with made_whole(path) as new, closing(sqlite3.connect(new, isolation_level=None)) as database:
        database.executescript(
            f"PRAGMA synchronous=EXTRA; BEGIN; {_SCHEMA} PRAGMA application_id={_APPLICATION_ID};"
            f" PRAGMA user_version={_SCHEMA_VERSION}; COMMIT;"
        )


async def _prepare(database: aiosqlite.Connection, path: Path) -> None:
    async def pragma(name: str) -> int | str:
        async with database.execute(f"PRAGMA {name}") as cursor:
            row = await cursor.fetchone()
        return row[0] if row else ""

    if await pragma("integrity_check") != "ok":
        raise StartRefused(f"the key store {path} is damaged: restore it from a backup; nothing was changed")
    if await pragma("application_id") != _APPLICATION_ID:
        raise StartRefused(
            f"{path} is empty, or no key store of betrace-kms: restore it from a backup, or choose another kms.data-dir"
        )
    version = await pragma("user_version")
    if version != _SCHEMA_VERSION:
        raise StartRefused(f"{path} has schema version {version}, this betrace-kms knows {_SCHEMA_VERSION}: upgrade it")
    await pragma("journal_mode=DELETE")
    await pragma("synchronous=EXTRA")
