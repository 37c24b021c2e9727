"""CallSlots: a bounded queue before the connection pool of one client.

Without it a burst waits inside the SDK for a connection, and that wait counts as the service's own slowness. Whoever
waits here has no timeout of a call running and no permit of a circuit breaker. A queue that is full, or that does not
move, refuses at once: more memory would only make every caller wait longer.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from betrace_kms_server.core.errors import Overloaded

POOL_SIZE = 50
"""Calls that one client makes at a time."""
RESERVED_CONNECTIONS = 5
"""Connections beyond those, for health checks, which do not queue: an overload is no outage."""
MAX_WAITING = 5_000
"""Calls that wait. At 100 ms a call, the last of them begins after 10 s."""
MAX_WAIT_SECONDS = 30.0


class CallSlots:
    """Lets `size` calls of `service` run at a time, first come, first served."""

    def __init__(
        self,
        service: str,
        *,
        size: int = POOL_SIZE,
        max_waiting: int = MAX_WAITING,
        max_wait_seconds: float = MAX_WAIT_SECONDS,
    ) -> None:
        self._service = service
        self._free = asyncio.Semaphore(size)
        self._max_waiting = max_waiting
        self._max_wait_seconds = max_wait_seconds
        self._waiting = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold it. Raises Overloaded if too many wait, or if the wait takes too long."""
        await self._take()
        try:
            yield
        finally:
            self._free.release()

    async def _take(self) -> None:
        if not self._free.locked():
            await self._free.acquire()  # does not suspend
            return
        if self._waiting >= self._max_waiting:
            raise self._overloaded()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._max_wait_seconds):
                await self._free.acquire()
        except TimeoutError as cause:
            raise self._overloaded() from cause
        finally:
            self._waiting -= 1

    def _overloaded(self) -> Overloaded:
        return Overloaded(
            f"too many calls wait for {self._service}: try again later; if it stays, add daemons or let callers share"
            " data keys and encryption contexts"
        )
