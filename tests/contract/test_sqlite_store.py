"""The SQLite store on a bad day: a full disk, a damaged file, somebody else's file, a row that was altered."""

import asyncio
import os
import resource
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path

import pytest
from betrace_kms_server.core.errors import KeyDamaged, StartRefused, StoreUnavailable
from betrace_kms_server.core.keys import StoredKey, WrappedKey
from betrace_kms_server.stores.sqlite import store as sqlite
from betrace_kms_server.stores.sqlite.store import SqliteStore, open_sqlite

from tests.contract.samples import ARN, stored_key

_LEAF_OF_INDEX = 10
"""First byte of such a page (https://www.sqlite.org/fileformat2.html, section 1.6)."""


def execute(database: Path, *statements: str) -> None:
    """Do something to a database behind the store's back."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


async def filled(database: Path) -> list[StoredKey]:
    """Make a store whose file has many pages, and return its keys."""
    keys = [stored_key(f"tenant-{number:03}", wrapped_seed=WrappedKey(os.urandom(2000), ARN)) for number in range(30)]
    async with open_sqlite(database) as store:
        for key in keys:
            await store.create(key)
    return keys


def rewritten(database: Path, change: Callable[[bytes], bytes]) -> bytes:
    """Change the bytes of a file and return them."""
    changed = change(database.read_bytes())
    database.write_bytes(changed)
    return changed


def with_an_index_entry_edited(good: bytes) -> bytes:
    """Return a database in which an index does not find a row that is there, and nothing else is wrong."""
    pages = [good[at : at + 4096] for at in range(0, len(good), 4096)]
    edited = [page.replace(b"tenant-005", b"tenant-0x5") if page[0] == _LEAF_OF_INDEX else page for page in pages]
    assert pages != edited
    return b"".join(edited)


def edited(before: bytes, after: bytes) -> Callable[[bytes], bytes]:
    """Return what replaces bytes that are in the file once or more."""

    def edit(good: bytes) -> bytes:
        assert before in good
        return good.replace(before, after)

    return edit


async def refusal(database: Path) -> str:
    """Return the text with which the store is refused; it must be one line."""
    with pytest.raises(StartRefused) as refused:
        async with open_sqlite(database):
            pass
    (line,) = str(refused.value).splitlines()
    return line


def files(database: Path) -> Mapping[str, bytes]:
    """Return everything in the store's folder."""
    return {path.name: path.read_bytes() for path in database.parent.iterdir()}


def rows(database: Path) -> list[tuple[str | bytes | int, ...]]:
    """Return the raw rows of the table."""
    with closing(sqlite3.connect(database)) as connection:
        connection.text_factory = bytes
        return connection.execute("SELECT * FROM signing_keys").fetchall()


async def pragma(store: SqliteStore, name: str) -> object:
    """Ask, or set, on the store's own connection."""
    (row,) = await store._database.execute_fetchall(f"PRAGMA {name}")
    return row[0]


async def test_file_is_for_its_owner_only(database: Path) -> None:
    """A new file has mode 0600, whatever the umask allows, and closing it leaves nothing else."""
    umask = os.umask(0)
    try:
        async with open_sqlite(database) as store:
            await store.create(stored_key())
    finally:
        os.umask(umask)
    assert (0o600, {database.name}) == (os.stat(database).st_mode & 0o7777, set(files(database)))


async def test_commits_are_durable(store: SqliteStore) -> None:
    """A rollback journal and synchronous=EXTRA (3): what was committed survives a loss of power."""
    assert ("delete", 3) == (await pragma(store, "journal_mode"), await pragma(store, "synchronous"))


async def test_commits_are_durable_after_a_restart(database: Path) -> None:
    """The settings of a connection are set whenever the file is opened, also where somebody changed them."""
    await filled(database)
    execute(database, "PRAGMA journal_mode=WAL")
    async with open_sqlite(database) as store:
        assert ("delete", 3) == (await pragma(store, "journal_mode"), await pragma(store, "synchronous"))


async def test_full_disk_is_told_and_harms_nothing(store: SqliteStore) -> None:
    """A key that finds no room is refused as a whole; what was there stays, and with room again it works on."""
    kept, large = stored_key("acme"), stored_key("globex", wrapped_seed=WrappedKey(os.urandom(6000), ARN))
    await store.create(kept)
    await pragma(store, f"max_page_count={await pragma(store, 'page_count')}")
    with pytest.raises(StoreUnavailable, match="SQLITE_FULL"):
        await store.create(large)
    assert (kept, None) == (await store.active("acme"), await store.active("globex"))
    await pragma(store, "max_page_count=1000")
    assert large == await store.create(large)


