"""Programs that call a daemon without a pause: both Python clients, and others configured as docs/clients.md says."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.interop.tools import ROOT, tool

_HERE = ROOT / "tests" / "interop"


def service_config() -> str:
    """Return the service config that docs/clients.md gives to users."""
    found = re.search(r"```json\n(.*?)```", (ROOT / "docs" / "clients.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return json.dumps(json.loads(found[1]))


def go(folder: Path, package: str = ".") -> list[str]:
    """Build a program for grpc-go into a folder, and return its command."""
    program = folder / "go-caller"
    subprocess.run(
        [tool("go"), "build", "-o", str(program), package], cwd=_HERE / "go" / "caller", check=True, timeout=300
    )
    return [str(program)]


def java(folder: Path) -> list[str]:
    """Compile the program for grpc-java into a folder, and return its command."""
    jars, maven = folder / "jars", tool("mvn")
    subprocess.run(
        [maven, "-q", "-B", "-f", str(_HERE / "java"), "dependency:copy-dependencies", f"-DoutputDirectory={jars}"],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=300,
    )
    source = _HERE / "java" / "Caller.java"
    subprocess.run([tool("javac"), "-cp", f"{jars}/*", "-d", str(folder), str(source)], check=True, timeout=120)
    return [tool("java"), "-cp", f"{folder}:{jars}/*", "Caller"]


def python(kind: str) -> Callable[[Path], list[str]]:
    """Return what gives the command of a Python client, `sync` or `asyncio`."""
    return lambda folder: [sys.executable, "-m", "tests.interop.python_caller", kind]


PROGRAMS: Mapping[str, Callable[[Path], list[str]]] = {
    "Python": python("sync"),
    "Python asyncio": python("asyncio"),
    "grpc-go": go,
    "grpc-java": java,
}
"""What makes the command of a program in a folder. Arguments follow: the target, and the service config."""
