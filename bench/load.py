"""Drives a gRPC server with h2load, which costs a few microseconds a call and so leaves the machine to the server.

h2load sends one fixed request again and again, with so many in flight on each connection, and logs when each began and
how long it took. It knows nothing of gRPC: it counts the answers with HTTP status 200, which a failed call has too. But
a failed call answers in trailers alone. So a turn counts the bytes of all answers, and fails unless they are as many as
that many good answers have.
"""

import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bench.rounds import Turn, cpu_nanoseconds

H2LOAD = shutil.which("h2load") or str(Path(__file__).parents[1] / ".tools" / "h2load")
ATTEMPTS = 5
"""How often a turn is made before it fails. On a crowded machine a daemon refuses a request that arrives slowly."""
_PREFIX_BYTES = 5


@dataclass(frozen=True, slots=True)
class Target:
    """What is called, and what answers."""

    address: str
    """host:port or unix:/path."""
    method: str
    """/package.Service/Method."""
    body: Path
    """The request with gRPC's prefix."""
    answer_bytes: int
    """Size of the answer's message."""
    process_id: int
    """Of the server."""
    items: int = 1
    """Items in a call."""
    tolerance: float = 0.0
    """Share by which the size of an answer may differ, where it holds the time of day."""
    token: str = ""
    """Bearer token of the caller."""
    http1: tuple[str, ...] = ()
    """Headers for a server that is no gRPC server: HTTP/1.1, and each call in flight has a connection of its own."""


class LoadFailed(Exception):
    """Not every call was answered as expected."""


def framed(message: bytes) -> bytes:
    """Return a message with gRPC's prefix: not compressed, and its length."""
    return b"\x00" + struct.pack(">I", len(message)) + message


@dataclass(frozen=True, slots=True)
class Load:
    """So many calls, with so many in flight at once on each connection."""

    target: Target
    calls: int
    in_flight: int
    connections: int = 1

    def command(self, log: Path) -> list[str]:
        """Return the command line of h2load."""
        target = self.target
        host, socket = ("localhost", target.address) if target.address.startswith("unix:") else (target.address, "")
        headers = list(target.http1) or ["content-type: application/grpc", "te: trailers"]
        if target.token:
            headers.append(f"authorization: Bearer {target.token}")
        return [
            H2LOAD,
            f"--requests={self.calls}",
            *(
                ("--h1", f"--clients={self.connections * self.in_flight}")
                if target.http1
                else (f"--clients={self.connections}", f"--max-concurrent-streams={self.in_flight}")
            ),
            *(f"--data={target.body}", f"--log-file={log}"),
            *(f"--header={header}" for header in headers),
            *([f"--base-uri={socket}"] if socket else []),
            f"http://{host}{target.method}",
        ]

    def check(self, output: str) -> None:
        """Raise LoadFailed unless h2load reports that all calls got an answer of the expected size."""
        succeeded, data = re.search(r"(\d+) succeeded", output), re.search(r"\((\d+)\) data", output)
        expected = self.calls * (self.target.answer_bytes + (0 if self.target.http1 else _PREFIX_BYTES))
        if succeeded and data and int(succeeded[1]) == self.calls:
            if abs(int(data[1]) - expected) <= expected * self.target.tolerance:
                return
        found = f"{succeeded and succeeded[1]} calls and {data and data[1]} bytes"
        raise LoadFailed(f"{self.target.method}: {found} of {self.calls} and {expected}:\n{output}")


@dataclass(frozen=True, slots=True)
class Call:
    """When a call began, in microseconds since the epoch, and how many microseconds it took."""

    began: int
    took: int


def turn(target: Target, calls: int, in_flight: int, connections: int = 1) -> Turn:
    """Make calls and return what they cost the server, the acceptance of the connections included.

    A turn in which a call is refused is made again; raises LoadFailed if that does not help.
    """
    return repeated(lambda: _turn(Load(target, calls, in_flight, connections)))


def beside(small: Load, large: Load) -> Turn:
    """Make two loads of one server at once, and return the calls of the first that the second was beside all the time.

    The server's CPU is that of both. Refused calls and LoadFailed as in `turn`.
    """
    return repeated(lambda: _beside(small, large))


def _turn(load: Load) -> Turn:
    before = cpu_nanoseconds(load.target.process_id)
    (calls,) = _made([load])
    cpu = cpu_nanoseconds(load.target.process_id) - before
    return _of(calls, load.target.items, cpu)


def _beside(small: Load, large: Load) -> Turn:
    before = cpu_nanoseconds(small.target.process_id)
    mine, others = _made([small, large])
    cpu = cpu_nanoseconds(small.target.process_id) - before
    first, last = min(call.began for call in others), max(call.began + call.took for call in others)
    among = [call for call in mine if first <= call.began and call.began + call.took <= last]
    if len(among) < 20:
        raise LoadFailed(f"only {len(among)} of {len(mine)} small calls were beside the large ones")
    return _of(among, small.target.items, cpu)


def _of(calls: Sequence[Call], items: int, cpu: int) -> Turn:
    began, ended = min(call.began for call in calls), max(call.began + call.took for call in calls)
    return Turn(len(calls) * items, cpu, (ended - began) / 1e6, tuple(call.took / 1000 for call in calls))


def repeated(make: Callable[[], Turn]) -> Turn:
    """Make a turn until no call in it is refused. Raises LoadFailed if that does not help."""
    for failed in range(ATTEMPTS - 1):
        with suppress(LoadFailed):
            return replace(make(), repeated=failed)
    return replace(make(), repeated=ATTEMPTS - 1)


def _made(loads: Sequence[Load]) -> list[list[Call]]:
    """Make loads at once. Raises LoadFailed unless every call succeeds."""
    with tempfile.TemporaryDirectory(prefix="bench") as folder, ExitStack() as running:
        logs = [Path(folder, str(number)) for number in range(len(loads))]
        processes = []
        for load, log in zip(loads, logs, strict=True):
            process = subprocess.Popen(
                load.command(log),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "LC_ALL": "C"},
            )
            running.enter_context(process)
            running.callback(process.kill)
            processes.append(process)
        for load, process in zip(loads, processes, strict=True):
            load.check(process.communicate()[0])
        return [_logged(log) for log in logs]


def _logged(log: Path) -> list[Call]:
    rows = (line.split("\t") for line in log.read_text().splitlines())
    return [Call(int(began), int(took)) for began, _status, took, *_ in rows]


def h2load_version() -> str:
    """Return the version of the load generator. Raises LoadFailed if there is none."""
    try:
        return subprocess.run([H2LOAD, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as cause:
        raise LoadFailed("h2load does not run: `make h2load` unpacks Debian's into .tools") from cause
