"""The judges of the other tests in this folder refuse what they must."""

import copy
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.kubernetes.objects import differences, faults

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: backend
spec:
  selector: {matchLabels: {app: backend}}
  template:
    metadata: {labels: {app: backend}}
    spec:
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      initContainers:
        - name: migrate
          image: migrate:1
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      containers:
        - name: backend
          image: backend:1
          env: [{name: A, value: a}, {name: B, value: $(A)}]
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
"""

POD_MONITOR = """
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata: {name: backend}
spec: {podMetricsEndpoint: []}
"""


def test_a_good_object_has_no_faults() -> None:
    """The other tests change one thing in it."""
    assert [] == faults(DEPLOYMENT)


@pytest.mark.parametrize(
    ("was", "becomes", "fault"),
    [
        (
            "image: backend:1",
            "immage: backend:1",
            'unknown field "spec.template.spec.containers[0].immage"',
        ),
        ("image: backend:1", "image: backend:1\n          image: backend:2", 'key "image" already set'),
        ("          image: backend:1\n", "", "spec.template.spec.containers[0].image: Required value"),
        ("name: migrate", "name: backend", 'spec.template.spec.initContainers[0].name: Duplicate value: "backend"'),
        ("image: backend:1", "image: backend:1\n          volumeMounts: [{name: x, mountPath: /x}]", 'Not found: "x"'),
        ("app: backend}}\n    spec", "app: other}}\n    spec", "`selector` does not match template `labels`"),
        ("drop: [ALL]", "drop: []", 'violates PodSecurity "restricted": unrestricted capabilities'),
        ("runAsNonRoot: true, ", "", 'violates PodSecurity "restricted": runAsNonRoot != true'),
        ("apiVersion: apps/v1", "apiVersion: apps/v2", 'no kind "Deployment" is registered'),
        (DEPLOYMENT, "apiVersion: v1\nkind: Node\nmetadata: {name: a}", "kubecheck has no validation of Node"),
        (DEPLOYMENT, POD_MONITOR, 'unknown field "spec.podMetricsEndpoint"'),
    ],
)
def test_a_bad_object_is_refused(was: str, becomes: str, fault: str) -> None:
    """As the API server would: by the types, by validation, and by the Pod Security Standards."""
    assert was in DEPLOYMENT
    found = faults(DEPLOYMENT.replace(was, becomes))
    assert fault in "\n".join(found)


def test_no_object_is_no_success() -> None:
    """A render that came out empty was not checked."""
    with pytest.raises(AssertionError, match="stdin has no object"):
        faults("---\n# nothing\n")


def test_differences_name_each_place() -> None:
    """New elements are not changes of their neighbours; values, order and what is gone are seen."""
    before = yaml.safe_load(DEPLOYMENT)
    after: Any = copy.deepcopy(before)
    assert [] == differences(before, after)
    pod = after["spec"]["template"]["spec"]
    pod["initContainers"].insert(0, {"name": "kms"})
    pod["volumes"] = []
    assert ["+ spec.template.spec.initContainers[kms]", "+ spec.template.spec.volumes"] == differences(before, after)
    (backend,) = pod["containers"]
    backend["env"].reverse()
    backend["image"] = "backend:2"
    backend["securityContext"]["capabilities"]["drop"] = ["all"]
    del pod["securityContext"]
    assert {
        "- spec.template.spec.securityContext",
        "~ spec.template.spec.containers[backend].image",
        "~ spec.template.spec.containers[backend].env",
        "- spec.template.spec.containers[backend].securityContext.capabilities.drop[ALL]",
    } < set(differences(before, after))


@pytest.mark.parametrize(("before", "after"), [(1, "1"), (1, True), (None, ""), ([1, 2], [2, 1]), (["a"], ["a", "a"])])
def test_differences_are_of_types_and_counts(before: object, after: object) -> None:
    """What YAML tells apart is different."""
    assert [] != differences(before, after)
