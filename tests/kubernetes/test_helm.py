"""The Helm chart: which objects it renders, and that an API server takes them."""

import json
import shutil
import tarfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.interop.tools import ROOT
from tests.kubernetes.charts import CHART, OLDEST, helm, objects, rendered, variables
from tests.kubernetes.objects import faults

ARN = "arn:aws:kms:us-east-1:123456789012:key/abcd1234-5678-90ab-cdef-1234567890ab"
DEFAULTS = {("ConfigMap", "betrace-kms-config"), ("Pod", "betrace-kms-test")}
CHOICES = {
    ("ConfigMap", "betrace-kms-dashboard"),
    ("Deployment", "betrace-kms-example"),
    ("NetworkPolicy", "betrace-kms"),
    ("PodDisruptionBudget", "betrace-kms"),
    ("PodMonitor", "betrace-kms"),
    ("PrometheusRule", "betrace-kms"),
    ("Secret", "betrace-kms-secret"),
    ("ServiceAccount", "betrace-kms"),
}
RULES = sorted((ROOT / "deploy" / "prometheus").glob("*.rules.yaml"))
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
EVERYTHING: Mapping[str, Any] = {
    "config": {"kms.store.table": "betrace-kms-keys", "kms.cache.max-size": 1_000_000, "kms.log.format": None},
    "secret": {"data": {"aws.kms.master-key-id": ARN}},
    "callers": {"token": {"enabled": True}},
    "aws": {"roleArn": "arn:aws:iam::123456789012:role/betrace-kms"},
    "vault": {"token": True},
    "serviceAccount": {"create": True, "annotations": {"example.org/owner": "security"}},
    "metrics": {
        "enabled": True,
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "networkPolicy": {
            "enabled": True,
            "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "otherPorts": "allow",
        },
    },
    "prometheusRule": {"enabled": True, "runbooks": "https://docs.example.org/betrace-kms"},
    "dashboard": {"enabled": True, "annotations": {"grafana_folder": "KMS"}},
    "podDisruptionBudget": {"enabled": True},
    "example": {"enabled": True},
    "imagePullSecrets": [{"name": "registry"}],
    "env": [{"name": "AWS_EC2_METADATA_DISABLED", "value": "true"}],
    "volumes": [{"name": "policy", "configMap": {"name": "policy"}}],
    "volumeMounts": [{"name": "policy", "mountPath": "/etc/betrace-kms/policy"}],
}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], Any]:
    """The objects, with everything enabled."""
    return objects(CHART, tmp_path_factory.mktemp("everything"), EVERYTHING)


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_lint_finds_nothing(tmp_path: Path, values: Mapping[str, Any]) -> None:
    """The chart passes the strict lint."""
    (tmp_path / "values.yaml").write_text(json.dumps(values), "utf-8")
    done = helm("lint", "--strict", "--kube-version", OLDEST, "--values", str(tmp_path / "values.yaml"), str(CHART))
    assert (0, True) == (done.returncode, "0 chart(s) failed" in done.stdout), done.stdout


def test_package_has_the_rules_and_the_dashboards(tmp_path: Path) -> None:
    """The links in the chart's folder become the files of deploy/prometheus and deploy/grafana, byte for byte."""
    done = helm("package", str(CHART), "--destination", str(tmp_path))
    assert 0 == done.returncode, done.stderr
    [package] = tmp_path.glob("*.tgz")
    with tarfile.open(package) as archive:
        files = {each.name: archive.extractfile(each) for each in archive if "/files/" in each.name}
        packaged = {Path(name).name: file.read() for name, file in files.items() if file is not None}
    assert {path.name: path.read_bytes() for path in (*RULES, *DASHBOARDS)} == packaged


