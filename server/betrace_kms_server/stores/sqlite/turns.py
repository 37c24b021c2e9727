"""One statement at a time on the store's connection, and a bound on those that wait for their turn.

The connection's thread has an unbounded queue and runs whatever is in it, also for callers who were answered long ago.
So a statement enters that queue only when the one before it has ended. Until then its caller waits here, where it can
leave: a statement whose time is over before its turn came is never run.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

R = TypeVar("R")


class QueueFull(Exception):
    """As many statements wait as may wait."""


class NeverBegun(Exception):
    """The time was over before the statement's turn came. It is not run any more."""


class StillRunning(Exception):
    """The time was over while the statement ran. Whether it is done shows later."""


class Turns:
    """Runs statements one after the other, in the order in which they came."""

    def __init__(self, *, waiting: int) -> None:
        self._most = waiting
        self._waiting = 0
        self._free = asyncio.Lock()

    async def run(self, statement: Callable[[], Awaitable[R]], seconds: float) -> R:
        """Run a statement, which goes on to its end whatever becomes of the caller.

        Raises QueueFull, NeverBegun or StillRunning; and what the statement raises.
        """
        if self._waiting >= self._most:
            raise QueueFull
        self._waiting += 1
        running: asyncio.Task[R] | None = None
        try:
            async with asyncio.timeout(seconds):
                await self._free.acquire()
                running = asyncio.create_task(_awaited(statement))
                running.add_done_callback(self._ended)
                return await asyncio.shield(running)
        except TimeoutError as cause:
            if running is None:
                raise NeverBegun from cause
            if running.done():
                raise  # the statement's own
            raise StillRunning from cause
        finally:
            self._waiting -= 1

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._free.release()
        if not task.cancelled():
            task.exception()  # a caller that left does not ask for it


async def _awaited(statement: Callable[[], Awaitable[R]]) -> R:
    return await statement()
