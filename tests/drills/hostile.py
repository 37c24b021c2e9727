"""What hostile callers do to the daemon and to others: `make drill-hostile`.

Each attack of tests/drills/attacks.py comes from a process of its own and has a fresh daemon. Beside it there is a
liveness probe each 250 ms on a connection of its own, and warm calls. What else the machine does counts too.
"""

import multiprocessing
import os
import re
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import grpc
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.daemon import Process, spawned
from tests.drills.attacks import ATTACKS

MOST_MEGABYTES, SLOWEST_PROBE, SLOWEST_CALL = 256.0, 1.0, 0.1
AFTER_SECONDS = 3.0
PROBE_SECONDS = 0.25
_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


@dataclass
class Figures:
    """Memory in MB, and the seconds that others' calls took."""

    peak: float = 0.0
    probes: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    after: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def missed(self) -> list[str]:
        """What is beyond its bound."""
        figures = {
            "memory": (self.peak, MOST_MEGABYTES),
            "probe": (max(self.probes, default=60.0), SLOWEST_PROBE),
            "call": (self.after, SLOWEST_CALL),
        }
        return [name for name, (figure, bound) in figures.items() if figure >= bound] + list(self.failures)

    def line(self) -> str:
        """Return the figures as text."""
        return (
            f"{self.seconds:5.1f} s  peak {self.peak:4.0f} MB  probe max {max(self.probes, default=0) * 1000:5.0f} ms"
            f" of {len(self.probes):3}  warm max {max(self.warm, default=0) * 1000:5.0f} ms of {len(self.warm):4}"
            f"  call after {self.after * 1000:4.0f} ms  {'MISSED: ' + ', '.join(self.missed) if self.missed else 'ok'}"
        )


@contextmanager
def daemon(open_files: int | None = None, *, tcp: bool = True) -> Iterator[tuple[Process, str]]:
    """Run a daemon; yield it and its address. It may have so many open files, if a number is given."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with tempfile.TemporaryDirectory(prefix="hostile") as folder:
        listen = "127.0.0.1:0" if tcp else f"unix:{folder}/kms.sock"
        command = ["sh", "-c", f'ulimit -n {open_files or limits[1]}; exec betrace-kms serve "$@"', "sh"]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with spawned(
            "--data-dir", f"{folder}/data", "--listen", listen, environ={"PATH": path}, command=command
        ) as ran:
            ran.wait_for("serving")
            yield ran, ran.address


def megabytes(process_id: int) -> float:
    """Return the resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process_id}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def attacked(name: str, scale: float = 1.0, open_files: int | None = None, *, tcp: bool = True) -> Figures:
    """Let one attack run against a fresh daemon, and return what others noticed."""
    figures, over = Figures(), threading.Event()
    with daemon(open_files, tcp=tcp) as (process, address), grpc.insecure_channel(address, _OWN_CONNECTION) as channel:
        encrypt = KeyManagementServiceStub(channel).Encrypt
        request = pb.EncryptRequest(tenant_id="warm", plaintext=b"x" * 100)
        encrypt(request, timeout=20)
        with grpc.insecure_channel(address, _OWN_CONNECTION) as probing:
            check = health_pb2_grpc.HealthStub(probing).Check  # type: ignore[attr-defined]
            probe = partial(check, health_pb2.HealthCheckRequest(), timeout=60)
            warm = partial(encrypt, request, timeout=60)
            beside = [
                threading.Thread(target=_repeat, args=(probe, figures.probes, PROBE_SECONDS, figures.failures, over)),
                threading.Thread(target=_repeat, args=(warm, figures.warm, 0.05, figures.failures, over)),
                threading.Thread(target=_weigh, args=(process.process.pid, figures, over)),
            ]
            for thread in beside:
                thread.start()
            began = time.monotonic()
            attack = multiprocessing.get_context("spawn").Process(target=ATTACKS[name], args=(address, scale))
            attack.start()
            attack.join()
            figures.seconds = time.monotonic() - began
            if attack.exitcode:
                figures.failures[f"the attack failed: {attack.exitcode}"] += 1
            time.sleep(AFTER_SECONDS)
            over.set()
            for thread in beside:
                thread.join()
        with grpc.insecure_channel(address, _OWN_CONNECTION) as fresh:
            began = time.monotonic()
            KeyManagementServiceStub(fresh).Encrypt(request, timeout=60)
            figures.after = time.monotonic() - began
    return figures


def _repeat(
    call: Callable[[], object], into: list[float], pause: float, failures: Counter[str], over: threading.Event
) -> None:
    while not over.wait(pause):
        began = time.monotonic()
        try:
            call()
        except grpc.RpcError as error:
            failures[f"a call of others ended {error.code().name}"] += 1
        into.append(time.monotonic() - began)


def _weigh(process_id: int, figures: Figures, over: threading.Event) -> None:
    while not over.wait(0.02):
        figures.peak = max(figures.peak, megabytes(process_id))


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(ATTACKS)), help="This attack, and not all.")
@click.option("--scale", default=1.0, show_default=True, help="Part of each attack's calls, connections and frames.")
@click.option("--open-files", type=int, help="The daemon's limit of open files.")
@click.option("--unix", is_flag=True, help="Attack a unix socket.")
def main(only: tuple[str, ...], scale: float, open_files: int | None, unix: bool) -> None:
    """Print what each attack does to the daemon's memory and to others."""
    missed = 0
    for name in only or ATTACKS:
        figures = attacked(name, scale, open_files, tcp=not unix)
        missed += bool(figures.missed)
        click.echo(f"{name:32} {figures.line()}")
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
