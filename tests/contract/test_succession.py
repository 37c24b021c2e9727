"""How one signing key succeeds another, in every key store: at once or not at all, whoever else does what meanwhile."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from betrace_kms_server.core.keys import StoredKey, WrappedKey
from betrace_kms_server.stores.protocol import KeyStore

from tests.contract.doubles import Open
from tests.contract.samples import ARN, stored_key

LATER = 1_700_000_100_000
LATEST = 1_700_000_200_000


def successor(tenant_id: str = "acme") -> StoredKey:
    """Return a key that was made later than the first one."""
    return stored_key(tenant_id, create_time_ms=LATER)


def rotated(key: StoredKey, time_ms: int = LATER) -> StoredKey:
    """Return what a key is after its rotation."""
    return replace(key, status="rotated", rotate_time_ms=time_ms)


def revoked(key: StoredKey, time_ms: int = LATEST) -> StoredKey:
    """Return what a key is after its revocation."""
    return replace(key, status="revoked", revoke_time_ms=time_ms)


async def state(store: KeyStore, tenant_id: str = "acme") -> tuple[set[StoredKey], StoredKey | None, int]:
    """Return all that a store tells of a tenant: its keys, its active key and its generation."""
    return set(await store.all(tenant_id)), await store.active(tenant_id), await store.generation(tenant_id)


async def rotated_once(store: KeyStore) -> tuple[StoredKey, StoredKey]:
    """Make a tenant with two keys, and return them: the former one as it is now, and the active one."""
    first, second = stored_key(), successor()
    await store.create(first)
    assert await store.rotate(first, second)
    return rotated(first), second


async def test_successor_takes_the_place_of_the_active_key(open_store: Open) -> None:
    """After a rotation the former key tells when it was, both are found, and the generation is higher."""
    first, second = stored_key(), successor()
    async with open_store() as store:
        await store.create(first)
        before = await store.generation("acme")
        assert await store.rotate(first, second) is True
        assert (rotated(first), second) == (
            await store.get("acme", first.key_id),
            await store.get("acme", second.key_id),
        )
        keys, active, generation = await state(store)
        assert ({rotated(first), second}, second) == (keys, active)
        assert generation > before


async def test_succession_survives_the_daemon(open_store: Open) -> None:
    """Keys, statuses, times and the generation are there when the store is opened again."""
    async with open_store() as store:
        first, second = await rotated_once(store)
        assert await store.revoke(first, LATEST, None)
        before = await state(store)
    async with open_store() as store:
        assert before == await state(store)
        assert {revoked(first), second} == before[0]


async def test_key_that_is_not_there_is_not_rotated(open_store: Open) -> None:
    """A former key that the store does not hold, or that is another tenant's, makes no successor."""
    async with open_store() as store:
        other = await store.create(stored_key("globex"))
        assert False is await store.rotate(stored_key(key_id=other.key_id), successor())
        assert (set(), None, 0) == await state(store)
        assert other == await store.active("globex")


async def test_other_tenants_are_left_alone(open_store: Open) -> None:
    """A rotation and a revocation change no other tenant, not even one with a key of the same id."""
    first, other = stored_key(key_id="0" * 32), stored_key("globex", key_id="0" * 32)
    async with open_store() as store:
        for key in (first, other):
            await store.create(key)
        before = await state(store, "globex")
        assert await store.rotate(first, successor())
        assert await store.revoke(rotated(first), LATEST, None)
        assert before == await state(store, "globex")


async def test_key_is_rotated_once(open_store: Open) -> None:
    """Who wants to rotate a key that is not active any more, whatever they believe, changes nothing."""
    async with open_store() as store:
        first, second = await rotated_once(store)
        before = await state(store)
        assert False is await store.rotate(first, successor())
        assert False is await store.rotate(replace(first, status="active", rotate_time_ms=None), successor())
        assert False is await store.rotate(first, replace(successor(), key_id=second.key_id))
        assert before == await state(store)
        third = stored_key(create_time_ms=LATEST)
        assert await store.rotate(second, third) is True
        assert False is await store.rotate(first, third)


async def test_known_key_is_no_successor(open_store: Open) -> None:
    """A successor with the id of a key that is there takes nobody's place."""
    async with open_store() as store:
        first, second = await rotated_once(store)
        before = await state(store)
        for key_id in (first.key_id, second.key_id):
            assert False is await store.rotate(second, replace(successor(), key_id=key_id))
            assert False is await store.revoke(second, LATEST, replace(successor(), key_id=key_id))
        assert before == await state(store)


