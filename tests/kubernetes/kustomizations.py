"""Renders kustomizations by the real kustomize: those of deploy/kubernetes, and those that a user would write."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tests.interop.tools import tool

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
FOREIGN = tuple(sorted((Path(__file__).parent / "foreign").glob("*.yaml")))
"""Deployments that somebody else wrote."""


def built(folder: Path) -> str:
    """Return what a kustomization renders. Fails, as kustomize does, also by what it warns of."""
    command = [tool("kustomize"), "build", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


def with_components(folder: Path, resources: Sequence[Path], components: Sequence[Path], **fields: Any) -> str:
    """Render resources with components in a kustomization that is written into a new folder, and more fields of it."""
    folder.mkdir()
    for resource in resources:
        shutil.copy(resource, folder)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [resource.name for resource in resources],
        "components": [os.path.relpath(component, folder.resolve()) for component in components],
        **fields,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return built(folder)
