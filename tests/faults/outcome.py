"""What a fault did to a daemon, as the suite reports it."""

import statistics
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Outcome:
    """One fault's figures in words, and what is not as it must be. Times are figures and no problems."""

    fault: str
    figure: str
    problems: Sequence[str] = field(default_factory=tuple)


class Family(Protocol):
    """A module with faults of one kind."""

    FAULTS: Mapping[str, str]
    """What is expected, by the fault's name."""
    SHORT: Sequence[str]
    """Those that CI injects."""

    def run(self, folder: Path, faults: Sequence[str], seconds: float) -> AsyncIterator[Outcome]:
        """Inject faults, each for about this long where a fault lasts."""
        ...


def p99(seconds: Sequence[float]) -> float:
    """Return the 99th percentile."""
    return statistics.quantiles(seconds, n=100)[98]
