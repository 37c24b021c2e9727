"""Lets a few calls at a time do something; the others wait, and connections take turns.

So a connection with a hundred calls does not hold up the one call of another connection.
"""

import asyncio
from collections import deque


class Turns:
    """Some turns. Take one while there are `free` ones, or else wait for it, and give it back."""

    __slots__ = ("_waiting", "free")

    def __init__(self, count: int) -> None:
        self.free = count
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """By connection, in the order in which connections are next."""

    @property
    def waiting(self) -> int:
        """How many wait for a turn."""
        return sum(map(len, self._waiting.values()))

    async def wait(self, connection: str) -> None:
        """Take the next turn that is this connection's."""
        taken = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(connection, deque()).append(taken)
        try:
            await taken
        except asyncio.CancelledError:
            if not taken.cancelled():  # it got its turn just then
                self.give_back()
            raise

    def give_back(self) -> None:
        """Give a turn to whoever is next."""
        while self._waiting:
            connection = next(iter(self._waiting))
            queue = self._waiting.pop(connection)
            taken = queue.popleft()
            if queue:
                self._waiting[connection] = queue
            if not taken.done():
                taken.set_result(None)
                return
        self.free += 1
