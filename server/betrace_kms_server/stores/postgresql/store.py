"""The key store in a PostgreSQL database, for several daemons.

Every change is one transaction that first locks the tenant's row, so changes of one tenant come one after the other,
and what is compared is what is committed. Reads lock nothing.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from betrace_kms_server.core.errors import StartRefused, StoreUnavailable
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.core.keys import KeyStatus, StoredKey, WrappedKey
from betrace_kms_server.core.lock_state import LockState
from betrace_kms_server.core.shredding import Shredding, TenantHead
from betrace_kms_server.core.tenancy import DataKeyType
from betrace_kms_server.stores.damage import no_active_key
from betrace_kms_server.stores.postgresql.database import Connection, Database
from betrace_kms_server.stores.postgresql.rows import (
    COLUMNS,
    HAD_KEY,
    RETIRE,
    insert,
    insert_active,
    stored_key,
    there_is,
)
from betrace_kms_server.stores.postgresql.schema import VERSION

_PAGE_ROWS = 500
LOCK_TENANT = (
    "INSERT INTO betrace_kms.tenants (tenant_id) VALUES (%s)"
    " ON CONFLICT (tenant_id) DO UPDATE SET generation = tenants.generation"
)
"""Makes the tenant's row if it is missing, and locks it until the end of the transaction."""
_RAISE = "UPDATE betrace_kms.tenants SET generation = generation + 1 WHERE tenant_id = %s"
_PROBE_TENANT = "betrace-kms:validate"


