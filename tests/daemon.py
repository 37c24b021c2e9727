"""Starts real daemons for tests: in this process, or as a process of its own that can be killed."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

import grpc
from betrace_kms_server.config import sources as config
from grpc_health.v1 import health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from betrace_kms_server.app import Daemon

COMMAND = Path(sys.executable).with_name("betrace-kms")


def settings(data_dir: Path, **values: str) -> config.Settings:
    """Return settings for a test: any free port, and names with `_` for `.` and `-` looked up among the real ones."""
    names = {config.environment_name(name).lower(): name for name in config.NAMES}
    given = {
        "kms.data-dir": str(data_dir),
        "kms.server.listen": "127.0.0.1:0",
        "kms.ops.listen": "127.0.0.1:0",
        "kms.server.drain-seconds": "2",
    }
    given |= {names[name]: value for name, value in values.items()}
    return config.resolve([config.from_command_line(given)])[0]


@asynccontextmanager
async def running(data_dir: Path, **values: str) -> AsyncIterator["Daemon"]:
    """Run a daemon in this process, and wait until it serves."""
    from betrace_kms_server import app  # late: importing it takes a second, and `spawned` does without

    async with app.running(settings(data_dir, **values)) as daemon:
        async with grpc.aio.insecure_channel(daemon.addresses[0]) as channel:
            request = health_pb2.HealthCheckRequest(service="betrace.kms.v1.KeyManagementService")
            async for answer in health_pb2_grpc.HealthStub(channel).Watch(request, timeout=20):  # type: ignore[attr-defined]
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    break
        yield daemon


@dataclass
class Process:
    """A daemon that runs as a process of its own, and what it wrote to stderr so far."""

    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)
    _seen: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, text: str, timeout: float = 20.0) -> str:
        """Return the first line that holds `text`, or fail if none comes."""

        def found() -> str | None:
            return next((line for line in self.lines if text in line), None)

        with self._seen:
            line = self._seen.wait_for(lambda: found() or self.process.poll() is not None, timeout) and found()
        assert line, f"{text!r} was not logged:\n{self.log}"
        return line

    @property
    def log(self) -> str:
        """All of stderr so far."""
        return "".join(self.lines)

    @property
    def address(self) -> str:
        """The first address that it listens on."""
        return self.wait_for("Listening").split("addresses=['")[1].split("'")[0]

    @property
    def ops_address(self) -> str:
        """host:port of the HTTP port for operators."""
        found = re.search(r"operations\W+([\w.]+:\d+)", self.wait_for("Listening"))
        assert found
        return found[1]

    def metrics(self) -> dict[str, float]:
        """Return every sample of the metrics by its name and labels, as they are written."""
        with urlopen(f"http://{self.ops_address}/q/metrics", timeout=20) as response:
            lines = response.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def read(self) -> None:
        """Collect stderr until it ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._seen:
                self.lines.append(line)
                self._seen.notify_all()
        with self._seen:
            self._seen.notify_all()


@contextmanager
def spawned(
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    command: Sequence[str] | None = None,
    own_session: bool = False,
) -> Iterator[Process]:
    """Run `betrace-kms serve`, or another command, with these arguments; kill it in the end if it still runs.

    In a session of its own it does not hear the terminal's Ctrl-C.
    """
    process = subprocess.Popen(
        [*(command or (str(COMMAND), "serve")), *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KMS_OPS_LISTEN": "127.0.0.1:0", **(environ or {})},
        start_new_session=own_session,
    )
    daemon = Process(process)
    reader = threading.Thread(target=daemon.read)
    reader.start()
    try:
        yield daemon
    finally:
        process.kill()
        process.wait()
        reader.join()
        if process.stderr:
            process.stderr.close()
