"""The components of deploy/kubernetes over Deployments that somebody else wrote."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from betrace_kms_server.config.sources import NAMES, environment_name

from tests.kubernetes.kustomizations import FOREIGN, KUBERNETES, ROOT, built, with_components
from tests.kubernetes.objects import differences, faults, loaded

OURS = "betrace-kms"
POD = "spec.template.spec"
CALLERS = ("orders", "reports", "payments")
VOLUMES = ("callers", "data", "config", "secret", "no-token")
COMPONENT = KUBERNETES / "component"
OPTIONAL = ("metrics", "pod-monitor", "prometheus-rule", "network-policy-alone", "disruption-budget")


def documented() -> Sequence[str]:
    """Return the YAML blocks of docs/kubernetes.md: a kustomization, and the patch that lets a container call."""
    text = (ROOT / "docs/kubernetes.md").read_text("utf-8")
    return [dedent(block) for _, block in re.findall(r"^( *)```yaml\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)]


def caller_patch(deployment: str, container: str) -> Mapping[str, Any]:
    """Return the patch by which a user lets a container call, for a container of that name."""
    (found,) = yaml.safe_load(documented()[1])["patches"]
    patch = found["patch"].replace("name: backend", f"name: {container}")
    return {"patch": patch, "target": {"kind": "Deployment", "name": deployment}}


def foreign() -> Mapping[tuple[str, str], Any]:
    """Return everything that is somebody else's."""
    return {key: each for file in FOREIGN for key, each in loaded(file.read_text("utf-8")).items()}


def added(rendered: str) -> Mapping[tuple[str, str], set[str]]:
    """Return the differences of each object that is somebody else's, where there are any."""
    after = loaded(rendered)
    found = {key: set(differences(before, after[key])) for key, before in foreign().items()}
    return {key: lines for key, lines in found.items() if lines}


