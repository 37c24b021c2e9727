"""Bounds the bytes of large messages that the daemon holds: requests that are worked on, and answers that are unread.

gRPC keeps an answer until the caller has taken it off the connection, however long that takes, and the daemon would
keep as many as callers ask for. So large calls share some room. A call that finds none waits for a moment, and is then
refused. Calls with small messages neither take room nor wait for it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from betrace_kms_server.core.errors import Overloaded

LARGE_BYTES = 64 * 1024
ROOM_BYTES = 32 * 1024 * 1024
_MOST_OF_A_CALL = 8
"""A call of the largest payload takes two of these parts: there is room for four."""
WAIT_SECONDS = 1.0
_FULL = "large messages of other calls take all the room: call again a little later, and read answers as they come"

_Task = asyncio.Task[None]


@dataclass(slots=True)
class _Held:
    """The room of one call."""

    size: int
    peer: str = ""
    """Who is to read the answer, once there is one."""
    since: float = 0.0


class LargeMessages:
    """The room for large messages. A call is the task that gRPC runs it in, which ends when its answer has been sent.

    An answer has been sent when all of it was written to the connection, or the connection is gone.
    """

    def __init__(self, limit: int = ROOM_BYTES, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.used = 0
        self._clock = clock
        self._held: dict[_Task, _Held] = {}
        self._waiting: deque[tuple[_Task, int, asyncio.Future[None]]] = deque()

    @classmethod
    def of_payloads(cls, max_payload_bytes: int) -> "LargeMessages":
        """Return room for some calls of the largest payload."""
        return cls(max(ROOM_BYTES, _MOST_OF_A_CALL * max_payload_bytes))

    async def admit(self, size: int) -> None:
        """Take room for the current call's request of `size` bytes, and for an answer like it. Raises Overloaded."""
        if size <= LARGE_BYTES:
            return
        task, need = _current(), min(2 * size, self.limit)
        task.add_done_callback(self._release)
        if not self._waiting and self.used + need <= self.limit:
            self._hold(task, need)
            return
        if need + sum(waiting for _, waiting, _ in self._waiting) > self.limit:
            raise Overloaded(_FULL)
        entry = (task, need, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        try:
            await asyncio.wait_for(entry[2], WAIT_SECONDS)
        except TimeoutError:
            raise Overloaded(_FULL) from None
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._let_in()

    def answer(self, size: int, peer: Callable[[], str]) -> None:
        """Exchange the room of the current call's request for that of its answer. Raises Overloaded."""
        if size <= LARGE_BYTES:
            if self._held:
                self._release(_current())
            return
        task = _current()
        held = self._held.get(task)
        if held is None:
            held = _Held(0)
            task.add_done_callback(self._release)
        if size > held.size and self.used + size - held.size > self.limit:
            raise Overloaded(_FULL)
        self.used += size - held.size
        self._held[task] = _Held(size, peer(), self._clock())
        self._let_in()

    def unread(self, seconds: float) -> set[str]:
        """Return the peers (in gRPC's words) that have not read an answer for so long."""
        before = self._clock() - seconds
        return {held.peer for held in self._held.values() if held.peer and held.since < before}

    def _hold(self, task: _Task, size: int) -> None:
        self._held[task] = _Held(size)
        self.used += size

    def _release(self, task: _Task) -> None:
        held = self._held.pop(task, None)
        if held is not None:
            self.used -= held.size
            self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self.used + self._waiting[0][1] <= self.limit:
            task, need, admitted = self._waiting.popleft()
            if not admitted.done():
                self._hold(task, need)
                admitted.set_result(None)


def _current() -> _Task:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a call runs in a task")
    return task
