"""Counts what has been received and not answered, and lets no more of it in than the daemon can hold."""

MAX_STREAMS = 100
"""Streams of the health and the reflection service that are open at once."""
LARGE_BYTES = 64 * 1024
MAX_BYTES = 64 * 1024 * 1024


class CallGate:
    """Counts the calls that have been received and answered, and refuses more once the daemon stops.

    Once `limit` calls are in flight, or large requests of `max_bytes` together, no more calls may wait; operators and
    the health service are not held to it. Streams are counted apart: those that the daemon serves end when it drains.
    """

    __slots__ = ("bytes", "ended", "limit", "max_bytes", "received", "refused", "refusing", "streams")

    def __init__(self, limit: int = 1_000, max_bytes: int = MAX_BYTES) -> None:
        self.limit = limit
        self.max_bytes = max_bytes
        self.bytes = 0
        """Of the requests in flight that are larger than `LARGE_BYTES`."""
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
        """Whether more is in flight than may wait."""
        return self.received - self.ended > self.limit or self.bytes > self.max_bytes