def test_chart_has_the_version_of_the_project() -> None:
    """`make release` sets all three."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    versions = {project["project"]["version"], chart["version"], chart["appVersion"]}
    assert 1 == len(versions), versions
    files = [each for each in project["tool"]["bumpversion"]["files"] if each["filename"].endswith("Chart.yaml")]
    assert 2 == len(files)


@pytest.mark.parametrize(
    "values",
    [
        {},
        EVERYTHING,
        {"example": {"enabled": True}, "callers": {"socket": {"enabled": False}, "token": {"enabled": True}}},
        {"example": {"enabled": True, "replicas": 1}, "config": {"kms.store": "sqlite"}, "data": {"claim": "keys"}},
        {"example": {"enabled": True}, "secret": {"existing": "mine"}, "resources": None, "callers": {"group": 3000}},
        {
            "example": {"enabled": True},
            "config": dict.fromkeys(("betrace.kms.provider", "kms.store", "kms.log.format")),
        },
        {"fullnameOverride": "k" * 63, "dashboard": {"enabled": True}, "example": {"enabled": True}},
    ],
    ids=["defaults", "everything", "token", "claim", "existing-secret", "no-settings", "long-name"],
)
def test_objects_are_valid(tmp_path: Path, values: Mapping[str, Any]) -> None:
    """An API server takes each of them, in a namespace whose Pod Security is restricted."""
    assert [] == faults(rendered(CHART, tmp_path, values))


def test_objects_that_are_asked_for(tmp_path: Path, everything: Mapping[tuple[str, str], Any]) -> None:
    """By default there are settings and the pod of `helm test`; each of the others is a choice."""
    assert DEFAULTS == set(objects(CHART, tmp_path, {}))
    assert DEFAULTS | CHOICES == set(everything)


def test_objects_select_the_pods_that_have_the_sidecar(everything: Mapping[tuple[str, str], Any]) -> None:
    """Monitor, policy and budget find the pod by its labels, and its port by name and number."""
    pod = everything["Deployment", "betrace-kms-example"]["spec"]["template"]
    monitor, policy, budget = (
        everything[kind, "betrace-kms"]["spec"] for kind in ("PodMonitor", "NetworkPolicy", "PodDisruptionBudget")
    )
    for selector in (monitor["selector"], policy["podSelector"], budget["selector"]):
        assert selector["matchLabels"]
        assert selector["matchLabels"].items() <= pod["metadata"]["labels"].items()
    [port] = pod["spec"]["initContainers"][0]["ports"]
    [endpoint] = monitor["podMetricsEndpoints"]
    assert (port["name"], "/q/metrics") == (endpoint["port"], endpoint["path"])
    scrape, rest = policy["ingress"]
    assert [{"protocol": "TCP", "port": port["containerPort"]}] == scrape["ports"]
    opened = [range(each["port"], each["endPort"] + 1) for each in rest["ports"] if each["protocol"] == "TCP"]
    assert {port["containerPort"]} == set(range(1, 65536)).difference(*opened)


def test_rules_and_dashboards_are_those_of_deploy(everything: Mapping[tuple[str, str], Any]) -> None:
    """Nothing differs but where the runbooks are."""
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text("utf-8"))["groups"]]
    for annotations in (rule.get("annotations") for group in groups for rule in group["rules"]):
        if annotations:
            page = annotations["runbook_url"].rpartition("/")[2]
            annotations["runbook_url"] = f"https://docs.example.org/betrace-kms/{page}"
    assert groups == everything["PrometheusRule", "betrace-kms"]["spec"]["groups"]
    shown = everything["ConfigMap", "betrace-kms-dashboard"]["data"]
    assert {path.name: path.read_text("utf-8") for path in DASHBOARDS} == shown


def test_settings_are_text(tmp_path: Path) -> None:
    """A million is not 1e+06, a switch is a word, and null removes a default."""
    values = {"config": {"kms.cache.max-size": 1_000_000, "kms.audit.required": False, "kms.store": None}}
    assert {
        "betrace.kms.provider": "aws",
        "kms.audit.required": "false",
        "kms.cache.max-size": "1000000",
        "kms.log.format": "json",
    } == objects(CHART, tmp_path, values)["ConfigMap", "betrace-kms-config"]["data"]


def test_pod_changes_with_its_settings(tmp_path: Path) -> None:
    """Settings are read at start, so that a change of them must start new pods; another change must not."""

    def annotations(**values: Any) -> Any:
        found = objects(CHART, tmp_path, {"example": {"enabled": True}, **values})
        return found["Deployment", "betrace-kms-example"]["spec"]["template"]["metadata"]["annotations"]

    before = annotations()
    assert before == annotations(dashboard={"enabled": True})
    assert before != annotations(config={"kms.log.level": "debug"})
    assert before != annotations(secret={"data": {"kms.log.level": "debug"}})


def test_only_the_sidecar_gets_tokens(everything: Mapping[tuple[str, str], Any]) -> None:
    """Tokens for AWS and Vault are mounted into no other container, and the sidecar has none of the Kubernetes API."""
    pod = everything["Deployment", "betrace-kms-example"]["spec"]["template"]["spec"]
    [sidecar], [backend] = pod["initContainers"], pod["containers"]
    mounts = {each["name"]: each["mountPath"] for each in sidecar["volumeMounts"]}
    assert f"{mounts['betrace-kms-aws']}/token" == variables(sidecar)["AWS_WEB_IDENTITY_TOKEN_FILE"]
    assert f"{mounts['betrace-kms-vault']}/token" == variables(sidecar)["VAULT_AUTH_TOKEN_FILE"]
    assert "/var/run/secrets/kubernetes.io/serviceaccount" == mounts["betrace-kms-no-token"]
    assert ["betrace-kms-callers"] == [each["name"] for each in backend["volumeMounts"]]
    assert [] == [name for name in variables(backend) if name.startswith(("AWS_", "VAULT_"))]


def test_notes_say_what_to_do_next(tmp_path: Path) -> None:
    """Placeholders are pointed out until they are replaced, and the command that tries the settings is there."""
    chart = Path(shutil.copytree(CHART, tmp_path / "chart"))
    notes = (chart / "templates/NOTES.txt").read_text("utf-8")  # shown by `helm install`, which wants a cluster
    (chart / "templates/notes.yaml").write_text(
        f"""{{{{ define "notes" }}}}{notes}{{{{ end }}}}
apiVersion: v1
kind: ConfigMap
metadata: {{name: betrace-kms-notes}}
data:
  text: {{{{ include "notes" . | quote }}}}
""",
        "utf-8",
    )

    def shown(values: Mapping[str, Any]) -> str:
        text: str = objects(chart, tmp_path, values)["ConfigMap", "betrace-kms-notes"]["data"]["text"]
        return text

    placeholders = shown({})
    assert "CHANGE: image is a placeholder" in placeholders
    assert "CHANGE: aws.kms.master-key-id is in neither config nor a Secret" in placeholders
    image = f"betrace-kms@sha256:{'1' * 64}"
    complete = shown({"image": image, "config": {"aws.kms.master-key-id": ARN}})
    assert "CHANGE" not in complete
    assert "helm test --namespace default betrace-kms" in complete
    assert "CHANGE" not in shown({"image": image, "secret": {"existing": "mine"}})