async def test_rotation_that_is_repeated_is_done_once(open_store: Open) -> None:
    """A try whose answer was lost may be repeated: it is recognised, also when much has happened since."""
    first, second, third = stored_key(), successor(), stored_key(create_time_ms=LATEST)
    rewrapped = replace(second, wrapped_seed=WrappedKey(b"wrapped anew", ARN))
    async with open_store() as store:
        await store.create(first)
        assert (True, True) == (await store.rotate(first, second), await store.rotate(first, second))
        assert {rotated(first), second} == set(await store.all("acme"))
        await store.replace(second, rewrapped)
        assert await store.rotate(first, second) is True
        assert await store.rotate(rewrapped, third)
        assert await store.revoke(rotated(first), LATEST, None)
        assert await store.rotate(first, second) is True
        keys, active, _ = await state(store)
        assert ({revoked(rotated(first)), rotated(rewrapped, LATEST), third}, third) == (keys, active)


async def test_rotation_and_a_new_wrapping_do_not_undo_each_other(open_store: Open) -> None:
    """A key may be wrapped anew before its rotation or after it, by somebody who does not know of the other."""
    first, second = stored_key(), successor()
    anew, again = (replace(first, wrapped_seed=WrappedKey(blob, ARN)) for blob in (b"wrapped anew", b"and again"))
    async with open_store() as store:
        await store.create(first)
        await store.replace(first, anew)
        assert await store.rotate(first, second) is True
        assert {rotated(anew), second} == set(await store.all("acme"))
        await store.replace(anew, again)
        keys, active, _ = await state(store)
        assert ({rotated(again), second}, second) == (keys, active)


async def test_active_key_is_revoked_with_a_successor(open_store: Open) -> None:
    """A revoked active key tells when it was, and was never rotated; its successor signs, the generation is higher."""
    first, second = stored_key(), successor()
    async with open_store() as store:
        await store.create(first)
        before = await store.generation("acme")
        assert await store.revoke(first, LATEST, second) is True
        keys, active, generation = await state(store)
        assert ({revoked(first), second}, second) == (keys, active)
        assert generation > before


async def test_rotated_key_is_revoked(open_store: Open) -> None:
    """A former key that is revoked still tells when it was rotated; the active key stays, the generation is higher."""
    async with open_store() as store:
        first, second = await rotated_once(store)
        before = await store.generation("acme")
        assert await store.revoke(first, LATEST, None) is True
        keys, active, generation = await state(store)
        assert ({revoked(first), second}, second) == (keys, active)
        assert generation > before


async def test_active_key_is_not_revoked_without_a_successor(open_store: Open) -> None:
    """That would leave a tenant which cannot sign, so it is an error of the caller."""
    key = stored_key()
    async with open_store() as store:
        await store.create(key)
        before = await state(store)
        with pytest.raises(ValueError, match="successor"):
            await store.revoke(key, LATEST, None)
        assert before == await state(store)


async def test_key_that_is_not_there_is_not_revoked(open_store: Open) -> None:
    """A key that the store does not hold is not marked, and makes no successor."""
    async with open_store() as store:
        assert False is await store.revoke(stored_key(), LATEST, successor())
        assert False is await store.revoke(rotated(stored_key()), LATEST, None)
        assert (set(), None, 0) == await state(store)


async def test_key_whose_status_has_changed_is_not_revoked(open_store: Open) -> None:
    """Who does not know a key's status changes nothing, and can look again."""
    async with open_store() as store:
        first, second = await rotated_once(store)
        before = await state(store)
        assert False is await store.revoke(replace(first, status="active", rotate_time_ms=None), LATEST, successor())
        assert False is await store.revoke(rotated(second), LATEST, None)
        assert before == await state(store)


async def test_revocation_that_is_repeated_is_done_once(open_store: Open) -> None:
    """A repeated try is recognised by its time and its successor; any other changes nothing."""
    first, second = stored_key(), successor()
    async with open_store() as store:
        await store.create(first)
        assert (True, True) == (await store.revoke(first, LATEST, second), await store.revoke(first, LATEST, second))
        before = await state(store)
        assert {revoked(first), second} == before[0]
        assert False is await store.revoke(first, LATEST, successor())
        assert False is await store.revoke(first, LATEST + 1, second)
        assert False is await store.revoke(revoked(first), LATEST + 1, None)
        assert before == await state(store)


async def test_revocation_of_a_former_key_may_be_repeated(open_store: Open) -> None:
    """Without a successor the time alone tells that it is the same try."""
    async with open_store() as store:
        first, _ = await rotated_once(store)
        assert (True, True) == (await store.revoke(first, LATEST, None), await store.revoke(first, LATEST, None))
        assert False is await store.revoke(first, LATEST + 1, None)
        assert revoked(first) == await store.get("acme", first.key_id)


