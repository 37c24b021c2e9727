"""What stands for a row's status: a status that was edited, an active key that was lost, rows of an earlier version."""

import hashlib
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from betrace_kms_server.core.errors import KeyDamaged
from betrace_kms_server.core.keys import StoredKey, WrappedKey
from betrace_kms_server.stores.dynamodb.items import item_of
from betrace_kms_server.stores.dynamodb.items import stored_key as key_of_item
from betrace_kms_server.stores.sqlite.store import open_sqlite

from tests.contract.doubles import Open
from tests.contract.samples import ARN, stored_key

CREATED = 1_700_000_000_000
ROTATED, REVOKED = CREATED + 1000, CREATED + 2000
STATES = {
    "active": ("active", None, None),
    "rotated": ("rotated", ROTATED, None),
    "revoked": ("revoked", None, REVOKED),
    "rotated, then revoked": ("revoked", ROTATED, REVOKED),
}
VERSION_0_1 = """
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
CREATE TABLE IF NOT EXISTS tenants (
    tenant_id  TEXT    PRIMARY KEY,
    generation INTEGER NOT NULL
) STRICT;
PRAGMA application_id=0x42544B53;
PRAGMA user_version=2;
"""
"""The file as an earlier version made it."""


def checksum_of_version_0_1(row: sqlite3.Row) -> bytes:
    """Return the checksum that an earlier version expects of a row: recorded from its code, on names of columns."""
    digest = hashlib.sha256()
    for part in (
        row["tenant_id"].encode(),
        row["key_id"].encode(),
        row["provider"].encode(),
        row["master_key_arn"].encode(),
        row["wrapped_seed"],
        row["public_key"],
        str(row["create_time_ms"]).encode(),
    ):
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.digest()


def in_state(key: StoredKey, name: str) -> StoredKey:
    """Return a key with the status and times of a state."""
    status, rotate_time_ms, revoke_time_ms = STATES[name]
    return replace(key, status=status, rotate_time_ms=rotate_time_ms, revoke_time_ms=revoke_time_ms)  # type: ignore[arg-type]


def execute(database: Path, statement: str, *parameters: object) -> None:
    """Change the file behind the store's back."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute(statement, parameters)


def write_status(database: Path, key: StoredKey) -> None:
    """Write a key's status and times as an earlier version does, which leaves the state checksum as it was."""
    execute(
        database,
        "UPDATE signing_keys SET status = ?, rotate_time_ms = ?, revoke_time_ms = ? WHERE key_id = ?",
        key.status,
        key.rotate_time_ms,
        key.revoke_time_ms,
        key.key_id,
    )


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("after", STATES)
async def test_status_goes_only_forward(database: Path, before: str, after: str) -> None:
    """A status that is written without its checksum is accepted where an earlier version could have written it."""
    key = in_state(stored_key(create_time_ms=CREATED), before)
    async with open_sqlite(database) as store:
        await store.add(key)
        write_status(database, in_state(key, after))
        forward = {
            "active": set(STATES),
            "rotated": {"rotated", "rotated, then revoked"},
            "revoked": {"revoked"},
            "rotated, then revoked": {"rotated, then revoked"},
        }
        if after in forward[before]:
            assert in_state(key, after) == await store.get("acme", key.key_id)
        else:
            with pytest.raises(KeyDamaged):
                await store.get("acme", key.key_id)


@pytest.mark.parametrize("has_state_checksum", [True, False])
@pytest.mark.parametrize(
    "change",
    ["status = 'rotated'", "status = 'active'", "revoke_time_ms = NULL", "status = 'active', rotate_time_ms = NULL"],
)
async def test_revoked_key_does_not_come_back(database: Path, change: str, has_state_checksum: bool) -> None:
    """A revoked key whose status alone was edited is damaged, also where an earlier version wrote the row."""
    key = in_state(stored_key(create_time_ms=CREATED), "rotated, then revoked")
    async with open_sqlite(database) as store:
        await store.add(key)
        if not has_state_checksum:
            execute(database, "UPDATE signing_keys SET state_checksum = NULL")
        execute(database, f"UPDATE signing_keys SET {change}")  # noqa: S608
        with pytest.raises(KeyDamaged):
            await store.get("acme", key.key_id)


