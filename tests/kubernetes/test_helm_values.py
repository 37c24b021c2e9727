"""Values that the Helm chart refuses: each by a line that says where the mistake is, or what to write instead."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_server.config.names import NAMES
from betrace_kms_server.config.sources import environment_name

from tests.kubernetes.charts import CHART, objects, template, variables

REFUSED: Sequence[tuple[Mapping[str, Any], str]] = [
    ({"iamge": "x"}, "additional properties 'iamge' not allowed"),
    ({"image": "betrace-kms"}, "at '/image'"),
    ({"image": "betrace-kms@sha256:0123"}, "at '/image'"),
    ({"config": {"kms": {"store": "sqlite"}}}, "at '/config/kms': got object"),
    ({"config": {"KMS_STORE": "sqlite"}}, "config: KMS_STORE is no setting: write names of docs/configuration.md"),
    ({"config": {"kms.rotation.batch-size": 1.5}}, "at '/config/kms.rotation.batch-size': got number"),
    (
        {"config": {"kms.server.listen": "0.0.0.0:50051"}},
        "config: kms.server.listen is set by the chart: set callers.* instead",
    ),
    (
        {"secret": {"data": {"kms.data-dir": "/data"}}},
        "secret.data: kms.data-dir is set by the chart: set data.* instead",
    ),
    ({"secret": {"existing": "mine", "data": {"kms.store": "sqlite"}}}, "put all settings into one Secret"),
    (
        {"env": [{"name": "KMS_OPS_LISTEN", "value": "0.0.0.0:9464"}]},
        "env: KMS_OPS_LISTEN is set by the chart: remove it",
    ),
    ({"env": {"A": "b"}}, "at '/env': got object, want array"),
    ({"callers": {"group": 0}}, "at '/callers/group': minimum: got 0, want 1"),
    ({"callers": {"group": "staff"}}, "at '/callers/group': got string, want integer"),
    ({"callers": {"socket": {"identity": "Admin"}}}, "callers.socket.identity: Admin is the daemon's own"),
    ({"callers": {"socket": {"identity": "a b"}}}, "at '/callers/socket/identity': 'a b' does not match"),
    ({"callers": {"socket": {"enabled": False}}}, "set callers.socket.enabled or callers.token.enabled"),
    ({"callers": {"token": {"enabled": "yes"}}}, "at '/callers/token/enabled': got string, want boolean"),
    ({"data": {"sizeLimit": "16 MB"}}, "at '/data/sizeLimit': '16 MB' does not match"),
    ({"metrics": {"port": 80}}, "at '/metrics/port': minimum: got 80, want 1,024"),
    ({"metrics": {"podMonitor": {"enabled": True}}}, "set metrics.enabled=true"),
    (
        {"metrics": {"networkPolicy": {"enabled": True, "from": [{}], "otherPorts": "leave"}}},
        "set metrics.enabled=true",
    ),
    ({"metrics": {"enabled": True, "networkPolicy": {"enabled": True}}}, "name the peers that may scrape"),
    (
        {"metrics": {"enabled": True, "networkPolicy": {"enabled": True, "from": [{"podSelector": {}}]}}},
        "set allow to keep the pod's other ports open",
    ),
    ({"prometheusRule": {"runbooks": ""}}, "at '/prometheusRule/runbooks'"),
    (
        {"podDisruptionBudget": {"maxUnavailable": "half"}},
        "at '/podDisruptionBudget/maxUnavailable': got string, want integer",
    ),
    ({"podLabels": {"owner": True}}, "at '/podLabels/owner': got boolean"),
    ({"data": {"claim": "keys"}, "example": {"enabled": True}}, "set example.replicas=1"),
]


@pytest.mark.parametrize(("values", "words"), REFUSED, ids=lambda value: json.dumps(value)[:60])
def test_bad_values_are_refused(tmp_path: Path, values: Mapping[str, Any], words: str) -> None:
    """Each has a line that says where, and nothing is rendered."""
    done = template(CHART, tmp_path, values)
    assert (False, "") == (done.returncode == 0, done.stdout)
    lines = [line for line in done.stderr.splitlines() if words in line]
    assert lines, done.stderr
    assert len(min(lines, key=len)) < 500


def test_settings_are_passed_through(tmp_path: Path) -> None:
    """Each name of the daemon is taken, but for those that the chart sets by a variable, which would be stronger."""
    every = {
        "example": {"enabled": True},
        "callers": {"token": {"enabled": True}},
        "metrics": {"enabled": True},
        "vault": {"token": True},
    }
    pod = objects(CHART, tmp_path, every)["Deployment", "betrace-kms-example"]["spec"]["template"]["spec"]
    owned = {name for name in NAMES if environment_name(name) in variables(pod["initContainers"][0])}
    assert len(owned) > 5
    for name in owned:
        assert f"{name} is set by the chart" in template(CHART, tmp_path, {**every, "config": {name: "x"}}).stderr
    rest = dict.fromkeys(NAMES.keys() - owned, "x")
    assert rest == objects(CHART, tmp_path, {"config": rest})["ConfigMap", "betrace-kms-config"]["data"]
