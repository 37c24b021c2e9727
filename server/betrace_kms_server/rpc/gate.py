"""Counts what has been received and not answered, and lets no more of it in than the daemon can hold."""

import asyncio
from typing import Any

from betrace_kms_server.rpc.large_messages import LargeMessages
from betrace_kms_server.rpc.turns import Turns

MAX_STREAMS = 100
"""Streams of the health and the reflection service that are open at once."""
REQUESTS_AT_ONCE = 16
"""Requests that gRPC receives past the first window of each."""


class CallGate:
    """Counts the calls that have been received and answered, and refuses more once the daemon stops.

    Once `limit` calls are in flight no more may wait; operators and the health service are not held to it. Streams are
    counted apart: those that the daemon serves end when it drains.
    """

    __slots__ = (
        "ended",
        "is_crowded",
        "large",
        "limit",
        "received",
        "receiving",
        "refused",
        "refusing",
        "streams",
        "turns",
    )

    def __init__(self, limit: int = 1_000, large: LargeMessages | None = None) -> None:
        self.limit = limit
        self.large = large or LargeMessages()
        self.receiving: dict[Any, float] = {}
        """Contexts of calls whose request has not come yet, and since when gRPC receives it (monotonic)."""
        self.turns = Turns(REQUESTS_AT_ONCE)
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
