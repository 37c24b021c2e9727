"""What a daemon's process keeps from others, what SIGHUP reloads, and what is said about root."""

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import grpc
import orjson
import pytest
from betrace.kms.v1 import admin_pb2 as pb
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace_kms_client import KmsClient
from betrace_kms_server.host import process

from tests.daemon import COMMAND, Process, running, spawned

READS_MEMORY = "import sys; open(f'/proc/{sys.argv[1]}/mem', 'rb').close()"
ATTACHES = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
if libc.ptrace(0x4206, int(sys.argv[1]), 0, 0):  # PTRACE_SEIZE
    sys.exit(os.strerror(ctypes.get_errno()))
"""


def without_capabilities(*command: str) -> Sequence[str]:
    """Return a command that runs as this user and has none of root's powers: only then does a mode mean something."""
    if os.geteuid():
        return command
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv(1), because these tests run as root")
    return ("setpriv", "--bounding-set=-all", "--inh-caps=-all", *command)


def may(daemon: Process, script: str) -> bool:
    """Return whether another process of the daemon's user may do this to it."""
    command = without_capabilities(sys.executable, "-c", script, str(daemon.process.pid))
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def fields(pid: int) -> dict[str, str]:
    """Return /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("dumpable", [False, True])
def test_no_one_reads_the_memory_of_a_daemon(tmp_path: Path, dumpable: bool) -> None:
    """Neither /proc/PID/mem nor a debugger of the daemon's own user, unless a setting allows it; never a core dump."""
    arguments = ("--data-dir", str(tmp_path), "--listen", "127.0.0.1:0")
    allowed = ("--set", f"kms.process.dumpable={str(dumpable).lower()}")
    with spawned(*arguments, *allowed, command=without_capabilities(str(COMMAND), "serve")) as daemon:
        daemon.wait_for("serving")
        status = fields(daemon.process.pid)
        assert (status["Umask"], status["NoNewPrivs"]) == ("0077", "1")
        assert re.search(
            r"^Max core file size +0 +0 ", Path(f"/proc/{daemon.process.pid}/limits").read_text("ascii"), re.MULTILINE
        )
        assert (may(daemon, READS_MEMORY), may(daemon, ATTACHES)) == (dumpable, dumpable)


def test_a_hardened_daemon_still_sees_its_own_machine(tmp_path: Path) -> None:
    """Its mounts, its open files and its memory, which the metrics show, stay readable for itself."""
    arguments = ("--data-dir", str(tmp_path), "--listen", "127.0.0.1:0")
    with spawned(*arguments, command=without_capabilities(str(COMMAND), "serve")) as daemon:
        daemon.wait_for("serving")
        with urllib.request.urlopen(f"http://{daemon.ops_address}/q/metrics") as answer:
            text = answer.read().decode()
    for name in ("process_open_fds", "process_resident_memory_bytes", "process_max_fds"):
        assert re.search(rf"^{name} [1-9]", text, re.MULTILINE), name


async def test_root_is_a_warning_and_fails_production_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status and the validation name it; `validate` passes, and `validate --production` does not."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    async with running(tmp_path), grpc.aio.insecure_channel(f"unix:{tmp_path}/admin.sock") as channel:
        admin = KmsAdminServiceStub(channel)
        relaxed = await admin.Validate(pb.ValidateRequest())
        strict = await admin.Validate(pb.ValidateRequest(production=True))
        status = orjson.loads((await admin.GetStatus(pb.GetStatusRequest())).json)
    [noted] = [test for test in relaxed.tests if test.name == "configuration"]
    assert (True, True, True) == (relaxed.passed, noted.passed, process.ROOT in noted.message)
    assert process.ROOT in relaxed.recommendations
    failed = {test.name: test.message for test in strict.tests if not test.passed}
    assert process.ROOT == failed["production_user"]
    assert status["process"] == {"root": True, "dumpable": False}


def test_sighup_applies_the_log_level_and_names_what_needs_a_restart(tmp_path: Path) -> None:
    """A good file is applied, a bad one changes nothing, and the daemon serves on through both."""
    file = tmp_path / "application.properties"
    file.write_text("kms.log.level=info\nkms.cache.max-size=10\n", "utf-8")
    with spawned(
        *("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", "--config", str(file)),
        command=("setsid", str(COMMAND), "serve"),
    ) as daemon:
        daemon.wait_for("serving")
        file.write_text("kms.log.level=error\nkms.cache.max-size=nonsense\n", "utf-8")
        daemon.process.send_signal(signal.SIGHUP)
        assert "kms.cache.max-size" in daemon.wait_for("Not reloaded, what was in force stays")
        file.write_text("kms.log.level=warning\nkms.cache.max-size=20\n", "utf-8")
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.wait_for("need a restart: kms.cache.max-size")
        seen = daemon.log.count("SIGHUP")
        file.write_text("kms.log.level=info\nkms.cache.max-size=20\nkms.rotation.batch-size=5\n", "utf-8")
        daemon.process.send_signal(signal.SIGHUP)  # not logged: the level is warning
        daemon.wait_for("need a restart: kms.cache.max-size, kms.rotation.batch-size")
        assert (seen, daemon.log.count("SIGHUP")) == (2, 2)
        with KmsClient(daemon.address) as client:
            assert client.encrypt("acme", b"payload").ciphertext_blob
