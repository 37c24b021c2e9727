"""What the tour stands on: an emulator of AWS with a Region that can fail, a daemon, and a backend that calls it.

Everything is in one temporary folder and ends with it. Ports are chosen freely. Nothing of the user's own
configuration for AWS, OpenTelemetry or the daemon reaches what runs here.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from urllib.request import urlopen

from betrace_kms_client import KmsClient

from demo.traffic import Traffic, traffic
from tests.aws_proxy import AwsProxy, aws_proxy
from tests.daemon import COMMAND, Process, spawned

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

ROOT = Path(__file__).parents[1]
REGION, REPLICA_REGION = "us-east-1", "eu-west-1"
_OURS = ("AWS_", "BETRACE_", "KMS_", "OTEL_")
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "demo",
    "AWS_SECRET_ACCESS_KEY": "demo",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


class Skipped(Exception):
    """A step cannot be taken here; the text says why."""


class StepFailed(Exception):
    """A step did not end as it must; the text says how."""


@dataclass
class Stage:
    """What is running. The members without a value are there after `start`."""

    folder: Path
    say: Callable[[str], None]
    resources: ExitStack
    settings: dict[str, str] = field(default_factory=dict)
    aws: "MotoServer" = field(init=False)
    master_key: str = field(init=False)
    near: AwsProxy = field(init=False)
    """The way to the first Region of KMS."""
    away: AwsProxy = field(init=False)
    """The way to the second one."""
    daemon: Process = field(init=False)
    kms: KmsClient = field(init=False)
    backend: Traffic = field(init=False)

    def start(self) -> None:
        """Start AWS, the daemon and the backend."""
        from tests.moto_server import moto_server  # late: importing moto takes half a second

        enter = self.resources.enter_context
        self.aws = enter(moto_server())
        self.master_key = self.aws.create_key(multi_region=True)
        replica = self.aws.kms().replicate_key(self.master_key, REPLICA_REGION).arn
        self.near, self.away = enter(aws_proxy(self.aws.url)), enter(aws_proxy(self.aws.url))
        self.settings = {
            "BETRACE_KMS_PROVIDER": "aws",
            "AWS_KMS_MASTER_KEY_ID": self.master_key,
            "AWS_KMS_ENDPOINT": self.near.url,
            "AWS_KMS_REPLICA_KEY_IDS": replica,
            "AWS_KMS_REPLICA_ENDPOINTS": self.away.url,
            "AWS_KMS_CALL_TIMEOUT_MS": "3000",
            "KMS_HEALTH_CHECK_SECONDS": "2",
            "KMS_STORE_ALLOW_EPHEMERAL": "true",
            "KMS_SERVER_LISTEN": "127.0.0.1:0",
        }
        self.daemon = enter(self.daemon_in("data", KMS_AUDIT_FILE=str(self.folder / "audit.log")))
        self.kms = enter(KmsClient(self.daemon.address))
        self.backend = enter(traffic(self.daemon.address))

    @contextmanager
    def daemon_in(self, name: str, **environ: str) -> Iterator[Process]:
        """Run a daemon with the settings of the tour and a data folder of its own."""
        with spawned(
            "--data-dir", str(self.folder / name), environ=self.settings | environ, own_session=True
        ) as daemon:
            daemon.wait_for("serving")
            yield daemon

    @property
    def page(self) -> str:
        """Where the daemon shows itself."""
        return f"http://{self.daemon.ops_address}/"

    def log_lines(self) -> list[str]:
        """Return what the daemon logged so far."""
        return self.daemon.lines if hasattr(self, "daemon") else []

    def command(self, line: str, *, status: int = 0, daemon: Process | None = None, data: str = "data") -> str:
        """Show a call of the command `betrace-kms`, make it, and return what it printed."""
        self.say(f"$ betrace-kms {line}")
        environ = {
            "BETRACE_KMS_ADDR": (daemon or self.daemon).address,
            "BETRACE_KMS_ADMIN_ADDR": f"unix:{self.folder / data / 'admin.sock'}",
        }
        return self._run([str(COMMAND), *shlex.split(line)], environ, status)

    def program(self, line: str, environ: Mapping[str, str] | None = None) -> str:
        """Show a call of a Python program of this repository, make it, and return what it printed."""
        self.say(f"$ python {line}")
        script, *arguments = shlex.split(line)
        return self._run([sys.executable, str(ROOT / script), *arguments], environ or {}, 0)

    def status(self) -> dict[str, Any]:
        """Return the daemon's status report."""
        found: dict[str, Any] = json.loads(self.get("/api/admin/kms/status"))
        return found

    def get(self, path: str) -> str:
        """Return what the daemon's HTTP port answers."""
        with urlopen(f"http://{self.daemon.ops_address}{path}", timeout=20) as answer:
            text: str = answer.read().decode()
        return text

    def _run(self, command: list[str], environ: Mapping[str, str], status: int) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        if done.returncode != status:
            said = (done.stderr or done.stdout).strip()
            raise StepFailed(f"{Path(command[0]).name} {command[1]} ended with {done.returncode}: {said}")
        if printed := done.stdout.strip():
            self.say(printed)
        return printed


@contextmanager
def staged(say: Callable[[str], None]) -> Iterator[Stage]:
    """Give a stage on which nothing runs yet; in the end all that was started is ended and removed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)} | _ENVIRONMENT
    with ExitStack() as resources:
        resources.enter_context(patch.dict(os.environ, environment, clear=True))
        folder = resources.enter_context(TemporaryDirectory(prefix="betrace-kms-demo-"))
        yield Stage(Path(folder), say, resources)


def check(condition: object, sentence: str) -> None:
    """Fail the step with a sentence unless a condition holds."""
    if not condition:
        raise StepFailed(sentence)
