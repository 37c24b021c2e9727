"""The key store in one SQLite file: for one daemon, on a volume that outlives the pod.

A commit is durable when it returns: rollback journal and ``synchronous=EXTRA``, which also syncs the folder after the
journal is gone (https://www.sqlite.org/pragma.html#pragma_synchronous). No WAL: SQLite before 3.51.3 can corrupt one,
and with one connection it gains nothing. A unique index on the active key makes two creations agree on one winner.

Every change is one statement, which aiosqlite's thread runs to its end also when the caller has gone: there is never a
transaction open between two awaits. schema.py has the tables, turns.py the order of the statements.
"""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiosqlite

from betrace_kms_server.core.errors import StartRefused, StoreUnavailable
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.core.keys import KeyStatus, StoredKey, WrappedKey
from betrace_kms_server.core.lock_state import LockState
from betrace_kms_server.core.shredding import Shredding, TenantHead
from betrace_kms_server.core.tenancy import DataKeyType
from betrace_kms_server.host.process import descriptor_shortage
from betrace_kms_server.stores.damage import damaged_key, no_active_key
from betrace_kms_server.stores.sqlite.errors import explained, is_damage
from betrace_kms_server.stores.sqlite.schema import SCHEMA_VERSION, create_file, prepare
from betrace_kms_server.stores.sqlite.turns import NeverBegun, QueueFull, StillRunning, Turns

DATABASE_FILE = "keystore.db"
_EXTRA = 3  # what PRAGMA synchronous answers
_STATEMENT_SECONDS = 5.0
"""A volume that hangs must not hang the callers."""
_WAITING = 256
"""Statements that wait at once; who comes then is refused at once, before a caller's memory is held for nothing."""
_PAGE_ROWS = 500
"""Rows that one statement reads when all are wanted, so that others get their turn in between."""
_SELECT = (
    "SELECT rowid, tenant_id, key_id, provider, wrapped_seed, master_key_arn, public_key, status, create_time_ms,"
    " rotate_time_ms, revoke_time_ms, checksum, state_checksum FROM signing_keys WHERE "
)
_INSERT = (
    "INSERT INTO signing_keys (tenant_id, status, rotate_time_ms, revoke_time_ms, key_id, provider, master_key_arn,"
    " wrapped_seed, public_key, create_time_ms, checksum, state_checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT DO NOTHING RETURNING TRUE"
)
_LOST_ITS_KEY = (
    "SELECT 1 WHERE (EXISTS (SELECT 1 FROM signing_keys WHERE tenant_id = ?1)"
    " OR EXISTS (SELECT 1 FROM tenants WHERE tenant_id = ?1 AND had_key = 1))"
    " AND NOT EXISTS (SELECT 1 FROM signing_keys WHERE tenant_id = ?1 AND status = 'active')"
)
_SET_SHREDDING = (
    "INSERT INTO tenants (tenant_id, generation, shredding) SELECT ?1, 1, ?3"
    " WHERE ?2 IS (SELECT shredding FROM tenants WHERE tenant_id = ?1)"
    " ON CONFLICT (tenant_id) DO UPDATE SET shredding = excluded.shredding, generation = generation + 1"
)
_OUTCOME, _UNKNOWN = "outcome", "unknown"
"""Metadata of the error for a write that still runs: reading finds out whether it is done."""


