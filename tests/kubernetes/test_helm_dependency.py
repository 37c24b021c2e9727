"""The Helm chart as a dependency: it adds the sidecar to Deployments of other charts and changes nothing else there."""

import json
import re
import shutil
import textwrap
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from betrace_kms_server.config.sources import from_command_line, resolve

from tests.interop.tools import ROOT
from tests.kubernetes.charts import objects, rendered, template, variables, with_dependency
from tests.kubernetes.objects import differences, faults, loaded

FOREIGN = Path(__file__).parent / "foreign-chart"
ADDED = re.compile(
    r"\+ spec\.template\.(?:metadata\.(?:labels|annotations)\.kms\.betrace\.dev/(?:sidecar|settings)"
    r"|spec\.securityContext(?:\.supplementalGroups(?:\[10001\])?)?"
    r"|spec\.initContainers(?:\[betrace-kms\])?"
    r"|spec\.volumes(?:\[betrace-kms-[a-z-]+\])?"
    r"|spec\.containers\[(?P<caller>[a-z]+)\]\.(?:env(?:\[BETRACE_KMS_ADDR\])?|volumeMounts(?:\[/run/betrace-kms\])?))"
)
"""What may be new in a Deployment. A list that was not there has no more than the same elements."""


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chart that depends on ours, with the dependency in place."""
    return with_dependency(shutil.copytree(FOREIGN, tmp_path_factory.mktemp("foreign") / "shop"))


def test_foreign_deployments_keep_what_they_are(foreign: Path, tmp_path: Path) -> None:
    """The sidecar is added to each, and to the container that calls; every field of their own stays, in its order."""
    without = loaded(rendered(foreign, tmp_path, {"betrace-kms": {"enabled": False}}))
    assert {("Deployment", name) for name in ("orders", "payments", "search")} == set(without)
    text = rendered(foreign, tmp_path, {})
    assert [] == faults(text)
    for name, before in without.items():
        after = loaded(text)[name]
        lines = differences(before, after)
        found = [ADDED.fullmatch(line) for line in lines]
        assert all(found), [line for line, match in zip(lines, found, strict=True) if match is None]
        pod = after["spec"]["template"]["spec"]
        assert {pod["containers"][0]["name"]} == {match["caller"] for match in found if match and match["caller"]}
        sidecar = pod["initContainers"][0]
        assert ("betrace-kms", "Always") == (sidecar["name"], sidecar["restartPolicy"])
        assert variables(sidecar)["KMS_SERVER_LISTEN"].startswith(variables(pod["containers"][0])["BETRACE_KMS_ADDR"])


def test_document_shows_a_chart_that_works(tmp_path: Path) -> None:
    """Chart.yaml, values.yaml and the Deployment of docs/helm.md make a chart, and so do the values for Vault."""
    document = (ROOT / "docs" / "helm.md").read_text("utf-8")
    found = re.findall(r"^ *```yaml\n(.*?)^ *```$", document, re.MULTILINE | re.DOTALL)
    described, for_aws, deployment, for_vault = [textwrap.dedent(block) for block in found]
    chart = tmp_path / "backend"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text(described, "utf-8")
    (chart / "templates" / "deployment.yaml").write_text(deployment, "utf-8")
    with_dependency(chart)
    for values in (for_aws, for_vault):
        (chart / "values.yaml").write_text(values, "utf-8")
        text = rendered(chart, tmp_path, {})
        assert [] == faults(text)
        pod = loaded(text)["Deployment", "backend"]["spec"]["template"]["spec"]
        assert ["betrace-kms"] == [each["name"] for each in pod["initContainers"]]
        resolve([from_command_line(loaded(text)["ConfigMap", "betrace-kms-config"]["data"])])


def test_alias_names_the_dependency(foreign: Path, tmp_path: Path) -> None:
    """A dependency under an alias is found, and of two the caller must say which is meant."""
    chart = Path(shutil.copytree(foreign, tmp_path / "shop"))
    for template_of_more in (chart / "templates").glob("[!f]*.yaml"):
        template_of_more.unlink()
    search = chart / "templates" / "five-replicas.yaml"
    search.write_text(search.read_text("utf-8").replace('"betrace-kms").enabled', '"keys").enabled'), "utf-8")
    file = chart / "Chart.yaml"
    described = yaml.safe_load(file.read_text("utf-8"))
    [dependency] = described["dependencies"]
    described["dependencies"] = [{**dependency, "alias": "keys", "condition": "keys.enabled"}]
    file.write_text(json.dumps(described), "utf-8")
    values = {"keys": {"enabled": True, "callers": {"socket": {"identity": "shop"}}}}
    [backend] = objects(chart, tmp_path, values)["Deployment", "search"]["spec"]["template"]["spec"]["containers"]
    assert "unix:/run/betrace-kms/own/shop.sock" == variables(backend)["BETRACE_KMS_ADDR"]
    described["dependencies"].append({**dependency, "alias": "more", "condition": "more.enabled"})
    file.write_text(json.dumps(described), "utf-8")
    done = template(chart, tmp_path, values)
    assert "chart shop has 2 dependencies on betrace-kms" in done.stderr
    assert '(index .Subcharts "NAME")' in done.stderr
