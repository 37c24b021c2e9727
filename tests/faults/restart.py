"""Restarts a daemon under load and counts the calls that fail: `make drill-restart`.

The callers are both Python clients, as they are, and grpc-go and grpc-java with the service config of docs/clients.md.
Each calls Encrypt without a pause, once by TCP and once by a unix socket.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest

from tests.daemon import spawned
from tests.interop import callers


@dataclass
class Tally:
    """What became of the calls of one caller."""

    calls: int = 0
    failures: "Counter[str]" = field(default_factory=Counter)


@dataclass
class Report:
    """What the drill found."""

    stops: list[float] = field(default_factory=list)
    """Seconds from SIGTERM to the exit of each daemon."""
    gaps: list[float] = field(default_factory=list)
    """Seconds from SIGTERM to the start of the service by the next one."""
    tallies: dict[str, Tally] = field(default_factory=dict)


@contextmanager
def _calling(command: Sequence[str], target: str, tally: Tally) -> Iterator[None]:
    """Run a program; at the end, count what it did."""
    process = subprocess.Popen(
        [*command, target, callers.service_config()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "calling\n" == process.stdout.readline()
        yield
        output, _ = process.communicate(timeout=60)  # closes its input, which ends it
    finally:
        process.kill()
        process.wait()
    found = json.loads(output)
    tally.calls, tally.failures = found["calls"], Counter(found["failures"])


def drill(folder: Path, restarts: int, programs: Sequence[str], pause: float) -> Report:
    """Restart a daemon under load, each time after `pause` seconds, and count."""
    report = Report()
    commands = {name: callers.PROGRAMS[name](folder) for name in programs}
    socket = f"unix:{folder}/kms.sock"
    address = "127.0.0.1:0"
    with ExitStack() as running:
        began = 0.0
        for restart in range(restarts + 1):
            arguments = ("--data-dir", f"{folder}/data", "--listen", f"{address},{socket}")
            with spawned(*arguments) as daemon:
                daemon.wait_for("serving", timeout=60)
                if restart:
                    report.gaps.append(time.monotonic() - began)
                else:
                    address = daemon.address
                    for name, command in commands.items():
                        for kind, target in (("tcp", address), ("unix", socket)):
                            tally = report.tallies[f"{name}, {kind}"] = Tally()
                            running.enter_context(_calling(command, target, tally))
                time.sleep(pause)
                if restart == restarts:
                    running.close()
                    break
                began = time.monotonic()
                daemon.process.send_signal(signal.SIGTERM)
                assert 0 == daemon.process.wait(60), daemon.log
                report.stops.append(time.monotonic() - began)
    return report


@click.command()
@click.option("--restarts", default=50, show_default=True)
@click.option("--pause", default=2.0, show_default=True, help="Seconds between a start and the next restart.")
@click.option("--without", multiple=True, help="Programs to leave out, for example grpc-java.")
def main(restarts: int, pause: float, without: Sequence[str]) -> None:
    """Print what the drill found; exit with 1 if a call failed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = drill(Path(folder), restarts, [name for name in callers.PROGRAMS if name not in without], pause)
        except (pytest.skip.Exception, pytest.fail.Exception) as missing:
            raise click.ClickException(f"{missing}, or leave programs out with --without") from None
    click.echo(f"{len(report.stops)} restarts; stop {_spread(report.stops)}, SIGTERM to serving {_spread(report.gaps)}")
    for name, tally in report.tallies.items():
        click.echo(f"{name:24} {tally.calls:8} calls {tally.failures.total():5} failed {dict(tally.failures) or ''}")
    sys.exit(any(tally.failures for tally in report.tallies.values()))


def _spread(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    return f"{ordered[len(ordered) // 2]:.2f} s (at most {ordered[-1]:.2f} s)"


if __name__ == "__main__":
    main()
