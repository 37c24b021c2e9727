"""Pace: how fast calls may start while a service throttles: multiplicative decrease, slow increase, as TCP does.

At rest there is no limit. The first throttled call limits the starts to a share of what started in the last second;
each second without one raises the limit, and a while without one lifts it.
"""

from collections import deque
from collections.abc import Callable

DECREASE = 0.7
"""Share of the rate that is left after a throttled call."""
INCREASE = 0.1
"""Share of the rate at the last decrease that is added in a second."""
CUT_SECONDS = 1.0
"""Time between two decreases: calls that were under way say nothing of the new rate."""
CALM_SECONDS = 30.0
"""Time without a throttled call after which there is no limit."""
MIN_PER_SECOND = 2.0
_COUNTED = 1000


class Pace:
    """Limits starts a second. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._starts: deque[float] = deque(maxlen=_COUNTED)
        self._cut_rate = 0.0  # 0 is no limit
        self._cut_at = 0.0
        self._throttled_at = 0.0
        self._next = 0.0

    def delay(self) -> float:
        """Return in how many seconds the next call may start, at the rate of now."""
        if not self._cut_rate:
            return 0.0
        now = self._clock()
        if now - self._throttled_at >= CALM_SECONDS:
            self._cut_rate = 0.0
            return 0.0
        return max(0.0, self._next - now)

    def started(self) -> None:
        """Note that a call starts."""
        now = self._clock()
        self._starts.append(now)
        if self._cut_rate:
            self._next = max(now, self._next) + 1 / self._rate(now)

    def slow_down(self) -> None:
        """Note that a call was throttled."""
        now = self._clock()
        self._throttled_at = now
        if self._cut_rate and now - self._cut_at < CUT_SECONDS:
            return
        rate = self._rate(now) if self._cut_rate else float(sum(now - start <= 1.0 for start in self._starts))
        self._cut_rate, self._cut_at = max(MIN_PER_SECOND, DECREASE * rate), now
        self._next = max(self._next, now + 1 / self._cut_rate)

    def _rate(self, now: float) -> float:
        return self._cut_rate * (1 + INCREASE * (now - self._cut_at))