@pytest.mark.parametrize("verb", ["rotate", "revoke"])
async def test_succession_that_finds_no_room_does_not_happen(store: SqliteStore, verb: str) -> None:
    """A full disk leaves the former key active and the generation as it was; with room again the same try succeeds."""
    first, large = stored_key(), stored_key(wrapped_seed=WrappedKey(os.urandom(6000), ARN))
    await store.create(first)
    await pragma(store, f"max_page_count={await pragma(store, 'page_count')}")

    async def change() -> bool:
        return await (store.rotate(first, large) if verb == "rotate" else store.revoke(first, 1, large))

    with pytest.raises(StoreUnavailable, match="SQLITE_FULL"):
        await change()
    assert ([first], 0, False) == (
        await store.all("acme"),
        await store.generation("acme"),
        store._database.in_transaction,
    )
    await pragma(store, "max_page_count=1000")
    assert (True, large) == (await change(), await store.active("acme"))


async def test_cancelled_caller_leaves_no_transaction_open(store: SqliteStore) -> None:
    """What a caller who has gone began is durable as a whole before anybody else's statement runs."""
    first, second = stored_key(), stored_key()
    await store.create(first)
    task = asyncio.create_task(store.rotate(first, second))
    await asyncio.sleep(0)
    task.cancel()
    assert (second, False) == (await store.active("acme"), store._database.in_transaction)
    assert task.cancelled()


async def test_successor_is_a_key_of_the_same_tenant(store: SqliteStore) -> None:
    """A key of another tenant takes nobody's place, neither there nor here."""
    keys = [stored_key("acme"), stored_key("globex")]
    for key in keys:
        await store.create(key)
    assert False is await store.rotate(keys[0], stored_key("globex"))
    assert False is await store.revoke(keys[0], 1, stored_key("globex"))
    assert keys == [key async for key in store.rows()]


async def test_nobody_else_writes(store: SqliteStore) -> None:
    """The file is one daemon's own, so it need not look for what others did."""
    assert False is store.shared


async def test_read_only_database_is_told_and_still_read(store: SqliteStore) -> None:
    """A store that cannot be written says so, and goes on giving what it has."""
    key = stored_key("acme")
    await store.create(key)
    await store._database.execute_fetchall("PRAGMA query_only=ON")
    with pytest.raises(StoreUnavailable, match="SQLITE_READONLY"):
        await store.create(stored_key("globex"))
    assert key == await store.active("acme")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write every file")
async def test_read_only_file_is_told(database: Path) -> None:
    """A file that the daemon's user may not write is told at the start, or when a key is to be created."""
    await filled(database)
    os.chmod(database, 0o400)
    with pytest.raises((StartRefused, StoreUnavailable)):
        async with open_sqlite(database) as store:
            await store.create(stored_key())


async def test_database_that_another_holds_is_unavailable_for_a_while(database: Path, store: SqliteStore) -> None:
    """While another process holds the file the store says so, and afterwards it works again."""
    key = stored_key()
    await pragma(store, "busy_timeout=1")
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"):
            await store.create(key)
        with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"):
            await store.active("acme")
    assert key == await store.create(key)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(with_an_index_entry_edited, id="index entry edited"),
        pytest.param(lambda good: good[:8192] + os.urandom(4096) + good[12288:], id="random page"),
        pytest.param(lambda good: good[:4096] + os.urandom(len(good) - 8192) + good[-4096:], id="random middle"),
        pytest.param(lambda good: good[: len(good) // 2], id="half"),
        pytest.param(lambda good: good[:-4096], id="last page lost"),
        pytest.param(lambda good: good[:4096], id="first page only"),
        pytest.param(lambda good: good[:100], id="header only"),
        pytest.param(lambda good: good[:10], id="ten bytes"),
        pytest.param(lambda good: bytes(4096) + good[4096:], id="first page zeroed"),
        pytest.param(lambda good: bytes(len(good)), id="zeroed"),
        pytest.param(lambda good: b"this is a note, not a database\n" * 200, id="text"),
        pytest.param(edited(b"emergency_stop (", b"emergency_ssop ("), id="table of the stop has another name"),
        pytest.param(edited(b"generation INTEGER", b"generatioo INTEGER"), id="column has another name"),
        pytest.param(edited(b" BLOB    NOT ", b" BLOB    NO\xd4 "), id="definition is no UTF-8"),
        pytest.param(edited(b"\x1bsealing", b"\x1bsealinf"), id="origin altered"),
    ],
)
async def test_damaged_file_is_refused_and_left_alone(database: Path, damage: Callable[[bytes], bytes]) -> None:
    """A store with a damaged file does not start, and does not touch the file: a backup may need it."""
    await filled(database)
    damaged = rewritten(database, damage)
    assert str(database) in await refusal(database)
    assert {database.name: damaged} == files(database)


async def test_store_that_was_cut_to_nothing_is_refused(database: Path) -> None:
    """A store is made whole or not at all, so an empty file had keys in it, and no new one takes its place."""
    rewritten_to_nothing = {database.name: b""}
    os.close(os.open(database, os.O_CREAT, 0o600))
    assert f"{database} is empty, or no key store" in await refusal(database)
    assert rewritten_to_nothing == files(database)


async def test_maker_that_died_halfway_is_no_hindrance(database: Path) -> None:
    """What a killed daemon left beside the store does not stop the next one."""
    database.with_name(database.name + "abc").write_bytes(b"half")
    key = stored_key()
    async with open_sqlite(database) as store:
        assert key == await store.create(key)


