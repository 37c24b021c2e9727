"""What the Helm chart renders, given to a real daemon, real probes and real callers."""

import http.client
import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.daemon import COMMAND, spawned
from tests.interop.tools import tool
from tests.kubernetes.charts import CHART, objects, variables

VALUES = {
    "callers": {"token": {"enabled": True}},
    "config": {
        "betrace.kms.provider": "local",
        "kms.cache.max-size": 1_000_000,
        "kms.log.format": "console",
        "kms.store": "sqlite",
    },
    "metrics": {"enabled": True},
    "example": {"enabled": True},
}
HERE = {":50051": ":0", ":9464": ":0", "$(POD_IP)": "0.0.0.0", "10001": str(os.getgid())}  # noqa: S104
"""Any free port, an address that is not loopback's, and a group of this process."""
PATHS = ("/q/metrics", "/api/admin/kms/status")


def test_daemon_starts_with_what_is_rendered(tmp_path: Path) -> None:
    """ConfigMap and Secret are folders of settings, probes pass, callers are let in by socket and by token, and metrics
    have an address of their own."""
    trail = tmp_path / "audit.jsonl"
    found = objects(CHART, tmp_path, {**VALUES, "secret": {"data": {"kms.audit.file": str(trail)}}})
    mount(tmp_path / "etc" / "config", found["ConfigMap", "betrace-kms-config"]["data"])
    mount(tmp_path / "etc" / "secret", found["Secret", "betrace-kms-secret"]["stringData"])
    for volume in ("run", "data"):
        (tmp_path / volume).mkdir()
        (tmp_path / volume).chmod(0o777)  # as an emptyDir is
    pod = found["Deployment", "betrace-kms-example"]["spec"]["template"]["spec"]
    [sidecar], [caller] = pod["initContainers"], pod["containers"]
    with spawned(environ=in_the_pod(sidecar, tmp_path)) as daemon:
        daemon.wait_for("KMS is usable")
        environ = in_the_pod(caller, tmp_path)
        assert daemon.address == environ["BETRACE_KMS_ADDR"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            program, _, *flags = sidecar[probe]["exec"]["command"]
            run(tool(program), f"-addr={daemon.address}", *flags)
        callers, _, operators = daemon.wait_for("Listening").partition("operations")
        [loopback] = re.findall(r"127\.0\.0\.1:\d+", callers)
        for address in (daemon.address, loopback):
            run(str(COMMAND), "encrypt", "--tenant", "acme", environ={**environ, "BETRACE_KMS_ADDR": address})
        shown = {path: [status(port, path) for port in re.findall(r":(\d+)'", operators)] for path in PATHS}
        assert {"/q/metrics": [200, 200], "/api/admin/kms/status": [200, 404]} == shown
    lines = [json.loads(line) for line in trail.read_text("utf-8").splitlines()]
    assert ["backend", "token"] == [line["identity"] for line in lines if line["operation"] == "Encrypt"]


def mount(folder: Path, settings: Mapping[str, str]) -> None:
    """Write one file for each setting, as Kubernetes mounts them."""
    folder.mkdir(parents=True)
    for name, value in settings.items():
        (folder / name).write_text(value, "utf-8")


def in_the_pod(container: Mapping[str, Any], folder: Path) -> Mapping[str, str]:
    """Return a container's variables as they suit this machine, with the mounts below a folder."""
    places = {"/run/betrace-kms": "run", "/etc/betrace-kms": "etc", "/var/lib/betrace-kms": "data"}
    found = {}
    for name, value in variables(container).items():
        for place, here in places.items():
            value = value.replace(place, str(folder / here))
        for of_the_pod, of_this_machine in HERE.items():
            value = value.replace(of_the_pod, of_this_machine)
        found[name] = value
    return found


def run(*command: str, environ: Mapping[str, str] | None = None) -> None:
    """Run a command of the pod, without input. Fails if it does."""
    done = subprocess.run(
        command,
        env={**os.environ, **(environ or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert 0 == done.returncode, done.stderr


def status(port: str, path: str) -> int:
    """Return the status of a GET on this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()
