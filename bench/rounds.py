"""Lets contenders take turns, and reads what each turn cost the server.

A shared machine changes its speed from second to second. So a round is short, every contender has its turn in each
round, in a new order each time, and only what happened in one round is compared. `interleaved` does that for whatever
drives a server: a load generator, a client, or a loop in this process.
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.records import Rounds, percentile


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side did in one round."""

    items: int
    """Calls, times the items in a call."""
    cpu_nanoseconds: int
    """Of the server, all threads."""
    seconds: float
    """From the first request to the last answer."""
    latencies_ms: tuple[float, ...] = ()
    """Of each call."""
    repeated: int = 0
    """Turns before this one that were dropped, because a call in them was refused."""


@dataclass
class _Side:
    turns: list[Turn] = field(default_factory=list)

    def rounds(self) -> Rounds:
        return Rounds(
            cpu_us=[turn.cpu_nanoseconds / turn.items / 1000 for turn in self.turns],
            per_second=[turn.items / turn.seconds for turn in self.turns],
            p99_ms=[percentile(turn.latencies_ms, 0.99) for turn in self.turns if turn.latencies_ms],
            latencies_ms=[each for turn in self.turns for each in turn.latencies_ms],
            repeated=sum(turn.repeated for turn in self.turns),
        )


def cpu_nanoseconds(process_id: int) -> int:
    """Return the time on a CPU of a process, in the scheduler's nanoseconds.

    The process's CPU clock (clock_getcpuclockid(3)) has the sum of what /proc/PID/task/*/schedstat shows, and of the
    threads that ended: gRPC's come and go.
    """
    return time.clock_gettime_ns((~process_id << 3) | 2)


def rss_kib(process_id: int) -> int:
    """Return the resident memory of a process in KiB (VmRSS)."""
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def interleaved(contenders: Mapping[str, Callable[[], Turn]], rounds: int, *, warm: int = 1) -> dict[str, Rounds]:
    """Return what each contender did.

    Each has one turn in each round, in random order; the first `warm` rounds are dropped.
    """
    sides = {name: _Side() for name in contenders}
    order = list(contenders)
    for number in range(warm + rounds):
        random.shuffle(order)
        for name in order:
            turn = contenders[name]()
            if number >= warm:
                sides[name].turns.append(turn)
    return {name: side.rounds() for name, side in sides.items()}
