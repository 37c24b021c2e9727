"""Changes that are made to their end, also if the caller leaves: caches and audit trail must learn what was stored."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from betrace_kms_server.core.key_event import KeyEvent, current_event

R = TypeVar("R")


class Changes:
    """The changes of one owner that run."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def whole(self, change: Coroutine[Any, Any, R], event: KeyEvent | None) -> R:
        """Make a change for an event, and return what it returns. It goes on if the caller is cancelled."""

        async def run() -> R:
            current_event.set(event)
            return await change

        task = asyncio.create_task(run())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Let what has begun come to its end."""
        await asyncio.gather(*self._running, return_exceptions=True)