def of_ours(deployment: str, *more: str) -> set[str]:
    """Return what the component adds to a Deployment of that name, with more in its pods."""
    groups = {
        "orders": {f"+ {POD}.securityContext.supplementalGroups[10001]"},
        "reports": {f"+ {POD}.securityContext"},
        "payments": set(),
    }
    init = f"+ {POD}.initContainers" + (f"[{OURS}]" if deployment == "orders" else "")
    volumes = {f"+ {POD}.volumes[{OURS}-{name}]" for name in (*VOLUMES, *more)}
    if deployment == "payments":
        volumes = {f"+ {POD}.volumes"}
    return {"+ spec.template.metadata.labels.kms.betrace.dev/sidecar", init, *volumes, *groups[deployment]}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The component over all of them."""
    return with_components(tmp_path_factory.mktemp("user") / "k", FOREIGN, [COMPONENT])


def test_everything_that_was_the_users_is_unchanged(rendered: str) -> None:
    """Three Deployments get the sidecar, its volumes, a label and a group, and nothing else changes anywhere."""
    assert {("Deployment", name): of_ours(name) for name in CALLERS} == added(rendered)
    assert set(foreign()) == set(loaded(rendered))
    groups = {name: loaded(rendered)["Deployment", name]["spec"]["template"]["spec"] for name in CALLERS}
    assert [[100010, 5002, 10001], [10001], [10001]] == [
        groups[name]["securityContext"]["supplementalGroups"] for name in CALLERS
    ]


def test_the_sidecar_starts_first_and_is_the_same_everywhere(rendered: str) -> None:
    """Init containers of the user may call it; and what was in the Deployment does not change the sidecar."""
    pods = [loaded(rendered)["Deployment", name]["spec"]["template"]["spec"] for name in CALLERS]
    sidecars = [pod["initContainers"][0] for pod in pods]
    patch = yaml.safe_load((COMPONENT / "sidecar.yaml").read_text("utf-8"))
    assert [patch["spec"]["template"]["spec"]["initContainers"][0]] * len(CALLERS) == sidecars
    assert [OURS, "wait-for-database", "log-shipper"] == [each["name"] for each in pods[0]["initContainers"]]


def test_an_api_server_takes_all_of_it(rendered: str) -> None:
    """In a namespace that enforces the level `restricted`."""
    assert [] == faults(rendered)


@pytest.mark.parametrize("provider", ["aws-irsa", "aws-pod-identity", "localstack", "vault"])
def test_components_compose(tmp_path: Path, provider: str) -> None:
    """Each way to a provider, with all optional components at once: more is added, and still nothing is changed."""
    folders = [KUBERNETES / name for name in ("component", provider, *OPTIONAL)] + [ROOT / "deploy/grafana"]
    text = with_components(tmp_path / "k", FOREIGN, folders)
    more = {"aws-irsa": ("aws",), "vault": ("vault",)}.get(provider, ())
    assert {("Deployment", name): of_ours(name, *more) for name in CALLERS} == added(text)
    assert [] == faults(text)
    beside = {
        ("PodMonitor", OURS),
        ("PrometheusRule", OURS),
        ("NetworkPolicy", f"{OURS}-metrics"),
        ("PodDisruptionBudget", OURS),
        ("ConfigMap", f"{OURS}-dashboard"),
    }
    assert beside == set(loaded(text)) - set(foreign())


def test_a_container_of_the_user_gets_the_socket_and_keeps_the_rest(tmp_path: Path) -> None:
    """The patch of docs/kubernetes.md adds a mount and a variable to the one container that it names."""
    patches = [caller_patch("orders", "orders"), caller_patch("reports", "app")]
    text = with_components(tmp_path / "k", FOREIGN, [COMPONENT], patches=patches)
    names = {"orders": "orders", "reports": "app"}
    mounted = {
        name: {
            f"+ {POD}.containers[{container}].volumeMounts[/run/betrace-kms]",
            f"+ {POD}.containers[{container}].env" + ("[BETRACE_KMS_ADDR]" if name == "orders" else ""),
        }
        for name, container in names.items()
    }
    assert {("Deployment", name): of_ours(name) | mounted.get(name, set()) for name in CALLERS} == added(text)
    assert [] == faults(text)


def test_a_container_that_is_named_wrongly_is_refused(tmp_path: Path) -> None:
    """The patch would make a new container of it: without an image, no API server takes it."""
    text = with_components(tmp_path / "k", FOREIGN, [COMPONENT], patches=[caller_patch("orders", "odrers")])
    assert ["Deployment/orders: spec.template.spec.containers[0].image: Required value"] == [
        line for line in faults(text) if "image" in line
    ]


def test_the_kustomization_of_the_document_works(tmp_path: Path) -> None:
    """With a clone beside it, and a Deployment whose container is called `backend`."""
    user = tmp_path / "user"
    user.mkdir()
    (tmp_path / "betrace-kms").symlink_to(ROOT)
    (user / "kustomization.yaml").write_text("".join(documented()[:2]))
    (read_only,) = (file for file in FOREIGN if file.stem == "read-only")
    (user / "backend.yaml").write_text(read_only.read_text("utf-8").replace("name: app", "name: backend"))
    text = built(user)
    assert [] == faults(text)
    pod = loaded(text)["Deployment", "reports"]["spec"]["template"]["spec"]
    assert "registry.example.org/betrace-kms@sha256:" + 64 * "1" == pod["initContainers"][0]["image"]
    assert {"/tmp", "/run/betrace-kms"} == {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}


def test_the_settings_of_terraform_make_the_config_map(tmp_path: Path) -> None:
    """As the document generates it: each line of the file is an entry, beside the role."""
    user = tmp_path / "user"
    user.mkdir()
    (user / "kustomization.yaml").write_text(documented()[2])
    (user / "application.properties").write_text("kms.store=dynamodb\naws.kms.master-key-id=arn:aws:kms:a:1:key/b\n")
    (config,) = loaded(built(user)).values()
    role = "arn:aws:iam::123456789012:role/betrace-kms"
    settings = {"kms.store": "dynamodb", "aws.kms.master-key-id": "arn:aws:kms:a:1:key/b"}
    assert {**settings, "aws.role-arn": role} == config["data"]


def test_every_component_is_in_the_document() -> None:
    """Nothing has to be found by listing the folder."""
    rows = re.findall(r"^\| (`.*?) \| ", (ROOT / "docs/kubernetes.md").read_text("utf-8"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)}
    assert set() == {folder.name for folder in KUBERNETES.iterdir()} - {"example"} - named


def test_several_kustomizations_with_the_component_combine(tmp_path: Path) -> None:
    """Of one that lists them, as a cluster's often does; what the component reads is in no render."""
    for file in FOREIGN:
        with_components(tmp_path / file.stem, [file], [COMPONENT, KUBERNETES / "metrics"])
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [file.stem for file in FOREIGN]}))
    text = built(tmp_path)
    assert {("Deployment", name): of_ours(name) for name in CALLERS} == added(text)
    assert set(foreign()) == set(loaded(text))


