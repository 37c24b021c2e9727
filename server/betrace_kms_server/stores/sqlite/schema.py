"""The tables of the SQLite store's file, how such a file is made, and how one of an older version becomes ours.

A file is made whole or not at all, and brought to this version in one transaction: whatever happens meanwhile, it has
one version or the other. The file holds only data. What succeeds a key is a trigger of the connection: one statement
is one transaction, so whatever other statements the same connection runs, and wherever the caller is cancelled, all
of it happens or nothing does.
"""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import aiosqlite
import structlog

from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.host.atomic_file import atomic_create
from betrace_kms_server.stores.sqlite.errors import explained, is_damage

log = structlog.get_logger()

SCHEMA_VERSION = 2
"""1 had no generations. An earlier betrace-kms opens files of schema version 2 alone and names the columns that it
uses, so columns and tables that it can do without are added without a new version number: `_ADDED`, `_LOCK`,
`_BRANCH_KEYS`, `_SHREDDING`."""
_APPLICATION_ID = 0x42544B53  # "BTKS"
_KEYS = """
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
_TENANTS = """
CREATE TABLE IF NOT EXISTS tenants (
    tenant_id  TEXT    PRIMARY KEY,
    generation INTEGER NOT NULL
) STRICT;
"""
_LOCK = """
CREATE TABLE IF NOT EXISTS emergency_stop (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    reason  TEXT,
    time_ms INTEGER
) STRICT;
"""
"""One row once there was a stop; its columns are NULL when none is in force. An earlier version passes over it."""
_BRANCH_KEYS = """
CREATE TABLE IF NOT EXISTS branch_keys (
    branch_key_id TEXT NOT NULL,
    type          TEXT NOT NULL,
    create_time   TEXT NOT NULL,
    kms_arn       TEXT NOT NULL,
    attributes    TEXT NOT NULL,
    enc           BLOB NOT NULL,
    PRIMARY KEY (branch_key_id, type)
) STRICT;
"""
"""Rows of core/branch_rows.py; `attributes` is JSON of those without a column. An earlier version passes over it."""
_ORIGIN = """
CREATE TABLE origin (sealing_key_type TEXT NOT NULL) STRICT;
INSERT INTO origin VALUES ('sealing');
"""
"""What the version that made the file could do: one row. Files of earlier versions have no such table."""
_ADDED = """
ALTER TABLE signing_keys ADD COLUMN state_checksum BLOB;
ALTER TABLE tenants ADD COLUMN had_key INTEGER;
"""
"""NULL where a row was last written by an earlier version. `had_key` is 1 once the tenant had an active key."""
_SHREDDING = "ALTER TABLE tenants ADD COLUMN shredding TEXT;"
"""The record of core/shredding.py; NULL for a tenant that is open. An earlier version passes over it."""
_MARKER = """
INSERT INTO tenants (tenant_id, generation, had_key) SELECT DISTINCT tenant_id, 0, 1 FROM signing_keys WHERE TRUE
    ON CONFLICT (tenant_id) DO UPDATE SET had_key = 1;
"""
_CONNECTION = """
PRAGMA temp_store = MEMORY;
PRAGMA secure_delete = ON;
CREATE TEMP VIEW succession (
    tenant_id, former_key_id, former_status, new_status, rotate_time_ms, revoke_time_ms,
    key_id, provider, master_key_arn, wrapped_seed, public_key, create_time_ms, checksum, state_checksum,
    former_state_checksum
) AS SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL;
CREATE TEMP TRIGGER succeed INSTEAD OF INSERT ON succession
WHEN EXISTS (
        SELECT 1 FROM signing_keys
        WHERE tenant_id = NEW.tenant_id AND key_id = NEW.former_key_id AND status = NEW.former_status
    )
    AND NOT EXISTS (SELECT 1 FROM signing_keys WHERE tenant_id = NEW.tenant_id AND key_id = NEW.key_id)
BEGIN
    UPDATE signing_keys SET
        status = NEW.new_status,
        rotate_time_ms = coalesce(NEW.rotate_time_ms, rotate_time_ms),
        revoke_time_ms = coalesce(NEW.revoke_time_ms, revoke_time_ms),
        state_checksum = NEW.former_state_checksum
    WHERE tenant_id = NEW.tenant_id AND key_id = NEW.former_key_id;
    INSERT INTO signing_keys (
        tenant_id, key_id, provider, master_key_arn, wrapped_seed, public_key, status, create_time_ms, checksum,
        state_checksum
    )
    SELECT
        NEW.tenant_id, NEW.key_id, NEW.provider, NEW.master_key_arn, NEW.wrapped_seed, NEW.public_key, 'active',
        NEW.create_time_ms, NEW.checksum, NEW.state_checksum
    WHERE NEW.key_id IS NOT NULL;
    INSERT INTO tenants (tenant_id, generation) VALUES (NEW.tenant_id, 1)
        ON CONFLICT (tenant_id) DO UPDATE SET generation = generation + 1;
END;
CREATE TEMP TRIGGER mark AFTER INSERT ON main.signing_keys WHEN NEW.status = 'active'
BEGIN
    INSERT INTO tenants (tenant_id, generation, had_key) VALUES (NEW.tenant_id, 0, 1)
        ON CONFLICT (tenant_id) DO UPDATE SET had_key = 1;
