"""The emergency stop in every key store, and a daemon that follows it."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from betrace_kms_server.core.errors import StoreUnavailable
from betrace_kms_server.core.lock_state import LockState
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE, open_sqlite

from tests.contract.doubles import Open, StoreKind
from tests.contract.samples import stored_key

STOP = LockState("INC-4711: Schlüssel", 1_767_319_231_500)


async def test_a_store_is_not_locked_at_first(open_store: Open) -> None:
    """Neither an empty store nor one with keys has a stop in force."""
    async with open_store() as store:
        assert await store.lock_state() is None
        await store.create(stored_key())
        assert await store.lock_state() is None


async def test_a_lock_is_read_by_others_until_it_is_ended(open_store: Open) -> None:
    """Another daemon reads what was set, the later one of two; after the end there is none, and it can be set again."""
    async with open_store() as one, open_store() as other:
        await one.set_lock(LockState("first", 1))
        await one.set_lock(STOP)
        assert await other.lock_state() == STOP
        await other.set_lock(None)
        assert await one.lock_state() is None
        await one.set_lock(STOP)
    async with open_store() as later:
        assert await later.lock_state() == STOP


async def test_a_lock_is_no_key_and_no_tenant(open_store: Open) -> None:
    """What lists, exports or rotates keys does not meet it, and a store that is locked keeps and returns keys."""
    async with open_store() as store:
        await store.set_lock(STOP)
        key = await store.create(stored_key())
        assert [row async for row in store.rows()] == [key]
        assert [tenant async for tenant in store.created_before(2**60)] == [key.tenant_id]
        assert len(await store.wrapped_by()) == 1
        await store.check()
        assert await store.lock_state() == STOP


async def test_a_lock_that_cannot_be_written_is_an_error(store_kind: StoreKind) -> None:
    """A store that refuses writes says so, and keeps what it had."""
    async with store_kind.open() as store:
        await store.set_lock(STOP)
        await store_kind.forbid_writes(store)
        with pytest.raises(StoreUnavailable):
            await store.set_lock(None)
    async with store_kind.open() as store:
        assert await store.lock_state() == STOP


async def test_a_file_without_the_table_gets_it_and_stays_readable_for_earlier_versions(tmp_path: Path) -> None:
    """A file that an earlier version made opens with its keys, and its schema version stays."""
    path = tmp_path / DATABASE_FILE
    async with open_sqlite(path) as store:
        key = await store.create(stored_key())
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE emergency_stop")
    async with open_sqlite(path) as store:
        assert await store.lock_state() is None
        await store.set_lock(STOP)
        assert await store.active(key.tenant_id) == key
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (2,)
