"""The emergency stop of one daemon, on a store whose answers a test holds back."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from betrace_kms_server.cache.key_caches import KeyCaches
from betrace_kms_server.core.errors import InvalidRequest, Locked, StoreUnavailable
from betrace_kms_server.core.lock_state import LockState
from betrace_kms_server.operations.emergency_stop import EmergencyStop, checked_reason

KEY = ("signing", "arn", "acme")


class Store:
    """A key store that has a row for the stop, fails on demand, and answers only while `gate` is set."""

    shared = False

    def __init__(self) -> None:
        self.row: LockState | None = None
        self.fails = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def lock_state(self) -> LockState | None:
        """Return the row as it was when it was asked for."""
        row = self.row
        await self.gate.wait()
        self._fail()
        return row

    async def set_lock(self, state: LockState | None) -> None:
        """Keep the row."""
        await self.gate.wait()
        self._fail()
        self.row = state

    def _fail(self) -> None:
        if self.fails:
            raise StoreUnavailable("the key store does not answer")


class Subject:
    """A stop on its store, with caches, and what it reported."""

    def __init__(self) -> None:
        self.store: Any = cast(Any, Store())  # has only what a stop asks for
        self.refused: list[bool] = []
        self.caches = KeyCaches(
            self.store, encryption_ttl=60, signing_ttl=60, public_ttl=60, max_size=10, version_check_seconds=60
        )
        self.stop = EmergencyStop(self.store, self.caches, self.refused.append, now=lambda: 1.5)

    async def load(self, value: str = "key", cache: str = "signing") -> str:
        """Ask a cache for a key."""

        async def load() -> str:
            return value

        got: str = await getattr(self.caches, cache).get_or_load(KEY, load)
        return got


@pytest.fixture
async def on() -> Subject:
    """A stop that found that none is in force."""
    subject = Subject()
    await subject.stop.check()
    return subject


async def test_nothing_is_used_until_the_store_was_read() -> None:
    """A daemon that does not know whether it is locked uses no key, and says that another try may help."""
    on = Subject()
    on.store.fails = True
    await on.stop.check()
    assert (on.stop.refusing, on.stop.refusal().reason) == (True, "KEY_STORE_UNAVAILABLE")
    assert on.stop.refusal().retry_after
    on.store.fails = False
    await on.stop.check()
    assert (on.stop.refusing, on.refused, await on.load()) == (False, [True, False], "key")


async def test_a_lock_in_the_store_is_there_from_the_first_check() -> None:
    """A restart stays locked."""
    on = Subject()
    on.store.row = LockState("before", 1)
    await on.stop.check()
    assert (on.stop.refusing, on.stop.refusal().reason, on.stop.state) == (True, "LOCKED", on.store.row)
    with pytest.raises(Locked):
        await on.load()


async def test_a_lock_drops_what_is_cached_and_what_is_being_loaded(on: Subject) -> None:
    """Entries go; a running load lands nowhere, and who waits for it is refused; public keys stay."""
    await on.load("public", "public")
    await on.load("data", "encryption")
    await on.load("branch", "branch")
    going, arrive = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        going.set()
        await arrive.wait()
        return "late"

    waiting = asyncio.create_task(on.caches.signing.get_or_load(KEY, slow))
    await going.wait()
    stopped = await on.stop.lock("INC-1")
    arrive.set()
    with pytest.raises(Locked):
        await waiting
    assert (stopped.entries, stopped.store_problem) == (2, "")
    assert [len(cache) for cache in on.caches] == [0, 0, 0, 1]
    assert on.store.row == LockState("INC-1", 1500)
    assert on.caches.encryption.evictions["purged"] == 1
    assert await on.load("other", "public") == "public"


async def test_locked_at_once_while_the_store_hangs(on: Subject) -> None:
    """The daemon does not wait for its store; a check that began before says nothing about what came since."""
    on.store.gate.clear()
    check = asyncio.create_task(on.stop.check())
    await asyncio.sleep(0)
    lock = asyncio.create_task(on.stop.lock("INC-1"))
    await asyncio.sleep(0)
    assert on.stop.refusing
    on.store.gate.set()
    await asyncio.gather(check, lock)
    assert (on.stop.refusing, on.store.row) == (True, LockState("INC-1", 1500))


async def test_a_lock_that_the_store_did_not_take_stays_and_is_written_later(on: Subject) -> None:
    """The answer says so; the store's own row, which says unlocked, does not unlock this daemon."""
    on.store.fails = True
    assert (await on.stop.lock("INC-1")).store_problem == "the key store does not answer"
    await on.stop.check()
    assert on.stop.refusing
    on.store.fails = False
    await on.stop.check()
    assert (on.stop.refusing, on.store.row) == (True, LockState("INC-1", 1500))
    on.store.row = None  # another daemon's unlock
    await on.stop.check()
    assert not on.stop.refusing


