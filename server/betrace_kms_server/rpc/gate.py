"""Counts what has been received and not answered, and lets no more of it in than the daemon can hold."""

import asyncio
from typing import Any

from betrace_kms_server.rpc.large_messages import LargeMessages

MAX_STREAMS = 100
"""Streams of the health and the reflection service that are open at once."""


class CallGate:
    """Counts the calls that have been received and answered, and refuses more once the daemon stops.

    Once `limit` calls are in flight no more may wait; operators and the health service are not held to it. Streams are
    counted apart: those that the daemon serves end when it drains.
    """

    __slots__ = ("ended", "is_crowded", "large", "limit", "received", "receiving", "refused", "refusing", "streams")

    def __init__(self, limit: int = 1_000, large: LargeMessages | None = None) -> None:
        self.limit = limit
        self.large = large or LargeMessages()
        self.receiving: dict[Any, float] = {}
        """Contexts of calls whose request has not come yet, and when they began (monotonic)."""
        self.is_crowded = asyncio.Event()
        """Set while they are so many that the slow ones must end."""
        self.received = 0
        self.ended = 0
        self.refused = 0
        self.refusing = False
        self.streams = 0

    @property
    def in_flight(self) -> int:
        """How many calls have no answer yet."""
        return self.received - self.ended

    @property
    def is_full(self) -> bool:
        """Whether more calls are in flight than may wait."""
        return self.received - self.ended > self.limit
