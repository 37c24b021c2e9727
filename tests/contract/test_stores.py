"""What every key store must do. A new one joins by an entry in STORES of conftest.py."""

import asyncio
from dataclasses import replace

import pytest
from betrace_kms_server.core.errors import StoreUnavailable
from betrace_kms_server.core.keys import StoredKey, WrappedKey

from tests.contract.doubles import Open, StoreKind
from tests.contract.samples import ARN, stored_key

OTHER_ARN = ARN.replace("us-east-1", "eu-west-1")


async def test_created_key_is_given_back(open_store: Open) -> None:
    """The first key of a tenant is its active key, field by field as it was given."""
    key = stored_key()
    async with open_store() as store:
        assert key == await store.create(key)


async def test_new_store_seals_with_a_key_type_of_its_own(open_store: Open) -> None:
    """A store that was made new says so for good: a restart, and keys in it, change nothing."""
    for _ in range(2):
        async with open_store() as store:
            assert await store.sealing_key_type() == "sealing"
            await store.create(stored_key())


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
    """Every master key that wrapped a key is told once."""
    async with open_store() as store:
        await store.create(stored_key("acme"))
        await store.create(stored_key("globex"))
        await store.create(stored_key("initech", wrapped_seed=WrappedKey(b"seed", OTHER_ARN)))
        assert {ARN, OTHER_ARN} == await store.wrapped_by()


async def test_key_is_replaced_by_itself_wrapped_anew(open_store: Open) -> None:
    """A row takes the same key under another master key, for good."""
    key = stored_key()
    rewrapped = replace(key, wrapped_seed=WrappedKey(b"wrapped anew", OTHER_ARN))
    async with open_store() as store:
        await store.create(key)
        await store.replace(key, rewrapped)
        assert (rewrapped, rewrapped) == (await store.active("acme"), await store.get("acme", key.key_id))
    async with open_store() as store:
        assert (rewrapped, {OTHER_ARN}) == (await store.active("acme"), await store.wrapped_by())


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
        assert {(key.tenant_id, key.key_id) for key in others} == set(await store.wrapped_by_other_keys(ARN))


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


async def test_check_tells_that_nothing_can_be_written(store_kind: StoreKind) -> None:
    """A store that is still read but would not keep a new key fails the check."""
    key = stored_key()
    async with store_kind.open() as store:
        await store.create(key)
        await store_kind.forbid_writes(store)
        with pytest.raises(StoreUnavailable):
            await store.check()
        assert key == await store.active("acme")


async def test_rows_are_all_keys_of_all_tenants(open_store: Open) -> None:
    """What an export reads is every key there is, field by field, once."""
    keys = [stored_key(f"tenant-{number % 7}", status="rotated", rotate_time_ms=number) for number in range(30)]
    keys += [stored_key(f"tenant-{number}") for number in range(7)]
    keys.append(stored_key("acme", status="revoked", rotate_time_ms=5, revoke_time_ms=6))
    async with open_store() as store:
        assert [] == [key async for key in store.rows()]
        for key in keys:
            await store.add(key)
        found = [key async for key in store.rows()]
    assert (len(keys), set(keys)) == (len(found), set(found))


async def test_tenants_with_an_old_active_key_are_told(open_store: Open) -> None:
    """A tenant is told if its active key is older than the time; how old its former keys are is not asked."""
    async with open_store() as store:
        assert [] == [tenant async for tenant in store.created_before(2**53)]
        for number in range(20):
            await store.create(stored_key(f"tenant-{number:02}", create_time_ms=1_000 + number))
        await store.add(stored_key("tenant-15", status="rotated", create_time_ms=1, rotate_time_ms=2))
        await store.add(stored_key("tenant-16", status="revoked", create_time_ms=1, revoke_time_ms=2))
        await store.add(stored_key("no-active-key", status="revoked", create_time_ms=1, revoke_time_ms=2))
        found = [tenant async for tenant in store.created_before(1_012)]
        assert [f"tenant-{number:02}" for number in range(12)] == sorted(found)


@pytest.mark.parametrize(
    "key",
    [
        stored_key(),
        stored_key(status="rotated", rotate_time_ms=1_700_000_000_001),
        stored_key(status="revoked", revoke_time_ms=1_700_000_000_002),
        stored_key(status="revoked", rotate_time_ms=1_700_000_000_001, revoke_time_ms=1_700_000_000_002),
    ],
    ids=["active", "rotated", "revoked", "rotated, then revoked"],
)
async def test_key_is_put_back_as_it_was(open_store: Open, key: StoredKey) -> None:
    """A key keeps its status and its times, for good."""
    async with open_store() as store:
        assert await store.add(key) is True
    async with open_store() as store:
        assert ([key], key) == (await store.all("acme"), await store.get("acme", key.key_id))


async def test_key_that_is_there_is_not_put_back(open_store: Open) -> None:
    """Whatever is put back under the id of a key that is there, that key stays as it is."""
    key = stored_key()
    others = [key, stored_key(key_id=key.key_id), replace(key, status="revoked", revoke_time_ms=1)]
    async with open_store() as store:
        await store.create(key)
        assert [False, False, False] == [await store.add(other) for other in others]
        assert [key] == await store.all("acme")


async def test_active_key_is_not_put_beside_another(open_store: Open) -> None:
    """A tenant has one active key, but room for former ones, and other tenants are not concerned."""
    key, other = stored_key(), stored_key()
    former = replace(other, status="rotated", rotate_time_ms=1_700_000_000_001)
    async with open_store() as store:
        assert (True, False, True) == (await store.add(key), await store.add(other), await store.add(former))
        assert await store.add(stored_key("globex")) is True
        assert {key, former} == set(await store.all("acme"))
        assert key == await store.create(stored_key())


async def test_keys_that_are_put_back_at_once_are_there_once(open_store: Open) -> None:
    """Two imports of one export at once, in two processes, make one key each, and one of them did it."""
    keys = [stored_key(f"tenant-{number}") for number in range(5)]
    async with open_store() as one, open_store() as other:
        jobs = [store.add(key) for key in keys for store in (one, other)]
        assert 5 == sum(await asyncio.gather(*jobs))
        assert set(keys) == {key async for key in one.rows()}


async def test_generation_rises(open_store: Open) -> None:
    """A tenant's generation is 0 at first, and higher each time it is raised, whoever looks; others keep theirs."""
    async with open_store() as store, open_store() as other:
        seen = [await other.generation("acme")]
        for _ in range(3):
            await store.raise_generation("acme")
            seen.append(await other.generation("acme"))
        assert (0, sorted(set(seen)), 0) == (seen[0], seen, await store.generation("globex"))
    async with open_store() as store:
        assert seen[-1] == await store.generation("acme")


async def test_generations_that_are_raised_at_once_all_count(open_store: Open) -> None:
    """No rise is lost between two daemons."""
    async with open_store() as one, open_store() as other:
        await asyncio.gather(*(store.raise_generation("acme") for _ in range(10) for store in (one, other)))
        assert 20 <= await one.generation("acme")
