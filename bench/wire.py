"""Measures RPCs over the wire: a daemon and the empty echo in turns, by h2load."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

from bench import echo_server, load, servers
from bench.load import Target
from bench.records import Case, Record, summary
from bench.rounds import Turn, interleaved
from bench.servers import Server
from bench.workloads import KINDS

OURS, ECHO = "ours", "echo"


class Servers:
    """The echo and a daemon for each variant, started when first asked for."""

    def __init__(self, resources: ExitStack) -> None:
        self._resources = resources
        self._started: dict[str, Server] = {}

    def __getitem__(self, name: str) -> Server:
        """Return `echo`, or the daemon of a variant."""
        if name not in self._started:
            made = servers.echo() if name == ECHO else servers.ours(audit="audit" in name, token="token" in name)
            self._started[name] = self._resources.enter_context(made)
        return self._started[name]


def calls_for(target: Target, in_flight: int, seconds: float) -> int:
    """Return how many calls take about so long, and are at least twice those in flight."""
    trial = load.turn(target, 2 * in_flight, in_flight)
    return max(2 * in_flight, int(2 * in_flight * seconds / trial.seconds))


def measured(case: Case, running: Servers, rounds: int, seconds: float) -> list[Record]:
    """Return what a case costs the daemon and the echo."""
    mine, base = running[case.variant], running[ECHO]
    with mine.daemon() as daemon:
        workload = KINDS[case.row].make(daemon, case.payload, case.batch)
    case = Case(case.row, case.transport, case.concurrency, workload.payload, workload.items, 1, case.variant)
    targets = {
        OURS: mine.target(workload, workload.method, case.transport),
        ECHO: base.target(workload, echo_server.method(workload.answer_bytes), case.transport),
    }
    calls = calls_for(targets[OURS], case.concurrency, seconds)
    contenders: dict[str, Callable[[], Turn]] = {
        side: partial(load.turn, target, calls, case.concurrency) for side, target in targets.items()
    }
    found = interleaved(contenders, rounds)
    return [
        summary(case, OURS, found[OURS], found[ECHO], rss_kib=mine.rss_kib()),
        summary(case, ECHO, found[ECHO], rss_kib=base.rss_kib()),
    ]


def all_measured(cases: Sequence[Case], rounds: int, seconds: float) -> Iterator[Record]:
    """Measure one case after the other."""
    with ExitStack() as resources:
        running = Servers(resources)
        for case in cases:
            yield from measured(case, running, rounds, seconds)