@pytest.mark.parametrize("locked", [False, True])
async def test_a_check_that_fails_changes_nothing(on: Subject, locked: bool) -> None:
    """Whatever state there is, it stays while the store does not answer."""
    if locked:
        await on.stop.lock("INC-1")
    on.store.fails = True
    await on.stop.check()
    assert on.stop.refusing is locked


async def test_an_unlock_that_the_store_does_not_take_changes_nothing(on: Subject) -> None:
    """The error reaches the operator, and keys stay locked."""
    await on.stop.lock("INC-1")
    on.store.fails = True
    with pytest.raises(StoreUnavailable):
        await on.stop.unlock()
    assert on.stop.refusing
    on.store.fails = False
    assert await on.stop.unlock() is True
    assert (on.stop.refusing, on.store.row, await on.stop.unlock()) == (False, None, False)
    assert await on.load("again") == "again"


async def test_a_lock_during_an_unlock_wins(on: Subject) -> None:
    """Whoever locks while another's unlock is on its way to the store stays locked, and the store agrees."""
    await on.stop.lock("first")
    on.store.gate.clear()
    unlock = asyncio.create_task(on.stop.unlock())
    await asyncio.sleep(0)
    lock = asyncio.create_task(on.stop.lock("second"))
    await asyncio.sleep(0)
    on.store.gate.set()
    await asyncio.gather(unlock, lock)
    assert (on.stop.refusing, on.store.row) == (True, LockState("second", 1500))


async def test_a_caller_that_leaves_leaves_the_lock(on: Subject) -> None:
    """An operator's call that is cancelled while the store hangs has locked, and the next check writes it."""
    on.store.gate.clear()
    lock = asyncio.create_task(on.stop.lock("INC-1"))
    await asyncio.sleep(0)
    lock.cancel()
    await asyncio.wait([lock])
    on.store.gate.set()
    await on.stop.check()
    assert (on.stop.refusing, on.store.row) == (True, LockState("INC-1", 1500))


async def test_the_watch_outlives_defects(on: Subject) -> None:
    """An error that is none of ours is logged, and the next check runs."""
    answers: list[Callable[[], Awaitable[LockState | None]]] = []

    async def defect() -> LockState | None:
        raise ZeroDivisionError

    async def locked() -> LockState | None:
        return LockState("elsewhere", 2)

    answers += [defect, locked]
    on.store.lock_state = lambda: answers.pop(0)()
    await on.stop.check()
    assert not on.stop.refusing
    await on.stop.check()
    assert on.stop.refusing


@pytest.mark.parametrize("text", ["", " ", "x" * 201, "two\nlines", "\x1b[31m"])
def test_a_reason_is_one_printable_line(text: str) -> None:
    """It is shown on operators' terminals."""
    with pytest.raises(InvalidRequest):
        checked_reason(text)
    assert checked_reason("Schlüssel weg: INC-1")