async def test_rotations_at_once_have_one_winner(open_store: Open) -> None:
    """However many rotate a key at once, in two daemons, one does it, and nothing of the others is left."""
    first, successors = stored_key(), [successor() for _ in range(20)]
    async with open_store() as one, open_store() as other:
        await one.create(first)
        stores = [one, other] * 10
        results = await asyncio.gather(
            *(store.rotate(first, key) for store, key in zip(stores, successors, strict=True))
        )
        assert 1 == sum(results)
        winner = successors[results.index(True)]
        assert ({rotated(first), winner}, winner) == (await state(one))[:2]
        assert await state(one) == await state(other)


async def test_rotations_and_revocations_at_once_have_one_winner(open_store: Open) -> None:
    """One key has one end, and so one successor."""
    first, successors = stored_key(), [successor() for _ in range(20)]
    async with open_store() as store:
        await store.create(first)
        rotations = [store.rotate(first, key) for key in successors[::2]]
        revocations = [store.revoke(first, LATEST, key) for key in successors[1::2]]
        results = await asyncio.gather(*(job for pair in zip(revocations, rotations, strict=True) for job in pair))
        order = [key for pair in zip(successors[1::2], successors[::2], strict=True) for key in pair]
        assert 1 == sum(results)
        assert order[results.index(True)] == await store.active("acme")
        assert 2 == len(await store.all("acme"))


async def worker(store: KeyStore, tenants: Sequence[str], chance: random.Random, made: dict[str, set[str]]) -> int:
    """Create, rotate and revoke for a while; note each key that was made, and return how often that succeeded."""
    successes = 0
    for _ in range(10):
        tenant_id = chance.choice(tenants)
        key = await store.create(stored_key(tenant_id))
        next_key = successor(tenant_id)
        if chance.random() < 0.5:
            done = await store.rotate(key, next_key)
        else:
            done = await store.revoke(key, LATEST, next_key)
        if done:
            made[tenant_id] |= {key.key_id, next_key.key_id}
            successes += 1
        assert None is not await store.active(tenant_id)
    return successes


async def test_everything_at_once_leaves_one_active_key(open_store: Open) -> None:
    """Two daemons create, rotate and revoke at once: no key that they were told of is lost, no tenant has two."""
    tenants = ("acme", "globex", "initech")
    made: dict[str, set[str]] = {tenant: set() for tenant in tenants}
    async with open_store() as one, open_store() as other:
        successes = await asyncio.gather(
            *(worker(store, tenants, random.Random(seed), made) for seed, store in enumerate([one, other] * 3))  # noqa: S311
        )
        keys = {tenant: await one.all(tenant) for tenant in tenants}
        generations = [await other.generation(tenant) for tenant in tenants]
    assert made == {tenant: {key.key_id for key in of_tenant} for tenant, of_tenant in keys.items()}
    assert [1, 1, 1] == [sum(key.status == "active" for key in of_tenant) for of_tenant in keys.values()]
    assert sum(successes) == sum(map(len, keys.values())) - len(tenants)
    assert all(
        generation >= len(of_tenant) - 1 for generation, of_tenant in zip(generations, keys.values(), strict=True)
    )


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13, 50])
@pytest.mark.parametrize("verb", ["rotate", "revoke"])
async def test_cancelled_caller_leaves_nothing_half_done(open_store: Open, verb: str, steps: int) -> None:
    """A caller may go at any moment: others go on, and the same try, repeated, ends as if it had been the first."""
    first, second = stored_key(), successor()
    async with open_store() as store:
        await store.create(first)
        before = await store.generation("acme")

        async def change() -> bool:
            return await (store.rotate(first, second) if verb == "rotate" else store.revoke(first, LATEST, second))

        task = asyncio.create_task(change())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, store.create(stored_key("globex")), return_exceptions=True)
        assert None is not await store.active("globex")
        assert await change() is True
        keys, active, generation = await state(store)
        assert ({rotated(first) if verb == "rotate" else revoked(first), second}, second) == (keys, active)
        assert generation > before


async def test_cancelled_callers_among_others_leave_one_winner(open_store: Open) -> None:
    """When half of those who rotate a key at once go away, the key still has one successor."""
    first = stored_key()
    async with open_store() as store:
        await store.create(first)
        tasks = [asyncio.create_task(store.rotate(first, successor())) for _ in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, bool | asyncio.CancelledError) for result in results)
        keys = await store.all("acme")
        assert ["active", "rotated"] == sorted(key.status for key in keys)
