"""KeyCache: single flight, invalidation, expiry, refresh-ahead and bounds, on a clock that the test moves."""

import asyncio
import gc
import logging
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.errors import Stopping

TTL = 1000.0
KEY = ("data key", "arn", "acme", 32)
SECOND = ("data key", "arn", "acme", 16)
FOREIGN = ("data key", "arn", "globex", 32)


class Clock:
    """Time that stands still unless the test moves it."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


class Loads:
    """A load whose runs the test ends one by one, by result or by exception."""

    def __init__(self) -> None:
        self.runs: list[asyncio.Future[str]] = []

    async def __call__(self) -> str:
        run: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.runs.append(run)
        return await run


@pytest.fixture
def clock() -> Clock:
    return Clock()


def new_cache(clock: Clock, *, max_size: int = 10, jitter: float = 0.0, ttl: float = TTL) -> KeyCache:
    return KeyCache("data", ttl=ttl, max_size=max_size, clock=clock, jitter=lambda: jitter)


@pytest.fixture
def cache(clock: Clock) -> KeyCache:
    return new_cache(clock)


def gives(value: str) -> Callable[[], Awaitable[str]]:
    """Give a load that ends at once."""

    async def load() -> str:
        return value

    return load


async def never() -> str:
    raise AssertionError("this must not load")


async def settle() -> None:
    """Let every task run until it waits for something that the test holds."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_miss_loads_and_a_hit_does_not(cache: KeyCache) -> None:
    """What was loaded is given to everybody who asks later, as the same object."""
    value = await cache.get_or_load(KEY, gives("key"))
    assert "key" == value
    assert value is await cache.get_or_load(KEY, never)
    assert value is cache.get_nowait(KEY, never)
    assert 1 == len(cache)


async def test_a_miss_is_none_and_loads_nothing(cache: KeyCache) -> None:
    """The synchronous way only looks."""
    assert cache.get_nowait(KEY, never) is None
    await settle()


async def test_a_hit_does_not_yield(cache: KeyCache) -> None:
    """A hit never waits: it is there at the first step of the coroutine."""
    await cache.get_or_load(KEY, gives("key"))
    with pytest.raises(StopIteration) as done:
        cache.get_or_load(KEY, never).send(None)
    assert "key" == done.value.value


async def test_keys_are_told_apart(cache: KeyCache) -> None:
    """Every part of a cache key counts, and parts are never joined."""
    keys = [KEY, SECOND, FOREIGN, ("sealing key", *KEY[1:]), ("data key", "other", *KEY[2:]), (*KEY, ("a", "b"))]
    for key in keys:
        await cache.get_or_load(key, gives(repr(key)))
    assert [repr(key) for key in keys] == [cache.get_nowait(key, never) for key in keys]


async def test_hits_and_misses_are_counted(cache: KeyCache) -> None:
    """A caller that waits for a load is a miss, one that is served at once is a hit."""
    await cache.get_or_load(KEY, gives("key"))
    await cache.get_or_load(KEY, never)
    cache.get_nowait(KEY, never)
    cache.get_nowait(SECOND, never)
    assert (2, 1) == (cache.hits, cache.misses)


async def test_single_flight(cache: KeyCache) -> None:
    """500 callers that miss one key at once make one load, and all get its value."""
    loads = Loads()
    callers = [asyncio.create_task(cache.get_or_load(KEY, loads)) for _ in range(500)]
    await settle()
    assert 1 == len(loads.runs)
    loads.runs[0].set_result("key")
    assert ["key"] * 500 == await asyncio.gather(*callers)
    assert 1 == len(loads.runs)


async def test_single_flight_is_per_key(cache: KeyCache) -> None:
    """Loads of different keys run side by side."""
    first, second = Loads(), Loads()
    callers = [asyncio.create_task(cache.get_or_load(key, load)) for key, load in ((KEY, first), (SECOND, second))]
    await settle()
    second.runs[0].set_result("second")
    await settle()
    assert [False, True] == [caller.done() for caller in callers]
    first.runs[0].set_result("first")
    assert ["first", "second"] == await asyncio.gather(*callers)