class PostgresStore:
    """A KeyStore in a database. See `open_postgresql`."""

    shared = True
    """See KeyStore."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def active(self, tenant_id: str) -> StoredKey | None:
        """See KeyStore."""
        key = await self._active(tenant_id)
        if key is None and await self.database.fetch(HAD_KEY, tenant_id, tenant_id):
            key = await self._active(tenant_id)  # it may have been made between the two reads
            if key is None:
                raise no_active_key(tenant_id)
        return key

    async def get(self, tenant_id: str, key_id: str) -> StoredKey | None:
        """See KeyStore."""
        if "\0" in key_id:  # which no text of PostgreSQL can hold
            return None
        rows = await self.database.fetch(COLUMNS + " WHERE tenant_id = %s AND key_id = %s", tenant_id, key_id)
        return stored_key(rows[0]) if rows else None

    async def get_many(self, tenant_id: str, key_ids: AbstractSet[str]) -> Mapping[str, StoredKey]:
        """See KeyStore."""
        found: dict[str, StoredKey] = {}
        ordered = sorted(key_id for key_id in key_ids if "\0" not in key_id)
        for start in range(0, len(ordered), _PAGE_ROWS):
            some = ordered[start : start + _PAGE_ROWS]
            for row in await self.database.fetch(
                COLUMNS + " WHERE tenant_id = %s AND key_id = ANY(%s)", tenant_id, some
            ):
                key = stored_key(row)
                found[key.key_id] = key
        return found

    async def all(self, tenant_id: str) -> Sequence[StoredKey]:
        """See KeyStore."""
        rows = await self.database.fetch(COLUMNS + " WHERE tenant_id = %s ORDER BY create_time_ms, key_id", tenant_id)
        return [stored_key(row) for row in rows]

    async def create(self, key: StoredKey) -> StoredKey:
        """See KeyStore."""
        winner = await self.active(key.tenant_id)
        if winner is not None:
            return winner

        async def make(connection: Connection) -> StoredKey | None:
            return key if await insert_active(connection, key) else None

        made = await self.database.write(make, (LOCK_TENANT, key.tenant_id), lambda: self.active(key.tenant_id))
        winner = made or await self.active(key.tenant_id)
        if winner is None:
            raise StoreUnavailable(
                "the key store did not keep a key that it was given: check its database", place="table"
            )
        return winner

    async def rotate(self, former: StoredKey, successor: StoredKey) -> bool:
        """See KeyStore."""
        time_ms = successor.create_time_ms
        if former.tenant_id != successor.tenant_id or former.key_id == successor.key_id:
            return False
        retired = replace(former, status="rotated", rotate_time_ms=time_ms)

        async def landed() -> bool:
            row = await self.get(former.tenant_id, former.key_id)
            return row is not None and row.rotate_time_ms == time_ms and await self._holds(successor)

        return await self._succeed(former, "active", retired, successor, landed) or await landed()

    async def revoke(self, key: StoredKey, revoke_time_ms: int, successor: StoredKey | None) -> bool:
        """See KeyStore. Raises ValueError unless the key is active and has a successor, or is neither."""
        if (key.status == "active") != (successor is not None):
            raise ValueError("an active key is revoked with a successor, and any other key without one")
        if successor is not None and (key.tenant_id != successor.tenant_id or key.key_id == successor.key_id):
            return False
        revoked = replace(key, status="revoked", revoke_time_ms=revoke_time_ms)

        async def landed() -> bool:
            row = await self.get(key.tenant_id, key.key_id)
            there = row is not None and row.revoke_time_ms == revoke_time_ms
            return there and (successor is None or await self._holds(successor))

        done = key.status != "revoked" and await self._succeed(key, key.status, revoked, successor, landed)
        return done or await landed()

    async def generation(self, tenant_id: str) -> int:
        """See KeyStore."""
        return (await self.head(tenant_id)).generation

    async def head(self, tenant_id: str) -> TenantHead:
        """See KeyStore."""
        rows = await self.database.fetch(
            "SELECT generation, shredding FROM betrace_kms.tenants WHERE tenant_id = %s", tenant_id
        )
        return TenantHead(tenant_id, int(rows[0][0]), rows[0][1]) if rows else TenantHead(tenant_id, 0)

    async def set_shredding(self, tenant_id: str, former: Shredding | None, state: Shredding | None) -> bool:
        """See KeyStore."""
        before, after = (None if each is None else each.record(tenant_id) for each in (former, state))

        async def put(connection: Connection) -> bool:
            done = await connection.execute(
                "UPDATE betrace_kms.tenants SET shredding = %s, generation = generation + 1"
                " WHERE tenant_id = %s AND shredding IS NOT DISTINCT FROM %s",
                (after, tenant_id, before),
            )
            return done.rowcount == 1

        async def landed() -> bool | None:
            return True if (await self.head(tenant_id)).record == after else None

        done = await self.database.write(put, (LOCK_TENANT, tenant_id), landed)
        return done or (await self.head(tenant_id)).record == after

    async def shreddings(self) -> AsyncIterator[TenantHead]:
        """See KeyStore."""
        after = ""
        while page := await self.database.fetch(
            "SELECT tenant_id, generation, shredding FROM betrace_kms.tenants"
            " WHERE shredding IS NOT NULL AND tenant_id > %s ORDER BY tenant_id LIMIT %s",
            after,
            _PAGE_ROWS,
        ):
            for tenant_id, generation, record in page:
                yield TenantHead(tenant_id, int(generation), record)
            after = page[-1][0]

    async def raise_generation(self, tenant_id: str) -> None:
        """See KeyStore. A repetition that raises it twice does no harm."""

        async def raise_it(connection: Connection) -> None:
            await connection.execute(_RAISE, (tenant_id,))

        await self.database.write(raise_it, (LOCK_TENANT, tenant_id))

    async def created_before(self, time_ms: int) -> AsyncIterator[str]:
        """See KeyStore."""
        after = ""
        while page := await self.database.fetch(
            "SELECT tenant_id FROM betrace_kms.signing_keys"
            " WHERE status = 'active' AND create_time_ms < %s AND tenant_id > %s ORDER BY tenant_id LIMIT %s",
            time_ms,
            after,
            _PAGE_ROWS,
        ):
            for (tenant_id,) in page:
                yield tenant_id
            after = page[-1][0]

    async def rows(self) -> AsyncIterator[StoredKey]:
        """See KeyStore."""
        after = ("", "")
        while page := await self.database.fetch(
            COLUMNS + " WHERE (tenant_id, key_id) > (%s, %s) ORDER BY tenant_id, key_id LIMIT %s", *after, _PAGE_ROWS
        ):
            for row in page:
                yield stored_key(row)
            after = page[-1][:2]

    async def add(self, key: StoredKey) -> bool:
        """See KeyStore. If the connection is lost, the same row shows that it was done."""

        async def put(connection: Connection) -> bool:
            return await insert(connection, key)

        async def landed() -> bool | None:
            return True if await self.get(key.tenant_id, key.key_id) == key else None

        return await self.database.write(put, (LOCK_TENANT, key.tenant_id), landed)

    async def replace(self, stored: StoredKey, replacement: StoredKey) -> None:
        """See KeyStore."""

        async def put(connection: Connection) -> None:
            await connection.execute(
                "UPDATE betrace_kms.signing_keys SET master_key_arn = %s, wrapped_seed = %s, checksum = %s"
                " WHERE tenant_id = %s AND key_id = %s AND checksum = %s",
                (
                    replacement.wrapped_seed.master_key_arn,
                    replacement.wrapped_seed.blob,
                    replacement.checksum(),
                    stored.tenant_id,
                    stored.key_id,
                    stored.checksum(),
                ),
            )

        await self.database.write(put)

    async def wrapped_by_other_keys(self, master_key_arn: str) -> Sequence[tuple[str, str]]:
        """See KeyStore."""
        rows = await self.database.fetch(
            "SELECT tenant_id, key_id FROM betrace_kms.signing_keys WHERE master_key_arn <> %s", master_key_arn
        )
        return [(tenant_id, key_id) for tenant_id, key_id in rows]

    async def wrapped_by(self) -> AbstractSet[str]:
        """See KeyStore."""
        rows = await self.database.fetch("SELECT DISTINCT master_key_arn FROM betrace_kms.signing_keys")
        return {arn for (arn,) in rows}

    async def lock_state(self) -> LockState | None:
        """See KeyStore."""
        rows = await self.database.fetch(
            "SELECT reason, time_ms FROM betrace_kms.emergency_stop WHERE reason IS NOT NULL"
        )
        return LockState(rows[0][0], rows[0][1] or 0) if rows else None

    async def set_lock(self, state: LockState | None) -> None:
        """See KeyStore."""
        values = (None, None) if state is None else (state.reason, state.time_ms)

        async def put(connection: Connection) -> None:
            await connection.execute(
                "INSERT INTO betrace_kms.emergency_stop (id, reason, time_ms) VALUES (1, %s, %s)"
                " ON CONFLICT (id) DO UPDATE SET reason = excluded.reason, time_ms = excluded.time_ms",
                values,
            )

        async def landed() -> None:
            return None

        await self.database.write(put, None, landed)

    async def sealing_key_type(self) -> DataKeyType:
        """See KeyStore."""
        rows = await self.database.fetch("SELECT sealing_key_type FROM betrace_kms.origin")
        return "sealing" if rows and rows[0][0] == "sealing" else "encryption"

    async def check(self) -> None:
        """See KeyStore. Makes a tenant's first key as if for good, and takes it back: no one ever sees it."""
        probe = StoredKey(_PROBE_TENANT, "0" * 32, "probe", WrappedKey(b"probe", "probe"), bytes(32), "active", 0)

        async def try_and_undo(connection: Connection) -> None:
            async with connection.transaction(force_rollback=True):
                await insert(connection, probe)
                await connection.execute(_RAISE, (_PROBE_TENANT,))

        await self.database.write(try_and_undo)

    async def inspect(self) -> Sequence[Finding]:
        """See KeyStore. What the daemon's user may do too much, and whether a commit is durable."""
        ((owner, deletes, durable),) = await self.database.fetch(
            "SELECT pg_has_role(current_user, nspowner, 'MEMBER'),"
            " has_table_privilege(current_user, 'betrace_kms.signing_keys', 'DELETE, TRUNCATE'),"
            " current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on'"
            " FROM pg_namespace WHERE nspname = 'betrace_kms'"
        )
        rights = (
            "the daemon's user owns the schema betrace_kms, or may delete signing keys: let another user own it, and"
            " grant what betrace-kms keystore init --grant-to grants"
        )
        return [
            Finding("key_store_rights", rights if owner or deletes else ""),
            Finding(
                "key_store_durability",
                "" if durable else "fsync or full_page_writes is off: a power failure of PostgreSQL would lose keys",
            ),
        ]

    async def _succeed(
        self,
        former: StoredKey,
        status: KeyStatus,
        retired: StoredKey,
        successor: StoredKey | None,
        landed: Callable[[], Awaitable[bool]],
    ) -> bool:
        """Retire a key and make its successor active, unless the former key has another status by now."""

        async def put(connection: Connection) -> bool:
            if successor is not None and await there_is(connection, successor):
                return False
            done = await connection.execute(
                RETIRE,
                (
                    retired.status,
                    retired.rotate_time_ms,
                    retired.revoke_time_ms,
                    retired.state_checksum(),
                    former.tenant_id,
                    former.key_id,
                    status,
                ),
            )
            if done.rowcount != 1:
                return False
            if successor is not None:
                await insert(connection, successor)
            await connection.execute(_RAISE, (former.tenant_id,))
            return True

        return await self.database.write(put, (LOCK_TENANT, former.tenant_id), landed)

    async def _active(self, tenant_id: str) -> StoredKey | None:
        rows = await self.database.fetch(COLUMNS + " WHERE tenant_id = %s AND status = 'active'", tenant_id)
        return stored_key(rows[0]) if rows else None

    async def _holds(self, key: StoredKey) -> bool:
        """Return whether a key is there, whatever became of it since, or whichever master key wraps it now."""
        row = await self.get(key.tenant_id, key.key_id)
        return row is not None and row.public_key == key.public_key


@asynccontextmanager
async def open_postgresql(
    conninfo: str, password: Callable[[], str | None] = lambda: None
) -> AsyncIterator[PostgresStore]:
    """Open the store of a database. Raises StartRefused if there is none, or one that this version cannot use."""
    async with AsyncExitStack() as resources:
        try:
            database = await resources.enter_async_context(Database(conninfo, password))
            rows: Sequence[Any] = await database.fetch("SELECT version FROM betrace_kms.origin")
        except StoreUnavailable as cause:
            raise StartRefused(f"the key store in PostgreSQL cannot be used: {cause.message}") from cause
        if not rows:
            raise StartRefused("the key store in PostgreSQL was not made whole: run betrace-kms keystore init")
        if rows[0][0] != VERSION:
            step = "upgrade this daemon" if rows[0][0] > VERSION else "run betrace-kms keystore init"
            raise StartRefused(f"the key store in PostgreSQL has version {rows[0][0]} instead of {VERSION}: {step}")
        yield PostgresStore(database)
