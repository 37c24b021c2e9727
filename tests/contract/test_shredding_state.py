"""What every store must do for shredding: keep its state beside the generation, and delete a branch key's rows."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import NamedTuple

import aioboto3
import pytest
from betrace_kms_server.core.branch_rows import BEACON
from betrace_kms_server.core.errors import KeyDamaged, TenantPendingShred, TenantShredded
from betrace_kms_server.core.shredding import Shredding, TenantHead, shredding_of
from betrace_kms_server.stores.branch_keys import BranchKeyStore
from betrace_kms_server.stores.dynamodb.branch_keys import open_branch_keys
from betrace_kms_server.stores.dynamodb.store import open_dynamodb
from betrace_kms_server.stores.postgresql.database import Connection
from betrace_kms_server.stores.postgresql.store import PostgresStore
from betrace_kms_server.stores.protocol import KeyStore
from betrace_kms_server.stores.sqlite.branch_keys import SqliteBranchKeys
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE, SqliteStore, open_sqlite

from tests.contract.doubles import Open
from tests.contract.samples import stored_key
from tests.contract.shared_tables import emptied_tables
from tests.contract.test_branch_key_stores import row, rows
from tests.moto_server import REGION

PENDING = Shredding("pending", 1_000, 2_000)
SHREDDED = Shredding("shredded", 1_000, 2_000)


class Kind(NamedTuple):
    """What opens the stores of one kind."""

    keys: Open
    branch_keys: Callable[[], AbstractAsyncContextManager[BranchKeyStore]]


@pytest.fixture(params=["sqlite", "dynamodb"])
async def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    """Give every kind of store in turn, empty."""
    if request.param == "sqlite":
        path = tmp_path / DATABASE_FILE

        @asynccontextmanager
        async def branch_keys() -> AsyncIterator[BranchKeyStore]:
            async with open_sqlite(path) as store:
                yield SqliteBranchKeys(store)

        return Kind(lambda: open_sqlite(path), branch_keys)
    url = request.getfixturevalue("moto").url
    keys, branches = await emptied_tables(url)
    return Kind(
        lambda: open_dynamodb(keys, region=REGION, endpoint=url),
        lambda: open_branch_keys(branches, region=REGION, endpoint=url),
    )


@pytest.fixture
def open_store(kind: Kind) -> Open:
    """Give what opens a key store."""
    return kind.keys


@pytest.fixture
async def branch_store(kind: Kind) -> AsyncIterator[BranchKeyStore]:
    """Give a branch key store."""
    async with kind.branch_keys() as store:
        yield store


async def yes() -> bool:
    """Say that rows are to go."""
    return True


async def listed(store: KeyStore) -> set[tuple[str, str | None]]:
    """Return the shreddings that a store lists."""
    return {(head.tenant_id, head.record) async for head in store.shreddings()}


async def test_tenant_is_open_at_first(open_store: Open) -> None:
    """A tenant of which nothing is known, and one that has keys, are open."""
    async with open_store() as store:
        await store.create(stored_key())
        assert (TenantHead("acme", 0), TenantHead("globex", 0)) == (
            await store.head("acme"),
            await store.head("globex"),
        )
        assert set() == await listed(store)


async def test_change_of_state_is_kept_and_raises_the_generation(open_store: Open) -> None:
    """After a restart too, beside the tenant's keys, for a tenant with and without keys, and for it alone."""
    async with open_store() as store:
        key = await store.create(stored_key())
        for tenant in ("acme", "globex"):
            assert await store.set_shredding(tenant, None, PENDING)
    async with open_store() as store:
        for tenant in ("acme", "globex"):
            head = await store.head(tenant)
            assert (1, PENDING) == (head.generation, head.shredding())
        assert {("acme", PENDING.record("acme")), ("globex", PENDING.record("globex"))} == await listed(store)
        assert await store.set_shredding("acme", PENDING, None)
        assert TenantHead("acme", 2) == await store.head("acme")
        assert {("globex", PENDING.record("globex"))} == await listed(store)
        assert key == await store.active("acme")


async def test_change_that_came_second_changes_nothing(open_store: Open) -> None:
    """A state that is not what the caller read stays, and a change that is repeated is recognised."""
    async with open_store() as store:
        assert not await store.set_shredding("acme", PENDING, SHREDDED)
        assert await store.set_shredding("acme", None, PENDING)
        later = Shredding("pending", 5_000, 6_000)
        assert not await store.set_shredding("acme", None, later)
        assert not await store.set_shredding("acme", later, None)
        assert await store.set_shredding("acme", None, PENDING)
        assert PENDING == (await store.head("acme")).shredding()