@pytest.mark.parametrize("who", [0, 250, 499])
async def test_a_cancelled_caller_takes_nobody_with_it(cache: KeyCache, who: int) -> None:
    """If any caller is cancelled, also the one that began the load, the others get its value from the same load."""
    loads = Loads()
    callers = [asyncio.create_task(cache.get_or_load(KEY, loads)) for _ in range(500)]
    await settle()
    callers[who].cancel()
    await settle()
    assert callers[who].cancelled()
    loads.runs[0].set_result("key")
    others = callers[:who] + callers[who + 1 :]
    assert ["key"] * 499 == await asyncio.gather(*others)
    assert 1 == len(loads.runs)


async def test_a_load_outlives_all_its_callers(cache: KeyCache) -> None:
    """A load that nobody waits for any more still fills the cache."""
    loads = Loads()
    caller = asyncio.create_task(cache.get_or_load(KEY, loads))
    await settle()
    caller.cancel()
    await settle()
    loads.runs[0].set_result("key")
    await settle()
    assert "key" == cache.get_nowait(KEY, never)


async def test_a_failed_load_fails_all_who_wait(cache: KeyCache) -> None:
    """Everybody who waits gets the error of the one load; it is not remembered, so the next call loads anew."""
    loads = Loads()
    callers = [asyncio.create_task(cache.get_or_load(KEY, loads)) for _ in range(500)]
    await settle()
    error = OSError("KMS is away")
    loads.runs[0].set_exception(error)
    assert {error} == set(await asyncio.gather(*callers, return_exceptions=True))
    assert (1, 0) == (len(loads.runs), len(cache))

    later = asyncio.create_task(cache.get_or_load(KEY, loads))
    await settle()
    assert 2 == len(loads.runs)
    loads.runs[1].set_result("key")
    assert "key" == await later


async def test_a_failed_load_that_nobody_waits_for_is_silent(cache: KeyCache, caplog: pytest.LogCaptureFixture) -> None:
    """If every caller has gone, the error is nobody's: asyncio does not report it, and the key can be loaded again."""
    loads = Loads()
    caller = asyncio.create_task(cache.get_or_load(KEY, loads))
    await settle()
    caller.cancel()
    await settle()
    loads.runs[0].set_exception(OSError("KMS is away"))
    await settle()
    del loads, caller
    gc.collect()
    assert "key" == await cache.get_or_load(KEY, gives("key"))
    assert [] == caplog.records


async def test_a_load_of_before_an_invalidation_never_lands(cache: KeyCache) -> None:
    """Who waited for it gets the value of a load that began after the invalidation, and so does the cache."""
    loads = Loads()
    callers = [asyncio.create_task(cache.get_or_load(KEY, loads)) for _ in range(20)]
    await settle()
    cache.invalidate("acme")
    loads.runs[0].set_result("old")
    await settle()
    assert (2, 0) == (len(loads.runs), len(cache))
    assert not any(caller.done() for caller in callers)
    loads.runs[1].set_result("new")
    assert ["new"] * 20 == await asyncio.gather(*callers)
    assert "new" == cache.get_nowait(KEY, never)
    assert 2 == len(loads.runs)


async def test_a_disowned_load_that_fails_is_loaded_anew(cache: KeyCache) -> None:
    """What a load of before an invalidation found missing may be there by now: its failure is nobody's answer."""
    loads = Loads()
    caller = asyncio.create_task(cache.get_or_load(KEY, loads))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    cache.invalidate("acme")
    loads.runs[0].set_exception(LookupError("before"))
    while len(loads.runs) < 2:  # noqa: ASYNC110  # the second load starts within a few turns of the loop
        await asyncio.sleep(0)
    loads.runs[1].set_result("after")
    assert await caller == "after"


async def test_a_disowned_load_does_not_replace_a_newer_one(cache: KeyCache) -> None:
    """A load that began before an invalidation and ends after a newer one leaves the newer value in place."""
    loads = Loads()
    early = asyncio.create_task(cache.get_or_load(KEY, loads))
    await settle()
    cache.invalidate("acme")
    late = asyncio.create_task(cache.get_or_load(KEY, loads))
    await settle()
    loads.runs[1].set_result("new")
    assert "new" == await late
    loads.runs[0].set_result("old")
    assert "new" == await early
    assert "new" == cache.get_nowait(KEY, never)
    assert 2 == len(loads.runs)


