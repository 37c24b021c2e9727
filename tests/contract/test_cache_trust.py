"""What the caches keep: nothing that was not found good, nothing large of a caller, nothing that is out of date."""

import asyncio
import gc
import os
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from betrace_kms_envelope import MAX_HEADER_BYTES, Message
from betrace_kms_server.cache.generations import Generations
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.errors import AccessDenied, DoesNotOpen, KeyDamaged, StoreUnavailable
from betrace_kms_server.core.shredding import TenantHead
from betrace_kms_server.data_keys.keyring import KeyRing, digest
from structlog.testing import capture_logs

from tests.contract.doubles import CountedLocalProvider, FakeClock

NewCache = Callable[..., KeyCache]
KEY = ("signing key", "arn", "acme")


@pytest.fixture
def kms() -> CountedLocalProvider:
    """Give a provider that counts."""
    return CountedLocalProvider(os.urandom(32))


def fields_of(message: bytes) -> tuple[int, int]:
    """Return where the encrypted data keys of a message begin and end."""
    begin = 35 + 2 + int.from_bytes(message[35:37], "big")
    at = begin + 2
    for _ in range(3):
        at += 2 + int.from_bytes(message[at : at + 2], "big")
    return begin, at


def with_junk_keys(message: bytes, count: int, size: int) -> bytes:
    """Put wrapped keys of another provider beside the real one, which still unwraps; no tag is right any more."""
    begin, end = fields_of(message)
    junk = b"".join(
        (5).to_bytes(2, "big") + b"other" + (2 * (size.to_bytes(2, "big") + os.urandom(size))) for _ in range(count)
    )
    return message[:begin] + (count + 1).to_bytes(2, "big") + message[begin + 2 : end] + junk + message[end:]


def tampered(message: bytes) -> bytes:
    """Change the commitment of a message, whose wrapped key stays good."""
    _, end = fields_of(message)
    at = end + 5
    return message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]


async def test_forgery_leaves_no_entry_and_evicts_none(kms: CountedLocalProvider, new_cache: NewCache) -> None:
    """A message whose wrapped key unwraps and whose tags do not verify is not kept, in a full cache either."""
    cache = new_cache(2)
    ring, writer = KeyRing(kms, cache), KeyRing(kms, new_cache())
    warm = [(await writer.seal("acme", b"x", {"n": str(number)})).ciphertext for number in range(2)]
    for number, message in enumerate(warm):
        await ring.open("acme", message, {"n": str(number)})
    victim = (await writer.seal("acme", b"x", {})).ciphertext
    kms.calls.clear()
    for forged in (tampered(victim), with_junk_keys(victim, 2, 1000), with_junk_keys(victim, 9, 7000)):
        with pytest.raises(DoesNotOpen):
            await ring.open("acme", forged, {})
    assert (2, 0) == (len(cache), cache.evictions["size"])
    kms.calls.clear()
    for number, message in enumerate(warm):
        await ring.open("acme", message, {"n": str(number)})
    assert not kms.calls


async def test_forgery_beside_a_good_message_does_no_harm(kms: CountedLocalProvider, new_cache: NewCache) -> None:
    """Both share one wrapped key and one call to KMS: the good one opens and is cached, the forged one is refused."""
    message = (await KeyRing(kms, new_cache()).seal("acme", b"x", {})).ciphertext
    cache = new_cache()
    ring = KeyRing(kms, cache)
    kms.calls.clear()
    outcomes = await asyncio.gather(
        *(ring.open("acme", each, {}) for each in (tampered(message), message, tampered(message))),
        return_exceptions=True,
    )
    assert [DoesNotOpen, "Opened", DoesNotOpen] == [
        type(each) if isinstance(each, Exception) else type(each).__name__ for each in outcomes
    ]
    assert ({"Decrypt": 1}, 1) == (dict(kms.calls), len(cache))


