"""What every branch key store must do. A new one joins by an entry in STORES."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from uuid import UUID, uuid4

import aioboto3
import pytest
from betrace_kms_server.core.branch_rows import (
    ACTIVE,
    BEACON,
    VERSION,
    BranchKeyRow,
    VersionRows,
    attributes_of,
    timestamp,
    type_of,
)
from betrace_kms_server.core.errors import KeyDamaged, StoreUnavailable
from betrace_kms_server.stores.branch_keys import BranchKeyStore
from betrace_kms_server.stores.dynamodb.branch_keys import open_branch_keys
from betrace_kms_server.stores.dynamodb.creation import create_table
from betrace_kms_server.stores.dynamodb.table import BRANCH_KEYS
from betrace_kms_server.stores.postgresql.branch_keys import PostgresBranchKeys
from betrace_kms_server.stores.postgresql.store import open_postgresql
from betrace_kms_server.stores.sqlite.branch_keys import SqliteBranchKeys
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE, open_sqlite

from tests.contract.postgres_peer import Place, emptied
from tests.contract.samples import ARN
from tests.moto_server import REGION, MotoServer

Delete = Callable[[str, str], Awaitable[object]]
Stored = tuple[BranchKeyStore, Delete]
"""A store, and what deletes a row behind its back."""
NOW = 1_700_000_000.0


@asynccontextmanager
async def _sqlite(request: pytest.FixtureRequest) -> AsyncIterator[Stored]:
    async with open_sqlite(request.getfixturevalue("tmp_path") / DATABASE_FILE) as store:
        yield (
            SqliteBranchKeys(store),
            lambda *row: store.fetch("DELETE FROM branch_keys WHERE branch_key_id = ? AND type = ?", *row),
        )


@asynccontextmanager
async def _dynamodb(request: pytest.FixtureRequest) -> AsyncIterator[Stored]:
    moto: MotoServer = request.getfixturevalue("moto")
    table = f"branch-keys-{secrets.token_hex(8)}"
    async for _ in create_table(table, region=REGION, endpoint=moto.url, kind=BRANCH_KEYS):
        pass
    async with (
        open_branch_keys(table, region=REGION, endpoint=moto.url) as store,
        aioboto3.Session().client("dynamodb", region_name=REGION, endpoint_url=moto.url) as client,
    ):
        yield (
            store,
            lambda branch_key_id, type_: client.delete_item(
                TableName=table, Key={"branch-key-id": {"S": branch_key_id}, "type": {"S": type_}}
            ),
        )


@asynccontextmanager
async def _postgresql(request: pytest.FixtureRequest) -> AsyncIterator[Stored]:
    place: Place = await emptied(request.getfixturevalue("postgres"))

    async def delete(branch_key_id: str, type_: str) -> None:
        place.execute(
            f"DELETE FROM betrace_kms.branch_keys WHERE branch_key_id = '{branch_key_id}' AND type = '{type_}'"  # noqa: S608
        )

    async with open_postgresql(place.conninfo) as store:
        yield PostgresBranchKeys(store.database), delete


STORES: Mapping[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Stored]]] = {
    "sqlite": _sqlite,
    "dynamodb": _dynamodb,
    "postgresql": _postgresql,
}


@pytest.fixture(params=STORES)
async def stored(request: pytest.FixtureRequest) -> AsyncIterator[Stored]:
    """Give every kind of store in turn, empty, with what deletes rows of it."""
    async with STORES[request.param](request) as stored:
        yield stored


@pytest.fixture
def store(stored: Stored) -> BranchKeyStore:
    """Give every kind of store in turn, empty."""
    return stored[0]


def row(branch_key_id: str, type_: str, *, seconds: float = NOW, **others: str) -> BranchKeyRow:
    """Return a row with random bytes for a key."""
    custom = {"aws-crypto-ec:tenantId": branch_key_id}
    attributes = attributes_of(branch_key_id, type_, kms_arn=ARN, create_time=timestamp(seconds), custom=custom)
    return BranchKeyRow({**attributes, **others}, secrets.token_bytes(100))


def rows(branch_key_id: str = "acme", *, seconds: float = NOW) -> VersionRows:
    """Return the rows of a new version."""
    type_ = type_of(uuid4())
    return VersionRows(
        row(branch_key_id, type_, seconds=seconds),
        row(branch_key_id, ACTIVE, seconds=seconds, **{VERSION: type_}),
    )


async def test_branch_key_that_was_made_is_found(store: BranchKeyStore) -> None:
    """Its active row and the row of its version are as they were given, attribute by attribute."""
    made = rows()
    assert await store.create(made, row("acme", BEACON))
    assert (made.active, made.version) == (
        await store.active("acme"),
        await store.version("acme", made.active.version),
    )


async def test_unknown_branch_key_is_not_there(store: BranchKeyStore) -> None:
    """An id, and a version of an id, that were never made are not found; also not under an id that looks alike."""
    made = rows()
    await store.create(made, row("acme", BEACON))
    for other in ("globex", "Acme", "acme.", "acm", "acme%"):
        assert (None, None) == (await store.active(other), await store.version(other, made.active.version))
    assert await store.version("acme", UUID(int=0)) is None


async def test_second_creation_changes_nothing(store: BranchKeyStore) -> None:
    """Who comes later is told so, and no row of the first is replaced."""
    made = rows()
    await store.create(made, row("acme", BEACON))
    later = rows()
    assert not await store.create(later, row("acme", BEACON))
    assert (made.active, None) == (await store.active("acme"), await store.version("acme", later.version.version))


async def test_creations_at_once_have_one_winner(store: BranchKeyStore) -> None:
    """However many make a branch key at once, exactly one does."""
    tries = [rows() for _ in range(20)]
    won = await asyncio.gather(*(store.create(each, row("acme", BEACON)) for each in tries))
    assert [each.active for each, wins in zip(tries, won, strict=True) if wins] == [await store.active("acme")]


async def test_new_version_is_active_and_old_ones_stay(store: BranchKeyStore) -> None:
    """The former version is found by its number for ever."""
    first, second, third = rows(), rows(), rows()
    await store.create(first, row("acme", BEACON))
    assert await store.add_version(first.active, second)
    assert await store.add_version(second.active, third)
    assert third.active == await store.active("acme")
    for each in (first, second, third):
        assert each.version == await store.version("acme", each.version.version)


async def test_new_version_of_a_row_that_has_changed_is_refused(store: BranchKeyStore) -> None:
    """A version that another daemon made meanwhile is not overwritten, and nothing of the later one is stored."""
    first, second, late = rows(), rows(), rows()
    await store.create(first, row("acme", BEACON))
    await store.add_version(first.active, second)
    assert not await store.add_version(first.active, late)
    assert (second.active, None) == (await store.active("acme"), await store.version("acme", late.version.version))


async def test_new_version_that_is_written_twice_is_there_once(store: BranchKeyStore) -> None:
    """A try that is repeated, because its answer was lost, is recognised."""
    first, second = rows(), rows()
    await store.create(first, row("acme", BEACON))
    assert await store.add_version(first.active, second)
    assert await store.add_version(first.active, second)
    assert second.active == await store.active("acme")


async def test_new_version_of_an_unknown_branch_key_is_refused(store: BranchKeyStore) -> None:
    """It makes no branch key without a beacon key."""
    assert not await store.add_version(rows().active, rows())
    assert await store.active("acme") is None


async def test_versions_at_once_have_one_winner(store: BranchKeyStore) -> None:
    """Of many that follow one version exactly one is stored."""
    first = rows()
    await store.create(first, row("acme", BEACON))
    tries = [rows() for _ in range(10)]
    won = await asyncio.gather(*(store.add_version(first.active, each) for each in tries))
    assert [each.active for each, wins in zip(tries, won, strict=True) if wins] == [await store.active("acme")]


@pytest.mark.parametrize("deleted", [[ACTIVE], [ACTIVE, BEACON]], ids=["active", "active and beacon"])
async def test_branch_key_that_lost_its_active_row_is_damaged(stored: Stored, deleted: list[str]) -> None:
    """Rows without an active one are no reason to make a new branch key."""
    store, delete = stored
    await store.create(rows(), row("acme", BEACON))
    for type_ in deleted:
        await delete("acme", type_)
    with pytest.raises(KeyDamaged, match="has rows, but no row branch:ACTIVE"):
        await store.active("acme")


async def test_beacon_key_is_found(stored: Stored) -> None:
    """As it was made, and one that was lost is damage."""
    store, delete = stored
    assert await store.beacon("acme") is None
    await store.create(rows(), row("acme", BEACON))
    assert row("acme", BEACON).attributes == getattr(await store.beacon("acme"), "attributes", None)
    await delete("acme", BEACON)
    with pytest.raises(KeyDamaged, match="has rows, but no row beacon:ACTIVE"):
        await store.beacon("acme")
    assert await store.active("acme")


@pytest.mark.parametrize(
    "attributes",
    [
        pytest.param({VERSION: "branch:version:0"}, id="version that is no UUID"),
        pytest.param({VERSION: str(UUID(int=1))}, id="version without prefix"),
        pytest.param({VERSION: type_of(UUID(int=0xABC)).upper()}, id="version in capitals"),
        pytest.param({"kms-arn": ""}, id="no master key"),
        pytest.param({"hierarchy-version": "3"}, id="another hierarchy"),
    ],
)
async def test_row_that_cannot_be_one_is_damaged(store: BranchKeyStore, attributes: dict[str, str]) -> None:
    """It is refused before KMS is asked about it."""
    made = rows()
    active = replace(made.active, attributes={**made.active.attributes, **attributes})
    await store.create(VersionRows(made.version, active), row("acme", BEACON))
    with pytest.raises(KeyDamaged, match="is damaged"):
        await store.active("acme")


async def test_rows_come_and_go_back_as_they_are(store: BranchKeyStore) -> None:
    """What was yielded is taken back, once, and nothing else in its place."""
    made, beacon = rows(), row("acme", BEACON)
    await store.create(made, beacon)
    found = {each.type: each async for each in store.rows()}
    assert {made.version.type: made.version, ACTIVE: made.active, BEACON: beacon} == found
    for each in found.values():
        assert each == await store.row("acme", each.type)
        assert await store.add(each)
        assert not await store.add(replace(each, enc=b"another"))
        assert each == await store.row("acme", each.type)
    lonely = rows("globex").version
    assert await store.row("globex", lonely.type) is None
    assert await store.add(lonely)
    assert lonely == await store.row("globex", lonely.type)


async def test_row_that_is_wrapped_anew_replaces_only_itself(store: BranchKeyStore) -> None:
    """Another daemon may have put a new version, or the same key wrapped anew, in its place."""
    made, arn = rows(), "arn:aws:kms:us-east-1:1:key/new"
    await store.create(made, row("acme", BEACON))
    anew = BranchKeyRow({**made.active.attributes, "kms-arn": arn}, b"anew")
    assert await store.replace(made.active, anew)
    assert anew == await store.active("acme")
    assert not await store.replace(made.active, replace(anew, enc=b"late"))
    assert anew == await store.active("acme")
    assert not await store.replace(rows("globex").active, rows("globex").active)
    assert await store.row("globex", ACTIVE) is None
    others = await store.wrapped_by_other_keys(arn)
    assert [("acme", BEACON), ("acme", made.version.type)] == sorted(others)
    assert {arn, ARN} == await store.wrapped_by()


async def test_check_leaves_nothing(store: BranchKeyStore) -> None:
    """It tells whether rows could be written, and writes none."""
    await store.create(rows(), row("acme", BEACON))
    before = {each.type: each async for each in store.rows()}
    await store.check()
    assert before == {each.type: each async for each in store.rows()}


async def test_table_that_is_gone_fails_the_check(moto: MotoServer) -> None:
    """So would each write."""
    table = f"branch-keys-{secrets.token_hex(8)}"
    async for _ in create_table(table, region=REGION, endpoint=moto.url, kind=BRANCH_KEYS):
        pass
    async with (
        open_branch_keys(table, region=REGION, endpoint=moto.url) as store,
        aioboto3.Session().client("dynamodb", region_name=REGION, endpoint_url=moto.url) as client,
    ):
        await client.update_table(TableName=table, DeletionProtectionEnabled=False)
        await client.delete_table(TableName=table)
        with pytest.raises(StoreUnavailable, match=table):
            await store.check()


async def test_old_branch_keys_are_listed(store: BranchKeyStore) -> None:
    """By the time of their newest version, and no other row counts."""
    for tenant, seconds in (("old", NOW), ("young", NOW + 10), ("rotated", NOW)):
        made = rows(tenant, seconds=seconds)
        await store.create(made, row(tenant, BEACON))
        if tenant == "rotated":
            await store.add_version(made.active, rows(tenant, seconds=NOW + 10))
    assert ["old"] == [tenant async for tenant in store.created_before(timestamp(NOW + 5))]
