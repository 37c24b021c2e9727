"""The commands of docs/access.md work as they stand: each section's daemon, and its callers."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.daemon import Process, spawned
from tests.interop.tools import PATH, ROOT, tool

DOCUMENT = (ROOT / "docs" / "access.md").read_text("utf-8")
PORT = "127.0.0.1:50051"


def blocks(section: str, language: str = "bash") -> list[str]:
    """Return the code blocks of a section."""
    text = DOCUMENT.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def serves(section: str) -> list[str]:
    return [block for block in blocks(section) if "betrace-kms serve" in block]


@contextmanager
def serving(block: str, folder: Path) -> Iterator[Process]:
    """Run a block that starts a daemon, on any free port."""
    script = f"cd {folder} && exec {block.replace(':50051', ':0')}"
    environ = {"PATH": PATH, "KMS_SERVER_LISTEN": "127.0.0.1:0"}
    with spawned("-c", script, environ=environ, command=("bash",)) as process:
        process.wait_for("KMS is usable")
        yield process


def shell(script: str, folder: Path, environ: Mapping[str, str]) -> str:
    """Run a caller's block and return what it printed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={**os.environ, "PATH": PATH, **environ},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", serves("Unix sockets"))
def test_unix_sockets(tmp_path: Path, block: str) -> None:
    """The command is let in as the socket's identity, with either line that starts the daemon."""
    (caller,) = [each for each in blocks("Unix sockets") if "encrypt" in each]
    with serving(block, tmp_path) as process:
        assert "NOT AUTHENTICATED" not in process.log
        shell(caller, tmp_path, {})
    assert (tmp_path / "hello.enc").stat().st_size > 100


def test_bearer_tokens(tmp_path: Path) -> None:
    """Command, Python and grpcurl are let in with the daemon's token; the file that is replaced is a good one."""
    tool("grpcurl")
    (start,) = serves("Bearer tokens")
    commands, grpcurl, replace = (each for each in blocks("Bearer tokens") if "serve" not in each)
    (program,) = blocks("Bearer tokens", "python")
    with serving(start, tmp_path) as process:
        environ = {"BETRACE_KMS_ADDR": process.address}
        assert "hello\n" == shell(commands, tmp_path, environ)
        assert '"plaintext"' in shell(grpcurl.replace(PORT, process.address), tmp_path, environ)
        program = program.replace("KmsClient(", f"KmsClient({process.address!r}, ")
        subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, timeout=60, check=True)
        shell(replace, tmp_path, environ)
        assert "tokens=2" in process.wait_for("The tokens were read again")
        assert "hello\n" == shell(commands, tmp_path, environ)


def test_mutual_tls(tmp_path: Path) -> None:
    """The command is let in with a certificate of the authority."""
    authority = Authority()
    authority.issue("daemon", host="127.0.0.1").write(tmp_path / "tls")
    for source, name in zip(authority.issue("backend").write(tmp_path / "new"), ("crt", "key"), strict=True):
        source.replace(tmp_path / "tls" / f"client.{name}")
    (tmp_path / "tls" / "ca.crt").write_bytes(authority.pem)
    (start,) = serves("Mutual TLS")
    (caller,) = [each for each in blocks("Mutual TLS") if "encrypt" in each]
    with serving(start, tmp_path) as process:
        address = process.address.replace("0.0.0.0", "127.0.0.1")  # noqa: S104  # as the daemon says it
        shell(caller.replace(PORT, address), tmp_path, {})
    assert (tmp_path / "hello.enc").stat().st_size > 100
