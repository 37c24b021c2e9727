"""What an audit trail costs a warm SignSpan when its line must be written, or synced, first: `make bench-audit`.

Daemons that differ in nothing else take turns. `rate` is calls a second, `CPU` the daemon's own microseconds a call
(all threads), `latency` the median of a call in milliseconds; printed are medians over the rounds. `disk` is what one
write of 500 bytes and its fsync take on the same volume: with one call in flight, `durable` cannot be faster than that.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import click
from betrace_kms_client import AsyncKmsClient

from bench.rounds import cpu_nanoseconds
from bench.sign import span
from tests.daemon import Process, spawned

TENANT = "acme"
KINDS = {
    "no audit trail": {},
    "audit": {"KMS_AUDIT_FILE": "{folder}/{number}.log"},
    "required": {"KMS_AUDIT_FILE": "{folder}/{number}.log", "KMS_AUDIT_REQUIRED": "true"},
    "durable": {"KMS_AUDIT_FILE": "{folder}/{number}.log", "KMS_AUDIT_DURABLE": "true"},
}


@dataclass
class Contender:
    """A daemon, and what it did in each round, by the number of calls in flight."""

    daemon: Process
    socket: str
    rates: dict[int, list[float]] = field(default_factory=dict)
    cpu: dict[int, list[float]] = field(default_factory=dict)
    latencies: dict[int, list[float]] = field(default_factory=dict)


async def round_of(contender: Contender, in_flight: int, calls: int) -> None:
    """Make the calls of one round."""
    request = span(1)
    latencies: list[float] = []
    async with AsyncKmsClient(contender.socket) as client:
        await client.sign_span(TENANT, request)

        async def some() -> None:
            for _ in range(calls // in_flight):
                began = time.perf_counter()
                await client.sign_span(TENANT, request)
                latencies.append(time.perf_counter() - began)

        cpu, began = cpu_nanoseconds(contender.daemon.process.pid), time.perf_counter()
        await asyncio.gather(*(some() for _ in range(in_flight)))
        contender.rates.setdefault(in_flight, []).append(calls / (time.perf_counter() - began))
        used = cpu_nanoseconds(contender.daemon.process.pid) - cpu
    contender.cpu.setdefault(in_flight, []).append(used / calls / 1000)
    contender.latencies.setdefault(in_flight, []).append(statistics.median(latencies) * 1000)


def disk(folder: Path) -> float:
    """Return the milliseconds that a write and its fsync take, the median of a hundred."""
    times = []
    with (folder / "probe").open("ab", buffering=0) as file:
        for _ in range(100):
            began = time.perf_counter()
            file.write(bytes(500))
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


@click.command()
@click.option("--rounds", default=10, show_default=True)
@click.option("--calls", default=1920, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where the files are; a temporary folder by default.")
def main(rounds: int, calls: int, folder: Path | None) -> None:
    """Print what the settings of the audit trail cost."""
    with tempfile.TemporaryDirectory(dir=folder) as name, ExitStack() as resources:
        found: dict[str, Contender] = {}
        for number, (kind, environ) in enumerate(KINDS.items()):
            socket = f"unix:{name}/{number}.sock"
            filled = {key: value.format(folder=name, number=number) for key, value in environ.items()}
            arguments = ("--data-dir", f"{name}/{number}", "--listen", socket)
            daemon = resources.enter_context(spawned(*arguments, environ=filled))
            daemon.wait_for("serving")
            found[kind] = Contender(daemon, socket)
            asyncio.run(round_of(Contender(daemon, socket), 64, 640))  # warm
        for _ in range(rounds):
            for in_flight, count in ((64, calls), (1, calls // 4)):
                for each in found.values():
                    asyncio.run(round_of(each, in_flight, count))
        click.echo(f"warm SignSpan, {rounds} rounds, Python {sys.version.split()[0]}, disk {disk(Path(name)):.2f} ms\n")
    click.echo(f"{'':16}{'in flight':>10}{'rate':>8}{'CPU us':>8}{'latency ms':>12}")
    for in_flight in (64, 1):
        for kind, each in found.items():
            rate, cpu, latency = (
                statistics.median(values[in_flight]) for values in (each.rates, each.cpu, each.latencies)
            )
            click.echo(f"{kind:16}{in_flight:10}{rate:8.0f}{cpu:8.0f}{latency:12.2f}")


if __name__ == "__main__":
    main()