END;
"""
"""INSERT INTO succession retires a key, makes its successor active if there is one, and raises the generation. Nothing
happens if the former key is not there in the status that it had, or if a key of the successor's id is there already.
`secure_delete` overwrites what is deleted with zeros (https://www.sqlite.org/pragma.html#pragma_secure_delete).
"""


_END_OF_COLUMNS = re.compile(r",\n    PRIMARY KEY|\s*\) STRICT")
"""Where SQLite adds columns."""


def create_file(path: Path) -> None:
    """Make an empty store, whole or not at all: so a file without a schema is always a damaged one."""
    with atomic_create(path) as new, closing(sqlite3.connect(new, isolation_level=None)) as database:
        database.executescript(
            f"PRAGMA synchronous=EXTRA; BEGIN; {_KEYS} {_TENANTS} {_ADDED} {_SHREDDING} {_LOCK} {_BRANCH_KEYS}"
            f" {_ORIGIN} PRAGMA application_id={_APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
        )


async def prepare(database: aiosqlite.Connection, path: Path) -> None:
    """Make a connection ready for a SqliteStore. Raises StartRefused for a file that is damaged, foreign or newer."""

    async def pragma(name: str) -> int | str:
        async with database.execute(f"PRAGMA {name}") as cursor:
            row = await cursor.fetchone()
        return row[0] if row else ""

    if await pragma("integrity_check") != "ok":
        raise _damaged(path)
    if await pragma("application_id") != _APPLICATION_ID:
        raise StartRefused(
            f"{path} is empty, or no key store of betrace-kms: restore it from a backup, or choose another kms.data-dir"
        )
    version = await pragma("user_version")
    if version not in (1, SCHEMA_VERSION):
        raise StartRefused(f"{path} has schema version {version}, this betrace-kms knows {SCHEMA_VERSION}: upgrade it")
    if not (await _has_our_tables(database) and await _has_our_origin(database)):
        raise _damaged(path)
    await pragma("journal_mode=DELETE")
    await pragma("synchronous=EXTRA")
    if version == 1 or not (
        await _has_column(database, "signing_keys", "state_checksum")
        and await _has_column(database, "tenants", "shredding")
        and await _has_tables(database)
    ):
        await _migrate(database, path)
    await database.executescript(_CONNECTION)


def _damaged(path: Path) -> StartRefused:
    return StartRefused(f"the key store {path} is damaged: restore it from a backup; nothing was changed")


async def _has_our_tables(database: aiosqlite.Connection) -> bool:
    """Return whether no table or index of ours has another name or other columns than we gave it.

    SQLite does not check that, and a table that is missing would be made. Later versions may add tables, and columns at
    the end of ours.
    """
    definitions = "SELECT CAST(name AS TEXT), CAST(sql AS TEXT) FROM sqlite_schema WHERE sql IS NOT NULL"
    with closing(sqlite3.connect(":memory:")) as new:
        new.executescript(_KEYS + _TENANTS + _LOCK + _ORIGIN)
        ours = {name: _END_OF_COLUMNS.split(sql)[0] for name, sql in new.execute(definitions)}
    bodies = tuple(sql.partition("(")[2] for sql in ours.values())
    return all(
        sql.startswith(ours[name]) if name in ours else not sql.partition("(")[2].startswith(bodies)
        for name, sql in await database.execute_fetchall(definitions)
    )


async def _has_our_origin(database: aiosqlite.Connection) -> bool:
    """Return whether the file says what its maker could do as we say it, if it says it."""
    if not list(await database.execute_fetchall("SELECT 1 FROM sqlite_schema WHERE name = 'origin'")):
        return True
    return [("sealing",)] == [
        tuple(row) for row in await database.execute_fetchall("SELECT sealing_key_type FROM origin")
    ]


async def _has_column(database: aiosqlite.Connection, table: str, name: str) -> bool:
    columns = "SELECT 1 FROM pragma_table_info(?) WHERE name = ?"
    return bool(list(await database.execute_fetchall(columns, (table, name))))


async def _has_tables(database: aiosqlite.Connection) -> bool:
    there = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name IN ('emergency_stop', 'branch_keys')"
    return len(list(await database.execute_fetchall(there))) == 2


async def _migrate(database: aiosqlite.Connection, path: Path) -> None:
    """Bring a file to version 2 and add what it lacks. If another process was faster, this changes nothing."""
    try:
        await database.execute("BEGIN IMMEDIATE")
        try:
            if not await _has_column(database, "signing_keys", "state_checksum"):
                for statement in (_TENANTS, *_ADDED.strip().splitlines(), _MARKER):
                    await database.execute(statement)
                await database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            if not await _has_column(database, "tenants", "shredding"):
                await database.execute(_SHREDDING)
            await database.execute(_LOCK)
            await database.execute(_BRANCH_KEYS)
        except BaseException:
            await database.execute("ROLLBACK")
            raise
        await database.execute("COMMIT")
    except sqlite3.Error as cause:
        if is_damage(cause):
            raise
        raise StartRefused(
            f"the key store {path} cannot be brought to schema version {SCHEMA_VERSION}: {explained(cause)}; nothing"
            " was changed"
        ) from cause
    log.info("The key store was brought to a new schema version", path=str(path), version=SCHEMA_VERSION)