async def test_callers_after_an_invalidation_share_one_new_load(cache: KeyCache) -> None:
    """A disowned load that ends does not free the place of the load that runs now."""
    loads = Loads()
    early = asyncio.create_task(cache.get_or_load(KEY, loads))
    await settle()
    cache.invalidate("acme")
    late = [asyncio.create_task(cache.get_or_load(KEY, loads))]
    await settle()
    loads.runs[0].set_result("old")
    await settle()
    late.append(asyncio.create_task(cache.get_or_load(KEY, loads)))
    await settle()
    assert 2 == len(loads.runs)
    loads.runs[1].set_result("new")
    assert ["new"] * 3 == await asyncio.gather(early, *late)


async def test_every_invalidation_counts(cache: KeyCache) -> None:
    """A second invalidation disowns the load that the first one caused."""
    loads = Loads()
    caller = asyncio.create_task(cache.get_or_load(KEY, loads))
    await settle()
    for run in range(3):
        cache.invalidate("acme")
        loads.runs[run].set_result(f"old {run}")
        await settle()
        assert not caller.done()
    loads.runs[3].set_result("new")
    assert "new" == await caller


async def test_a_refresh_of_before_an_invalidation_never_lands(cache: KeyCache, clock: Clock) -> None:
    """A refresh that runs while its tenant is invalidated leaves nothing in the cache."""
    loads = Loads()
    await cache.get_or_load(KEY, gives("first"))
    clock.now += 0.8 * TTL
    assert "first" == cache.get_nowait(KEY, loads)
    await settle()
    cache.invalidate("acme")
    loads.runs[0].set_result("old")
    await settle()
    assert (None, 0) == (cache.get_nowait(KEY, never), len(cache))


async def test_invalidation_drops_the_tenant_and_nobody_else(cache: KeyCache) -> None:
    """All entries of the tenant go, of whatever use; other tenants keep their entries and their running loads."""
    loads = Loads()
    for key in (KEY, SECOND, FOREIGN):
        await cache.get_or_load(key, gives(repr(key)))
    foreign = asyncio.create_task(cache.get_or_load(("signing key", "arn", "globex"), loads))
    await settle()
    assert 2 == cache.invalidate("acme")
    assert [None, None, repr(FOREIGN)] == [cache.get_nowait(key, never) for key in (KEY, SECOND, FOREIGN)]
    loads.runs[0].set_result("foreign")
    assert "foreign" == await foreign
    assert (1, 0) == (len(loads.runs), cache.invalidate("nobody"))


async def test_tenants_are_compared_whole(cache: KeyCache) -> None:
    """A tenant whose id begins with, or is part of, another's is another tenant."""
    keys = [("data key", "acme", tenant, "acme") for tenant in ("acme", "acme2", "acm", "ACME")]
    for key in keys:
        await cache.get_or_load(key, gives("key"))
    assert 1 == cache.invalidate("acme")
    assert [None, "key", "key", "key"] == [cache.get_nowait(key, never) for key in keys]


async def test_bounded_and_least_recently_used_first(clock: Clock) -> None:
    """The least recently used entry makes room; looking at one, by any method, is using it."""
    cache = new_cache(clock, max_size=3)
    a, b, c, d, e, f = (("data key", "arn", name) for name in "abcdef")
    for key in (a, b, c):
        await cache.get_or_load(key, gives(key[2]))
    cache.get_nowait(a, never)
    await cache.get_or_load(d, gives("d"))
    assert (3, None, "a") == (len(cache), cache.get_nowait(b, never), cache.get_nowait(a, never))
    await cache.get(c)
    await cache.get_or_load(e, gives("e"))
    assert (None, "c") == (cache.get_nowait(d, never), cache.get_nowait(c, never))
    await cache.set(a, "a again")
    await cache.set(f, "f")
    assert (3, None, "a again") == (len(cache), cache.get_nowait(e, never), cache.get_nowait(a, never))


async def test_a_cache_of_one(clock: Clock) -> None:
    """The bound holds at its least, also for a load that ends while another entry is in place."""
    cache = new_cache(clock, max_size=1)
    for number in range(100):
        key = ("data key", "arn", number)
        assert str(number) == await cache.get_or_load(key, gives(str(number)))
        assert (1, str(number)) == (len(cache), cache.get_nowait(key, never))


async def test_expiry_is_exact(cache: KeyCache, clock: Clock) -> None:
    """An entry serves until its time to live ends, and at that moment no more."""
    await cache.get_or_load(KEY, gives("key"))
    loaded_at = clock.now
    clock.now = loaded_at + TTL - 0.001
    assert "key" == cache.get_nowait(KEY, Loads())
    clock.now = loaded_at + TTL
    assert cache.get_nowait(KEY, never) is None
    assert 0 == len(cache)
    await cache.close()


