"""What coalescing saves with 64 callers of one tenant: `make bench-coalesce`.

Short rounds take turns on one daemon with the local provider: coroutines sign spans one after the other with
AsyncKmsClient, and threads with KmsClient, each as it comes and with `coalesce=True`. A span has the attributes of
`make bench-sign`.

`spans/s` is what the 64 callers get done, on this machine with client and daemon. `per CPU s` is how many spans the
daemon signs in a second of its own CPU (proc_pid_schedstat, all threads), `client` the client's CPU in microseconds a
span. `times` is the median over the rounds of how often the coalescing client's figure per CPU second is the plain
one's of the same round, with the interval of that median at 95 % (bootstrap). `refused` counts calls that the daemon
refused with RESOURCE_EXHAUSTED, which happens where the machine has no time for the daemon; they are made again.
"""

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import click
from betrace_kms_client import AsyncKmsClient, KmsClient, ResourceExhausted

from bench.access import interval
from bench.rounds import cpu_nanoseconds
from bench.sign import span
from tests.daemon import spawned

TENANT, CALLERS, SPANS_EACH = "acme", 64, 25
SPANS = [span(number) for number in range(CALLERS)]


@dataclass
class Way:
    """How spans are signed, and what a round cost: seconds, the daemon's CPU and the client's, in nanoseconds."""

    sign: Callable[[], Awaitable[int]]
    """Makes the calls of a round, and returns how many were refused."""
    seconds: list[float] = field(default_factory=list)
    daemon: list[int] = field(default_factory=list)
    client: list[int] = field(default_factory=list)
    refused: int = 0

    async def round(self, process_id: int) -> None:
        """Sign the spans of a round."""
        daemon, client, began = cpu_nanoseconds(process_id), time.process_time_ns(), time.perf_counter()
        self.refused += await self.sign()
        self.seconds.append(time.perf_counter() - began)
        self.client.append(time.process_time_ns() - client)
        self.daemon.append(cpu_nanoseconds(process_id) - daemon)


def coroutines(client: AsyncKmsClient) -> Callable[[], Awaitable[int]]:
    """Return what signs the spans of a round by coroutines."""

    async def one(caller: int) -> int:
        refused = 0
        for _ in range(SPANS_EACH):
            while True:
                try:
                    await client.sign_span(TENANT, SPANS[caller])
                    break
                except ResourceExhausted:
                    refused += 1
        return refused

    async def sign() -> int:
        return sum(await asyncio.gather(*map(one, range(CALLERS))))

    return sign


def threads(client: KmsClient, pool: ThreadPoolExecutor) -> Callable[[], Awaitable[int]]:
    """Return what signs the spans of a round by threads."""

    def one(caller: int) -> int:
        refused = 0
        for _ in range(SPANS_EACH):
            while True:
                try:
                    client.sign_span(TENANT, SPANS[caller])
                    break
                except ResourceExhausted:
                    refused += 1
        return refused

    async def sign() -> int:
        loop = asyncio.get_running_loop()
        return sum(await asyncio.gather(*(loop.run_in_executor(pool, one, caller) for caller in range(CALLERS))))

    return sign


async def measured(address: str, process_id: int, rounds: int) -> Mapping[str, Way]:
    """Return the ways with what was measured."""
    with (
        KmsClient(address) as plain,
        KmsClient(address, coalesce=True) as coalescing,
        ThreadPoolExecutor(CALLERS) as pool,
    ):
        async with AsyncKmsClient(address) as plain_async, AsyncKmsClient(address, coalesce=True) as coalescing_async:
            ways = {
                "coroutines": Way(coroutines(plain_async)),
                "coroutines, coalescing": Way(coroutines(coalescing_async)),
                "threads": Way(threads(plain, pool)),
                "threads, coalescing": Way(threads(coalescing, pool)),
            }
            for way in ways.values():
                await way.sign()
            order = list(ways.values())
            for _ in range(rounds):
                random.shuffle(order)
                for way in order:
                    await way.round(process_id)
            return ways


@click.command()
@click.option("--rounds", default=40, show_default=True)
def main(rounds: int) -> None:
    """Print what coalescing saves."""
    with tempfile.TemporaryDirectory(prefix="kms") as folder:
        address = f"unix:{folder}/kms.sock"
        with spawned("--data-dir", f"{folder}/data", "--listen", address) as process:
            process.wait_for("serving")
            ways = asyncio.run(measured(address, process.process.pid, rounds))
    spans = CALLERS * SPANS_EACH
    click.echo(
        f"SignSpan, {CALLERS} callers of one tenant, {rounds} rounds of {spans} spans,"
        f" Python {sys.version.split()[0]}\n"
    )
    click.echo(f"{'':24}{'spans/s':>9}{'per CPU s':>11}{'client':>8}{'times':>8}{'95 %':>14}{'refused':>9}")
    for name, way in ways.items():
        figures = (
            f"{spans / statistics.median(way.seconds):9,.0f}{spans * 1e9 / statistics.median(way.daemon):11,.0f}"
            f"{statistics.median(way.client) / spans / 1000:8.1f}"
        )
        compared = " " * 22
        if (plain := ways.get(name.removesuffix(", coalescing"))) is not way and plain is not None:
            ratios = [theirs / mine for theirs, mine in zip(plain.daemon, way.daemon, strict=True)]
            low, high = interval(ratios)
            compared = f"{statistics.median(ratios):8.2f}{low:8.2f} {high:.2f}"
        click.echo(f"{name:24}{figures}{compared}{way.refused:9}")


if __name__ == "__main__":
    main()
