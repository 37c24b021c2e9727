"""What is published holds what it should, `make sbom` names all of the image, `make audit-deps` asks for advisories."""

import json
import re
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import Parser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.install import pins
from tests.interop.tools import ROOT, tool

INSTALLED = ("-o", ".venv/tools.stamp", "-o", ".venv/dev.stamp")
"""What tests run on is installed already."""
ADVISORY = {"id": "TEST-2024-1", "summary": "a test", "affected": [], "modified": "2024-01-01T00:00:00Z"}


PACKAGES = {
    "betrace",
    "betrace_kms_client",
    "betrace_kms_command",
    "betrace_kms_envelope",
    "betrace_kms_evidence",
    "betrace_kms_server",
}
READ = {".gitignore", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "SECURITY.md", "docs"}
"""What the source distribution has for its readers. Hatchling adds .gitignore, by which it chooses files."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a release publishes, and in `again` the wheel that its source distribution makes."""
    folder = tmp_path_factory.mktemp("dist")
    build("sdist", ROOT, folder)
    build("wheel", ROOT, folder)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    build("wheel", source, folder / "again")
    return folder


def build(what: str, source: Path, folder: Path) -> None:
    """Build a distribution of a source tree with the backend that is pinned."""
    command = [tool("hatchling"), "build", "--target", what, "--directory", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=60, check=False)
    assert 0 == done.returncode, done.stderr


def test_wheel_holds_the_packages_and_nothing_else(built: Path) -> None:
    """No test, no benchmark, no build file gets into a site-packages folder; every package says that it is typed."""
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    (metadata,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    assert PACKAGES | {metadata} == {name.partition("/")[0] for name in names}
    kinds = {Path(name).suffix for name in names if not name.startswith(metadata)}
    assert {".css", ".html", ".js", ".proto", ".py", ".pyi", ".typed"} == kinds
    typed = {name.partition("/")[0] for name in names if name.endswith("/py.typed")}
    assert PACKAGES == typed


def test_wheel_has_each_part_of_the_page(built: Path) -> None:
    """An installed daemon serves the same page as one that runs from the clone."""
    folder = "betrace_kms_server/operations/page"
    (wheel,) = built.glob("*.whl")
    packed = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(f"{folder}/")}
    assert {file.name for file in (ROOT / "server" / folder).iterdir() if file.is_file()} == packed


def test_wheel_tells_an_index_what_it_is(built: Path) -> None:
    """The README is its description, and each link and image of it leads somewhere without the files beside it."""
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    metadata = Parser().parsestr(archive.read(name).decode("utf-8"))
    urls = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL", []))
    source, version = urls["Source"], metadata["Version"]
    assert {True} == {url == source or url.startswith(f"{source}/") for url in urls.values()}
    assert "text/markdown" == metadata["Description-Content-Type"]
    description, readme = str(metadata.get_payload()), (ROOT / "README.md").read_text("utf-8")
    images = re.findall(r"!\[[^]]*\]\((?!https?:)([^)]*)\)", readme)
    relative = re.findall(r"(?<!!)\[[^]]*\]\((?!https?:)([^)]*)\)", readme)
    assert len(relative) > 20
    assert [] == re.findall(r"\]\((?!https?:)[^)]*\)", description)
    assert [] == [image for image in images if f"]({source}/raw/v{version}/{image})" not in description]
    assert [] == [link for link in relative if f"]({source}/blob/v{version}/{link})" not in description]


def test_source_distribution_makes_the_same_wheel(built: Path) -> None:
    """It has what the wheel is built from and what people read, and no more; the wheels are byte for byte the same."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert READ | {"client", "protos", "pyproject.toml", "server"} == {name.partition("/")[0] for name in names}
    assert {".md", ".py", ".svg"} == {Path(name).suffix for name in names if name.startswith("docs/")}
    (wheel,), (again,) = built.glob("*.whl"), (built / "again").glob("*.whl")
    assert (wheel.name, wheel.read_bytes()) == (again.name, again.read_bytes())


def test_wheel_of_the_source_distribution_works_alone(built: Path, tmp_path: Path) -> None:
    """In an empty environment it is the light client, and says what `serve` needs."""
    (wheel,) = (built / "again").glob("*.whl")
    uv, python = tool("uv"), str(tmp_path / "bin/python")
    install = [uv, "pip", "install", "--quiet", "--python", python, "--constraint", str(ROOT / "requirements/dev.txt")]
    for command in ([uv, "venv", "--quiet", "--clear", str(tmp_path)], [*install, str(wheel)]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
        assert 0 == done.returncode, done.stderr
    installed = {path.name.partition("-")[0] for path in tmp_path.glob("lib/*/site-packages/*.dist-info")}
    assert {"betrace_kms", "click", "grpcio"} <= installed
    assert set() == installed & {"aioboto3", "hatchling", "pip", "pydantic", "pytest"}
    version = subprocess.run([tmp_path / "bin/betrace-kms", "version"], capture_output=True, text=True, check=True)
    serve = subprocess.run([python, "-m", "betrace_kms_server"], capture_output=True, text=True, check=False)
    assert f"betrace-kms {wheel.name.split('-')[1]}\n" == version.stdout
    assert (2, True) == (serve.returncode, "pip install 'betrace-kms[server]'" in serve.stderr), serve.stderr


def test_release_needs_an_address() -> None:
    """Nothing goes out whose links lead to the placeholder."""
    done = make("release-address")
    placeholder = "https://example.com/" in (ROOT / "pyproject.toml").read_text("utf-8")
    assert placeholder == (done.returncode != 0)
    assert placeholder == ("put the address of your repository there" in done.stdout)


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
