"""`make sbom` names all that the image installs, and `make audit-deps` fails for an advisory and for silence."""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.install import pins
from tests.interop.tools import ROOT, tool

INSTALLED = ("-o", ".venv/tools.stamp", "-o", ".venv/dev.stamp")
"""What tests run on is installed already."""
ADVISORY = {"id": "TEST-2024-1", "summary": "a test", "affected": [], "modified": "2024-01-01T00:00:00Z"}


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["make", *INSTALLED, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )


def test_sbom_names_each_pin(tmp_path: Path) -> None:
    """Every package of requirements/server.txt is there with its version and its hashes, and no other."""
    tool("cyclonedx-py")
    file = tmp_path / "new" / "sbom.json"
    done = make("sbom", f"SBOM={file}")
    assert 0 == done.returncode, done.stderr
    document = json.loads(file.read_text("utf-8"))
    pinned = (ROOT / "requirements/server.txt").read_text("utf-8")
    listed = "\n".join(f"{each['name']}=={each['version']}" for each in document["components"])
    assert pins(pinned) == pins(listed)
    hashes = [
        each["content"]
        for component in document["components"]
        for reference in component["externalReferences"]
        for each in reference["hashes"]
    ]
    assert sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", pinned)) == sorted(hashes)
    assert ("CycloneDX", "1.6", "betrace-kms") == (
        document["bomFormat"],
        document["specVersion"],
        document["metadata"]["component"]["name"],
    )


@contextmanager
def advisories(of: str) -> Iterator[str]:
    """Answer like api.osv.dev, with one advisory for one package."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = json.dumps({"vulns": [ADVISORY]} if query["package"]["name"] == of else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()


def test_audit_passes_without_an_advisory() -> None:
    """All pins are looked up, and nothing is known of them."""
    tool("pip-audit")
    with advisories("another") as url:
        done = make("audit-deps", f"AUDITFLAGS=-s osv --osv-url {url}")
    assert (0, True) == (done.returncode, "No known vulnerabilities found" in done.stderr), done.stderr


def test_audit_fails_for_an_advisory() -> None:
    """A pin with an advisory is named, and the target fails."""
    tool("pip-audit")
    with advisories("aiohttp") as url:
        done = make("audit-deps", f"AUDITFLAGS=-s osv --osv-url {url}")
    assert 0 != done.returncode
    assert re.search(r"aiohttp.*TEST-2024-1", done.stdout), done.stdout


def test_audit_fails_if_nobody_can_be_asked() -> None:
    """Without the service nothing is known, which is no good news."""
    tool("pip-audit")
    with advisories("another") as url:
        pass
    done = make("audit-deps", f"AUDITFLAGS=-s osv --osv-url {url}")
    assert 0 != done.returncode
    assert "No known vulnerabilities" not in done.stderr
