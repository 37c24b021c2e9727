"""Installs this tree as a new user does, on a day when newer releases of everything are out, and runs the daemon.

    python -m tests.install pins      # for each Python that is here: make's install, the daemon, unit tests
    python -m tests.install ranges    # pip chooses what pyproject.toml allows today, then the daemon and a light client

A clone is a copy of the tree in a folder with a space in its name, without git, with an empty HOME and no caches.
Beside the registry, pip is offered a release 9999 of every package that is pinned: an install that resolves anything
takes one, and fails. Needs nothing but the standard library.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".tools", "node_modules", "jars", "__pycache__", ".*_cache", "data", "dist", ".hypothesis"
)
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
CANONICAL = re.compile(r"[-_.]+")
MATRIX = ("3.11", "3.12", "3.13", "3.14")
RUN_BY_A_SHELL = (
    "tests/integration/test_emergency_stop.py::test_the_runbook_as_it_is_written",
    "tests/interop/test_operations.py::test_the_guides_lines_pass_with_only_the_port_changed",
)
"""Tests that give paths of the clone to a shell, which a blank in them must not break."""


def pythons() -> dict[str, str]:
    """Return the interpreters that are here, by version: from the PATH, and those that pyenv made."""
    made = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {}
    for version in MATRIX:
        names = [f"python{version}", *map(str, sorted(made.glob(f"{version}.*/bin/python{version}"), reverse=True))]
        for name in names:
            code = "import sys, ensurepip, venv; print(sys.executable, '%d.%d' % sys.version_info[:2])"
            try:
                done = subprocess.run([name, "-c", code], capture_output=True, text=True, check=False)
            except OSError:
                continue
            if done.returncode == 0 and done.stdout.endswith(f" {version}\n"):
                found[version] = done.stdout.rsplit(" ", 1)[0]
                break
    return found


def pins(text: str) -> set[tuple[str, str]]:
    """Return what a requirements file pins, or `pip list` lists: normalized names (PEP 503) and versions."""
    return {(CANONICAL.sub("-", name).lower(), version) for name, version in PIN.findall(text)}


def pinned(file: str) -> set[tuple[str, str]]:
    """Return what a file of requirements/ pins; a package may have a pin for each of several Pythons."""
    return pins((ROOT / "requirements" / file).read_text("utf-8"))


def publish_newer_releases(folder: Path) -> None:
    """Write an empty wheel of version 9999 for every package that is pinned."""
    folder.mkdir()
    for name in {name for name, _ in pinned("dev.txt")}:
        distribution = name.replace("-", "_")
        with zipfile.ZipFile(folder / f"{distribution}-9999-py3-none-any.whl", "w") as wheel:
            info = f"{distribution}-9999.dist-info"
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 9999\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")


def path_without_git(folder: Path) -> str:
    """Fill a folder with links to all programs of the PATH but git, and return it."""
    folder.mkdir()
    for place in map(Path, os.environ["PATH"].split(os.pathsep)):
        for program in place.iterdir() if place.is_dir() else ():
            link = folder / program.name
            if not program.name.startswith(("git", "python", "pip")) and not link.is_symlink():
                link.symlink_to(program)
    return str(folder)


@contextmanager
def clone() -> Iterator[tuple[Path, dict[str, str]]]:
    """Give a copy of the tree, and an environment that has nothing of its user's."""
    with tempfile.TemporaryDirectory(prefix="betrace kms ") as name:
        folder = Path(name)
        shutil.copytree(ROOT, folder / "clone", ignore=LEFT_OUT)
        (folder / "home").mkdir()
        kept = {
            key: value for key, value in os.environ.items() if key.startswith(("PIP_", "SSL_", "LANG", "LC_", "CI"))
        }
        yield folder / "clone", {**kept, "HOME": str(folder / "home"), "PATH": path_without_git(folder / "bin")}


