"""A histogram of plain integers, cheap enough for the hot path; telemetry/metrics.py reads it when it is scraped."""

from bisect import bisect_left
from collections.abc import Sequence

LATENCY_SECONDS = (
    *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
"""Upper bounds for latencies: from a cache hit to a call that runs out of time."""


class Histogram:
    """Counts observations in buckets with inclusive upper bounds; the last bucket has none."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = LATENCY_SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """Number of values so far."""
        return sum(self.counts)