async def test_header_is_bounded(kms: CountedLocalProvider, new_cache: NewCache) -> None:
    """A header over 128 KiB is refused before anything is unwrapped; one below it is read."""
    message = (await KeyRing(kms, new_cache()).seal("acme", b"x", {})).ciphertext
    Message.parse(with_junk_keys(message, 9, 7000))
    large = with_junk_keys(message, 9, 8000)
    assert len(large) > MAX_HEADER_BYTES
    kms.calls.clear()
    with pytest.raises(DoesNotOpen):
        await KeyRing(kms, new_cache()).open("acme", large, {})
    assert not kms.calls


async def test_cache_keys_have_a_fixed_size(kms: CountedLocalProvider, new_cache: NewCache) -> None:
    """Whatever a caller sends, context or wrapped key, is in a cache key as a hash of 32 bytes."""
    cache = new_cache()
    ring = KeyRing(kms, cache)
    for context in ({}, {"a": "b"}, {"n" * 100: "v" * 4000}):
        message = (await ring.seal("acme", b"x", context)).ciphertext
        await ring.open("acme", message, context)
        bare = (await ring.data_key("acme", 32, context)).wrapped.blob
        await ring.open("acme", bare, context)
    parts = [part for key in cache._entries for part in key]
    assert 12 == len(cache)
    assert {32} == {len(part) for part in parts if isinstance(part, bytes)}
    assert max(len(part) for part in parts if isinstance(part, str)) <= 128


def test_digest_is_unambiguous() -> None:
    """Contexts that differ in any way have different digests; their order does not matter."""
    contexts: list[dict[str, str]] = [
        {},
        {"": ""},
        {"a": "bc"},
        {"ab": "c"},
        {"a": "b", "c": ""},
        {"a": "b", "": "c"},
        {"a": "", "b": "c"},
        {"a": "b"},
    ]
    assert len(contexts) == len({digest(context) for context in contexts})
    assert digest({"a": "1", "b": "2"}) == digest({"b": "2", "a": "1"})


async def test_denied_refresh_leaves_a_newer_entry(new_cache: NewCache, clock: FakeClock) -> None:
    """A refresh that began before the tenant's keys changed says nothing of the key that was loaded since."""
    cache, denied = new_cache(), asyncio.Event()

    async def good() -> object:
        return object()

    async def refused() -> object:
        await denied.wait()
        raise AccessDenied("no")

    await cache.get_or_load(KEY, good)
    clock.now += 3000
    cache.get_nowait(KEY, refused)
    await asyncio.sleep(0)
    cache.invalidate("acme")
    newer = await cache.get_or_load(KEY, good)
    denied.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (newer, 0) == (cache.get_nowait(KEY, good), cache.evictions["denied"])


class Store:
    """Gives generations as a test says."""

    shared = True

    def __init__(self) -> None:
        self.value: Any = 4
        self.reads = 0
        self.answer: asyncio.Event | None = None

    async def head(self, tenant_id: str) -> TenantHead:
        """Read it."""
        self.reads += 1
        if self.answer is not None:
            await self.answer.wait()
        if isinstance(self.value, Exception):
            raise self.value
        return TenantHead(tenant_id, int(self.value))


def gated(store: Any, clock: FakeClock, limit: int = 100) -> tuple[Generations, KeyCache]:
    """Return a gate and a cache behind it."""
    gate = Generations(
        store, lambda tenant: cache.invalidate(tenant), max_age=60.0, max_stale=3600.0, limit=limit, clock=clock
    )
    cache = KeyCache("signing", ttl=3600.0, max_size=10, clock=clock, gate=gate)
    return gate, cache


