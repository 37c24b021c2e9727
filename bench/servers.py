"""Starts what is measured: daemons with the local provider, and the empty echo, each on TCP and a unix socket."""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub

from bench.load import Target, framed
from bench.rounds import rss_kib
from bench.workloads import Daemon, Workload
from tests.daemon import spawned

TOKEN = "0123456789abcdef" * 4
_LARGEST = -1


@dataclass(frozen=True, slots=True)
class Server:
    """A process that answers on both transports."""

    process_id: int
    addresses: Mapping[str, str]
    """By transport: tcp, unix."""
    folder: Path
    """For requests; it goes away with the server."""
    token: str = ""

    @contextmanager
    def daemon(self, tenant: str = "acme") -> Iterator[Daemon]:
        """Connect for the calls that prepare a workload."""
        address = self.addresses["unix"]
        options = [("grpc.max_receive_message_length", _LARGEST), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(address, options=options) as channel:
            yield Daemon(KeyManagementServiceStub(channel), address, tenant)

    def target(self, workload: Workload, method: str, transport: str) -> Target:
        """Return what h2load needs to make the calls of a workload."""
        body = self.folder / hashlib.sha256(workload.request).hexdigest()
        body.write_bytes(framed(workload.request))
        return Target(
            address=self.addresses[transport],
            method=method,
            body=body,
            answer_bytes=workload.answer_bytes,
            process_id=self.process_id,
            items=workload.items,
            tolerance=workload.tolerance,
            token=self.token if transport == "tcp" else "",
        )

    def rss_kib(self) -> int:
        """Return its resident memory."""
        return rss_kib(self.process_id)


@contextmanager
def ours(
    settings: Mapping[str, str] | None = None, *, audit: bool = False, token: bool = False, folder: str | None = None
) -> Iterator[Server]:
    """Run a daemon that is ready to serve, with its files in a folder of `folder`.

    With `token`, callers over TCP must have one.
    """
    with tempfile.TemporaryDirectory(prefix="kms", dir=folder) as name:
        home = Path(name)
        chosen = {"kms.budget.tenant-per-second": "0"} | dict(settings or {})
        socket = f"unix:{home}/kms.sock"
        if audit:
            chosen["kms.audit.file"] = f"{home}/audit.jsonl"
        if token:
            path = home / "tokens"
            path.touch(0o600)
            path.write_text(f"{TOKEN}\n")
            chosen["kms.server.token-file"] = str(path)
            socket += ";identity=bench"
        arguments = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
        listen = f"127.0.0.1:0,{socket}"
        with spawned("--data-dir", f"{home}/data", "--listen", listen, *arguments) as process:
            process.wait_for("serving")
            addresses = {"tcp": process.address, "unix": f"unix:{home}/kms.sock"}
            yield Server(process.process.pid, addresses, home, TOKEN if token else "")


@contextmanager
def echo() -> Iterator[Server]:
    """Run the empty echo."""
    with tempfile.TemporaryDirectory(prefix="echo") as name:
        folder = Path(name)
        command = [sys.executable, "-m", "bench.echo_server", "--listen", "127.0.0.1:0"]
        command += ["--listen", f"unix:{folder}/echo.sock"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                tcp, unix = json.loads(process.stdout.readline())["addresses"]
                yield Server(process.pid, {"tcp": tcp, "unix": unix}, folder)
            finally:
                process.kill()
