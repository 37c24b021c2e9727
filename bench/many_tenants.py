"""Measures calls of many tenants in turn, which h2load cannot make: it sends one request again and again.

A grpc.aio client in this process sends requests that were serialized before. It costs more than h2load and so the rates
are lower, but the server's CPU is the server's own, and the echo gets the same requests from the same client.
"""

import asyncio
import itertools
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grpc
from betrace.kms.v1 import key_management_pb2 as pb

from bench import echo_server, load, servers
from bench.load import LoadFailed
from bench.records import Case, Record, summary
from bench.rounds import Turn, cpu_nanoseconds, interleaved
from bench.servers import Server
from bench.workloads import KINDS, Workload

CACHE_ENTRIES = 20_000
"""More than there are tenants: what is measured is calls whose keys are cached."""
_WARMING = 32
_MEMORY = "/dev/shm"  # noqa: S108
"""Where the key store is, if there is such a folder: a signing key is on disk before it signs, and 10,000 take minutes.
The calls that are measured do not use the store."""
_REQUESTS: Mapping[str, Any] = {
    "SignSpan": pb.SignSpanRequest,
    "Encrypt": pb.EncryptRequest,
}
"""The rows whose request is as good for another tenant."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Requests that take turns, and who answers them."""

    server: Server
    address: str
    method: str
    requests: Iterator[bytes]
    answer_bytes: int

    async def made(self, count: int, in_flight: int) -> Sequence[float]:
        """Make so many calls and return the milliseconds of each, or fewer if some are refused.

        Raises ValueError for an answer of another size.
        """
        took: list[float] = []
        left = iter(range(count))
        async with grpc.aio.insecure_channel(self.address) as channel:
            call: Any = channel.unary_unary(self.method)

            async def some() -> None:
                for _ in left:
                    request, began = next(self.requests), time.perf_counter()
                    try:
                        answer = await call(request)
                    except grpc.aio.AioRpcError as refused:
                        if refused.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                            raise
                        continue
                    took.append((time.perf_counter() - began) * 1000)
                    if len(answer) != self.answer_bytes:
                        raise ValueError(f"{self.method} answered {len(answer)} bytes, not {self.answer_bytes}")

            await asyncio.gather(*(some() for _ in range(in_flight)))
        return took

    def turn(self, count: int, in_flight: int) -> Turn:
        """Make the calls of one turn, and again if one is refused. Raises LoadFailed if that does not help."""
        return load.repeated(lambda: self._turn(count, in_flight))

    def _turn(self, count: int, in_flight: int) -> Turn:
        before, began = cpu_nanoseconds(self.server.process_id), time.perf_counter()
        took = asyncio.run(self.made(count, in_flight))
        seconds = time.perf_counter() - began
        if len(took) < count:
            raise LoadFailed(f"{self.method}: {len(took)} calls of {count} were answered")
        return Turn(count, cpu_nanoseconds(self.server.process_id) - before, seconds, tuple(took))


def requests_of(row: str, workload: Workload, tenants: int) -> list[bytes]:
    """Return the request of a workload for each of so many tenants, in random order. Their names are equally long."""
    if tenants == 1:
        return [workload.request]
    message, made = _REQUESTS[row].FromString(workload.request), []
    for number in range(tenants):
        message.tenant_id = name(number)
        made.append(message.SerializeToString())
    random.shuffle(made)
    return made


def name(number: int) -> str:
    """Return the name of a tenant."""
    return f"tenant-{number:05}"


def measured(case: Case, mine: Server, base: Server, rounds: int, seconds: float) -> list[Record]:
    """Return what a case costs the daemon and the echo. The first calls make the keys of each tenant."""
    with mine.daemon(name(0)) as daemon:
        workload = KINDS[case.row].make(daemon, case.payload, case.batch)
    case = replace(case, payload=workload.payload)
    requests = requests_of(case.row, workload, case.tenants)

    def calls(server: Server, method: str, taken: Iterable[bytes]) -> Calls:
        return Calls(server, server.addresses[case.transport], method, iter(taken), workload.answer_bytes)

    asyncio.run(calls(mine, workload.method, requests).made(len(requests), _WARMING))
    sides = {
        "ours": calls(mine, workload.method, itertools.cycle(requests)),
        "echo": calls(base, echo_server.method(workload.answer_bytes), itertools.cycle(requests)),
    }
    trial = sides["ours"].turn(10 * case.concurrency, case.concurrency)
    count = max(4 * case.concurrency, int(10 * case.concurrency * seconds / trial.seconds))
    contenders: dict[str, Callable[[], Turn]] = {
        side: partial(each.turn, count, case.concurrency) for side, each in sides.items()
    }
    found = interleaved(contenders, rounds)
    return [
        summary(case, "ours", found["ours"], found["echo"], rss_kib=mine.rss_kib()),
        summary(case, "echo", found["echo"], rss_kib=base.rss_kib()),
    ]


def all_measured(cases: Sequence[Case], rounds: int, seconds: float) -> Iterator[Record]:
    """Measure one case after the other, with a daemon whose caches hold all tenants' keys."""
    settings = {"kms.cache.max-size": str(CACHE_ENTRIES)}
    with servers.ours(settings, folder=_MEMORY if os.path.isdir(_MEMORY) else None) as mine, servers.echo() as base:
        for case in cases:
            yield from measured(case, mine, base, rounds, seconds)