class SqliteStore:
    """A KeyStore in one file. See `open_sqlite`."""

    shared = False
    """See KeyStore. Its daemon holds a lock on the folder."""

    def __init__(self, database: aiosqlite.Connection) -> None:
        self._database = database
        self._turns = Turns(waiting=_WAITING)

    async def active(self, tenant_id: str) -> StoredKey | None:
        """See KeyStore."""
        key = await self._one("tenant_id = ? AND status = 'active'", tenant_id)
        if key is None and await self.fetch(_LOST_ITS_KEY, tenant_id):
            raise no_active_key(tenant_id)
        return key

    async def get(self, tenant_id: str, key_id: str) -> StoredKey | None:
        """See KeyStore."""
        return await self._one("tenant_id = ? AND key_id = ?", tenant_id, key_id)

    async def get_many(self, tenant_id: str, key_ids: AbstractSet[str]) -> Mapping[str, StoredKey]:
        """See KeyStore."""
        found: dict[str, StoredKey] = {}
        ordered = sorted(key_ids)
        for start in range(0, len(ordered), _PAGE_ROWS):
            some = ordered[start : start + _PAGE_ROWS]
            places = ", ".join("?" * len(some))
            for row in await self.fetch(f"{_SELECT} tenant_id = ? AND key_id IN ({places})", tenant_id, *some):
                key = _stored_key(row)
                found[key.key_id] = key
        return found

    async def all(self, tenant_id: str) -> Sequence[StoredKey]:
        """See KeyStore."""
        rows = await self.fetch(_SELECT + "tenant_id = ? ORDER BY create_time_ms, key_id", tenant_id)
        return [_stored_key(row) for row in rows]

    async def create(self, key: StoredKey) -> StoredKey:
        """See KeyStore."""
        winner = await self.active(key.tenant_id)
        if winner is not None:
            return winner
        unknown = await unless_known(self.add(key))
        winner = await self.active(key.tenant_id)
        if winner is None:
            raise unknown or StoreUnavailable("the key store did not keep a key that it was given: check its volume")
        return winner

    async def rotate(self, former: StoredKey, successor: StoredKey) -> bool:
        """See KeyStore."""
        time_ms = successor.create_time_ms
        unknown = await unless_known(self._succeed(former, "rotated", successor, rotate_time_ms=time_ms))
        retired = await self.get(successor.tenant_id, former.key_id)
        landed = retired is not None and retired.rotate_time_ms == time_ms and await self._holds(successor)
        if unknown and not landed:
            raise unknown
        return landed

    async def revoke(self, key: StoredKey, revoke_time_ms: int, successor: StoredKey | None) -> bool:
        """See KeyStore. Raises ValueError unless the key is active and has a successor, or is neither."""
        if (key.status == "active") != (successor is not None):
            raise ValueError("an active key is revoked with a successor, and any other key without one")
        unknown = None
        if key.status != "revoked":
            unknown = await unless_known(self._succeed(key, "revoked", successor, revoke_time_ms=revoke_time_ms))
        revoked = await self.get(key.tenant_id, key.key_id)
        landed = revoked is not None and revoked.revoke_time_ms == revoke_time_ms
        landed = landed and (successor is None or await self._holds(successor))
        if unknown and not landed:
            raise unknown
        return landed

    async def generation(self, tenant_id: str) -> int:
        """See KeyStore."""
        return (await self.head(tenant_id)).generation

    async def head(self, tenant_id: str) -> TenantHead:
        """See KeyStore."""
        rows = await self.fetch("SELECT generation, shredding FROM tenants WHERE tenant_id = ?", tenant_id)
        return TenantHead(tenant_id, int(rows[0][0]), rows[0][1]) if rows else TenantHead(tenant_id, 0)

    async def set_shredding(self, tenant_id: str, former: Shredding | None, state: Shredding | None) -> bool:
        """See KeyStore."""
        before, after = (None if each is None else each.record(tenant_id) for each in (former, state))
        unknown = await unless_known(self.fetch(_SET_SHREDDING, tenant_id, before, after))
        landed = (await self.head(tenant_id)).record == after
        if unknown and not landed:
            raise unknown
        return landed

    async def shreddings(self) -> AsyncIterator[TenantHead]:
        """See KeyStore."""
        after = 0
        while page := await self.fetch(
            "SELECT rowid, tenant_id, generation, shredding FROM tenants WHERE shredding IS NOT NULL AND rowid > ?"
            " ORDER BY rowid LIMIT ?",
            after,
            _PAGE_ROWS,
        ):
            for _, tenant_id, generation, record in page:
                yield TenantHead(tenant_id, int(generation), record)
            after = page[-1][0]

    async def raise_generation(self, tenant_id: str) -> None:
        """See KeyStore."""
        await self.fetch(
            "INSERT INTO tenants (tenant_id, generation) VALUES (?, 1)"
            " ON CONFLICT (tenant_id) DO UPDATE SET generation = generation + 1",
            tenant_id,
        )

    async def created_before(self, time_ms: int) -> AsyncIterator[str]:
        """See KeyStore."""
        after = 0
        while page := await self.fetch(
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
        while page := await self.fetch(_SELECT + "rowid > ? ORDER BY rowid LIMIT ?", after, _PAGE_ROWS):
            for row in page:
                yield _stored_key(row)
            after = page[-1][0]

    async def add(self, key: StoredKey) -> bool:
        """See KeyStore."""
        times = key.rotate_time_ms, key.revoke_time_ms
        return bool(await self.fetch(_INSERT, key.tenant_id, key.status, *times, *_as_created(key)))

    async def replace(self, stored: StoredKey, replacement: StoredKey) -> None:
        """See KeyStore."""
        await self.fetch(
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
        rows = await self.fetch("SELECT tenant_id, key_id FROM signing_keys WHERE master_key_arn <> ?", master_key_arn)
        return [(tenant_id, key_id) for tenant_id, key_id in rows]

    async def wrapped_by(self) -> AbstractSet[str]:
        """See KeyStore."""
        return {arn for (arn,) in await self.fetch("SELECT DISTINCT master_key_arn FROM signing_keys")}

    async def lock_state(self) -> LockState | None:
        """See KeyStore."""
        rows = await self.fetch("SELECT reason, time_ms FROM emergency_stop WHERE reason IS NOT NULL")
        return LockState(rows[0][0], rows[0][1] or 0) if rows else None

    async def set_lock(self, state: LockState | None) -> None:
        """See KeyStore."""
        values = (None, None) if state is None else (state.reason, state.time_ms)
        await self.fetch("INSERT OR REPLACE INTO emergency_stop (id, reason, time_ms) VALUES (1, ?, ?)", *values)

    async def sealing_key_type(self) -> DataKeyType:
        """See KeyStore."""
        if not await self.fetch("SELECT 1 FROM sqlite_schema WHERE name = 'origin'"):
            return "encryption"
        return "sealing"  # the only value, see schema.py

    async def check(self) -> None:
        """See KeyStore. Writes the schema version over itself: one commit, like that of a key, that changes nothing."""
        ((synchronous,),) = await self.fetch("PRAGMA synchronous")
        if synchronous != _EXTRA:
            raise StoreUnavailable("the key store's commits would not survive a loss of power: restart the daemon")
        await self.fetch(f"PRAGMA user_version={SCHEMA_VERSION}")

    async def inspect(self) -> Sequence[Finding]:
        """See KeyStore. Whether its volume outlives the pod is found at start."""
        return []

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
        await self.fetch(
            "INSERT INTO succession VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (successor or former).tenant_id,
            former.key_id,
            "active" if status == "rotated" else former.status,
            status,
            rotate_time_ms,
            revoke_time_ms,
            *(_as_created(successor) if successor else (None,) * 8),
            replace(
                former,
                status=status,
                rotate_time_ms=former.rotate_time_ms if rotate_time_ms is None else rotate_time_ms,
                revoke_time_ms=revoke_time_ms,
            ).state_checksum(),
        )

    async def _holds(self, key: StoredKey) -> bool:
        """Return whether a key is there, whatever became of it since, or whichever master key wraps it now."""
        row = await self.get(key.tenant_id, key.key_id)
        return row is not None and row.public_key == key.public_key

    async def _one(self, condition: str, *parameters: str) -> StoredKey | None:
        rows = await self.fetch(_SELECT + condition, *parameters)
        return _stored_key(rows[0]) if rows else None

    async def fetch(self, statement: str, *parameters: object) -> Sequence[sqlite3.Row]:
        """Run one statement; in autocommit mode what it wrote is durable when it returns."""
        try:
            return await self._turns.run(lambda: self._rows(statement, parameters), _STATEMENT_SECONDS)
        except QueueFull as cause:
            raise StoreUnavailable(
                "too many calls wait for the key store: try again later; if it stays, check that its volume answers"
            ) from cause
        except NeverBegun as cause:
            raise StoreUnavailable(
                "the key store does not answer: check that its volume answers; nothing was written, so try again later"
            ) from cause
        except StillRunning as cause:
            raise StoreUnavailable(
                "the key store does not answer: check that its volume answers; whether it wrote is not known yet, so"
                " try again later",
                metadata={_OUTCOME: _UNKNOWN},
            ) from cause
        except (sqlite3.Error, OSError, UnicodeDecodeError) as cause:
            if is_damage(cause):
                raise StoreUnavailable(
                    "the key store is damaged: check its volume and the kernel's log; if they are well, stop the daemon"
                    " and restore the store from a backup"
                ) from cause
            if shortage := descriptor_shortage():
                raise StoreUnavailable(shortage, place="process") from cause
            raise StoreUnavailable(f"the key store cannot be used {explained(cause)}") from cause

    async def _rows(self, statement: str, parameters: Sequence[object]) -> Sequence[sqlite3.Row]:
        return list(await self._database.execute_fetchall(statement, parameters))


async def unless_known(write: Awaitable[object]) -> StoreUnavailable | None:
    """Write, and return the error of a write that still runs: the next read waits for its end and shows its outcome."""
    try:
        await write
    except StoreUnavailable as error:
        if error.metadata.get(_OUTCOME) != _UNKNOWN:
            raise
        return error
    return None


def _as_created(key: StoredKey) -> tuple[object, ...]:
    """Return the columns that a key's status does not touch, in the order of `_INSERT` and of schema.py."""
    return (
        key.key_id,
        key.provider,
        key.wrapped_seed.master_key_arn,
        key.wrapped_seed.blob,
        key.public_key,
        key.create_time_ms,
        key.checksum(),
        key.state_checksum(),
    )


def _stored_key(row: sqlite3.Row) -> StoredKey:
    _, tenant_id, key_id, provider, wrapped_seed, arn, public_key, status, created, rotated, revoked, *sums = row
    key = StoredKey(
        tenant_id, key_id, provider, WrappedKey(wrapped_seed, arn), public_key, status, created, rotated, revoked
    )
    if not key.is_intact(*sums):
        raise damaged_key(key_id)
    return key


@asynccontextmanager
async def open_sqlite(path: Path) -> AsyncIterator[SqliteStore]:
    """Open the store's file, making it if it is missing. Raises StartRefused for one that is damaged or not ours."""
    try:
        if not path.exists():  # noqa: ASYNC240  # at start, before there are calls to hold up
            create_file(path)
    except (OSError, sqlite3.Error) as cause:
        raise StartRefused(f"the key store {path} cannot be made: {explained(cause)}") from cause
    # A row whose text is no UTF-8 any more must be readable as far as to see that it is damaged.
    database = aiosqlite.connect(path, isolation_level=None, timeout=2.0)
    try:
        async with database:
            database.text_factory = lambda raw: raw.decode("utf-8", "replace")
            await prepare(database, path)
            yield SqliteStore(database)
    except (sqlite3.Error, UnicodeDecodeError) as cause:
        if is_damage(cause):
            raise StartRefused(
                f"the key store {path} is damaged: check its volume and the kernel's log; if they are well, restore it"
                " from a backup; nothing was changed"
            ) from cause
        raise StartRefused(f"the key store {path} cannot be used: {explained(cause)}; nothing was changed") from cause
