"""The real tools that users have: found on the PATH or in .tools, and missing in CI is a failure."""

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join((str(ROOT / ".tools"), str(ROOT / ".venv" / "bin"), os.environ.get("PATH", os.defpath)))

_REMEDIES = {
    "h2load": "make h2load unpacks Debian's",
    "chromium-headless-shell": "make chromium unpacks Debian's",
    **dict.fromkeys(("grpcurl", "grpc_health_probe"), "make tools builds it, with Go"),
    **dict.fromkeys(("helm", "kubecheck", "kustomize"), "make kubernetes-tools builds it, with Go"),
    **dict.fromkeys(("pkcs11-tool", "softhsm2-util"), "make softhsm unpacks Debian's"),
    **dict.fromkeys(("prometheus", "promtool"), "make prometheus unpacks Debian's"),
    **dict.fromkeys(("buf", "cyclonedx-py", "pip-audit"), "make sbom installs requirements/tools.txt"),
}


def tool(name: str, *others: str) -> str:
    """Return the path of a tool, or of another that does as well; skip the test if none is there, or fail it in CI."""
    found = next((program for each in (name, *others) if (program := shutil.which(each, path=PATH))), None)
    remedy = _REMEDIES.get(name, "install it by your system's packages")
    if found is None and os.environ.get("CI"):
        pytest.fail(f"{name} is missing: {remedy}")
    if found is None:
        pytest.skip(f"{name} is not installed: {remedy}")
    return found
