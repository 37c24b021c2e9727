"""Fuzz each reader for some time with a new seed, and print the first input that it does not refuse as it should."""

import random
import time

import click

from tests.fuzz.mutation import mutations
from tests.fuzz.targets import TARGETS


@click.command()
@click.option("--minutes", default=1.0, show_default=True, help="for each reader")
@click.option("--seed", default=None, type=int, help="that of a run to repeat")
def main(minutes: float, seed: int | None) -> None:
    """Mutate the inputs of every reader. Exits with 1 if one raised what it should not."""
    chosen = random.SystemRandom().getrandbits(32) if seed is None else seed
    failed = False
    for name, target in TARGETS.items():
        ends, count, finding = time.monotonic() + 60 * minutes, 0, ""
        for data in mutations(target.seeds, seed=chosen):
            try:
                target.check(data)
            except Exception as cause:  # noqa: BLE001  # whatever it is, it is a finding
                finding = f": {type(cause).__name__} for {data.hex()}"
                failed = True
            count += 1
            if finding or time.monotonic() > ends:
                break
        click.echo(f"{name}: {count:,} inputs, seed {chosen}{finding}")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
