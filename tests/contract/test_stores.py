"""What every key store must do. A new one joins by an entry in STORES."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_server.errors import StoreUnavailable
from betrace_kms_server.keys import WrappedKey
from betrace_kms_server.stores.protocol import KeyStore
from betrace_kms_server.stores.sqlite import DATABASE_FILE, open_sqlite

from tests.contract.samples import ARN, stored_key

OTHER_ARN = ARN.replace("us-east-1", "eu-west-1")

Open = Callable[[], AbstractAsyncContextManager[KeyStore]]

STORES: Mapping[str, Callable[[Path], AbstractAsyncContextManager[KeyStore]]] = {
    "sqlite": lambda folder: open_sqlite(folder / DATABASE_FILE),
}
"""For each kind of store, how to open one. The same folder means the same store."""

FORBID_WRITES: Mapping[str, Callable[[Any], Awaitable[object]]] = {
    "sqlite": lambda store: store._database.execute_fetchall("PRAGMA query_only=ON"),
}
"""For each kind of store, how to keep an open one from writing."""


@pytest.fixture(params=STORES)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Give, for every kind of store, what opens one that is empty at first."""
    return partial(STORES[request.param], tmp_path)


async def test_created_key_is_given_back(open_store: Open) -> None:
    """The first key of a tenant is its active key, field by field as it was given."""
    key = stored_key()
    async with open_store() as store:
        assert key == await store.create(key)


async def test_created_key_is_found(open_store: Open) -> None:
    """A created key is found as the tenant's active key and by its id."""
    key = stored_key()
    async with open_store() as store:
        await store.create(key)
        assert (key, key) == (await store.active("acme"), await store.get("acme", key.key_id))


async def test_second_key_of_a_tenant_loses(open_store: Open) -> None:
    """A tenant that has an active key keeps it, and who came later gets that one."""
    first, second = stored_key(), stored_key()
    async with open_store() as store:
        await store.create(first)
        assert first == await store.create(second)
        assert (first, None) == (await store.active("acme"), await store.get("acme", second.key_id))


async def test_key_that_is_created_twice_is_there_once(open_store: Open) -> None:
    """A creation that is repeated, because its answer was lost, returns the same key."""
    key = stored_key()
    async with open_store() as store:
        await store.create(key)
        assert key == await store.create(key)


async def test_key_with_a_known_id_does_not_replace(open_store: Open) -> None:
    """Not even a key with the id of one that is there takes its place."""
    first = stored_key()
    second = stored_key(key_id=first.key_id)
    async with open_store() as store:
        await store.create(first)
        assert first == await store.create(second)
        assert first == await store.get("acme", first.key_id)


async def test_creations_at_once_agree_on_one_winner(open_store: Open) -> None:
    """However many create a tenant's key at once, all get the same one."""
    keys = [stored_key() for _ in range(50)]
    async with open_store() as store:
        winners = await asyncio.gather(*(store.create(key) for key in keys))
        winner = await store.active("acme")
        assert winner in keys
        assert [winner] * 50 == winners


async def test_two_daemons_agree_on_one_winner(open_store: Open) -> None:
    """Two daemons that create at once on one store agree as well."""
    first, second = stored_key(), stored_key()
    async with open_store() as one, open_store() as other:
        mine, theirs = await asyncio.gather(one.create(first), other.create(second))
        assert mine == theirs
        assert (mine, mine) == (await one.active("acme"), await other.active("acme"))


async def test_unknown_tenant_has_no_key(open_store: Open) -> None:
    """A tenant that never had a key has none, active or not."""
    key = stored_key("acme")
    async with open_store() as store:
        await store.create(key)
        assert (None, None) == (await store.active("globex"), await store.get("globex", "0" * 32))


async def test_unknown_key_is_not_found(open_store: Open) -> None:
    """A key id that the tenant never had is not found."""
    async with open_store() as store:
        await store.create(stored_key("acme"))
        assert None is await store.get("acme", "0" * 32)


async def test_key_of_another_tenant_is_not_found(open_store: Open) -> None:
    """A key is found under its own tenant only."""
    key = stored_key("acme")
    async with open_store() as store:
        await store.create(key)
        await store.create(stored_key("globex"))
        assert None is await store.get("globex", key.key_id)


@pytest.mark.parametrize("other", ["Acme", "acme.", "acme:", "acm", "acme\u0301", "acme%", "a_me", ""])
async def test_tenants_are_compared_byte_for_byte(open_store: Open, other: str) -> None:
    """A tenant id that only looks alike is another tenant."""
    async with open_store() as store:
        await store.create(stored_key("acme"))
        assert None is await store.active(other)


async def test_each_tenant_has_its_own_key(open_store: Open) -> None:
    """Tenants do not stand in each other's way."""
    keys = {tenant: stored_key(tenant) for tenant in ("acme", "globex", "Acme")}
    async with open_store() as store:
        for key in keys.values():
            await store.create(key)
        assert keys == {tenant: await store.active(tenant) for tenant in keys}


