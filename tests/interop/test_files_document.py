"""The commands and the program of docs/files.md work as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.daemon import spawned
from tests.interop.tools import PATH, ROOT

DOCUMENT = (ROOT / "docs" / "files.md").read_text("utf-8")


def block(language: str) -> str:
    """Return the document's only code block of a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_blocks_work(tmp_path: Path) -> None:
    """The command makes the file that the program seals."""
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0") as daemon:
        daemon.wait_for("serving")
        for command in (["bash", "-euo", "pipefail", "-c", block("bash")], [sys.executable, "-c", block("python")]):
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=60,
                cwd=tmp_path,
                env={**os.environ, "PATH": PATH, "BETRACE_KMS_ADDR": daemon.address, "ADDRESS": daemon.address},
                check=False,
            )
            assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    assert (tmp_path / "backup.tar").read_bytes() == (tmp_path / "backup.copy").read_bytes()
