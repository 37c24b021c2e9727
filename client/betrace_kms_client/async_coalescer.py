"""Coalescing for asyncio: what one turn of the event loop asks for travels together.

The first call of a turn has the others collected at the end of it, or after `delay` seconds. Each call waits for a
future of its own, which its batch completes, its own deadline or its cancellation. A batch that no call waits for any
more is cancelled.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from betrace_kms_client.batch_kinds import Kind, kind_of
from betrace_kms_client.coalescing import (
    ALONE,
    SAME_DEADLINE,
    Entry,
    Key,
    Terms,
    batches_of,
    checked_delay,
    last,
    pause_before,
)
from betrace_kms_client.errors import KmsClientError, again, from_item_status, too_late

Send: TypeAlias = Callable[[Any, Any, float], Awaitable[Any]]
"""Makes a call: a method of the stub, its request, and the seconds that it may take. Raises KmsClientError."""


class _Waiter:
    """Where one call waits for its outcome, and the batch that it is part of once that is on its way."""

    __slots__ = ("batch", "outcome")

    def __init__(self, outcome: "asyncio.Future[Any]") -> None:
        self.outcome = outcome
        self.batch: _Batch | None = None


_Entry: TypeAlias = Entry[_Waiter]


class _Batch:
    """A batch on its way."""

    __slots__ = ("task", "waiting")

    def __init__(self, waiting: int) -> None:
        self.task: asyncio.Task[None] | None = None
        self.waiting = waiting

    def leave(self) -> None:
        """Take note that one call does not wait any more."""
        self.waiting -= 1
        if not self.waiting and self.task is not None:
            self.task.cancel()


class AsyncCoalescer:
    """Makes batches of calls. `send` makes a call, and `method_of` returns the method of a name."""

    def __init__(self, send: Send, method_of: Callable[[str], Any], target: str, delay: float) -> None:
        self._send = send
        self._method_of = method_of
        self._target = target
        self._delay = checked_delay(delay)
        self._terms = Terms()
        self._waiting: dict[Key, tuple[Kind, list[_Entry]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def call(self, method: Any, request: Any, seconds: float) -> Any:
        """Return what the call of `method` returns, or an item of a batch that reads like it."""
        kind, loop = kind_of(request), asyncio.get_running_loop()
        now = loop.time()
        deadline, attempt = now + seconds, 1
        if kind is not None and seconds > self._delay:
            key, size = Key(kind.batch, request.tenant_id, kind.shared(request)), request.ByteSize()
            while self._terms.allow(key, size, loop.time()):
                outcome = await self._outcome(key, kind, Entry(request, size, deadline, _Waiter(loop.create_future())))
                if outcome is ALONE:
                    break
                if not outcome.status.code:
                    return outcome
                attempt, error = attempt + 1, from_item_status(outcome.status)
                pause = pause_before(attempt, error)
                if pause is None or loop.time() + pause >= deadline:
                    raise error
                await asyncio.sleep(pause)
            seconds = deadline - loop.time()
        return await self._send(method, request, seconds)

    async def _outcome(self, key: Key, kind: Kind, entry: _Entry) -> Any:
        if not self._waiting:
            loop = asyncio.get_running_loop()
            if self._delay:
                loop.call_later(self._delay, self._depart)
            else:
                loop.call_soon(self._depart)
        _, entries = self._waiting.setdefault(key, (kind, []))
        entries.append(entry)
        try:
            return await entry.waiter.outcome
        except asyncio.CancelledError:
            if entry.waiter.outcome.cancelled() and entry.waiter.batch is not None:
                entry.waiter.batch.leave()
            raise

    def _depart(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for key, (kind, entries) in waiting.items():
            wanted = [entry for entry in entries if not entry.waiter.outcome.done()]
            for entries_of_batch in batches_of(wanted, self._terms.max_bytes):
                if len(entries_of_batch) == 1:
                    entries_of_batch[0].waiter.outcome.set_result(ALONE)
                    continue
                batch = _Batch(len(entries_of_batch))
                for entry in entries_of_batch:
                    entry.waiter.batch = batch
                batch.task = asyncio.ensure_future(self._travel(key, kind, entries_of_batch))
                self._tasks.add(batch.task)
                batch.task.add_done_callback(self._tasks.discard)

    async def _travel(self, key: Key, kind: Kind, entries: Sequence[_Entry]) -> None:
        loop = asyncio.get_running_loop()
        deadline = last(entries).deadline
        timers = [
            loop.call_at(entry.deadline, self._expire, entry)
            for entry in entries
            if entry.deadline < deadline - SAME_DEADLINE
        ]
        try:
            request = kind.gathered(key.tenant_id, [entry.request for entry in entries])
            response = await self._send(self._method_of(kind.batch), request, deadline - loop.time())
            results: Sequence[Any] = response.results
            if len(results) != len(entries):
                results = [ALONE] * len(entries)
            for entry, result in zip(entries, results, strict=True):
                if not entry.waiter.outcome.done():
                    entry.waiter.outcome.set_result(result)
        except KmsClientError as error:
            outcome = self._terms.outcome(key, error, loop.time())
            for entry in entries:
                if entry.waiter.outcome.done():
                    continue
                if outcome is ALONE:
                    entry.waiter.outcome.set_result(ALONE)
                else:
                    entry.waiter.outcome.set_exception(again(error))
        except Exception as error:  # noqa: BLE001  # of gRPC, for example when the channel is closed: all calls meet it
            for entry in entries:
                if not entry.waiter.outcome.done():
                    entry.waiter.outcome.set_exception(error)
        finally:
            for timer in timers:
                timer.cancel()
            for entry in entries:  # cancelled, by those who called, or by gRPC because the channel was closed
                entry.waiter.outcome.cancel()

    def _expire(self, entry: _Entry) -> None:
        if not entry.waiter.outcome.done():
            entry.waiter.outcome.set_exception(too_late(self._target))
            if entry.waiter.batch is not None:
                entry.waiter.batch.leave()