async def test_time_to_live_counts_from_the_end_of_the_load(cache: KeyCache, clock: Clock) -> None:
    """A slow load does not shorten the life of what it brings, and a hit does not lengthen it."""
    loads = Loads()
    caller = asyncio.create_task(cache.get_or_load(KEY, loads))
    await settle()
    clock.now += TTL
    loads.runs[0].set_result("key")
    await caller
    clock.now += 0.7 * TTL
    assert "key" == cache.get_nowait(KEY, never)
    clock.now += 0.3 * TTL
    assert cache.get_nowait(KEY, never) is None


async def test_drop_expired(cache: KeyCache, clock: Clock) -> None:
    """What expired and is asked for by nobody goes, and only that."""
    await cache.get_or_load(KEY, gives("key"))
    await cache.get_or_load(SECOND, gives("key"))
    clock.now += TTL / 2
    await cache.get_or_load(FOREIGN, gives("younger"))
    assert 0 == cache.drop_expired()
    clock.now += TTL / 2
    assert 2 == cache.drop_expired()
    assert 1 == len(cache)
    assert "younger" == cache.get_nowait(FOREIGN, never)


@pytest.mark.parametrize(("jitter", "due"), [(0.0, 0.75), (0.5, 0.80), (0.999, 0.8499)])
async def test_refresh_is_due_from_75_percent(clock: Clock, jitter: float, due: float) -> None:
    """A hit refreshes its entry from 75 % of the time to live on, put off by up to a further 10 % at random."""
    cache, loads = new_cache(clock, jitter=jitter), Loads()
    await cache.get_or_load(KEY, gives("old"))
    loaded_at = clock.now
    clock.now = loaded_at + due * TTL - 0.01
    assert "old" == cache.get_nowait(KEY, never)
    await settle()
    clock.now = loaded_at + due * TTL + 0.01
    assert "old" == cache.get_nowait(KEY, loads)
    await settle()
    assert 1 == len(loads.runs)
    await cache.close()


async def test_refresh_runs_in_the_background_once(cache: KeyCache, clock: Clock) -> None:
    """While a refresh runs, every hit is served the old value at once; then the new one, for a whole time to live."""
    loads = Loads()
    await cache.get_or_load(KEY, gives("old"))
    clock.now += 0.75 * TTL
    assert ["old"] * 100 == [cache.get_nowait(KEY, loads) for _ in range(100)]
    assert "old" == await cache.get_or_load(KEY, loads)
    await settle()
    clock.now += 0.2 * TTL
    assert "old" == cache.get_nowait(KEY, loads)
    await settle()
    assert 1 == len(loads.runs)
    loads.runs[0].set_result("new")
    await settle()
    clock.now += 0.74 * TTL
    assert "new" == cache.get_nowait(KEY, never)


async def test_an_entry_that_nobody_uses_is_not_refreshed(cache: KeyCache, clock: Clock) -> None:
    """Only a hit refreshes, and only its own entry: keys of tenants that went away cost nothing."""
    loads = Loads()
    await cache.get_or_load(KEY, gives("key"))
    await cache.get_or_load(SECOND, gives("second"))
    clock.now += 0.9 * TTL
    assert "second" == cache.get_nowait(SECOND, loads)
    await settle()
    assert 1 == len(loads.runs)
    loads.runs[0].set_result("new")
    await settle()
    clock.now += 0.1 * TTL
    assert (None, "new") == (cache.get_nowait(KEY, never), cache.get_nowait(SECOND, never))