def test_settings_of_a_generator_make_new_pods(tmp_path: Path) -> None:
    """The volumes, and the role, follow a ConfigMap or Secret whose name has a hash."""
    text = with_components(
        tmp_path / "k",
        [file for file in FOREIGN if file.stem == "read-only"],
        [COMPONENT, KUBERNETES / "aws-irsa"],
        configMapGenerator=[{"name": "betrace-kms-config", "literals": ["kms.store=dynamodb"]}],
        secretGenerator=[{"name": "betrace-kms-secret", "literals": ["aws.kms.region=us-east-1"]}],
        namePrefix="blue-",
    )
    (config,) = (name for kind, name in loaded(text) if kind == "ConfigMap")
    (secret,) = (name for kind, name in loaded(text) if kind == "Secret")
    assert (True, True) == (
        config.startswith("blue-betrace-kms-config-"),
        secret.startswith("blue-betrace-kms-secret-"),
    )
    pod = loaded(text)["Deployment", "blue-reports"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert (config, secret) == (
        volumes["betrace-kms-config"]["configMap"]["name"],
        volumes["betrace-kms-secret"]["secret"]["secretName"],
    )
    (role,) = (each for each in pod["initContainers"][0]["env"] if each["name"] == "AWS_ROLE_ARN")
    assert config == role["valueFrom"]["configMapKeyRef"]["name"]


def test_the_alerts_are_those_of_prometheus() -> None:
    """No copy that is kept by hand: `make prometheus-rule` writes it."""
    rule = yaml.safe_load((KUBERNETES / "prometheus-rule/prometheus-rule.yaml").read_text("utf-8"))
    files = sorted((ROOT / "deploy/prometheus").glob("betrace-kms*.rules.yaml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text("utf-8"))["groups"]]
    assert {"groups": groups} == rule["spec"], "run make prometheus-rule"


def test_metrics_are_where_monitor_and_policy_say(tmp_path: Path) -> None:
    """One port under one name; the daemon listens there, and the policy alone leaves open every port but this one."""
    names = ("metrics", "pod-monitor", "network-policy-alone")
    objects = loaded(with_components(tmp_path / "k", FOREIGN, [COMPONENT, *(KUBERNETES / name for name in names)]))
    sidecar = objects["Deployment", "payments"]["spec"]["template"]["spec"]["initContainers"][0]
    (port,) = sidecar["ports"]
    (endpoint,) = objects["PodMonitor", OURS]["spec"]["podMetricsEndpoints"]
    assert (port["name"], "/q/metrics") == (endpoint["port"], endpoint["path"])
    environment = {each["name"]: each.get("value") for each in sidecar["env"]}
    assert f"127.0.0.1:{port['containerPort']},[$(POD_IP)]:{port['containerPort']}" == environment["KMS_OPS_LISTEN"]
    order = list(environment)
    assert order.index("POD_IP") < order.index("KMS_OPS_LISTEN"), "Kubernetes replaces what stands before only"
    scraping, others = objects["NetworkPolicy", f"{OURS}-metrics"]["spec"]["ingress"]
    assert [port["containerPort"]] == [each["port"] for each in scraping["ports"]]
    open_to_all = {(each["protocol"], each["port"], each["endPort"]) for each in others["ports"]}
    more = loaded(with_components(tmp_path / "more", FOREIGN, [COMPONENT, KUBERNETES / "network-policy"]))
    assert [scraping] == more["NetworkPolicy", f"{OURS}-metrics"]["spec"]["ingress"], "it opens nothing else"
    every = {("TCP", 1, 9463), ("TCP", 9465, 65535), ("UDP", 1, 65535), ("SCTP", 1, 65535)}
    assert (every, None) == (open_to_all, others.get("from"))


@pytest.mark.parametrize("folder", sorted(path.name for path in KUBERNETES.iterdir() if path.name != "example"))
def test_variables_of_a_component_are_ours_or_the_sdks(tmp_path: Path, folder: str) -> None:
    """A misspelt variable would be ignored in silence."""
    text = with_components(tmp_path / "k", FOREIGN, [COMPONENT, *([KUBERNETES / folder] * (folder != "component"))])
    sidecar = loaded(text)["Deployment", "payments"]["spec"]["template"]["spec"]["initContainers"][0]
    names = {each["name"] for each in sidecar["env"]}
    sdk = {"AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    known = {environment_name(name) for name in NAMES} | {"KMS_CONFIG_DIR", "POD_IP", *sdk}
    assert set() == names - known
