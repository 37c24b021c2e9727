"""What it costs to identify the caller of a warm SignSpan: `make bench-access`.

One daemon has a socket with an identity, where nothing is checked, and one where a token is. Short rounds of calls take
turns on both, so that both have the same caches, the same memory and the same noise. `CPU` is the daemon's own
microseconds a call (proc_pid_schedstat, all threads) with 16 calls in flight. `against socket` is the median over the
rounds of the ratio to the socket in the same round, with the interval of that median at 95 % (bootstrap).
"""

import asyncio
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
from betrace_kms_client import AsyncKmsClient

from bench.sign import span
from bench.telemetry import cpu_nanoseconds
from tests.daemon import spawned

TENANT, IN_FLIGHT, CALLS = "acme", 16, 320


@dataclass
class Way:
    """How calls are made, and the daemon's CPU for one in each round."""

    name: str
    client: AsyncKmsClient
    cpu: list[float] = field(default_factory=list)


@contextmanager
def daemon(folder: Path, tokens: int) -> Iterator[int]:
    """Run the daemon, and give its process id."""
    path = folder / "tokens"
    path.touch(0o600)
    path.write_text("".join(f"{number:064}\n" for number in range(tokens)))
    listen = f"unix:{folder}/socket.sock;identity=backend,unix:{folder}/token.sock"
    arguments = ("--data-dir", f"{folder}/data", "--listen", listen, "--set", f"kms.server.token-file={path}")
    with spawned(*arguments) as process:
        process.wait_for("serving")
        yield process.process.pid


async def round_of(way: Way, process_id: int, calls: int = CALLS) -> None:
    """Make the calls of one round."""
    request = span(1)

    async def some() -> None:
        for _ in range(calls // IN_FLIGHT):
            await way.client.sign_span(TENANT, request)

    before = cpu_nanoseconds(process_id)
    await asyncio.gather(*(some() for _ in range(IN_FLIGHT)))
    way.cpu.append((cpu_nanoseconds(process_id) - before) / calls / 1000)


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median."""
    medians = sorted(statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(2000))  # noqa: S311
    return medians[50], medians[-51]


async def measured(folder: Path, process_id: int, rounds: int) -> Sequence[Way]:
    """Return the ways with what was measured; the first is the one to compare with."""
    socket, token, file = f"unix:{folder}/socket.sock", f"unix:{folder}/token.sock", folder / "tokens"
    async with (
        AsyncKmsClient(socket, token_file="") as plain,
        AsyncKmsClient(socket, token_file="") as again,
        AsyncKmsClient(socket, token_file=file) as ignored,
        AsyncKmsClient(token, token_file=file) as checked,
    ):
        ways = [
            Way("socket", plain),
            Way("socket, again", again),
            Way("socket, token sent", ignored),
            Way("token", checked),
        ]
        for way in ways:
            await round_of(way, process_id, 10 * CALLS)
            way.cpu.clear()
        order = list(ways)
        for _ in range(rounds):
            random.shuffle(order)
            for way in order:
                await round_of(way, process_id)
    return ways


@click.command()
@click.option("--rounds", default=200, show_default=True)
@click.option("--tokens", default=1, show_default=True, help="Lines of the token file.")
def main(rounds: int, tokens: int) -> None:
    """Print what identities cost."""
    with tempfile.TemporaryDirectory(prefix="kms") as name, daemon(Path(name), tokens) as process_id:
        ways = asyncio.run(measured(Path(name), process_id, rounds))
    click.echo(f"warm SignSpan, {rounds} rounds of {CALLS} calls, Python {sys.version.split()[0]}\n")
    click.echo(f"{'':20}{'CPU':>7}{'against socket':>16}{'95 %':>17}")
    for way in ways:
        ratios = [mine / plain for mine, plain in zip(way.cpu, ways[0].cpu, strict=True)]
        low, high = interval(ratios)
        change = f"{statistics.median(ratios) - 1:+.1%}"
        click.echo(f"{way.name:20}{statistics.median(way.cpu):7.1f}{change:>16}{low - 1:+9.1%} {high - 1:+.1%}")


if __name__ == "__main__":
    main()
