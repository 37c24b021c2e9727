"""Measures everything, prints a table and writes JSON lines: `make bench`.

    python -m bench.run --output dist/bench.jsonl
    python -m bench.run --only '^Encrypt$' --rounds 40
    python -m bench.run --quick

The server is a process of its own and has the machine to itself, but for a load generator that costs a few microseconds
a call. Run it where nothing else runs. docs/performance.md explains the figures.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import click

from bench import libraries, load, many_tenants, neighbours, plan, records, startup, terminal, wire
from bench.records import Case, Record

BUSY = 1.0
"""Load average from which something else runs."""
_SLOW = 0.4
"""Share of the rounds in which what takes seconds has its turn."""


def full(rounds: int, seconds: float, only: str) -> Iterator[Record]:
    """Make every measurement whose row has a name that `only` finds."""

    def chosen(cases: Iterable[Case]) -> Sequence[Case]:
        return [case for case in cases if re.search(only, case.row)]

    few = max(2, round(rounds * _SLOW))
    yield from wire.all_measured(chosen(plan.wire()), rounds, seconds)
    yield from many_tenants.all_measured(chosen(plan.tenants()), rounds, seconds)
    others: dict[str, Callable[[], Iterator[Record]]] = {
        "beside": lambda: neighbours.measured(few),
        "start": lambda: startup.measured(few),
        "libraries": lambda: libraries.measured(rounds),
    }
    yield from chain.from_iterable(measure() for name, measure in others.items() if re.search(only, name))


def quick() -> Iterator[Record]:
    """Make a few measurements of each sort: their figures say little, their shape is that of a whole run."""
    yield from wire.all_measured(plan.quick(), 2, 0.02)
    yield from many_tenants.all_measured(plan.tenants((1, 3))[-1:], 2, 0.02)
    yield from neighbours.measured(2, large_calls=16)
    yield from startup.measured(1)
    yield from libraries.bare(2)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("dist/bench.jsonl"), show_default=True)
@click.option("--rounds", default=20, show_default=True, help="Turns of each side.")
@click.option("--seconds", default=0.1, show_default=True, help="About how long a turn of the daemon takes.")
@click.option("--only", default="", help="Measure only rows, beside, start or libraries that this expression finds.")
@click.option("--quick", "in_short", is_flag=True, help="Show in seconds that everything can be measured.")
def main(output: Path, rounds: int, seconds: float, only: str, in_short: bool) -> None:
    """Measure what calls cost."""
    described = records.machine()
    described["machine"]["load_generator"] = load.h2load_version()
    click.echo(terminal.described(described["machine"]))
    if described["machine"]["load_average"] > BUSY:
        click.echo("WARNING: something else runs on this machine; figures of a busy machine are not worth keeping")
    click.echo(f"\n{terminal.HEAD}")
    found = []
    for record in quick() if in_short else full(rounds, seconds, only):
        found.append(record)
        click.echo(terminal.row(record))
        records.write(output, described, found)
    click.echo(f"\n{len(found)} measurements are in {output}")


if __name__ == "__main__":
    main()