async def test_one_key_id_may_serve_two_tenants(open_store: Open) -> None:
    """A key id means something only together with its tenant."""
    mine = stored_key("acme")
    theirs = stored_key("globex", key_id=mine.key_id)
    async with open_store() as store:
        await store.create(mine)
        assert theirs == await store.create(theirs)
        assert mine == await store.get("acme", mine.key_id)


async def test_longest_values_are_kept(open_store: Open) -> None:
    """A row holds the longest tenant id and the largest wrapped key that there are."""
    key = stored_key("x" * 128, wrapped_seed=WrappedKey(b"\x00\xff" * 3072, ARN))
    async with open_store() as store:
        await store.create(key)
        assert key == await store.active("x" * 128)


async def test_keys_survive_the_daemon(open_store: Open) -> None:
    """What was created is there when the store is opened again."""
    key = stored_key()
    async with open_store() as store:
        await store.create(key)
    async with open_store() as store:
        assert (key, key) == (await store.active("acme"), await store.get("acme", key.key_id))


async def test_empty_store_was_wrapped_by_nobody(open_store: Open) -> None:
    """Before there is a key, no provider has wrapped one."""
    async with open_store() as store:
        assert set() == await store.wrapped_by()


async def test_store_tells_who_wrapped_its_keys(open_store: Open) -> None:
    """Every provider and master key that wrapped a key is told once."""
    async with open_store() as store:
        await store.create(stored_key("acme"))
        await store.create(stored_key("globex"))
        await store.create(stored_key("initech", wrapped_seed=WrappedKey(b"seed", OTHER_ARN)))
        await store.create(stored_key("umbrella", provider="local"))
        assert {("aws", ARN), ("aws", OTHER_ARN), ("local", ARN)} == await store.wrapped_by()


async def test_key_is_replaced_by_itself_wrapped_anew(open_store: Open) -> None:
    """A row takes the same key under another master key, for good."""
    key = stored_key()
    rewrapped = replace(key, wrapped_seed=WrappedKey(b"wrapped anew", OTHER_ARN))
    async with open_store() as store:
        await store.create(key)
        await store.replace(key, rewrapped)
        assert (rewrapped, rewrapped) == (await store.active("acme"), await store.get("acme", key.key_id))
    async with open_store() as store:
        assert (rewrapped, {("aws", OTHER_ARN)}) == (await store.active("acme"), await store.wrapped_by())


async def test_row_that_has_changed_is_not_replaced(open_store: Open) -> None:
    """Who replaces what is not there any more, because another daemon was faster, changes nothing."""
    key = stored_key()
    faster, slower = (replace(key, wrapped_seed=WrappedKey(blob, OTHER_ARN)) for blob in (b"faster", b"slower"))
    async with open_store() as store:
        await store.create(key)
        await store.replace(key, faster)
        await store.replace(key, slower)
        assert faster == await store.active("acme")


async def test_replacing_creates_nothing(open_store: Open) -> None:
    """A key that the store does not hold is not there after a replacement either."""
    key = stored_key()
    async with open_store() as store:
        await store.replace(key, replace(key, wrapped_seed=WrappedKey(b"wrapped anew", OTHER_ARN)))
        assert None is await store.active("acme")


async def test_store_tells_which_keys_another_master_key_wrapped(open_store: Open) -> None:
    """Every key that is not under the given master key is told by tenant and id."""
    mine = stored_key("acme")
    others = [stored_key(tenant, wrapped_seed=WrappedKey(b"seed", OTHER_ARN)) for tenant in ("globex", "initech")]
    async with open_store() as store:
        for key in (mine, *others):
            await store.create(key)
        assert {(key.tenant_id, key.key_id) for key in others} == set(await store.not_wrapped_by(ARN))


async def test_check_passes_and_changes_nothing(open_store: Open) -> None:
    """A store that would keep a new key says so, whether it is empty or not, and holds what it held."""
    key = stored_key()
    async with open_store() as store:
        await store.check()
        assert set() == await store.wrapped_by()
        await store.create(key)
        await store.check()
    async with open_store() as store:
        assert [key] == await store.all("acme")


async def test_checks_and_creations_at_once_do_not_disturb_each_other(open_store: Open) -> None:
    """A check between the writes of others neither fails nor takes a key away."""
    keys = {f"tenant-{number}": stored_key(f"tenant-{number}") for number in range(20)}
    async with open_store() as store:
        await asyncio.gather(*(job for key in keys.values() for job in (store.create(key), store.check())))
        assert keys == {tenant: await store.active(tenant) for tenant in keys}


@pytest.mark.parametrize("kind", STORES)
async def test_check_tells_that_nothing_can_be_written(kind: str, tmp_path: Path) -> None:
    """A store that is still read but would not keep a new key fails the check."""
    key = stored_key()
    async with STORES[kind](tmp_path) as store:
        await store.create(key)
        await FORBID_WRITES[kind](store)
        with pytest.raises(StoreUnavailable):
            await store.check()
        assert key == await store.active("acme")
