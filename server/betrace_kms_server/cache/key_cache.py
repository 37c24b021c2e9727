"""KeyCache: a bounded key cache with single-flight loads, on aiocache's BaseCache.

What it keeps:

- A hit never waits: no task, no timer, no lock, no KMS.
- However many callers miss one key at once, one load runs. It belongs to the cache, not to the caller that began it,
  so a caller that is cancelled takes no load with it. When all have left, the provider gives the load up if KMS was
  not asked yet (core/waiters.py); otherwise it may land.
- What a caller brought is cached only after it was found good: a load for which `accept` is given lands only if one of
  those who wait for it accepts the value. A forgery that makes a load leaves no entry and evicts none.
- A load that began before an invalidation of its tenant never lands: not in the cache, and not in the hands of those
  who waited for it; they load anew.
- From 75 % of the time to live on, a hit refreshes its entry in the background, at a moment that is jittered so that
  keys loaded together are not refreshed together. A refresh that fails is tried again later, and the old value serves
  until its time to live ends, and not a second longer.
- At most `max_size` entries; the least recently used goes first, of a tenant that holds more than a quarter if there is
  one. Dropping only unlinks: see keys.py for the wiping.

Keys are tuples (use, master key ARN, tenant, ...). Values are never serialised.
"""

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiocache.base import SENTINEL, BaseCache
from aiocache.serializers import NullSerializer

from betrace_kms_server.cache.gate import OPEN, Gate
from betrace_kms_server.cache.shares import Shares
from betrace_kms_server.core.errors import (
    LOCKED,
    AccessDenied,
    DoesNotOpen,
    KeyDamaged,
    KmsError,
    Locked,
    MasterKeyUnusable,
    Stopping,
)
from betrace_kms_server.core.key_event import KeyEvent, Recorder, current_event, ignore, note_miss, note_shared
from betrace_kms_server.core.shedding import check_may_wait
from betrace_kms_server.core.waiters import Waiters, current_waiters

log = logging.getLogger(__name__)

V = TypeVar("V")
Key = tuple[Any, ...]
Load = Callable[[], Awaitable[V]]
_MASTER_KEY, _TENANT = 1, 2
_STOPPING = "the daemon is stopping: call again"

REFRESH_AT = 0.75
"""Share of the time to live after which a hit refreshes its entry."""
JITTER = 0.10
"""Largest share of the time to live that a refresh is put off, at random."""
RETRY_AFTER = 0.05
"""Share of the time to live after which a failed refresh is tried again."""
_DENIES = (AccessDenied, DoesNotOpen, KeyDamaged)
"""What says of one key that it is not to be used any more. An outage does not, and lets it serve to its end."""
WARM_SECONDS = 300.0
"""How long after its last use a key counts as one that somebody will ask for again."""


@dataclass(slots=True)
class _Entry:
    value: Any
    expires_at: float
    refresh_at: float
    used_at: float


@dataclass(slots=True)
class _Flight:
    """A running load. `disowned` once what it loads was dropped: then its result must not be used.

    It does not hold its task: an error of the load would keep itself alive, by its traceback and the task's frame.
    """

    event: KeyEvent | None
    disowned: bool = False
    accepts: list[Callable[[Any], bool]] = field(default_factory=list)
    waiters: Waiters = field(default_factory=Waiters)


