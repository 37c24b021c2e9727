"""The queue for KMS: how many calls may be under way at once, and how many may wait for that.

It stands before the circuit breaker. A call that waits for a connection of our own says nothing of how KMS is, and its
time limit begins when its turn comes.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from betrace_kms_server.aws.clients import POOL_SIZE
from betrace_kms_server.core.errors import Overloaded

IN_FLIGHT = POOL_SIZE - 4
"""Calls to KMS at once. DescribeKey, by which the daemon knows how KMS is, has the rest of the connections."""
MAX_QUEUED = 5000
"""Calls that may wait for their turn."""
QUEUE_SECONDS = 15.0
"""How long a call may wait for its turn."""


class Turns:
    """Lets calls through, first come, first served."""

    def __init__(
        self, *, in_flight: int = IN_FLIGHT, max_queued: int = MAX_QUEUED, seconds: float = QUEUE_SECONDS
    ) -> None:
        self._places = asyncio.Semaphore(in_flight)
        self._max_queued = max_queued
        self._seconds = seconds
        self._queued = 0

    @asynccontextmanager
    async def turn(self, action: str) -> AsyncIterator[None]:
        """Wait for a place, and hold it. Raises Overloaded if too many wait, or if the wait is too long."""
        if not self._places.locked():
            await self._places.acquire()
        else:
            if self._queued >= self._max_queued:
                raise _overloaded(action)
            self._queued += 1
            try:
                async with asyncio.timeout(self._seconds):
                    await self._places.acquire()
            except TimeoutError:
                raise _overloaded(action) from None
            finally:
                self._queued -= 1
        try:
            yield
        finally:
            self._places.release()


def _overloaded(action: str) -> Overloaded:
    return Overloaded(
        f"too many calls wait for KMS (kms:{action}): try again later, or let fewer tenants start at once",
        metadata={"action": f"kms:{action}"},
    )
