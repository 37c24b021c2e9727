"""What the README tells a new user to type works as it stands."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import spawned
from tests.interop.tools import PATH, ROOT, tool

README = (ROOT / "README.md").read_text()
ADDRESS = "127.0.0.1:50051"


def blocks(language: str) -> list[str]:
    """Return the README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def shell(script: str, folder: Path, address: str) -> str:
    """Run a block as a shell script, on the daemon of this test, and return what it printed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace(ADDRESS, address)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={**os.environ, "PATH": PATH, "BETRACE_KMS_ADDR": address, "TMPDIR": str(folder)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where a daemon on its embedded default listens."""
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0") as daemon:
        daemon.wait_for("serving")
        yield daemon.address


def test_the_two_commands_are_targets() -> None:
    """make run and make test stand on the first screen and exist."""
    makefile = (ROOT / "Makefile").read_text()
    first_screen = "\n".join(README.splitlines()[:24])
    for target in ("run", "test"):
        assert f"make {target} " in first_screen
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_grpcurl_lines_work(tmp_path: Path, address: str) -> None:
    """list, health, GenerateDataKey, Encrypt, Decrypt, SignSpan, VerifySpan, in the README's words."""
    tool("grpcurl")
    (script,) = [block for block in blocks("bash") if "grpcurl" in block]
    printed = shell(script, tmp_path, address)
    assert "betrace.kms.v1.KeyManagementService" in printed
    assert '"status": "SERVING"' in printed
    assert '"plaintext": "aGVsbG8="' in printed
    assert '"valid": true' in printed
    assert '"reason": "VALID"' in printed


def test_the_command_lines_work(tmp_path: Path, address: str) -> None:
    """health, encrypt, decrypt, data-key, sign, verify, in the README's words."""
    (script,) = [block for block in blocks("bash") if "betrace-kms encrypt" in block]
    printed = shell(script, tmp_path, address)
    lines = printed.splitlines()
    assert (lines[0], lines[1], lines[-1]) == ("SERVING", "hello", "VALID")
    (key,) = tmp_path.glob("*/key.bin")
    assert len(key.read_bytes()) == 32


def test_the_evidence_lines_work(tmp_path: Path, address: str) -> None:
    """keys, sign and verify of an OTLP/JSON file, in the README's words."""
    span = {"traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "b7ad6b7169203331", "name": "user.login"}
    span |= {"startTimeUnixNano": "1700000000000000000", "endTimeUnixNano": "1700000000001500000"}
    traces = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    (tmp_path / "traces.json").write_text(json.dumps(traces))
    (script,) = [block for block in blocks("bash") if "--jwks" in block]
    assert shell(script, tmp_path, address).splitlines()[-1] == "1 spans: 1 VALID"


def test_the_python_lines_work(tmp_path: Path, address: str) -> None:
    """The client example runs as it stands."""
    (program,) = blocks("python")
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program.replace(ADDRESS, address)], cwd=tmp_path, timeout=60, check=True
    )


def test_the_configuration_table_is_what_the_code_says() -> None:
    """Names, defaults and environment variables of the README's table."""
    from betrace_kms_server.config import sources as config

    defaults = {name: value for name, value, _ in config.described(*config.resolve([]))}
    rows = re.findall(r"^\| `([a-z.-]+)` \| (?:`([^`]*)`)? ?\| `([A-Z_]+)` \|$", README, re.MULTILINE)
    assert len(rows) == 9
    for name, default, variable in rows:
        assert (default, variable) == (defaults[name], config.environment_name(name))
