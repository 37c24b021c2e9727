"""Ten times the callers that the daemon serves best, in a closed loop: `make drill-overload` (needs Go).

Callers of grpc-go, in a process of their own, call Encrypt of a warm tenant. First the number of callers with the most
answers a second is looked for; then ten times as many have deadlines of 250 ms, on one and on 50 connections, once
waiting as long as RetryInfo says and once calling again at once; and after each, the best number again. A probe
(Health/Check) runs beside them on a connection of its own.
"""

import json
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.daemon import Process, spawned
from tests.interop.callers import go

CALLERS = (8, 16, 32, 64)
CONNECTIONS = (1, 50)
DEADLINE = "250ms"
_WINDOW = 5
"""Tenths of a second over which goodput is averaged when the return to 95 % is looked for."""


@dataclass
class Outcome:
    """What came of the calls of one run."""

    per_second: float
    failed: dict[str, int]
    tenths: list[int]
    """Good answers in each tenth of a second."""

    def back_after(self, per_second: float) -> float | None:
        """Return after how many seconds goodput stays at this for half a second, or None."""
        for end in range(_WINDOW, len(self.tenths)):
            if sum(self.tenths[end - _WINDOW : end]) * 10 / _WINDOW >= per_second:
                return end / 10
        return None


@dataclass
class Probes:
    """Seconds that each probe took."""

    seconds: list[float] = field(default_factory=list)


@contextmanager
def probing(address: str) -> Iterator[Probes]:
    """Check the daemon's health four times a second while the body runs."""
    probes, stop = Probes(), threading.Event()

    def probe() -> None:
        with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            while not stop.wait(0.25):
                began = time.perf_counter()
                health.Check(health_pb2.HealthCheckRequest(), timeout=30)  # type: ignore[attr-defined]
                probes.seconds.append(time.perf_counter() - began)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield probes
    finally:
        stop.set()
        thread.join()


class Load:
    """The program that calls."""

    def __init__(self, folder: Path, address: str) -> None:
        self._program = go(folder, "./load")
        self._address = address

    def run(self, callers: int, seconds: float, *options: str) -> Outcome:
        """Let so many callers call for some time."""
        done = subprocess.run(
            [*self._program, self._address, "-callers", str(callers), "-seconds", str(seconds), *options],
            stdout=subprocess.PIPE,
            timeout=seconds + 60,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return Outcome(found["good"] / seconds, found["failed"], found["timeline"])


def peak_megabytes(process: Process) -> float:
    """Return the most memory that the daemon has had so far."""
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.process.pid}/status").read_text())
    return int(kilobytes) / 1024


def drill(folder: Path, *, callers: Sequence[int], connections: Sequence[int], seconds: float) -> Iterator[str]:
    """Run everything, and yield a line for each run."""
    address = f"unix:{folder}/kms.sock"
    with spawned("--data-dir", str(folder / "data"), "--listen", address) as process:
        process.wait_for("serving")
        load = Load(folder, address)
        load.run(8, 1)
        outcomes = {number: load.run(number, seconds / 2) for number in callers}
        best = max(outcomes, key=lambda number: outcomes[number].per_second)
        for number, outcome in outcomes.items():
            yield f"{number} callers: {outcome.per_second:,.0f} a second"
        for count in connections:
            for options in ((), ("-honour",)):
                peak = load.run(best, seconds / 2).per_second
                with probing(address) as probes:
                    over = load.run(10 * best, seconds, "-connections", str(count), "-deadline", DEADLINE, *options)
                back = load.run(best, max(3.5, seconds / 2)).back_after(0.95 * peak)
                manner = "RetryInfo honoured" if options else "again at once"
                yield (
                    f"{10 * best} callers on {count} connections, {manner}:"
                    f" {over.per_second:,.0f} a second ({over.per_second / peak:.0%} of {peak:,.0f}),"
                    f" {json.dumps(over.failed)}, slowest probe {max(probes.seconds, default=0):.2f} s,"
                    f" peak memory {peak_megabytes(process):.0f} MB,"
                    f" back at 95 % after {'more than 3.5' if back is None else back} s"
                )


@click.command()
@click.option("--seconds", default=8.0, show_default=True, help="Of each overload.")
def main(seconds: float) -> None:
    """Print what the daemon does with ten times the callers."""
    with tempfile.TemporaryDirectory(prefix="overload") as name:
        for line in drill(Path(name), callers=CALLERS, connections=CONNECTIONS, seconds=seconds):
            click.echo(line)


if __name__ == "__main__":
    main()
