"""A costly run that all who ask at once share, and whose outcome is given again for a while."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Generic, TypeVar

V = TypeVar("V")

FRESH_SECONDS = 5.0
"""How long an outcome is given again, counted from its end."""


class SharedRun(Generic[V]):
    """Runs `action` once at a time. `name` is the task's, `clock` is monotonic."""

    def __init__(self, name: str, action: Callable[[], Coroutine[None, None, V]], clock: Callable[[], float]) -> None:
        self._name = name
        self._action = action
        self._clock = clock
        self._running: asyncio.Task[V] | None = None
        self._ended = 0.0

    async def outcome(self) -> V:
        """Return an outcome that is at most `FRESH_SECONDS` old. Who asks during a run waits for this one."""
        running = self._running
        if running is None or (running.done() and self._clock() - self._ended >= FRESH_SECONDS):
            running = self._running = asyncio.create_task(self._run(), name=self._name)
        return await asyncio.shield(running)

    async def close(self) -> None:
        """End a run that is going on."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    async def _run(self) -> V:
        try:
            return await self._action()
        finally:
            self._ended = self._clock()
