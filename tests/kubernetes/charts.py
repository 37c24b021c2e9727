"""Renders charts by the real helm, without a cluster."""

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.interop.tools import ROOT, tool
from tests.kubernetes.objects import loaded

CHART = ROOT / "deploy" / "helm" / "betrace-kms"
RELEASE = "betrace-kms"
OLDEST = "1.29.0"
"""The oldest Kubernetes that the chart is for."""


def helm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run helm and collect what it prints."""
    return subprocess.run([tool("helm"), *arguments], capture_output=True, text=True, timeout=60, check=False)


def template(chart: Path, folder: Path, values: Mapping[str, Any]) -> "subprocess.CompletedProcess[str]":
    """Render a chart with these values, which are written into the folder."""
    file = folder / "given.yaml"
    file.write_text(json.dumps(values), "utf-8")  # JSON is YAML
    return helm("template", RELEASE, str(chart), "--kube-version", OLDEST, "--values", str(file))


def rendered(chart: Path, folder: Path, values: Mapping[str, Any]) -> str:
    """Return the objects of a chart as YAML. Fails if there are none."""
    done = template(chart, folder, values)
    assert 0 == done.returncode, done.stderr
    return done.stdout


def objects(chart: Path, folder: Path, values: Mapping[str, Any]) -> Mapping[tuple[str, str], Any]:
    """Return the objects of a chart by kind and name."""
    return loaded(rendered(chart, folder, values))


def with_dependency(chart: Path) -> Path:
    """Let the dependency of a chart lead to our chart, and put it in place."""
    file = chart / "Chart.yaml"
    file.write_text(re.sub(r"file://\S+", f"file://{CHART}", file.read_text("utf-8")), "utf-8")
    done = helm("dependency", "update", "--skip-refresh", str(chart))
    assert 0 == done.returncode, done.stderr
    return chart


def variables(container: Mapping[str, Any]) -> Mapping[str, str]:
    """Return a container's variables that have a value."""
    return {each["name"]: each["value"] for each in container.get("env", ()) if "value" in each}
