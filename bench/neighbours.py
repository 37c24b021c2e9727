"""What large payloads of some callers do to the small calls of another: 4 MiB seals by 4 callers, and one SignSpan at a
time beside them.

The daemon and the echo carry the same bytes. Only small calls that were under way while the large ones were count, so
the latencies are those of a busy server throughout.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from bench import echo_server, load, plan, servers
from bench.load import Load, Target
from bench.records import Case, Record, summary
from bench.rounds import Turn, interleaved
from bench.servers import Server
from bench.workloads import KINDS

LARGE_CALLERS, LARGE_CALLS, SMALL_CALLS = 4, 64, 1_000
VARIANT = "4 MiB beside"


def targets(mine: Server, base: Server) -> tuple[Case, dict[str, tuple[Target, Target]]]:
    """Return the case, and the large and the small call of each side."""
    found: dict[str, tuple[Target, Target]] = {}
    with mine.daemon() as daemon:
        large, small = (
            KINDS[row].make(daemon, size, 1) for row, size in (("Encrypt", plan.LARGEST_BYTES), ("SignSpan", 0))
        )
    for side, server in (("ours", mine), ("echo", base)):
        found[side] = (
            server.target(large, large.method if side == "ours" else echo_server.method(large.answer_bytes), "tcp"),
            server.target(small, small.method if side == "ours" else echo_server.method(small.answer_bytes), "tcp"),
        )
    return Case("SignSpan", concurrency=1, payload=small.payload, variant=VARIANT), found


def turn(large: Target, small: Target, large_calls: int) -> Turn:
    """Make both loads, and return the small calls that were made while large ones were under way."""
    return load.beside(Load(small, SMALL_CALLS, 1), Load(large, large_calls, 1, LARGE_CALLERS))


def measured(rounds: int, large_calls: int = LARGE_CALLS) -> Iterator[Record]:
    """Return what a small call takes beside large ones: of the daemon, and of the echo."""
    with servers.ours() as mine, servers.echo() as base:
        case, pairs = targets(mine, base)
        found = interleaved(
            {side: partial(turn, large, small, large_calls) for side, (large, small) in pairs.items()}, rounds
        )
        # The CPU is that of the large calls too: only latencies say something of the small ones.
        ours, echo = (replace(found[side], cpu_us=()) for side in ("ours", "echo"))
        yield summary(case, "ours", ours, echo, rss_kib=mine.rss_kib())
        yield summary(case, "echo", echo, rss_kib=base.rss_kib())
