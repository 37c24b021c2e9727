"""What it costs to identify the caller of a warm SignSpan: `make bench-access`.

One daemon has a socket with an identity, where nothing is checked, and one where a token is. A second has a policy
beside the same. A third has no more than the first: where those two differ, processes do. Short rounds of calls take
turns on all.

`CPU` is the daemon's own microseconds a call (all threads) with 16 calls in flight. `against
socket` is the median over the rounds of the ratio to the socket in the same round, with the interval of that median at
95 % (bootstrap).
"""

import asyncio
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
from betrace_kms_client import AsyncKmsClient

from bench.rounds import cpu_nanoseconds
from bench.sign import span
from tests.daemon import spawned

TENANT, IN_FLIGHT, CALLS = "acme", 16, 320
POLICY = """
[[rule]]
name = "others"
identities = ["importer", "spiffe://example.org/*"]
tenants = ["*"]
operations = ["Encrypt", "Decrypt"]
[[rule]]
name = "all"
identities = ["*"]
tenants = ["acme", "eu-*"]
operations = ["SignSpan"]
"""


@dataclass
class Way:
    """How calls are made, and the daemon's CPU for one in each round."""

    name: str
    client: AsyncKmsClient
    process_id: int
    cpu: list[float] = field(default_factory=list)


@contextmanager
def daemon(folder: Path, tokens: int, policy: str = "") -> Iterator[int]:
    """Run a daemon, and give its process id."""
    folder.mkdir()
    path = folder / "tokens"
    path.touch(0o600)
    path.write_text("".join(f"{number:064}\n" for number in range(tokens)))
    listen = f"unix:{folder}/socket.sock;identity=backend,unix:{folder}/token.sock"
    arguments = ["--data-dir", f"{folder}/data", "--listen", listen, "--set", f"kms.server.token-file={path}"]
    if policy:
        (folder / "policy.toml").write_text(policy)
        arguments += ["--set", f"kms.policy.file={folder}/policy.toml"]
    with spawned(*arguments) as process:
        process.wait_for("serving")
        yield process.process.pid


async def round_of(way: Way, calls: int = CALLS) -> None:
    """Make the calls of one round."""
    request = span(1)

    async def some() -> None:
        for _ in range(calls // IN_FLIGHT):
            await way.client.sign_span(TENANT, request)

    before = cpu_nanoseconds(way.process_id)
    await asyncio.gather(*(some() for _ in range(IN_FLIGHT)))
    way.cpu.append((cpu_nanoseconds(way.process_id) - before) / calls / 1000)


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median."""
    medians = sorted(statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(2000))  # noqa: S311
    return medians[50], medians[-51]


async def measured(folders: Mapping[Path, int], rounds: int) -> Sequence[Way]:
    """Return the ways with what was measured; the first is the one to compare with."""
    (first, first_id), (guarded, guarded_id), (third, third_id) = folders.items()
    async with AsyncExitStack() as clients:

        async def way(name: str, folder: Path, process_id: int, socket: str, token: bool) -> Way:
            client = AsyncKmsClient(f"unix:{folder}/{socket}.sock", token_file=folder / "tokens" if token else "")
            return Way(name, await clients.enter_async_context(client), process_id)

        ways = [
            await way("socket", first, first_id, "socket", False),
            await way("socket, again", first, first_id, "socket", False),
            await way("socket, token sent", first, first_id, "socket", True),
            await way("token", first, first_id, "token", True),
            await way("socket, other process", third, third_id, "socket", False),
            await way("token, other process", third, third_id, "token", True),
            await way("socket, policy", guarded, guarded_id, "socket", False),
            await way("token, policy", guarded, guarded_id, "token", True),
        ]
        for each in ways:
            await round_of(each, 10 * CALLS)
            each.cpu.clear()
        order = list(ways)
        for _ in range(rounds):
            random.shuffle(order)
            for each in order:
                await round_of(each)
    return ways


@click.command()
@click.option("--rounds", default=200, show_default=True)
@click.option("--tokens", default=1, show_default=True, help="Lines of the token file.")
def main(rounds: int, tokens: int) -> None:
    """Print what identities cost."""
    with tempfile.TemporaryDirectory(prefix="kms") as name, ExitStack() as daemons:
        folders = {
            path: daemons.enter_context(daemon(path, tokens, policy))
            for path, policy in ((Path(name, "1"), ""), (Path(name, "2"), POLICY), (Path(name, "3"), ""))
        }
        ways = asyncio.run(measured(folders, rounds))
    click.echo(f"warm SignSpan, {rounds} rounds of {CALLS} calls, Python {sys.version.split()[0]}\n")
    click.echo(f"{'':22}{'CPU':>7}{'against socket':>16}{'95 %':>17}")
    for way in ways:
        ratios = [mine / plain for mine, plain in zip(way.cpu, ways[0].cpu, strict=True)]
        low, high = interval(ratios)
        change = f"{statistics.median(ratios) - 1:+.1%}"
        click.echo(f"{way.name:22}{statistics.median(way.cpu):7.1f}{change:>16}{low - 1:+9.1%} {high - 1:+.1%}")


if __name__ == "__main__":
    main()