async def test_a_failed_refresh_waits_before_it_tries_again(
    cache: KeyCache, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """After a failure the old value serves on, and the next try comes 5 % of the time to live later; each is logged."""
    caplog.set_level(logging.WARNING)
    loads = Loads()
    await cache.get_or_load(KEY, gives("old"))
    clock.now += 0.75 * TTL
    tried_at = clock.now
    cache.get_nowait(KEY, loads)
    await settle()
    loads.runs[0].set_exception(OSError("KMS is away"))
    await settle()
    assert [("WARNING", "refreshing a cached data key failed, the old one serves on: KMS is away")] == [
        (record.levelname, record.getMessage()) for record in caplog.records
    ]
    clock.now = tried_at + 0.049 * TTL
    assert "old" == await cache.get_or_load(KEY, never)
    await settle()
    clock.now = tried_at + 0.051 * TTL
    assert "old" == cache.get_nowait(KEY, loads)
    await settle()
    assert 2 == len(loads.runs)
    loads.runs[1].set_result("new")
    await settle()
    assert "new" == cache.get_nowait(KEY, never)
    assert 1 == len(caplog.records)


async def test_failing_refreshes_never_outlive_the_time_to_live(cache: KeyCache, clock: Clock) -> None:
    """However many refreshes fail, the old value serves until its time to live ends and not a moment longer."""
    loads = Loads()
    await cache.get_or_load(KEY, gives("old"))
    expires_at = clock.now + TTL
    clock.now += 0.75 * TTL
    while clock.now < expires_at:
        assert "old" == cache.get_nowait(KEY, loads)
        await settle()
        loads.runs[-1].set_exception(OSError("KMS is away"))
        await settle()
        clock.now += 0.05 * TTL + 0.001
    assert 5 == len(loads.runs)
    clock.now = expires_at
    caller = asyncio.create_task(cache.get_or_load(KEY, loads))
    await settle()
    loads.runs[-1].set_exception(OSError("KMS is still away"))
    with pytest.raises(OSError, match="KMS is still away"):
        await caller
    assert 6 == len(loads.runs)


async def test_who_misses_joins_a_running_refresh(cache: KeyCache, clock: Clock) -> None:
    """If the old value expires while its refresh runs, who asks then waits for that load and starts no second."""
    loads = Loads()
    await cache.get_or_load(KEY, gives("old"))
    clock.now += 0.9 * TTL
    cache.get_nowait(KEY, loads)
    await settle()
    clock.now += 0.1 * TTL
    callers = [asyncio.create_task(cache.get_or_load(KEY, never)) for _ in range(3)]
    await settle()
    assert [False] * 3 == [caller.done() for caller in callers]
    loads.runs[0].set_result("new")
    assert ["new"] * 3 == await asyncio.gather(*callers)


async def test_a_refresh_that_is_asked_for(cache: KeyCache) -> None:
    """An entry can be refreshed before its time: by the next hit, in the background, once."""
    loads = Loads()
    await cache.get_or_load(KEY, gives("old"))
    await cache.get_or_load(SECOND, gives("second"))
    cache.refresh_soon(KEY)
    cache.refresh_soon(FOREIGN)
    await settle()
    assert "second" == cache.get_nowait(SECOND, never)
    assert ["old"] * 3 == [cache.get_nowait(KEY, loads) for _ in range(3)]
    await settle()
    assert 1 == len(loads.runs)
    loads.runs[0].set_result("new")
    await settle()
    assert "new" == cache.get_nowait(KEY, never)


async def test_discarding_a_value(cache: KeyCache) -> None:
    """An entry is discarded only while it holds the value that is meant, so nobody throws a newer one away."""
    old, new = object(), object()
    await cache.set(KEY, new)
    cache.discard(KEY, old)
    cache.discard(SECOND, new)
    assert new is cache.get_nowait(KEY, never)
    cache.discard(KEY, new)
    assert cache.get_nowait(KEY, never) is None


async def test_close_cancels_running_loads(cache: KeyCache, clock: Clock) -> None:
    """Closing ends every load and refresh, waits until they have ended, and empties the cache."""
    loads, refresh = Loads(), Loads()
    await cache.get_or_load(KEY, gives("key"))
    clock.now += 0.8 * TTL
    cache.get_nowait(KEY, refresh)
    caller = asyncio.create_task(cache.get_or_load(SECOND, loads))
    await settle()
    await cache.close()
    assert loads.runs[0].cancelled()
    assert refresh.runs[0].cancelled()
    assert 0 == len(cache)
    with pytest.raises(Stopping, match="the daemon is stopping"):
        await caller
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_close_ends_loads_that_were_disowned(cache: KeyCache) -> None:
    """A load whose tenant was invalidated is still the cache's to end."""
    loads = Loads()
    caller = asyncio.create_task(cache.get_or_load(KEY, loads))
    await settle()
    caller.cancel()
    cache.invalidate("acme")
    await cache.close()
    assert loads.runs[0].cancelled()


async def test_closed_cache_starts_no_load(cache: KeyCache) -> None:
    """A call that comes after the end is told so, and reaches no provider that is closed by then."""
    await cache.close()
    with pytest.raises(Stopping, match="the daemon is stopping"):
        await cache.get_or_load(KEY, never)


async def test_purge_disowns_running_loads(cache: KeyCache) -> None:
    """What a withdrawn master key was still unwrapping does not land; loads under other master keys do."""
    withdrawn, other = Loads(), Loads()
    waiting = asyncio.create_task(cache.get_or_load(KEY, withdrawn))
    unharmed = asyncio.create_task(cache.get_or_load(("data key", "other", "acme", 32), other))
    await settle()
    assert 0 == cache.purge("arn")
    withdrawn.runs[0].set_result("withdrawn")
    other.runs[0].set_result("good")
    assert "good" == await unharmed
    await settle()
    assert (2, 1) == (len(withdrawn.runs), len(cache))
    withdrawn.runs[1].set_exception(OSError("the master key is disabled"))
    with pytest.raises(OSError, match="disabled"):
        await waiting


async def test_error_of_a_load_is_free_at_once(cache: KeyCache) -> None:
    """No cycle keeps an error, and by its traceback what a caller sent, until the garbage collector comes."""

    class Refused(Exception):
        pass

    async def refuse() -> str:
        raise Refused

    async def call() -> weakref.ref[Refused]:
        try:
            await cache.get_or_load(KEY, refuse)
        except Refused as error:
            return weakref.ref(error)
        raise AssertionError("not refused")

    gc.collect()
    gc.disable()
    try:
        alive = await call()
        await settle()
        assert alive() is None
    finally:
        gc.enable()


async def test_leaving_the_context_closes(clock: Clock) -> None:
    """The cache is an async context manager, as every cache of aiocache is."""
    async with new_cache(clock) as cache:
        await cache.set(KEY, "key")
    assert 0 == len(cache)


async def test_the_surface_of_aiocache(cache: KeyCache) -> None:
    """The methods of aiocache's BaseCache work with tuples as keys, and keep values as they are."""
    value = object()
    assert await cache.get(KEY) is None
    assert "default" == await cache.get(KEY, default="default")
    assert not await cache.exists(KEY)
    assert await cache.set(KEY, value)
    assert value is await cache.get(KEY)
    assert await cache.exists(KEY)
    assert await cache.add(SECOND, "second")
    assert 1 == await cache.delete(KEY)
    assert 0 == await cache.delete(KEY)
    assert (None, "second", 1) == (await cache.get(KEY), await cache.get(SECOND), len(cache))
    assert await cache.clear()
    assert (None, 0) == (await cache.get(SECOND), len(cache))


async def test_add_never_replaces(cache: KeyCache, clock: Clock) -> None:
    """Adding what is cached already is refused, until that has expired."""
    await cache.add(KEY, "first")
    with pytest.raises(ValueError, match="cached already"):
        await cache.add(KEY, "second")
    assert "first" == await cache.get(KEY)
    clock.now += TTL
    await cache.add(KEY, "third")
    assert "third" == await cache.get(KEY)


@pytest.mark.parametrize("write", ["set", "add"])
async def test_a_time_to_live_of_its_own(cache: KeyCache, clock: Clock, write: str) -> None:
    """An entry may have another time to live than the cache."""
    method: Callable[..., Awaitable[Any]] = getattr(cache, write)
    await method(KEY, "short", ttl=10)
    await method(SECOND, "long", ttl=2 * TTL)
    clock.now += 10
    assert (None, "long") == (await cache.get(KEY), await cache.get(SECOND))
    assert not await cache.exists(KEY)
    clock.now += TTL
    assert "long" == await cache.get(SECOND)


async def test_clear_disowns_running_loads(cache: KeyCache) -> None:
    """Clearing is invalidating every tenant: a load that runs does not land afterwards."""
    loads = Loads()
    caller = asyncio.create_task(cache.get_or_load(KEY, loads))
    await settle()
    await cache.clear()
    loads.runs[0].set_result("old")
    await settle()
    assert 0 == len(cache)
    loads.runs[1].set_result("new")
    assert "new" == await caller


def test_no_timeout(cache: KeyCache) -> None:
    """aiocache's timeout is off: it would cost a task for each call, and nothing here can hang."""
    assert 0 == cache.timeout


async def test_defaults_are_the_monotonic_clock_and_chance() -> None:
    """Outside of tests the cache needs no clock: what was just loaded is fresh."""
    cache = KeyCache("data", ttl=60, max_size=1)
    await cache.get_or_load(KEY, gives("key"))
    assert "key" == cache.get_nowait(KEY, never)
