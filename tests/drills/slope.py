"""A straight line through measurements: by how much something grows, and how sure that is."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_T95 = 2.0
"""Student's t for 95 % and 60 degrees of freedom; a little too small for fewer measurements."""


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth for each unit of x, and half the width of its 95 % confidence interval."""

    value: float
    margin: float

    def grows(self, beyond: float = 0.0) -> bool:
        """Return whether all of the interval is above a growth that is known."""
        return self.value - self.margin > beyond


def slope(x: Sequence[float], y: Sequence[float]) -> Slope:
    """Return the slope of the least-squares line. Neighbours in time are alike, so the margin is on the small side."""
    line = statistics.linear_regression(x, y)
    middle = statistics.fmean(x)
    spread = sum((each - middle) ** 2 for each in x)
    rest = sum((b - line.intercept - line.slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return Slope(line.slope, _T95 * (rest / max(len(x) - 2, 1) / spread) ** 0.5)