@pytest.mark.parametrize(
    "change", ["rotate_time_ms = rotate_time_ms + 1", "revoke_time_ms = revoke_time_ms - 1", "state_checksum = x''"]
)
async def test_times_and_state_checksum_are_covered(database: Path, change: str) -> None:
    """A time that was edited, or a state checksum that is none, makes the row a damaged one."""
    key = in_state(stored_key(create_time_ms=CREATED), "rotated, then revoked")
    async with open_sqlite(database) as store:
        await store.add(key)
        execute(database, f"UPDATE signing_keys SET {change}")  # noqa: S608
        with pytest.raises(KeyDamaged):
            await store.get("acme", key.key_id)


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("after", STATES)
def test_item_of_dynamodb_is_checked_likewise(before: str, after: str) -> None:
    """An item keeps to the same rule, and one without a state checksum is that of an earlier version."""
    key = in_state(stored_key(create_time_ms=CREATED), before)
    item = item_of(in_state(key, after))
    assert in_state(key, after) == key_of_item({name: item[name] for name in item if name != "state_checksum"})
    item["state_checksum"] = item_of(key)["state_checksum"]
    ranks = {"active": 0, "rotated": 1, "revoked": 2, "rotated, then revoked": 2}
    if before == after or (ranks[before] < ranks[after] and (before, after) != ("rotated", "revoked")):
        assert in_state(key, after) == key_of_item(item)
    else:
        with pytest.raises(KeyDamaged):
            key_of_item(item)


async def test_version_0_1_reads_every_row(database: Path) -> None:
    """After every kind of write, the first checksum is the one that an earlier version computes of the row."""
    first, second, third = (stored_key(create_time_ms=CREATED + number) for number in range(3))
    anew = replace(second, wrapped_seed=WrappedKey(b"wrapped anew", ARN))
    async with open_sqlite(database) as store:
        await store.create(first)
        await store.rotate(first, second)
        await store.replace(second, anew)
        await store.revoke(anew, REVOKED, third)
        await store.add(in_state(stored_key("globex"), "rotated, then revoked"))
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute("SELECT * FROM signing_keys").fetchall()
        assert (4, 2) == (len(found), connection.execute("PRAGMA user_version").fetchone()[0])
        assert [checksum_of_version_0_1(row) for row in found] == [row["checksum"] for row in found]
        assert None not in [row["state_checksum"] for row in found]
        connection.execute(
            "INSERT INTO tenants (tenant_id, generation) VALUES ('acme', 1)"
            " ON CONFLICT (tenant_id) DO UPDATE SET generation = generation + 1"
        )


async def test_rows_of_version_0_1_are_read_and_get_their_state_checksum(database: Path) -> None:
    """A file of an earlier version keeps its rows; a row whose state is written next gets the checksum of its state."""
    keys = [in_state(stored_key(f"tenant-{number}", create_time_ms=CREATED), "active") for number in range(3)]
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(VERSION_0_1)
        for key in keys:
            connection.execute(
                "INSERT INTO signing_keys (tenant_id, key_id, provider, master_key_arn, wrapped_seed, public_key,"
                " status, create_time_ms, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    key.tenant_id,
                    key.key_id,
                    key.provider,
                    key.wrapped_seed.master_key_arn,
                    key.wrapped_seed.blob,
                    key.public_key,
                    key.status,
                    key.create_time_ms,
                    key.checksum(),
                ),
            )
        connection.commit()
    successor = stored_key("tenant-0", create_time_ms=ROTATED)
    async with open_sqlite(database) as store:
        assert keys == [key async for key in store.rows()]
        assert await store.rotate(keys[0], successor)
        retired = await store.get("tenant-0", keys[0].key_id)
        execute(database, "DELETE FROM signing_keys WHERE tenant_id = 'tenant-1'")
        with pytest.raises(KeyDamaged, match="tenant tenant-1"):
            await store.active("tenant-1")
    with closing(sqlite3.connect(database)) as connection:
        sums = dict(connection.execute("SELECT key_id, state_checksum FROM signing_keys").fetchall())
    assert retired is not None
    assert {
        keys[0].key_id: retired.state_checksum(),
        successor.key_id: successor.state_checksum(),
        keys[2].key_id: None,
    } == sums


