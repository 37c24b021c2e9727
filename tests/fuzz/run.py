"""Fuzz each reader and each method for some time, print how far it came, and exit with 1 if there was a finding."""

import platform
import random
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from tests.fuzz.requests import METHODS
from tests.fuzz.targets import TARGETS

KEPT = Path(__file__).parents[2] / ".fuzz"
"""Inputs that reached new code in earlier runs, a folder for each target."""
_GRACE_SECONDS = 120
_DONE = re.compile(r"^Done .*", re.MULTILINE)
_COVERAGE = re.compile(r"^#\d+\s+DONE\s+(cov: \d+ ft: \d+)", re.MULTILINE)


@click.command()
@click.option("--minutes", default=1.0, show_default=True, help="for each target")
@click.option("--seed", default=None, type=click.IntRange(1, 2**32 - 1), help="that of a run to repeat")
@click.argument("names", nargs=-1, type=click.Choice([*TARGETS, *METHODS]))
def main(minutes: float, seed: int | None, names: tuple[str, ...]) -> None:
    """Fuzz the targets NAMES, or all: readers of bytes, and methods of a daemon."""
    if find_spec("atheris") is None:
        python = f"Python {sys.version_info.major}.{sys.version_info.minor} on {platform.system()} {platform.machine()}"
        click.echo(f"Not guided by coverage: requirements/fuzz.txt has no atheris for {python}, or it is not installed")
    chosen = seed or random.SystemRandom().randrange(1, 2**32)
    failed = [name for name in names or (*TARGETS, *METHODS) if not _fuzz(name, minutes, chosen)]
    if failed:
        click.echo(f"Findings: {', '.join(failed)}. Mend them, and commit the inputs: they are in tests/fuzz/corpus")
    raise SystemExit(bool(failed))


def _fuzz(name: str, minutes: float, seed: int) -> bool:
    folder = KEPT / name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.one", name, str(folder), str(60 * minutes), str(seed)]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        timeout=60 * minutes + _GRACE_SECONDS,
    )
    (folder / "log").write_text(done.stdout, "utf-8")
    summary, coverage = _DONE.search(done.stdout), _COVERAGE.search(done.stdout)
    good = done.returncode == 0 and summary is not None
    text = summary[0] if summary else ""
    reached = f", {coverage[1]}" if coverage else ""
    click.echo(f"{name}: {text}{reached}, seed {seed}" if good else f"{name}: seed {seed}\n{done.stdout[-3000:]}")
    return good


if __name__ == "__main__":
    main()
