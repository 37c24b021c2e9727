"""The sidecar runs as a rendered Deployment says: its user and groups, its folders, its variables, its probes."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest

from tests.daemon import spawned
from tests.integration.callers import needs_root
from tests.interop.tools import tool
from tests.kubernetes.kustomizations import KUBERNETES, built
from tests.kubernetes.objects import loaded

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

COMMAND = (sys.executable, "-m", "betrace_kms_client")
"""The command without its script: where the path has a blank, that is one of a shell, which starts without rights."""

pytestmark = needs_root

POD_IP = "127.0.0.2"
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


class Pod:
    """A pod of the example: its volumes as folders of this machine, its containers as processes."""

    def __init__(self, folder: Path, objects: Mapping[tuple[str, str], Any]) -> None:
        spec = objects["Deployment", "betrace-backend"]["spec"]["template"]["spec"]
        (self.sidecar,) = spec["initContainers"]
        (self.backend,) = spec["containers"]
        context = spec["securityContext"]
        self.groups = [*context["supplementalGroups"], *([context["fsGroup"]] if "fsGroup" in context else [])]
        self._folder = folder
        self._objects = objects
        for volume in spec["volumes"]:
            path = folder / volume["name"]
            path.mkdir()
            path.chmod(0o755 if "persistentVolumeClaim" in volume else 0o777)
            for name, value in self._content(volume).items():
                (path / name).write_bytes(value)
            if "fsGroup" in context:  # as the kubelet does it
                os.chown(path, 0, context["fsGroup"])
                path.chmod(path.stat().st_mode | 0o2070)

    def _content(self, volume: Mapping[str, Any]) -> Mapping[str, bytes]:
        if "configMap" in volume:
            data = self._data("ConfigMap", volume["configMap"]["name"])
            return {name: value.encode() for name, value in data.items()}
        if "secret" in volume:
            data = self._data("Secret", volume["secret"]["secretName"])
            return {name: b64decode(value) for name, value in data.items()}
        tokens = volume.get("projected", {}).get("sources", [])
        return {token["serviceAccountToken"]["path"]: b"a token of the cluster" for token in tokens}

    def _data(self, kind: str, name: str) -> Mapping[str, str]:
        found: Mapping[str, str] = self._objects.get((kind, name), {}).get("data", {})
        return found

    def here(self, text: str) -> str:
        """Return a text of the sidecar with the paths of its mounts replaced by those of the volumes."""
        for mount in self.sidecar["volumeMounts"]:
            text = text.replace(mount["mountPath"], str(self._folder / mount["name"]))
        return text

    def environment(self) -> Mapping[str, str]:
        """Return the sidecar's variables, with any free port for the fixed one."""
        found: dict[str, str] = {}
        for variable in self.sidecar["env"]:
            value = variable.get("value", POD_IP)
            if reference := variable.get("valueFrom", {}).get("configMapKeyRef"):
                value = self._data("ConfigMap", reference["name"])[reference["key"]]
            found[variable["name"]] = self.here(value.replace("$(POD_IP)", POD_IP).replace(":9464", ":0"))
        return found

    def as_container(self, container: Mapping[str, Any], groups: Sequence[int]) -> list[str]:
        """Return a command that runs another as a container's user with more groups, without capabilities."""
        context = container["securityContext"]
        user = [f"--reuid={context['runAsUser']}", f"--regid={context['runAsGroup']}", "--bounding-set=-all"]
        return [tool("setpriv"), *user, f"--groups={','.join(map(str, [context['runAsGroup'], *groups]))}"]


@pytest.fixture(params=["localstack", "sqlite"])
def pod(request: pytest.FixtureRequest) -> Iterator[Pod]:
    """A pod of an example that needs nothing but KMS."""
    folder = Path(tempfile.mkdtemp(prefix="betrace-kms-", dir="/var/tmp"))  # other users must get through to it
    folder.chmod(0o755)
    try:
        yield Pod(folder, loaded(built(KUBERNETES / "example" / request.param)))
    finally:
        shutil.rmtree(folder)


def test_the_sidecar_serves_the_group_of_the_pod_and_nobody_else(pod: Pod, moto: "MotoServer", kms_key: str) -> None:
    """Distinct users with one group: the backend encrypts over the socket, its neighbour without the group cannot.

    Credentials come as the example says: the emulator's, or for a token of the cluster from STS, and from nowhere else.
    """
    environ = {**pod.environment(), "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    environ |= {"AWS_KMS_ENDPOINT": moto.url, "AWS_ENDPOINT_URL_STS": moto.url}
    if environ.get("AWS_KMS_MASTER_KEY_ID", "").startswith("alias/"):
        moto.kms().create_alias(kms_key.rpartition("/")[2], environ["AWS_KMS_MASTER_KEY_ID"])
    else:
        environ |= {"AWS_KMS_MASTER_KEY_ID": kms_key, "KMS_STORE_ALLOW_EPHEMERAL": "true"}
    none_of_ours = ["env", *(f"--unset={name}" for name in CREDENTIALS if name not in environ)]
    start = [*none_of_ours, *pod.as_container(pod.sidecar, pod.groups), *COMMAND, "serve"]
    address = pod.here(pod.backend["env"][0]["value"])
    with spawned(environ=environ, command=start) as daemon:
        daemon.wait_for("serving", 60)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            program, *flags = pod.sidecar[probe]["exec"]["command"]
            subprocess.run([tool(program), *map(pod.here, flags)], capture_output=True, timeout=30, check=True)
        listeners = re.findall(r"(127\.0\.0\.\d)\]?:(\d+)", daemon.wait_for("Listening"))
        assert ["127.0.0.1", POD_IP][: len(environ.get("KMS_OPS_LISTEN", "").split(","))] == [ip for ip, _ in listeners]
        for ip, port in listeners:
            with urlopen(f"http://{ip}:{port}/q/metrics", timeout=20) as response:
                assert b"kms_up 1.0" in response.read()
        assert (0, "") == encrypt(pod.as_container(pod.backend, pod.groups), address)
        code, refusal = encrypt(pod.as_container(pod.backend, []), address)
        assert (3, True) == (code, "no daemon answers" in refusal), refusal


def encrypt(start: Sequence[str], address: str) -> tuple[int, str]:
    """Run `betrace-kms encrypt` by a command that becomes somebody; return its exit code and what it complains of."""
    command = [*start, *COMMAND, "encrypt", "--tenant", "acme", "--addr", address, "--timeout", "5"]
    environ = {"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, input=b"hello", capture_output=True, timeout=60, env=environ, check=False)
    return done.returncode, done.stderr.decode()
