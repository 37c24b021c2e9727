"""The sidecar runs as a rendered Deployment says: its user and groups, its folders, its variables, its probes."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon import COMMAND, spawned
from tests.integration.callers import needs_root
from tests.interop.tools import tool
from tests.kubernetes.kustomizations import KUBERNETES, built
from tests.kubernetes.objects import loaded

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

pytestmark = needs_root


class Pod:
    """A pod's volumes as folders of this machine, and its containers as processes."""

    def __init__(self, folder: Path, objects: Mapping[tuple[str, str], Any], deployment: str) -> None:
        self.spec = objects["Deployment", deployment]["spec"]["template"]["spec"]
        (self.sidecar,) = self.spec["initContainers"]
        self._folder = folder
        for volume in self.spec["volumes"]:
            path = folder / volume["name"]
            path.mkdir()
            path.chmod(0o777)  # as the kubelet makes an emptyDir without an fsGroup
            settings = objects.get(("ConfigMap", volume.get("configMap", {}).get("name")), {})
            for key, value in settings.get("data", {}).items():
                (path / key).write_text(value)

    def here(self, text: str) -> str:
        """Return a text of the sidecar with the paths of its mounts replaced by those of the volumes."""
        for mount in self.sidecar["volumeMounts"]:
            text = text.replace(mount["mountPath"], str(self._folder / mount["name"]))
        return text

    def as_container(self, context: Mapping[str, Any], *, groups: Sequence[int]) -> list[str]:
        """Return a command that runs another as a container's user in groups, without capabilities."""
        command = [f"--reuid={context['runAsUser']}", f"--regid={context['runAsGroup']}", "--bounding-set=-all"]
        return [tool("setpriv"), *command, f"--groups={','.join(map(str, groups))}"]


@pytest.fixture
def pod(moto: "MotoServer", kms_key: str) -> Iterator[Pod]:
    """The pod of the example for an emulator."""
    moto.kms().create_alias(kms_key.rpartition("/")[2], "alias/betrace-kms")
    folder = Path(tempfile.mkdtemp(prefix="betrace-kms-", dir="/var/tmp"))  # other users must get through to it
    folder.chmod(0o755)
    try:
        yield Pod(folder, loaded(built(KUBERNETES / "example/localstack")), "betrace-backend")
    finally:
        shutil.rmtree(folder)


def test_the_sidecar_serves_the_group_of_the_pod_and_nobody_else(pod: Pod, moto: "MotoServer") -> None:
    """Distinct users with one group: the backend encrypts over the socket, its neighbour without the group cannot."""
    groups = pod.spec["securityContext"]["supplementalGroups"]
    environ = {each["name"]: pod.here(each["value"]) for each in pod.sidecar["env"]}
    environ |= {"AWS_KMS_ENDPOINT": moto.url, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    start = [*pod.as_container(pod.sidecar["securityContext"], groups=groups), str(COMMAND), "serve"]
    probes = [pod.sidecar[name]["exec"]["command"] for name in ("startupProbe", "readinessProbe")]
    (backend,) = pod.spec["containers"]
    context, address = backend["securityContext"], pod.here(backend["env"][0]["value"])
    with spawned(environ=environ, command=start) as daemon:
        daemon.wait_for("serving", 60)
        for program, *flags in probes:
            subprocess.run([tool(program), *map(pod.here, flags)], capture_output=True, timeout=30, check=True)
        assert (0, "") == encrypt(pod.as_container(context, groups=groups), address)
        code, refusal = encrypt(pod.as_container(context, groups=[context["runAsGroup"]]), address)
        assert (3, True) == (code, "no daemon answers" in refusal), refusal


def encrypt(start: Sequence[str], address: str) -> tuple[int, str]:
    """Run `betrace-kms encrypt` by a command that becomes somebody; return its exit code and what it complains of."""
    command = [*start, str(COMMAND), "encrypt", "--tenant", "acme", "--addr", address, "--timeout", "5"]
    environ = {"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, input=b"hello", capture_output=True, timeout=60, env=environ, check=False)
    return done.returncode, done.stderr.decode()
