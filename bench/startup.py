"""What it costs to start: a daemon with provider local until it says SERVING, and the empty echo until it listens.

Each start is a process of its own with an empty data folder. Compiled modules and the disk's cache are warm, as
they are when a container starts again on the same node.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from bench import servers
from bench.records import Case, Record, summary
from bench.rounds import Turn, cpu_nanoseconds, interleaved
from bench.servers import Server

CASE = Case("start", transport="", concurrency=1)


def turn(start: Callable[[], AbstractContextManager[Server]], memory: list[int]) -> Turn:
    """Start a server once, and return its CPU and the seconds until it was ready; note its memory then."""
    began = time.perf_counter()
    with start() as server:
        seconds, cpu = time.perf_counter() - began, cpu_nanoseconds(server.process_id)
        memory.append(server.rss_kib())
    return Turn(1, cpu, seconds, (seconds * 1000,))


def measured(rounds: int) -> Iterator[Record]:
    """Return CPU, time and memory of a start: of the daemon, and of the echo."""
    memory: dict[str, list[int]] = {"ours": [], "echo": []}
    found = interleaved(
        {"ours": lambda: turn(servers.ours, memory["ours"]), "echo": lambda: turn(servers.echo, memory["echo"])}, rounds
    )
    for side in memory:
        base = found["echo"] if side == "ours" else None
        yield summary(CASE, side, found[side], base, rss_kib=sorted(memory[side])[len(memory[side]) // 2])
