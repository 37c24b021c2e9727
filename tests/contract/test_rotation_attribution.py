"""Rotation of many tenants: whose KMS calls an event names, a clock that is set back, and callers that leave."""

import asyncio
import itertools
from collections.abc import Mapping
from contextlib import AbstractContextManager

import pytest
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.errors import KmsUnreachable
from betrace_kms_server.core.key_event import KeyEvent, KmsCall, current_event, unobserved
from betrace_kms_server.core.keys import DataKey
from betrace_kms_server.providers.local import LocalProvider
from betrace_kms_server.signing_keys.lifecycle import Lifecycle
from betrace_kms_server.signing_keys.rotation import Outcome, Rotation
from betrace_kms_server.signing_keys.seeds import new_key
from betrace_kms_server.signing_keys.signer import Signer
from betrace_kms_server.stores.sqlite.store import SqliteStore

from tests.contract.doubles import FakeClock
from tests.contract.samples import stored_key


async def _unchanged(tenant_id: str) -> int:
    return 0


@pytest.mark.parametrize("failing", [False, True])
async def test_event_names_the_kms_calls_of_its_own_tenant(store: SqliteStore, failing: bool) -> None:
    """Each of a hundred rotations, done or failed, names one request id of KMS: the one of its tenant."""
    owner: dict[str, str] = {}
    numbers, events = itertools.count(), list[KeyEvent]()

    def observe(action: str, region: str) -> AbstractContextManager[KmsCall]:
        event = current_event.get()
        if event is not None:
            request_id = f"request-{next(numbers)}"
            owner[request_id] = event.tenant_id
            event.kms_request_ids.append(request_id)
        return unobserved(action, region)

    class Provider(LocalProvider):
        async def generate_data_key(self, number_of_bytes: int, context: Mapping[str, str]) -> DataKey:
            made = await super().generate_data_key(number_of_bytes, context)
            await asyncio.sleep(0)
            if failing:
                raise KmsUnreachable("no answer")
            return made

    provider = Provider(bytes(32), observe=observe)
    for number in range(100):
        key, _ = await new_key(LocalProvider(bytes(32)), f"tenant-{number}", 1_000)
        await store.create(key)
    lifecycle = Lifecycle(provider, store, _unchanged, now=FakeClock(), record=events.append)
    outcome = await Rotation(lifecycle, batch_size=30, now=FakeClock(), record=events.append).run_for_all()
    assert (Outcome(0, 100) if failing else Outcome(100, 0)) == outcome
    named = [[owner[request_id] for request_id in event.kms_request_ids] for event in events]
    assert [[event.tenant_id] for event in events] == named
    assert 100 == len(events)


@pytest.mark.parametrize("seconds", [1, 60, 86_400, 10 * 365 * 86_400])
async def test_rotation_of_all_ends_though_the_clock_is_set_back(store: SqliteStore, seconds: int) -> None:
    """Every tenant gets one new key, whose create time is later than that of the former one."""
    clock, provider = FakeClock(), LocalProvider(bytes(32))
    for number in range(150):
        key, _ = await new_key(provider, f"tenant-{number}", int(clock.now * 1000) - 1)
        await store.create(key)
    lifecycle = Lifecycle(provider, store, _unchanged, now=clock)
    rotation = Rotation(lifecycle, batch_size=100, now=clock)
    running = asyncio.create_task(rotation.run_for_all())
    await asyncio.sleep(0)
    clock.now -= seconds
    assert Outcome(150, 0) == await running
    for number in range(150):
        former, successor = await store.all(f"tenant-{number}")
        assert ("rotated", "active") == (former.status, successor.status)
        assert former.create_time_ms < successor.create_time_ms == former.rotate_time_ms


@pytest.mark.parametrize("verb", ["rotate", "revoke", "invalidate"])
async def test_change_of_keys_outlives_its_caller(store: SqliteStore, verb: str) -> None:
    """A caller that leaves while KMS or the caches are asked does not stop a change: it is stored and told."""
    key = stored_key()
    await store.create(key)
    reached, go, changed, events = asyncio.Event(), asyncio.Event(), list[str](), list[KeyEvent]()

    class Slow(LocalProvider):
        async def generate_data_key(self, number_of_bytes: int, context: Mapping[str, str]) -> DataKey:
            reached.set()
            await go.wait()
            return await super().generate_data_key(number_of_bytes, context)

    async def told(tenant_id: str) -> int:
        reached.set()
        await go.wait()
        changed.append(tenant_id)
        return 0

    lifecycle = Lifecycle(Slow(bytes(32)), store, told, now=FakeClock(), record=events.append)
    arguments = ("acme", key.key_id) if verb == "revoke" else ("acme",)
    caller = asyncio.create_task(getattr(lifecycle, verb)(*arguments))
    await reached.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go.set()
    await lifecycle.close()
    active = await store.active("acme")
    assert (["acme"], 1) == (changed, await store.generation("acme"))
    assert active is not None
    assert (verb == "invalidate") == (active.key_id == key.key_id)
    told_of = {"rotate": ["RotateKey"], "revoke": ["RevokeKey", "RotateKey"], "invalidate": []}
    assert told_of[verb] == [event.operation for event in events]


async def test_unknown_key_ids_are_read_together(store: SqliteStore, clock: FakeClock) -> None:
    """A thousand unknown ids and ten known ones cost one read."""
    reads: list[int] = []
    get_many = store.get_many

    async def counted(tenant_id: str, key_ids: set[str]) -> Mapping[str, object]:
        reads.append(len(key_ids))
        return await get_many(tenant_id, key_ids)

    store.get_many = counted  # type: ignore[method-assign, assignment]
    keys = [stored_key(status="rotated", create_time_ms=number, rotate_time_ms=number) for number in range(10)]
    for key in keys:
        await store.add(key)
    caches = [KeyCache(kind, ttl=60.0, max_size=100, clock=clock) for kind in ("signing", "public")]
    signer = Signer(
        LocalProvider(bytes(32)), store, signing_keys=caches[0], public_keys=caches[1], auto_create=True, now=clock
    )
    await signer.verifier("acme", [*(key.key_id for key in keys), *(f"{number:032x}" for number in range(1000))])
    assert ([1010], 10) == (reads, len(caches[1]))
    await signer.verifier("acme", [key.key_id for key in keys])
    assert [1010] == reads
    for cache in caches:
        await cache.close()
