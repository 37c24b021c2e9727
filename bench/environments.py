"""Makes environments that differ from requirements/server.txt in the release of grpcio, or in Python itself.

They stay in .venv/grpcio, so that a second run downloads nothing. Everything else in them has the version that is
pinned, with its hash, grpcio's companions and protobuf too, so that only grpcio differs; the other releases of grpcio
are for measuring only, and have no hash.
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.install import ROOT, pinned, pythons

FOLDER = ROOT / ".venv/grpcio"
_UV = ROOT / ".venv/bin/uv"


@dataclass(frozen=True, slots=True)
class Environment:
    """What runs a daemon."""

    grpcio: str
    python: str
    """As in 3.11.7."""
    program: Path
    """The interpreter."""


def pinned_version() -> str:
    """Return the version of grpcio in requirements/server.txt."""
    return dict(pinned("server.txt"))["grpcio"]


def environment(grpcio: str, python: str) -> Environment:
    """Return an environment with this release and this Python (as in 3.12); make it unless it is there."""
    folder = FOLDER / f"{grpcio}-python{python}"
    program = folder / "bin/python"
    if not (folder / "made").exists():
        if python not in (here := pythons()):
            sys.exit(f"Python {python} is not here: found {', '.join(here)}")
        _run(str(_UV), "venv", "--quiet", "--clear", "--python", here[python], str(folder))
        install = [str(_UV), "pip", "install", "--quiet", "--no-deps", "--python", str(program)]
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as others:
            others.write(without_grpcio((ROOT / "requirements/server.txt").read_text("utf-8")))
            others.flush()
            _run(*install, "--require-hashes", "-r", str(ROOT / "requirements/build.txt"), "-r", others.name)
        _run(*install, f"grpcio=={grpcio}")
        _run(*install, "--no-build-isolation", "--editable", str(ROOT))
        (folder / "made").touch()
    version = subprocess.run(
        [program, "-c", "import platform; print(platform.python_version())"], capture_output=True, text=True, check=True
    )
    return Environment(grpcio, version.stdout.strip(), program)


def without_grpcio(requirements: str) -> str:
    """Return a requirements file without the pin of grpcio."""
    pins = re.split(r"^(?=[A-Za-z0-9])", requirements, flags=re.MULTILINE)
    return "".join(pin for pin in pins if not pin.startswith("grpcio=="))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} ended with {done.returncode}:\n{done.stderr[-2000:]}")
