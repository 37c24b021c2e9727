"""The examples of deploy/kubernetes: what the daemon would read there, and what keeps it running."""

import base64
import re
from collections.abc import Mapping
from typing import Any

import pytest
from betrace_kms_server.cli.serve import serve
from betrace_kms_server.config import sources as config
from betrace_kms_server.rpc.health import KEY_MANAGEMENT, PROCESS

from tests.image.dockerfile import DOCKERFILE, stages
from tests.kubernetes.kustomizations import KUBERNETES, built
from tests.kubernetes.objects import faults, loaded

EXAMPLES = ("aws-irsa", "aws-pod-identity", "localstack", "sqlite")
OF_OTHERS = {"POD_IP", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
"""Variables that the SDK reads, and one that Kubernetes sets for another."""
ADDRESS = {"status.podIP": "10.1.2.3"}


@pytest.fixture(scope="module", params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> str:
    """The name of each example in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def rendered(example: str) -> str:
    """What `kubectl apply -k` would apply."""
    return built(KUBERNETES / "example" / example)


@pytest.fixture(scope="module")
def deployment(rendered: str) -> Any:
    """The backend with the sidecar."""
    return loaded(rendered)["Deployment", "betrace-backend"]["spec"]


@pytest.fixture(scope="module")
def pod(deployment: Any) -> Any:
    """The pod's spec."""
    return deployment["template"]["spec"]


@pytest.fixture(scope="module")
def sidecar(pod: Any) -> Any:
    """Our container."""
    (container,) = pod["initContainers"]
    return container


@pytest.fixture(scope="module")
def folders(rendered: str) -> Mapping[str, Mapping[str, str]]:
    """The content of each ConfigMap and Secret, by its name."""
    found = {name: each.get("data", {}) for (kind, name), each in loaded(rendered).items() if kind == "ConfigMap"}
    for (kind, name), each in loaded(rendered).items():
        if kind == "Secret":
            found[name] = {key: base64.b64decode(value).decode() for key, value in each["data"].items()}
    return found


@pytest.fixture(scope="module")
def environment(sidecar: Any, folders: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    """Our container's variables, as the kubelet makes them."""
    found: dict[str, str] = {}
    for variable in sidecar["env"]:
        value = variable.get("value", "")
        source = variable.get("valueFrom", {})
        if reference := source.get("configMapKeyRef"):
            value = folders[reference["name"]][reference["key"]]
        if reference := source.get("fieldRef"):
            value = ADDRESS[reference["fieldPath"]]
        found[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda name: found.get(name[1], name[0]), value)
    return found


@pytest.fixture(scope="module")
def settings(environment: Mapping[str, str], folders: Mapping[str, Mapping[str, str]]) -> config.Settings:
    """The settings that a daemon in this pod would have."""
    names = sorted(folders, reverse=True)  # the Secret's folder comes first in KMS_CONFIG_DIR
    values = [{key: value for key, value in folders[name].items() if key in config.NAMES} for name in names]
    sources = [config.from_environment(environment), *(config.Source("folder", each) for each in values)]
    return config.resolve(sources)[0]


def test_an_api_server_takes_the_example(rendered: str) -> None:
    """In a namespace that enforces the level `restricted`."""
    assert [] == faults(rendered)


def test_an_example_sets_names_that_the_daemon_knows(
    environment: Mapping[str, str], folders: Mapping[str, Mapping[str, str]]
) -> None:
    """A name that we do not know would keep the daemon from starting, or be ignored in silence."""
    known = {config.environment_name(name) for name in config.NAMES}
    known |= {option.envvar for option in serve.params if isinstance(option.envvar, str)}
    assert set() == {name for values in folders.values() for name in values} - {*config.NAMES, "aws.role-arn"}
    assert set() == set(environment) - known - OF_OTHERS


def test_an_example_is_a_configuration_that_starts(example: str, settings: config.Settings) -> None:
    """Provider aws, a store that lasts but in the emulator, and callers that are authenticated."""
    store = "dynamodb" if example.startswith("aws-") else "sqlite"
    assert ("aws", store, example == "localstack") == (
        settings.provider,
        settings.store,
        settings.store_allow_ephemeral,
    )
    (address,) = settings.listen
    assert ("backend", 0o660, True) == (
        address.permissions.identity,
        address.permissions.mode,
        settings.require_identity,
    )
    exposed = [str(each) for each in settings.ops_listen if not each.loopback]
    assert ([] if example == "localstack" else ["[10.1.2.3]:9464"]) == exposed


def test_every_folder_that_is_named_is_mounted(pod: Any, sidecar: Any, environment: Mapping[str, str]) -> None:
    """Settings, data, socket and token lie in mounts; nothing else of the container can be written."""
    mounts = {mount["mountPath"]: mount["name"] for mount in sidecar["volumeMounts"]}
    secret, settings = environment["KMS_CONFIG_DIR"].split(":")
    assert ("betrace-kms-secret", "betrace-kms-config") == (mounts[secret], mounts[settings])
    named = [environment[name] for name in ("KMS_DATA_DIR", "AWS_WEB_IDENTITY_TOKEN_FILE") if name in environment]
    for path in [*named, environment["KMS_SERVER_LISTEN"].removeprefix("unix:").partition(";")[0]]:
        assert [True] == [path == mount or path.startswith(f"{mount}/") for mount in mounts if path.startswith(mount)]
    assert set(mounts.values()) <= {volume["name"] for volume in pod["volumes"]}


def test_the_backend_reaches_the_socket(pod: Any, settings: config.Settings) -> None:
    """It mounts the folder, has the group, is another user, and is told the address."""
    (address,) = settings.listen
    assert address.socket_path is not None
    (backend,) = pod["containers"]
    assert {"betrace-kms-callers": str(address.socket_path.parents[1])} == {
        mount["name"]: mount["mountPath"] for mount in backend["volumeMounts"]
    }
    assert [address.permissions.group] == pod["securityContext"]["supplementalGroups"]
    assert backend["securityContext"]["runAsUser"] != pod["initContainers"][0]["securityContext"]["runAsUser"]
    assert [address.text] == [variable["value"] for variable in backend["env"]]


def test_two_daemons_never_have_one_file(example: str, deployment: Any, pod: Any, rendered: str) -> None:
    """A file on a claim has one replica, and the old pod is gone before the new one comes."""
    (data,) = (volume for volume in pod["volumes"] if volume["name"] == "betrace-kms-data")
    if example == "sqlite":
        assert (1, "Recreate") == (deployment["replicas"], deployment["strategy"]["type"])
        assert "fsGroup" in pod["securityContext"]
        assert ("PersistentVolumeClaim", data["persistentVolumeClaim"]["claimName"]) in loaded(rendered)
    assert {"name", "persistentVolumeClaim" if example == "sqlite" else "emptyDir"} == set(data)


def test_the_daemon_has_time_to_drain(pod: Any, settings: config.Settings) -> None:
    """The pod's grace is longer than the daemon's own."""
    assert pod["terminationGracePeriodSeconds"] > settings.drain_seconds


def test_the_role_is_for_the_sidecar_alone(example: str, deployment: Any, pod: Any) -> None:
    """By a token that no other container mounts, or by an annotation that names the others."""
    (backend,) = pod["containers"]
    if example in ("aws-irsa", "sqlite"):
        (token,) = (volume for volume in pod["volumes"] if volume["name"] == "betrace-kms-aws")
        assert "sts.amazonaws.com" == token["projected"]["sources"][0]["serviceAccountToken"]["audience"]
    if example == "aws-pod-identity":
        annotations = deployment["template"]["metadata"]["annotations"]
        assert backend["name"] == annotations["eks.amazonaws.com/skip-containers"]
    assert ["betrace-kms-callers"] == [mount["name"] for mount in backend["volumeMounts"]]


def test_the_sidecar_runs_as_the_images_user_with_no_privilege(sidecar: Any) -> None:
    """On a read-only root, without capabilities and without the token of the Kubernetes API."""
    user, group = map(int, stages(DOCKERFILE.read_text("utf-8"))[-1].last("USER").split(":"))
    assert ("Always", True) == (sidecar["restartPolicy"], "startupProbe" in sidecar)
    assert {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": group,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    } == sidecar["securityContext"]
    mounts = {mount["mountPath"]: mount["name"] for mount in sidecar["volumeMounts"]}
    assert "betrace-kms-no-token" == mounts["/var/run/secrets/kubernetes.io/serviceaccount"]


@pytest.mark.parametrize(
    ("probe", "service"),
    [("startupProbe", PROCESS), ("livenessProbe", PROCESS), ("readinessProbe", KEY_MANAGEMENT)],
)
def test_probes_ask_the_health_service(sidecar: Any, environment: Mapping[str, str], probe: str, service: str) -> None:
    """Only readiness looks beyond the process: an outage of KMS must not restart a daemon that serves."""
    program, *flags = sidecar[probe]["exec"]["command"]
    options = dict(flag.split("=", 1) for flag in flags)
    address = environment["KMS_SERVER_LISTEN"].partition(";")[0]
    assert ("grpc_health_probe", address, service) == (program, options["-addr"], options["-service"])
    seconds = [int(options[name].removesuffix("s")) for name in ("-connect-timeout", "-rpc-timeout")]
    assert sum(seconds) < sidecar[probe]["timeoutSeconds"]
