"""Earlier versions of the daemon, run from the repository's history with the packages of today.

As a program, this file makes the vectors of a version that is about to be released or was::

    python -m tests.upgrade.versions 312f729 tests/vectors/upgrade/0.1.0
"""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.daemon import Process, spawned
from tests.interop.tools import ROOT
from tests.upgrade.evidence import made

VERSIONS = {"0.1.0": "312f729"}
"""Versions of docs/upgrade.md, and the commit that each is."""
_SERVE = "from betrace_kms_server.commands import serve; serve()"
_FOLDERS = ("client", "protos", "server")


def check_out(commit: str, folder: Path) -> Path:
    """Write the packages of a commit into a folder. Skips the test in a clone without its history."""
    done = subprocess.run(["git", "archive", commit, *_FOLDERS], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"commit {commit} is not in this clone: fetch the whole history (git fetch --unshallow)")
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@contextmanager
def earlier(packages: Path, data_dir: Path, environ: Mapping[str, str]) -> Iterator[Process]:
    """Run the daemon of an earlier version."""
    paths = os.pathsep.join(str(packages / name) for name in _FOLDERS)
    command = (sys.executable, "-c", _SERVE, "--data-dir", str(data_dir), "--listen", "127.0.0.1:0")
    with spawned(command=command, environ={**environ, "PYTHONPATH": paths}) as process:
        process.wait_for("KMS is usable", 60)
        yield process


@contextmanager
def today(data_dir: Path, environ: Mapping[str, str]) -> Iterator[Process]:
    """Run the daemon of this version."""
    with spawned("--data-dir", str(data_dir), "--listen", "127.0.0.1:0", environ=environ) as process:
        process.wait_for("KMS is usable", 60)
        yield process


def _make(commit: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    data_dir = folder / "store"
    environ = {"KMS_AUDIT_FILE": str(data_dir / "audit.log")}
    with TemporaryDirectory() as packages, earlier(check_out(commit, Path(packages)), data_dir, environ) as daemon:
        kept = made(daemon.address, f"unix:{data_dir}/admin.sock", "acme")
        (folder / "evidence.json").write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
        daemon.process.terminate()
        daemon.process.wait(30)
    for file in data_dir.iterdir():
        if file.suffix in (".lock", ".sock"):
            file.unlink()


if __name__ == "__main__":
    _make(sys.argv[1], Path(sys.argv[2]))