async def test_tenant_with_former_keys_only_gets_no_new_key(open_store: Open) -> None:
    """A tenant that has keys but no active one is damaged: neither a first key nor anything else takes its place."""
    for name in ("rotated", "revoked"):
        former = in_state(stored_key(name), name)
        async with open_store() as store:
            await store.add(former)
            with pytest.raises(KeyDamaged, match=f"tenant {name} has had signing keys"):
                await store.active(name)
            with pytest.raises(KeyDamaged, match="no new key was made"):
                await store.create(stored_key(name))
            assert [former] == await store.all(name)


async def test_active_key_that_is_put_back_ends_the_damage(open_store: Open) -> None:
    """An import of the key that was lost makes the tenant whole."""
    former, active = in_state(stored_key(), "rotated"), stored_key(create_time_ms=ROTATED)
    async with open_store() as store:
        await store.add(former)
        assert await store.add(active)
        assert active == await store.active("acme")


async def test_revocation_of_the_active_key_leaves_a_successor(open_store: Open) -> None:
    """Whoever revokes the only key of a tenant is not told of damage."""
    first, second = stored_key(), stored_key(create_time_ms=REVOKED)
    async with open_store() as store:
        await store.create(first)
        assert await store.revoke(first, REVOKED, second)
        assert second == await store.active("acme")


async def test_invalidated_tenant_without_keys_gets_its_first_one(open_store: Open) -> None:
    """A generation above 0 alone does not mean that there was a key: an unknown tenant may be invalidated."""
    key = stored_key()
    async with open_store() as store:
        await store.raise_generation("acme")
        assert (None, key) == (await store.active("acme"), await store.create(key))


async def _delete(database: Path) -> None:
    execute(database, "DELETE FROM signing_keys")


async def _retire(database: Path) -> None:
    execute(database, "UPDATE signing_keys SET status = 'rotated', rotate_time_ms = 1")


async def _move(database: Path) -> None:
    execute(database, "UPDATE signing_keys SET tenant_id = 'globex'")


@pytest.mark.parametrize("lose", [_delete, _retire, _move])
async def test_only_key_that_is_lost_is_missed(database: Path, lose: Callable[[Path], Awaitable[None]]) -> None:
    """SQLite marks a tenant that had an active key: not even the loss of its last row gives it a new one."""
    async with open_sqlite(database) as store:
        await store.create(stored_key())
        await lose(database)
    async with open_sqlite(database) as store:
        for attempt in (store.active("acme"), store.create(stored_key())):
            with pytest.raises(KeyDamaged):
                await attempt


async def test_many_keys_are_read_at_once(open_store: Open) -> None:
    """Of 250 ids those are returned that the tenant has, whatever their status; other tenants' are not."""
    keys = [in_state(stored_key(create_time_ms=CREATED), name) for name in STATES]
    other = stored_key("globex")
    async with open_store() as store:
        for key in (*keys, other):
            await store.add(key)
        ids = (
            {key.key_id for key in (*keys, other)} | {f"{number:032x}" for number in range(250)} | {"x" * 2000, "\x00"}
        )
        assert {key.key_id: key for key in keys} == await store.get_many("acme", ids)
        assert {keys[0].key_id: keys[0]} == await store.get_many("acme", {keys[0].key_id})
        assert {} == await store.get_many("acme", {"x" * 2000}) == await store.get_many("acme", set())
