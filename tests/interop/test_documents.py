"""The commands and programs of documents work as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon import spawned
from tests.interop.tools import PATH, ROOT


def blocks(document: str) -> list[list[str]]:
    """Return commands that run a document's blocks: those of the shell, and then the program, which may use them."""
    text = (ROOT / "docs" / document).read_text("utf-8")
    shell, programs = (
        re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) for language in ("bash", "python")
    )
    bash, python = ["bash", "-euo", "pipefail", "-c"], [sys.executable, "-c"]
    return [*([*bash, each] for each in shell), *([*python, each] for each in programs)]


@pytest.mark.parametrize(("document", "count", "output"), [("files.md", 3, ""), ("blind-indexes.md", 2, "valid\n")])
def test_the_blocks_work(document: str, count: int, output: str, tmp_path: Path) -> None:
    """They end well and print what they should."""
    printed = ""
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0") as daemon:
        daemon.wait_for("serving")
        assert count == len(blocks(document))
        for command in blocks(document):
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=60,
                cwd=tmp_path,
                env={**os.environ, "PATH": PATH, "BETRACE_KMS_ADDR": daemon.address, "ADDRESS": daemon.address},
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, "")
            printed += done.stdout
    assert output == printed
    if document == "files.md":
        assert (tmp_path / "backup.tar").read_bytes() == (tmp_path / "backup.copy").read_bytes()
