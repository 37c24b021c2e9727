"""What metrics, logs, audit trail and traces cost a warm SignSpan: `make bench-telemetry`.

Daemons that differ in nothing else take turns, so that a machine that slows down slows all of them. `rate` is calls a
second with 16 in flight, `CPU` the daemon's own microseconds a call (all threads); printed are
medians with the 10th and 90th percentile, and the rate in relation to the daemon without any telemetry. The daemons
with metrics are scraped after each round, about once a second: far more often than Prometheus usually does.
"""

import asyncio
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
from betrace_kms_client import AsyncKmsClient

from bench.rounds import cpu_nanoseconds
from bench.sign import span
from tests.collector import collecting
from tests.daemon import Process, spawned

TENANT, IN_FLIGHT, CALLS = "acme", 16, 2000
BARE = (sys.executable, "-m", "bench.bare_daemon", "serve")


@dataclass
class Contender:
    """A daemon, and what it did in each round."""

    daemon: Process
    socket: str
    scraped: bool
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@contextmanager
def contenders(folder: Path) -> Iterator[Mapping[str, Contender]]:
    """Run one daemon of each kind."""
    with ExitStack() as resources:
        collector = resources.enter_context(collecting())
        found: dict[str, Contender] = {}

        def add(name: str, environ: Mapping[str, str], command: Sequence[str] | None = None) -> None:
            socket = f"unix:{folder}/{len(found)}.sock"
            arguments = ("--data-dir", f"{folder}/{len(found)}", "--listen", socket)
            daemon = resources.enter_context(spawned(*arguments, environ=environ, command=command))
            daemon.wait_for("serving")
            found[name] = Contender(daemon, socket, scraped=command is None)

        add("no telemetry", {}, BARE)
        add("metrics", {})
        everything = {"KMS_AUDIT_FILE": f"{folder}/audit.jsonl", "KMS_LOG_FORMAT": "json"}
        add("metrics, logs, audit", everything)
        traced = everything | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        add("and a tenth traced", traced)
        add("and all traced", traced | {"OTEL_TRACES_SAMPLER": "parentbased_always_on"})
        yield found


async def round_of(contender: Contender) -> None:
    """Make the calls of one round."""
    request = span(1)
    async with AsyncKmsClient(contender.socket) as client:
        await client.sign_span(TENANT, request)

        async def some() -> None:
            for _ in range(CALLS // IN_FLIGHT):
                await client.sign_span(TENANT, request)

        cpu, began = cpu_nanoseconds(contender.daemon.process.pid), time.perf_counter()
        await asyncio.gather(*(some() for _ in range(IN_FLIGHT)))
        contender.rates.append(CALLS / (time.perf_counter() - began))
        contender.cpu.append((cpu_nanoseconds(contender.daemon.process.pid) - cpu) / CALLS / 1000)
        if contender.scraped:
            await asyncio.to_thread(scrape, contender.daemon.ops_address)


def scrape(address: str) -> None:
    """Get the metrics once."""
    with urllib.request.urlopen(f"http://{address}/q/metrics") as answer:
        answer.read()


def quartiles(values: list[float]) -> str:
    """Return the 10th and 90th percentile."""
    deciles = statistics.quantiles(values, n=10)
    return f"{deciles[0]:.0f}-{deciles[-1]:.0f}"


@click.command()
@click.option("--rounds", default=20, show_default=True)
def main(rounds: int) -> None:
    """Print what telemetry costs."""
    with tempfile.TemporaryDirectory() as folder, contenders(Path(folder)) as found:
        for each in found.values():
            asyncio.run(round_of(each))  # warm
            each.rates.clear()
            each.cpu.clear()
        for _ in range(rounds):
            for each in found.values():
                asyncio.run(round_of(each))
    bare = found["no telemetry"]
    click.echo(f"warm SignSpan, {rounds} rounds of {CALLS} calls, Python {sys.version.split()[0]}\n")
    click.echo(f"{'':31}{'rate':>7}{'p10-p90':>13}{'CPU':>7}{'p10-p90':>11}{'rate / bare':>13}{'by CPU':>8}")
    for name, each in found.items():
        rate, cpu = statistics.median(each.rates), statistics.median(each.cpu)
        click.echo(
            f"{name:31}{rate:7.0f}{quartiles(each.rates):>13}{cpu:7.0f}{quartiles(each.cpu):>11}"
            f"{rate / statistics.median(bare.rates):12.2f}x{statistics.median(bare.cpu) / cpu:7.2f}x"
        )


if __name__ == "__main__":
    main()
