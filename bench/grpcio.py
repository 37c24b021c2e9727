"""Which release of grpcio serves a warm SignSpan for the least CPU: `make bench-grpcio VERSIONS="1.78.2 1.85.3"`.

Each release has an environment and a daemon of its own, and the daemons take turns; nothing else differs. The first
release is the one that the others are compared with. It has a second daemon, "again": where the two differ, processes
do. `CPU` is the daemon's own microseconds a call, all threads, `ratio` the median over the rounds of the ratio to the
first in the same round, with its quartiles.

`--python 3.12` and `--loop asyncio` compare other Pythons and event loops in the same way, each with each release.
"""

import itertools
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click
import grpc
from betrace.kms.v1 import key_management_pb2 as pb

from bench import records
from bench.environments import Environment, environment, pinned_version
from bench.load import Target, framed, turn
from bench.records import Case, Record
from bench.rounds import interleaved
from bench.sign import span
from tests.daemon import spawned
from tests.install import ROOT

TENANT, IN_FLIGHT, WARM_CALLS, CLOSE = "acme", 16, 4000, 1.05
METHOD = "/betrace.kms.v1.KeyManagementService/SignSpan"
LOOPS = ("uvloop", "asyncio")
THIS = f"{sys.version_info.major}.{sys.version_info.minor}"


def serving(resources: ExitStack, found: Environment, loop: str, folder: Path) -> Target:
    """Start a daemon, and return a SignSpan for it, which was answered once."""
    command = [str(found.program.with_name("betrace-kms")), "serve"]
    if loop == "asyncio":
        command = [str(found.program), str(ROOT / "bench/asyncio_daemon.py"), "serve"]
    folder.mkdir()
    daemon = resources.enter_context(
        spawned("--data-dir", f"{folder}/data", "--listen", "127.0.0.1:0", command=command)
    )
    daemon.wait_for("serving", 60)
    message = pb.SignSpanRequest(tenant_id=TENANT, span=span(1)).SerializeToString()
    with grpc.insecure_channel(daemon.address) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)  # bytes in, bytes out
        answer = call(message, timeout=20)
    body = folder / "request"
    body.write_bytes(framed(message))
    target = Target(daemon.address, METHOD, body, len(answer), daemon.process.pid)
    turn(target, WARM_CALLS, IN_FLIGHT)
    return target


def verdict(versions: Sequence[str], made: Sequence[Record]) -> str:
    """Say which releases are as good as the first."""
    lines = []
    for version in versions[1:]:
        ratio = next(record.ratio for record in made if record.case.variant.startswith(f"grpcio {version},"))
        assert ratio is not None
        close = "within 5 % of" if ratio <= CLOSE else "more than 5 % above"
        lines.append(f"grpcio {version} needs {ratio:.2f} times the CPU: {close} {versions[0]}")
    return "\n".join(lines)


@click.command()
@click.argument("versions", nargs=-1)
@click.option("--python", "pythons", multiple=True, default=(THIS,), show_default=True, help="As in 3.12.")
@click.option("--loop", "loops", multiple=True, type=click.Choice(LOOPS), default=("uvloop",), show_default=True)
@click.option("--rounds", default=30, show_default=True)
@click.option("--calls", default=1500, show_default=True, help="Calls of a turn.")
@click.option("--output", type=click.Path(path_type=Path), help="Where to write JSON lines.")
def main(
    versions: Sequence[str],
    pythons: Sequence[str],
    loops: Sequence[str],
    rounds: int,
    calls: int,
    output: Path | None,
) -> None:
    """Print what a warm SignSpan costs with each release."""
    versions = versions or (pinned_version(),)
    with tempfile.TemporaryDirectory() as name, ExitStack() as resources:
        targets: dict[str, Target] = {}
        for version, python, loop in itertools.product(versions, pythons, loops):
            found = environment(version, python)
            variant = f"grpcio {version}, Python {found.python}, {loop}"
            if not targets:
                targets["again"] = serving(resources, found, loop, Path(name, "again"))
            targets[variant] = serving(resources, found, loop, Path(name, str(len(targets))))
        first = next(variant for variant in targets if variant != "again")
        done = interleaved(
            {variant: partial(turn, target, calls, IN_FLIGHT) for variant, target in targets.items()}, rounds
        )
    made = [
        records.summary(Case("SignSpan", concurrency=IN_FLIGHT, variant=variant), "ours", each, done[first], first)
        for variant, each in sorted(done.items(), key=lambda item: item[0] != first)
    ]
    click.echo(f"warm SignSpan, {IN_FLIGHT} in flight, {rounds} rounds of {calls} calls\n")
    click.echo(f"{'':42}{'CPU us':>8}{'ratio':>8}  quartiles{'per second':>12}")
    for record in made:
        assert record.ratio_quartiles
        low, high = record.ratio_quartiles
        click.echo(
            f"{record.case.variant:42}{record.server_cpu_us:8.1f}{record.ratio:8.3f}  {low:.2f}-{high:.2f}"
            f"{record.per_second:12.0f}"
        )
    if repeated := sum(record.repeated or 0 for record in made):
        click.echo(f"\n{repeated} turns were made again, because calls in them were refused")
    click.echo(f"\n{verdict(versions, made)}".rstrip())
    if output:
        records.write(output, records.machine(), made)


if __name__ == "__main__":
    main()