async def test_cancel_and_destruction_at_once_agree(open_store: Open) -> None:
    """Of two daemons of which one cancels and one begins to destroy, exactly one has its way."""
    destroying = Shredding("destroying", 1_000, 2_000)
    async with open_store() as one, open_store() as other:
        for tenant in map(str, range(10)):
            await one.set_shredding(tenant, None, PENDING)
            cancelled, destroyed = await asyncio.gather(
                one.set_shredding(tenant, PENDING, None), other.set_shredding(tenant, PENDING, destroying)
            )
            assert cancelled is not destroyed
            assert (None if cancelled else destroying) == (await one.head(tenant)).shredding()


async def test_damaged_state_is_never_open(open_store: Open) -> None:
    """Empty, another word, cut, another tenant's or altered: DATA_LOSS; the generation is read all the same."""
    altered = PENDING.record("acme").replace("2000", "2001")
    async with open_store() as store:
        await store.set_shredding("acme", None, PENDING)
        for damage in ("", "open", "pending:1000:2000", PENDING.record("globex"), altered):
            await overwrite(store, damage)
            head = await store.head("acme")
            with pytest.raises(KeyDamaged, match="acme"):
                head.check_open()
            assert 1 == head.generation


async def overwrite(store: object, record: str) -> None:
    """Write over the state of acme behind the store's back."""
    if isinstance(store, SqliteStore):
        await store.fetch("UPDATE tenants SET shredding = ? WHERE tenant_id = 'acme'", record)
        return
    if isinstance(store, PostgresStore):

        async def put(connection: Connection) -> None:
            await connection.execute(
                "UPDATE betrace_kms.tenants SET shredding = %s WHERE tenant_id = 'acme'", (record,)
            )

        await store.database.write(put)
        return
    table, url = store._table, store._client.meta.endpoint_url  # type: ignore[attr-defined]
    async with aioboto3.Session().client("dynamodb", region_name=REGION, endpoint_url=url) as client:
        await client.update_item(
            TableName=table,
            Key={"tenant_id": {"S": "acme"}, "item": {"S": "tenant"}},
            UpdateExpression="SET shredding = :record",
            ExpressionAttributeValues={":record": {"S": record} if record else {"N": "1"}},
        )


def test_each_state_refuses_with_its_reason() -> None:
    """While it is pending it can be cancelled; from when it is destroyed it cannot."""
    for status, refusal in (
        ("pending", TenantPendingShred),
        ("destroying", TenantShredded),
        ("shredded", TenantShredded),
    ):
        state = Shredding(status, 1, 2)  # type: ignore[arg-type]
        assert state == shredding_of("acme", state.record("acme"))
        with pytest.raises(refusal):
            TenantHead("acme", 1, state.record("acme")).check_open()


async def test_every_row_of_a_branch_key_is_destroyed(branch_store: BranchKeyStore) -> None:
    """All versions, the active row and the beacon, also more than a page; other branch keys stay as they are."""
    store = branch_store
    first, other = rows(), rows("acme.")
    await store.create(first, row("acme", BEACON))
    await store.create(other, row("acme.", BEACON))
    former = first
    for _ in range(5):
        following = rows()
        assert await store.add_version(former.active, following)
        former = following
    assert 8 == await store.destroy("acme", yes)
    assert (None, None) == (await store.active("acme"), await store.version("acme", first.version.version))
    assert 0 == await store.destroy("acme", yes)
    assert (other.active, other.version) == (
        await store.active("acme."),
        await store.version("acme.", other.active.version),
    )


async def test_row_that_was_written_meanwhile_is_read_again(branch_store: BranchKeyStore) -> None:
    """`still` is asked after each read: nothing goes that was not there when it said so."""
    store = branch_store
    first, second = rows(), rows()
    await store.create(first, row("acme", BEACON))
    asked = 0

    async def once() -> bool:
        nonlocal asked
        asked += 1
        if asked == 1:
            await store.add_version(first.active, second)
        return asked == 1

    assert 2 == await store.destroy("acme", once)
    assert (second.active, second.version) == (
        await store.active("acme"),
        await store.version("acme", second.active.version),
    )
    assert 2 == asked


async def test_nothing_is_destroyed_if_it_is_not_to_be(branch_store: BranchKeyStore) -> None:
    """A shredding that was cancelled, or a tenant that was made anew, keeps its rows."""
    store = branch_store
    made = rows()

    async def no() -> bool:
        return False

    await store.create(made, row("acme", BEACON))
    assert 0 == await store.destroy("acme", no)
    assert made.active == await store.active("acme")


async def test_store_from_before_shredding_gets_the_column(tmp_path: Path) -> None:
    """Its tenants are open and keep their generation, and can be shredded."""
    path = tmp_path / DATABASE_FILE
    async with open_sqlite(path) as before:
        await before.raise_generation("acme")
    with closing(sqlite3.connect(path)) as database:
        database.execute("ALTER TABLE tenants DROP COLUMN shredding")
    async with open_sqlite(path) as after:
        assert TenantHead("acme", 1) == await after.head("acme")
        assert await after.set_shredding("acme", None, PENDING)
        assert TenantHead("acme", 2, PENDING.record("acme")) == await after.head("acme")
