"""The chart and the kustomize components run one and the same sidecar."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.charts import CHART, objects
from tests.kubernetes.kustomizations import FOREIGN, KUBERNETES, with_components
from tests.kubernetes.objects import differences, loaded

ROLE = "arn:aws:iam::123456789012:role/betrace-kms"


def comparable(objects: Mapping[tuple[str, str], Any], deployment: str) -> Mapping[str, Any]:
    """Return the sidecar of a Deployment and its volumes, without what each has its own way to say."""
    pod = objects["Deployment", deployment]["spec"]["template"]["spec"]
    (sidecar,) = (each for each in pod["initContainers"] if each["name"] == "betrace-kms")
    environment = {each["name"]: each.get("value", each.get("valueFrom")) for each in sidecar["env"]}
    # The provider is in the chart's ConfigMap; the role is in its values, and in the ConfigMap of a kustomization.
    assert environment.pop("BETRACE_KMS_PROVIDER", "aws") == "aws"
    environment.pop("AWS_ROLE_ARN", None)
    mounts = {each["name"]: each for each in sidecar["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"] if each["name"] in mounts}
    for kind, field in (("configMap", "name"), ("secret", "secretName")):
        assert volumes[f"betrace-kms-{kind.lower().removesuffix('map')}"][kind].pop(field)
    return {**sidecar, "env": environment, "volumeMounts": mounts, "volumes": volumes}


@pytest.mark.parametrize("everything", [False, True])
def test_the_chart_and_the_component_have_the_same_sidecar(tmp_path: Path, everything: bool) -> None:
    """Container, probes, security context, mounts and volumes, without and with metrics and a role."""
    more = ("metrics", "aws-irsa") if everything else ()
    values = {"example": {"enabled": True}, "metrics": {"enabled": everything}, "aws": {"roleArn": ROLE * everything}}
    kustomized = with_components(tmp_path / "k", FOREIGN, [KUBERNETES / name for name in ("component", *more)])
    ours = comparable(loaded(kustomized), "reports")
    assert [] == differences(ours, comparable(objects(CHART, tmp_path, values), "betrace-kms-example"))
