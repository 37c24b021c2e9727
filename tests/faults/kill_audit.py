"""kill -9 under load with an audit trail that is required: each call that was answered must have its line.

`make drill-audit` kills a hundred times, `test_kill_audit.py` a few. Each call names itself by `x-request-id`, which is
in its line. The machine itself goes on, so this shows that lines are written before answers, not that they are synced.
"""

import itertools
import json
import random
import subprocess
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import click
import grpc
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub

from tests.daemon import COMMAND, spawned

CALLERS = 8


@dataclass
class Report:
    """What was answered, and what of it has no line."""

    kills: int = 0
    answered: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    verdict: str = ""
    """What `betrace-kms audit verify` says of the whole chain in the end."""

    def __str__(self) -> str:
        return (
            f"{self.kills} kills: {len(self.answered):,} calls answered, {len(self.lost):,} of them without their line;"
            f" {self.verdict}"
        )


class Drill:
    """One daemon that is killed again and again, on one data folder and one trail."""

    def __init__(self, folder: Path, mode: str, seed: int) -> None:
        self.report = Report()
        self._file = folder / "audit.log"
        self._listen = f"unix:{folder}/kms.sock"
        self._arguments = ("--data-dir", f"{folder}/data", "--listen", self._listen)
        self._environ = {"KMS_AUDIT_FILE": str(self._file)}
        if mode != "not required":
            self._environ[f"KMS_AUDIT_{mode.upper()}"] = "true"
        self._random = random.Random(seed)  # noqa: S311  # moments to kill at, not secrets
        self._numbers = itertools.count(1)

    def run(self, kills: int) -> None:
        """Kill a number of times, and then look for the line of each call that was answered."""
        for _ in range(kills):
            self._kill_once()
        with spawned(*self._arguments, environ=self._environ) as daemon:  # it cuts off a torn line
            daemon.wait_for("serving")
            daemon.process.terminate()
            daemon.process.wait(30)
        seen = Counter(json.loads(line)["requestId"] for line in self._file.read_bytes().splitlines())
        self.report.lost = self.report.answered - set(seen)
        verified = subprocess.run(
            [str(COMMAND), "audit", "verify", str(self._file)], capture_output=True, text=True, check=False
        )
        self.report.verdict = (verified.stdout + verified.stderr).strip()

    def _kill_once(self) -> None:
        stopped = threading.Event()
        with spawned(*self._arguments, environ=self._environ) as daemon:
            daemon.wait_for("serving")
            with ThreadPoolExecutor(CALLERS) as pool:
                for _ in range(CALLERS):
                    pool.submit(self._call, stopped)
                time.sleep(self._random.uniform(0.05, 0.4))
                daemon.process.kill()
                stopped.set()
        self.report.kills += 1

    def _call(self, stopped: threading.Event) -> None:
        """Encrypt until the daemon is gone."""
        with grpc.insecure_channel(self._listen) as channel:
            encrypt = KeyManagementServiceStub(channel).Encrypt
            while not stopped.is_set():
                name = f"call-{next(self._numbers)}"
                request = pb.EncryptRequest(tenant_id="acme", plaintext=b"x")
                try:
                    encrypt(request, timeout=3, metadata=(("x-request-id", name),))
                except grpc.RpcError:
                    return
                self.report.answered.add(name)


@click.command()
@click.option("--kills", default=100, show_default=True)
@click.option("--mode", type=click.Choice(["required", "durable", "not required"]), default="required")
def main(kills: int, mode: str) -> None:
    """Kill a daemon again and again, and print what came of it."""
    with tempfile.TemporaryDirectory(prefix="kill") as folder:
        drill = Drill(Path(folder), mode, seed=20_261_126)
        drill.run(kills)
    click.echo(f"{mode}: {drill.report}")
    raise SystemExit(bool(drill.report.lost))


if __name__ == "__main__":
    main()