@pytest.mark.parametrize("application_id", [0, 1, 0x42544B54])
async def test_foreign_database_is_refused_and_left_alone(database: Path, application_id: int) -> None:
    """A database of another program is no key store, and stays as it is."""
    execute(database, "CREATE TABLE notes (text)", f"PRAGMA application_id={application_id}")
    foreign = files(database)
    assert f"{database} is empty, or no key store" in await refusal(database)
    assert foreign == files(database)


async def test_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    """A path into a folder that is not there is refused in one line that names it."""
    database = tmp_path / "missing" / "keystore.db"
    assert str(database) in await refusal(database)


@pytest.mark.parametrize(
    "change",
    [
        "key_id = key_id || '0'",
        "provider = 'local'",
        "master_key_arn = master_key_arn || '0'",
        "wrapped_seed = x'00'",
        "wrapped_seed = x''",
        "public_key = zeroblob(32)",
        "public_key = x''",
        "create_time_ms = create_time_ms + 1",
        "checksum = zeroblob(32)",
        "checksum = x''",
        "provider = CAST(x'ff' AS TEXT)",
    ],
)
async def test_altered_row_is_damaged_and_not_replaced(database: Path, store: SqliteStore, change: str) -> None:
    """A row that is not what was written is never used, and no new key takes its place."""
    key = stored_key()
    await store.create(key)
    execute(database, f"UPDATE signing_keys SET {change}")  # noqa: S608
    altered = rows(database)
    key_id = key.key_id + "0" if change.startswith("key_id") else key.key_id
    with pytest.raises(KeyDamaged):
        await store.active("acme")
    with pytest.raises(KeyDamaged):
        await store.get("acme", key_id)
    with pytest.raises(KeyDamaged):
        await store.create(stored_key())
    assert altered == rows(database)


async def test_row_that_was_moved_to_another_tenant_is_damaged(database: Path, store: SqliteStore) -> None:
    """One tenant's key does not become another's by an edit of the table."""
    key = stored_key("acme")
    await store.create(key)
    execute(database, "UPDATE signing_keys SET tenant_id = 'globex'")
    with pytest.raises(KeyDamaged):
        await store.active("globex")


async def test_damage_of_one_row_leaves_the_others(database: Path, store: SqliteStore) -> None:
    """A damaged key of one tenant is that tenant's trouble alone."""
    good, bad = stored_key("acme"), stored_key("globex")
    await store.create(good)
    await store.create(bad)
    execute(database, "UPDATE signing_keys SET public_key = zeroblob(32) WHERE tenant_id = 'globex'")
    assert good == await store.active("acme")


async def test_all_rows_are_read_in_pages(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than a page holds are read to the end, in statements between which others get their turn."""
    monkeypatch.setattr(sqlite, "_PAGE_ROWS", 3)
    keys = [stored_key(f"tenant-{number}") for number in range(9)]
    for key in keys:
        await store.create(key)
    found = []
    async for key in store.rows():
        found.append(key)
        await store.raise_generation(key.tenant_id)
    assert keys == found
    assert [key.tenant_id for key in keys] == [tenant async for tenant in store.created_before(2**53)]


@pytest.mark.parametrize("change", ["checksum = x''", "tenant_id = CAST(x'ff' AS TEXT)"])
async def test_export_stops_at_a_damaged_row_and_a_rotation_does_not(
    database: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """What goes into an export is what was written; what is due for rotation is told for every other tenant."""
    monkeypatch.setattr(sqlite, "_PAGE_ROWS", 3)
    for number in range(7):
        await store.create(stored_key(f"tenant-{number}"))
    execute(database, f"UPDATE signing_keys SET {change} WHERE tenant_id = 'tenant-2'")  # noqa: S608
    with pytest.raises(KeyDamaged):
        [key async for key in store.rows()]
    due = [tenant async for tenant in store.created_before(2**53)]
    assert (7, {f"tenant-{number}" for number in (0, 1, 3, 4, 5, 6)}) == (len(due), {*due} - {"tenant-2", "\ufffd"})


async def test_message_about_damage_names_the_key_and_no_material(database: Path, store: SqliteStore) -> None:
    """Who restores from a backup needs the key's id; nobody needs its bytes."""
    key = stored_key()
    await store.create(key)
    execute(database, "UPDATE signing_keys SET public_key = zeroblob(32)")
    with pytest.raises(KeyDamaged, match=key.key_id) as raised:
        await store.active("acme")
    assert key.wrapped_seed.blob.hex() not in str(raised.value)


async def test_lack_of_file_descriptors_is_told(store: SqliteStore) -> None:
    """Without a descriptor SQLite cannot open its journal, and neither the volume nor the file is at fault."""
    held: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(StoreUnavailable, match=r"no file descriptor left \(EMFILE\): raise the limit") as raised:
            await store.create(stored_key())
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "process" == raised.value.place
    await store.create(stored_key())