class KeyCache(BaseCache):  # type: ignore[misc]  # aiocache ships no types
    """A bounded cache of one kind of key.

    `ttl` is in seconds of `clock`, which is monotonic; `jitter` returns a number in [0, 1). `record` gets every
    refresh; `request_check` is called for every load that finds the master key unusable or is
    denied. `hits`, `misses` and `evictions` (by cause) count since the start. A closed cache starts no load.
    """

    NAME = "keys"

    def __init__(
        self,
        kind: str,
        *,
        ttl: float,
        max_size: int,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        record: Recorder = ignore,
        request_check: Callable[[], None] = lambda: None,
        gate: Gate = OPEN,
    ) -> None:
        super().__init__(serializer=NullSerializer(), key_builder=lambda key, namespace=None: key, timeout=0, ttl=ttl)
        self.kind = kind
        self.hits = 0
        self.misses = 0
        self.evictions = dict.fromkeys(("expired", "size", "invalidated", "used_up", "denied", "purged"), 0)
        self.max_size = max_size
        self._record = record
        self._request_check = request_check
        self._gate = gate
        self._clock = clock
        self._jitter = jitter
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._shares = Shares(max_size)
        self._flights: dict[Key, tuple[_Flight, asyncio.Task[Any]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._locked = False

    def __len__(self) -> int:
        return len(self._entries)

    def get_nowait(self, key: Key, load: Load[V]) -> V | None:
        """Return the cached value, or None on a miss; start a refresh by `load` in the background if one is due."""
        return self._hit(key, load) if self._gate.is_open(key[_TENANT]) else None

    def _hit(self, key: Key, load: Load[V]) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        now = self._clock()
        if now >= entry.expires_at:
            self._evict(key, "expired")
            return None
        self._entries.move_to_end(key)
        entry.used_at = now
        self.hits += 1
        if now >= entry.refresh_at and key not in self._flights:
            entry.refresh_at = now + RETRY_AFTER * self.ttl
            self._refresh(key, load)
        value: V = entry.value
        return value

    async def get_or_load(
        self, key: Key, load: Load[V], accept: Callable[[V], bool] | None = None, event: KeyEvent | None = None
    ) -> V:
        """Return the cached value, or load it once for all who ask.

        Raises what `load` and the gate raise, Stopping, and Overloaded if there is a wait that this call may not have.

        With `accept`, which is quick, the value is cached only if `accept` returns True, for this caller or another one
        that waits for the same load; it is returned to each of them all the same, to be checked. A miss is noted in
        `event`.
        """
        while True:
            if not self._gate.is_open(key[_TENANT]):
                check_may_wait()
                await self._gate.revalidate(key[_TENANT])
            if (value := self._hit(key, load)) is not None:
                return value
            self.misses += 1
            note_miss(event)
            check_may_wait()
            flight, task = self._flights.get(key) or self._start(key, load, event)
            if accept is not None:
                flight.accepts.append(accept)
            flight.waiters.join()
            try:
                await asyncio.wait([task])
                note_shared(event, flight.event)
                if self._closed and task.cancelled():
                    raise Stopping(_STOPPING)
                if not flight.disowned and not task.cancelled():  # cancelled: given up just before this caller came
                    loaded: V = task.result()
                    return loaded
            finally:
                flight.waiters.leave()
                del task  # see _Flight

    async def admit(self, tenant: str) -> None:
        """Return if keys of a tenant may be used, for what no cache is asked for. Raises why they may not."""
        if not self._gate.is_open(tenant):
            check_may_wait()
            await self._gate.revalidate(tenant)

    def refresh_soon(self, key: Key) -> None:
        """Let the next hit of an entry refresh it in the background."""
        if (entry := self._entries.get(key)) is not None:
            entry.refresh_at = self._clock()

    def discard(self, key: Key, value: object) -> None:
        """Drop an entry if it still holds this very value."""
        entry = self._entries.get(key)
        if entry is not None and entry.value is value:
            self._evict(key, "used_up")

    def invalidate(self, tenant: Hashable) -> int:
        """Drop a tenant's entries and disown its running loads. Returns how many entries were dropped."""
        return self._drop(_TENANT, tenant, "invalidated")

    def purge(self, master_key_arn: str) -> int:
        """Drop every entry of a master key that may not be used any more, and disown its running loads.

        Returns how many entries were dropped.
        """
        return self._drop(_MASTER_KEY, master_key_arn, "purged")

    def lock(self) -> int:
        """Drop every entry, disown every load, and start none until `unlock`. Returns how many entries were dropped.

        Who waits for a load gets Locked.
        """
        self._locked = True
        for flight, _ in self._flights.values():
            flight.disowned = True
        self._flights.clear()
        entries = list(self._entries)
        for key in entries:
            self._evict(key, "purged")
        return len(entries)

    def unlock(self) -> None:
        """Start loads again."""
        self._locked = False

    def _drop(self, part: int, value: Hashable, cause: str) -> int:
        for key in [key for key in self._flights if key[part] == value]:
            self._flights.pop(key)[0].disowned = True
        dropped = [key for key in self._entries if key[part] == value]
        for key in dropped:
            self._evict(key, cause)
        return len(dropped)

    def drop_expired(self) -> int:
        """Drop what was not asked for since it expired. Returns how many entries were dropped."""
        now = self._clock()
        expired = [key for key, entry in self._entries.items() if now >= entry.expires_at]
        for key in expired:
            self._evict(key, "expired")
        return len(expired)

    def warm_seconds(self) -> float | None:
        """Return in how many seconds the first of the keys in use expires, if none is refreshed; None if none is."""
        now = self._clock()
        left = [entry.expires_at - now for entry in self._entries.values() if now - entry.used_at < WARM_SECONDS]
        return max(0.0, min(left)) if left else None

    def _refresh(self, key: Key, load: Load[V]) -> None:
        event, refreshed = KeyEvent("RefreshKey", str(key[_TENANT])), self._entries.get(key)

        def finished(task: asyncio.Task[Any]) -> None:
            if task.cancelled():
                return
            if (error := task.exception()) is not None:
                event.result = error.reason if isinstance(error, KmsError) else "INTERNAL"
                if isinstance(error, _DENIES) and self._entries.get(key) is refreshed:
                    self._evict(key, "denied")
                    log.warning("refreshing a cached %s key was refused, it is dropped: %s", self.kind, error)
                else:
                    log.warning("refreshing a cached %s key failed, the old one serves on: %s", self.kind, error)
            self._record(event)

        flight, task = self._start(key, load, event)
        flight.waiters.join()  # the daemon itself, which does not leave
        task.add_done_callback(finished)

    def _start(self, key: Key, load: Load[V], event: KeyEvent | None) -> tuple[_Flight, asyncio.Task[Any]]:
        if self._closed:
            raise Stopping(_STOPPING)
        if self._locked:
            raise Locked(LOCKED)
        flight = _Flight(event)

        async def run() -> V:
            current_event.set(event)
            current_waiters.set(flight.waiters)
            try:
                value = await load()
                if not flight.disowned and (not flight.accepts or any(accept(value) for accept in flight.accepts)):
                    self._put(key, value, self.ttl)
                return value
            finally:
                if not flight.disowned:
                    del self._flights[key]

        task = asyncio.create_task(run(), name=f"load {self.kind} key")
        self._flights[key] = flight, task
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return flight, task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # Whoever waits gets the exception; if no one does any more, asyncio must not report it as unseen.
        if not task.cancelled() and isinstance(task.exception(), MasterKeyUnusable | AccessDenied):
            self._request_check()

    def _evict(self, key: Key, cause: str) -> None:
        del self._entries[key]
        self._shares.remove(key)
        self.evictions[cause] += 1

    def _put(self, key: Key, value: Any, ttl: float) -> None:
        now = self._clock()
        refresh_after = ttl * (REFRESH_AT + JITTER * self._jitter())
        self._entries[key] = _Entry(value, now + ttl, now + refresh_after, now)
        self._entries.move_to_end(key)
        self._shares.add(key, now)
        while len(self._entries) > self.max_size:
            self._evict(self._shares.victim(self._entries, self._used_at), "size")

    def _used_at(self, key: Key) -> float:
        return self._entries[key].used_at

    # What BaseCache asks of a backend. Code on the hot path calls the methods above.

    async def _get(self, key: Key, encoding: Any = None, _conn: Any = None) -> Any:
        entry = self._entries.get(key)
        if entry is None or self._clock() >= entry.expires_at:
            return None
        self._entries.move_to_end(key)
        return entry.value

    async def _set(self, key: Key, value: Any, ttl: Any = SENTINEL, _cas_token: Any = None, _conn: Any = None) -> bool:
        self._put(key, value, self._get_ttl(ttl) or self.ttl)  # no key lives for ever
        return True

    async def _add(self, key: Key, value: Any, ttl: Any = SENTINEL, _conn: Any = None) -> bool:
        if await self._exists(key):
            raise ValueError("the key is cached already; use set to replace it")
        return await self._set(key, value, ttl)

    async def _exists(self, key: Key, _conn: Any = None) -> bool:
        return await self._get(key) is not None

    async def _delete(self, key: Key, _conn: Any = None) -> int:
        if self._entries.pop(key, None) is None:
            return 0
        self._shares.remove(key)
        return 1

    async def _clear(self, namespace: str | None = None, _conn: Any = None) -> bool:
        for tenant in {key[_TENANT] for key in (*self._entries, *self._flights)}:
            self.invalidate(tenant)
        return True

    async def _close(self, *args: Any, **kwargs: Any) -> None:
        self._closed = True
        running = list(self._tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._clear()
