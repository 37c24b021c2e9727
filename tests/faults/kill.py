"""kill -9 while keys are made and rotated: what a daemon acknowledged must be there after its restart.

`make drill-kill` kills five hundred times, `test_kill.py` a few. Acknowledged is a key that a signature came back from,
and a rotation that was answered.
"""

import random
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import click
import grpc
from betrace.kms.v1 import admin_pb2
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import KmsClient, KmsClientError, SpanSignature

from tests.daemon import spawned

CALLERS = 8


def span(number: int) -> ComplianceSpan:
    """Return a span of its own for each number."""
    return ComplianceSpan(trace_id=number.to_bytes(16, "big"), span_id=b"s" * 8, name="user.login")


@dataclass
class Report:
    """What was acknowledged, what of it is lost, and how long restarts took in seconds."""

    kills: int = 0
    signatures: dict[tuple[int, str], SpanSignature] = field(default_factory=dict)
    """By tenant number and key id."""
    rotations: int = 0
    lost: list[str] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        median = statistics.median(self.restarts)
        return (
            f"{self.kills} kills: {len(self.signatures):,} keys and {self.rotations:,} rotations acknowledged,"
            f" {len(self.lost)} lost; restart to SERVING {median:.2f} s (median), {max(self.restarts):.2f} s (longest)"
        )


class Drill:
    """One daemon that is killed again and again, on one data folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.report = Report()
        self._listen = f"unix:{folder}/kms.sock"
        self._admin = f"unix:{folder}/data/admin.sock"
        self._arguments = ("--data-dir", f"{folder}/data", "--listen", self._listen)
        self._random = random.Random(seed)  # noqa: S311  # moments to kill at, not secrets
        self._next_tenant = 0
        self._lock = threading.Lock()

    def run(self, kills: int) -> None:
        """Kill a number of times, and look in the end whether everything is there."""
        for _ in range(kills):
            self._kill_once()
        began = time.monotonic()
        with spawned(*self._arguments) as daemon, KmsClient(self._listen, wait_for_ready=False) as client:
            daemon.wait_for("serving")
            self.report.restarts.append(time.monotonic() - began)
            for (tenant, key_id), signed in self.report.signatures.items():
                if client.verify_span(f"tenant-{tenant}", span(tenant), signed.signature, key_id).reason != "VALID":
                    self.report.lost.append(key_id)
            for tenant in {tenant for tenant, _ in self.report.signatures}:
                keys = client.get_public_keys(f"tenant-{tenant}").keys
                if [key.status for key in keys].count("ACTIVE") != 1:
                    self.report.lost.append(f"tenant-{tenant} has no single active key")

    def _kill_once(self) -> None:
        began, stopped = time.monotonic(), threading.Event()
        with spawned(*self._arguments) as daemon:
            daemon.wait_for("serving")
            self.report.restarts.append(time.monotonic() - began)
            with ThreadPoolExecutor(CALLERS) as pool:
                for _ in range(CALLERS):
                    pool.submit(self._call, stopped)
                time.sleep(self._random.uniform(0.0, 0.3))
                daemon.process.kill()
                stopped.set()
        self.report.kills += 1

    def _call(self, stopped: threading.Event) -> None:
        """Make keys and rotate them until the daemon is gone."""
        with (
            KmsClient(self._listen, timeout=3, wait_for_ready=False) as client,
            grpc.insecure_channel(self._admin) as channel,
        ):
            admin = KmsAdminServiceStub(channel)
            while not stopped.is_set():
                with self._lock:
                    self._next_tenant += 1
                    tenant = self._next_tenant
                try:
                    for _ in range(2):
                        signed = client.sign_span(f"tenant-{tenant}", span(tenant))
                        self.report.signatures[tenant, signed.key_id] = signed
                        admin.RotateKeys(admin_pb2.RotateKeysRequest(tenant_id=f"tenant-{tenant}"), timeout=3)
                        self.report.rotations += 1
                except (KmsClientError, grpc.RpcError):
                    return


@click.command()
@click.option("--kills", default=500, show_default=True)
def main(kills: int) -> None:
    """Kill a daemon again and again, and print what came of it."""
    with tempfile.TemporaryDirectory(prefix="kill") as folder:
        drill = Drill(Path(folder), seed=20_261_123)
        for first in range(0, kills, 50):
            drill.run(min(50, kills - first))
            click.echo(str(drill.report), err=True)
    click.echo(str(drill.report))
    for lost in drill.report.lost:
        click.echo(f"lost: {lost}")
    raise SystemExit(bool(drill.report.lost))


if __name__ == "__main__":
    main()
