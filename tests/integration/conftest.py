"""A daemon and the command, for tests of its verbs."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon import COMMAND, Process, spawned

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One daemon for all the commands."""
    with spawned("--data-dir", str(tmp_path_factory.mktemp("data")), "--listen", "127.0.0.1:0") as process:
        process.wait_for("serving")
        yield process


@pytest.fixture
def run(daemon: Process, tmp_path: Path) -> Run:
    """Run the command in an empty folder, with stdin where it is given."""

    def run_command(*arguments: str, stdin: bytes = b"", addr: str = "") -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [str(COMMAND), *arguments],
            input=stdin,
            capture_output=True,
            timeout=120,
            cwd=tmp_path,
            env={**os.environ, "BETRACE_KMS_ADDR": addr or daemon.address},
            check=False,
        )

    return run_command
