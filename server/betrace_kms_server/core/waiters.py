"""Who waits for a load. One that no one waits for any more is given up while it waits for its turn.

A load is shared by all who ask for its key, so a caller that leaves, or whose deadline is over, does not end it. When
the last one is gone, what was sent to KMS may still land and warm the cache; what was not sent never is.
"""

import asyncio
from contextvars import ContextVar


class Waiters:
    """Those who wait for one load."""

    __slots__ = ("_count", "_turn")

    def __init__(self) -> None:
        self._count = 0
        self._turn: asyncio.Future[None] | None = None

    def join(self) -> None:
        """Note that one more waits."""
        self._count += 1

    def leave(self) -> None:
        """Note that one waits no longer."""
        self._count -= 1
        if not self._count and self._turn is not None:
            self._turn.cancel()

    def check(self) -> None:
        """Raise CancelledError, which ends the load, if no one waits for it."""
        if not self._count:
            raise asyncio.CancelledError

    async def turn(self, turn: "asyncio.Future[None]") -> None:
        """Let the load wait for its turn. Raises CancelledError once no one waits for it."""
        self._turn = turn
        try:
            await turn
        finally:
            self._turn = None
        self.check()


current_waiters: ContextVar[Waiters | None] = ContextVar("current_waiters", default=None)
"""Who waits for the running load; None outside of loads."""