def run(*command: str, cwd: Path, env: Mapping[str, str]) -> str:
    """Run a command, and return its standard output; if it fails, so do we, with what it said."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def try_daemon(folder: Path, env: Mapping[str, str], client: str = ".venv") -> None:
    """Start the daemon as `make run` does, wait until it serves, and let an environment's client seal and open."""
    daemon_command, command = (str(folder / name / "bin/betrace-kms") for name in (".venv", client))
    address = f"unix:{folder.parent}/kms.sock"
    env = {**env, "KMS_SERVER_LISTEN": address, "KMS_OPS_LISTEN": "127.0.0.1:0", "BETRACE_KMS_ADDR": address}
    with open(folder.parent / "log", "w") as log:
        daemon = subprocess.Popen([daemon_command, "serve"], cwd=folder, env=env, stderr=log)
    try:
        for _ in range(100):
            if subprocess.run([command, "health"], env=env, capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.2)
        script = f"echo hello | '{command}' encrypt --tenant acme | '{command}' decrypt --tenant acme"
        if run("bash", "-o", "pipefail", "-c", script, cwd=folder, env=env) != "hello\n":
            sys.exit("the daemon does not give back what it sealed")
    finally:
        daemon.terminate()
        if (code := daemon.wait(60)) != 0:
            sys.exit(f"the daemon ended with {code}:\n{(folder.parent / 'log').read_text()[-4000:]}")


def try_pins(version: str, python: str, *, unit_tests: bool) -> None:
    """Install the pins with the pip that Python brings; nothing else may have been installed."""
    began = time.monotonic()
    with clone() as (folder, env):
        publish_newer_releases(folder.parent / "newer")
        env["PIP_FIND_LINKS"] = f"{env.get('PIP_FIND_LINKS', '')} {(folder.parent / 'newer').as_uri()}".strip()
        run("make", f"PYTHON={python}", ".venv/dev.stamp", cwd=folder, env=env)
        pip = [str(folder / ".venv/bin/python"), "-m", "pip", "--disable-pip-version-check"]
        listed = run(
            *pip, "list", "--format=freeze", "--exclude", "pip", "--exclude", "setuptools", cwd=folder, env=env
        )
        installed = {pin for pin in pins(listed) if pin[0] != "betrace-kms"}
        if others := installed - pinned("dev.txt"):
            sys.exit(f"Python {version} installed what is not pinned: {sorted(others)}")
        run(*pip, "check", cwd=folder, env=env)
        try_daemon(folder, env)
        if unit_tests:
            pytest = (str(folder / ".venv/bin/python"), "-m", "pytest", "-q", "-n", "2")
            run(*pytest, "tests/unit", *RUN_BY_A_SHELL, cwd=folder, env=env)
        used = run(*pip, "--version", cwd=folder, env=env).split()[1]
    tests = ", unit tests passed" if unit_tests else ""
    print(
        f"Python {version} with pip {used}: {len(installed)} pins installed, the daemon serves{tests}"
        f" ({time.monotonic() - began:.0f} s)",
        flush=True,
    )


def try_ranges(version: str, python: str) -> None:
    """Let pip choose within the ranges of pyproject.toml."""
    with clone() as (folder, env):
        for name, what in ((".venv", ".[server]"), ("light", ".")):
            run(python, "-m", "venv", name, cwd=folder, env=env)
            run(str(folder / name / "bin/python"), "-m", "pip", "install", "--quiet", what, cwd=folder, env=env)
        try_daemon(folder, env, "light")
        code = "from importlib.metadata import version; print(version('grpcio'))"
        used = [run(str(folder / name / "bin/python"), "-c", code, cwd=folder, env=env) for name in (".venv", "light")]
    server, light = map(str.strip, used)
    print(f"Python {version}: what pyproject.toml allows today serves; grpcio {server}, client's {light}", flush=True)


def main(what: str, *versions: str) -> None:
    """Try the versions that are named, or every Python that is here.

    In CI only the newest: the whole suite runs there on what `make test` installs, and `make image-check` installs the
    pins on the Python of the image.
    """
    here = pythons()
    chosen = versions or tuple(here)[-1 if os.environ.get("CI") else 0 :]
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    for version in chosen:
        if version not in here:
            sys.exit(f"Python {version} is not here: found {', '.join(here) or 'none'}")
    for version in chosen:
        if what == "pins":
            try_pins(version, here[version], unit_tests=version == chosen[-1] != running)
        else:
            try_ranges(version, here[version])


if __name__ == "__main__":
    if sys.argv[1:2] not in (["pins"], ["ranges"]):
        sys.exit(__doc__)
    main(*sys.argv[1:])
