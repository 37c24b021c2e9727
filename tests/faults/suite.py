"""All faults of the suite, and docs/reliability.md, which has a row for each: `make test-faults` writes it.

A family of faults is a module. `test_suite.py` injects some of each, for a short time.
"""

import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import click

from tests.faults import callers, credentials, dynamodb, keystore, kms, machine, memory, telemetry
from tests.faults.outcome import Family, Outcome

FAMILIES: Mapping[str, Family] = {
    module.__name__.rpartition(".")[2]: cast(Family, module)
    for module in (kms, credentials, dynamodb, keystore, machine, callers, memory, telemetry)
}
TABLE = Path(__file__).parents[2] / "docs/reliability.md"
_HEAD = ("| fault | expected | injected by | last figure |", "|---|---|---|---|")


def read_table() -> Mapping[str, str]:
    """Return the rows of docs/reliability.md, by fault."""
    rows = TABLE.read_text("utf-8").partition("\n".join(_HEAD) + "\n")[2].partition("\n\n")[0].splitlines()
    return {row.split(" | ")[0].removeprefix("| "): row for row in rows}


def row(family: str, outcome: Outcome) -> str:
    """Return a fault's row."""
    expected = FAMILIES[family].FAULTS[outcome.fault]
    return f"| {outcome.fault} | {expected} | `tests/faults/{family}.py` | {outcome.figure} |"


def write_table(rows: Mapping[str, str]) -> None:
    """Put rows into docs/reliability.md, in the order of the families; what is no fault of the suite any more goes."""
    text = TABLE.read_text("utf-8")
    known = [rows[fault] for family in FAMILIES.values() for fault in family.FAULTS if fault in rows]
    start = text.index(_HEAD[0])
    end = text.find("\n\n", start)
    TABLE.write_text(text[:start] + "\n".join((*_HEAD, *known)) + text[end:], "utf-8")


async def _run(names: Sequence[str], seconds: float) -> bool:
    """Inject all faults of some families, print what came of them, and note it in the table."""
    passed, rows = True, dict(read_table())
    for name in names:
        family = FAMILIES[name]
        with tempfile.TemporaryDirectory(prefix=name) as folder:
            began = time.monotonic()
            async for outcome in family.run(Path(folder), list(family.FAULTS), seconds):
                rows[outcome.fault] = row(name, outcome)
                click.echo(f"{time.monotonic() - began:5.0f} s  {outcome.fault}: {outcome.figure}")
                for problem in outcome.problems:
                    click.echo(f"        PROBLEM: {problem}")
                    passed = False
        write_table(rows)
    return passed


@click.command()
@click.option("--seconds", default=5.0, show_default=True, help="how long each fault lasts")
@click.argument("families", nargs=-1, type=click.Choice(list(FAMILIES)))
def main(seconds: float, families: Sequence[str]) -> None:
    """Inject all faults, or those of some families, and write docs/reliability.md."""
    began = time.monotonic()
    passed = asyncio.run(_run(families or list(FAMILIES), seconds))
    click.echo(f"{'no' if passed else 'with'} problems, {(time.monotonic() - began) / 60:.1f} minutes")
    raise SystemExit(not passed)


if __name__ == "__main__":
    main()
