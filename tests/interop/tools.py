"""The real tools that users have: found on the PATH or in .tools, and missing in CI is a failure."""

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join((str(ROOT / ".tools"), str(ROOT / ".venv" / "bin"), os.environ.get("PATH", os.defpath)))


def tool(name: str) -> str:
    """Return the path of a tool; skip the test if it is missing, or fail it in CI."""
    found = shutil.which(name, path=PATH)
    if found is None and os.environ.get("CI"):
        pytest.fail(f"{name} is missing: make tools builds it")
    if found is None:
        pytest.skip(f"{name} is not installed: make tools builds it, with Go")
    return found
