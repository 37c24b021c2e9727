"""A reader who types what a document says, from the folder of a clone, into a shell that keeps its variables.

Whatever is written goes into a folder of the test. Where documents name an address or a folder of an installation, the
reader has those of the daemon that runs for the document.
"""

import doctest
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from tests.daemon import spawned
from tests.documents.blocks import OUTPUT, Block
from tests.documents.daemons import Daemons, Running, running
from tests.interop.tools import PATH, ROOT

_SECONDS = 60
_CHANGEABLE = (":(glob)*", "deploy", "docs", "examples")
_MISSING = 127
"""Exit code of a shell that does not find a program."""
_CHECKER, _FLAGS = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@cache
def _changeable() -> Sequence[str]:
    """Return the files of the clone that a document may tell its reader to change: those get copies, the rest links."""
    command = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *_CHANGEABLE)
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if (ROOT / name).is_file()]


class Reader:
    """Runs the blocks of one document. A context manager, which ends what runs in the background.

    What a block starts there runs until the next such block, as in a shell in which a reader pressed Ctrl-C.
    """

    def __init__(self, folder: Path, daemons: Daemons) -> None:
        self._folder = folder
        self._daemons = daemons
        self._environ = {**os.environ, "PATH": PATH, "TMPDIR": str(folder), "PWD": str(folder)}
        self._replaced = {"/var/log/betrace-kms": str(folder)}
        self._own, self._background = ExitStack(), ExitStack()
        self._met = False
        self._printed = ""
        for name in _changeable():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        for path in ROOT.iterdir():
            if path.name not in (".git", "data") and not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._background.close()
        self._own.close()

    def read(self, block: Block) -> None:
        """Do what a block is for. Fails the test if it does not do what the document says."""
        if block.language == "daemon":
            self._meet(block.text)
        elif block.language == OUTPUT:
            if not _CHECKER.check_output(block.text, self._printed, _FLAGS):
                pytest.fail(f"line {block.line}: this is not what was printed:\n{self._printed}")
        elif block.file:
            file = self._folder / block.file
            assert not file.exists(), f"line {block.line}: {block.file} is in the clone already, choose another name"
            file.write_text(block.text, "utf-8")
        elif block.runs and "background" in block.options:
            self._start(block)
        elif block.runs:
            self._finish(block)

    def _meet(self, kind: str) -> None:
        self._met = True
        self._own.close()
        if kind == "own":
            self._take(self._own.enter_context(running(self._folder / "own", {})))
        elif kind != "none":
            self._take(self._daemons.shared(kind))

    def _take(self, daemon: Running) -> None:
        """Let addresses and folders of the document mean those of a daemon."""
        self._met = True
        address = daemon.process.address.replace("0.0.0.0", "127.0.0.1")  # noqa: S104  # as the daemon says it
        names = {"BETRACE_KMS_ADDR": address, "ADDRESS": address, "KMS_DATA_DIR": str(daemon.data_dir)}
        self._environ |= {**daemon.environ, **names}
        self._replaced |= {
            "127.0.0.1:50051": address,
            "127.0.0.1:9464": daemon.process.ops_address,
            "/var/lib/betrace-kms": str(daemon.data_dir),
        }

    def _text(self, block: Block) -> str:
        text = block.text
        for documented, actual in self._replaced.items():
            text = text.replace(documented, actual)
        return text

    def _start(self, block: Block) -> None:
        script = f"cd {shlex.quote(self._environ['PWD'])} && exec {block.text.replace(':50051', ':0')}"
        environ = {**self._environ, "KMS_SERVER_LISTEN": "127.0.0.1:0"}
        self._background.close()
        process = self._background.enter_context(spawned("-c", script, environ=environ, command=("bash",)))
        process.wait_for(block.options["background"])
        if "betrace-kms serve" in script:
            found = re.search(r"--data-dir (\S+)", script)
            self._take(Running(process, self._folder / (found[1] if found else "data")))

    def _finish(self, block: Block) -> None:
        if not self._met:
            self._meet("local")
        state = self._folder / ".environment"
        text = self._text(block)
        command = {
            "bash": ["bash", "-euo", "pipefail", "-c", f"set -a\n{text}\nenv -0 > {shlex.quote(str(state))}"],
            "sh": ["sh", "-euc", text],
            "python": [sys.executable, "-W", "error", "-c", text],
        }[block.language]
        code = self._output(command, block)
        if code == _MISSING and not os.environ.get("CI"):
            pytest.skip(f"line {block.line} needs a program that is not installed: {self._printed}")
        if code == _MISSING or (code != 0) != ("fails" in block.options):
            pytest.fail(f"line {block.line}: the block ended with exit code {code}:\n{self._printed}")
        if block.language == "bash" and not code:
            pairs = state.read_text("utf-8").rstrip("\0").split("\0")
            self._environ = {name: value for name, _, value in (pair.partition("=") for pair in pairs)}

    def _output(self, command: list[str], block: Block) -> int:
        """Run a command to its end, and return its exit code."""
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self._environ["PWD"],
            env=self._environ,
            start_new_session=True,
        ) as process:
            try:
                self._printed, _ = process.communicate(timeout=_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                pytest.fail(f"line {block.line}: the block did not end within {_SECONDS} s")
        return process.returncode
