"""The commands and programs of documents work as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon import spawned
from tests.interop.tools import PATH, ROOT


def block(document: str, language: str) -> str:
    """Return a document's only code block of a language."""
    text = (ROOT / "docs" / document).read_text("utf-8")
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.mark.parametrize(("document", "output"), [("files.md", ""), ("blind-indexes.md", "valid\n")])
def test_the_blocks_work(document: str, output: str, tmp_path: Path) -> None:
    """A command, and then a program that may use what it left."""
    bash, python = (block(document, language) for language in ("bash", "python"))
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0") as daemon:
        daemon.wait_for("serving")
        for command, printed in (
            (["bash", "-euo", "pipefail", "-c", bash], output),
            ([sys.executable, "-c", python], ""),
        ):
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=60,
                cwd=tmp_path,
                env={**os.environ, "PATH": PATH, "BETRACE_KMS_ADDR": daemon.address, "ADDRESS": daemon.address},
                check=False,
            )
            assert (done.returncode, done.stderr, done.stdout) == (0, "", printed or "")
    if document == "files.md":
        assert (tmp_path / "backup.tar").read_bytes() == (tmp_path / "backup.copy").read_bytes()