async def test_key_that_was_loaded_while_nobody_waited_for_the_store_is_checked(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage callers do not wait for a slow read; what they load meanwhile ends when the read says so."""
    monkeypatch.setattr("betrace_kms_server.cache.generations._PATIENCE_SECONDS", 0.0)
    store = Store()
    gate, cache = gated(store, clock)
    store.value = StoreUnavailable("away")
    await gate.revalidate("other")
    store.value, store.answer = 4, asyncio.Event()
    row = "revoked key"

    async def load() -> str:
        return row

    assert "revoked key" == await cache.get_or_load(KEY, load)
    row, store.value = "new key", 5
    store.answer.set()
    await asyncio.wait_for(gate._checks["acme"], 5.0)
    assert "new key" == await cache.get_or_load(KEY, load)


async def test_warm_caller_goes_on_while_a_read_hangs(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that hangs costs one caller of a tenant a moment and the next ones nothing; its answer counts later."""
    monkeypatch.setattr("betrace_kms_server.cache.generations._PATIENCE_SECONDS", 0.01)
    store = Store()
    gate, cache = gated(store, clock)
    row = "key"

    async def load() -> str:
        return row

    await cache.get_or_load(KEY, load)
    clock.now += 60.0
    store.answer = asyncio.Event()
    row, store.value = "new key", 5
    async with asyncio.timeout(5.0):
        assert "key" == await cache.get_or_load(KEY, load)
    assert (True, 2) == (gate.is_open("acme"), store.reads)
    store.answer.set()
    await asyncio.wait_for(gate._checks["acme"], 5.0)
    assert "new key" == await cache.get_or_load(KEY, load)


async def test_defect_of_a_read_costs_no_read_per_call(clock: FakeClock) -> None:
    """A generation that cannot be understood is tried again as seldom as one that cannot be read; warm keys serve."""
    store = Store()
    _, cache = gated(store, clock)

    async def load() -> str:
        return "key"

    await cache.get_or_load(KEY, load)
    store.value, store.reads = ValueError("no number"), 0
    clock.now += 61
    for _ in range(20):
        assert "key" == await cache.get_or_load(KEY, load)
    assert 1 == store.reads
    clock.now += 6
    await cache.get_or_load(KEY, load)
    assert 2 == store.reads


@pytest.mark.parametrize("defect", [ValueError("no number"), KeyDamaged("the generation is damaged")])
async def test_defect_of_one_tenant_is_logged_once_and_is_none_of_the_store(
    clock: FakeClock, defect: Exception
) -> None:
    """Good reads of other tenants in between do not make it news, and no one is told that the store is away."""
    store = Store()
    gate, _ = gated(store, clock)
    with capture_logs() as logs:
        for _ in range(5):
            store.value = defect
            await gate.revalidate("acme")
            store.value = 1
            await gate.revalidate("globex")
            clock.now += 61
        assert ["A tenant's generation cannot be read"] == [line["event"].partition(":")[0] for line in logs]
        await gate.revalidate("acme")
        store.value = defect
        clock.now += 61
        await gate.revalidate("acme")
    assert 2 == len(logs)


async def test_refused_message_is_free_at_once(kms: CountedLocalProvider, new_cache: NewCache) -> None:
    """No cycle of an error keeps what a caller sent until the garbage collector comes."""
    forged = tampered((await KeyRing(kms, new_cache()).seal("acme", bytes(100_000), {})).ciphertext)
    ring = KeyRing(kms, new_cache())
    alive = []
    gc.collect()
    gc.disable()
    try:
        for message in (forged, with_junk_keys(forged, 2, 1000), os.urandom(100)):
            try:
                await ring.open("acme", message, {})
            except DoesNotOpen as error:
                alive.append(weakref.ref(error))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert [None] * 3 == [error() for error in alive]
    finally:
        gc.enable()


async def test_tenant_that_is_forgotten_keeps_no_keys(clock: FakeClock) -> None:
    """Beyond the limit of known generations the oldest tenant goes, and its cached keys with it."""
    store = Store()
    gate, cache = gated(store, clock, limit=2)

    async def load() -> str:
        return "key"

    for tenant in ("a", "b", "c"):
        await cache.get_or_load(("signing key", "arn", tenant), load)
    assert [False, True, True] == [gate.is_open(tenant) for tenant in "abc"]
    assert ["b", "c"] == [key[2] for key in cache._entries]


async def test_age_counts_from_the_beginning_of_a_read(clock: FakeClock) -> None:
    """What changed while an answer travelled is not in it, so the answer is as old as its question."""
    store = Store()
    gate, _ = gated(store, clock)
    store.answer = asyncio.Event()
    reading = asyncio.create_task(gate.revalidate("acme"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    clock.now += 50
    store.answer.set()
    await reading
    clock.now += 9
    assert gate.is_open("acme")
    clock.now += 1
    assert not gate.is_open("acme")
