"""grpcurl and grpc_health_probe against a real daemon."""

import json
import shlex
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from tests.daemon import Process, spawned
from tests.interop.tools import tool

ROOT = Path(__file__).parents[2]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Process]:
    """A daemon that serves on a port and on a unix socket."""
    listen = f"127.0.0.1:0,unix:{tmp_path / 'kms.sock'}"
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", listen) as process:
        process.wait_for("serving")
        yield process


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    """Run a tool and collect what it prints."""
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("service", ["", "kms", "betrace.kms.v1.KeyManagementService"])
def test_grpc_health_probe_says_serving(daemon: Process, service: str) -> None:
    """The probe that Kubernetes users know exits with 0 for each of our services."""
    done = run(tool("grpc_health_probe"), f"-addr={daemon.address}", f"-service={service}")
    assert (done.returncode, "status: SERVING" in done.stdout + done.stderr) == (0, True)


def test_grpc_health_probe_reaches_a_unix_socket(daemon: Process, tmp_path: Path) -> None:
    """The socket works for tools that are not ours."""
    done = run(tool("grpc_health_probe"), f"-addr=unix:{tmp_path / 'kms.sock'}")
    assert done.returncode == 0, done.stderr


def test_probes_of_the_sidecar_work(tmp_path: Path) -> None:
    """Each is run as it stands there, but for the folder of the socket; without a daemon each fails."""
    workload = yaml.safe_load((ROOT / "deploy/kubernetes/component/sidecar.yaml").read_text("utf-8"))
    sidecar = workload["spec"]["template"]["spec"]["initContainers"][0]
    socket = f"unix:{tmp_path / 'kms.sock'}"
    probes = [sidecar[name]["exec"]["command"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    commands = [
        [tool(command[0]), *(f"-addr={socket}" if flag.startswith("-addr=") else flag for flag in command[1:])]
        for command in probes
    ]
    assert [2, 2, 2] == [run(*command).returncode for command in commands]
    listen = f"{socket};identity=backend;mode=0660"
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", listen) as daemon:
        daemon.wait_for("serving")
        assert [0, 0, 0] == [run(*command).returncode for command in commands]


def test_grpcurl_lists_and_describes_without_files(daemon: Process) -> None:
    """Reflection is on: services, methods and messages are there."""
    listed = run(tool("grpcurl"), "-plaintext", daemon.address, "list")
    described = run(tool("grpcurl"), "-plaintext", daemon.address, "describe", "betrace.kms.v1.GenerateDataKeyRequest")
    assert {"betrace.kms.v1.KeyManagementService", "grpc.health.v1.Health"} <= set(listed.stdout.split())
    assert "map<string, string> encryption_context" in described.stdout
    for symbol, words in {
        "betrace.kms.v1.KeyManagementService.Encrypt": "rpc Encrypt ( .betrace.kms.v1.EncryptRequest )",
        "betrace.kms.v1.EncryptRequest.tenant_id": "string tenant_id",
        "grpc.reflection.v1.ServerReflection": "rpc ServerReflectionInfo",
        "betrace.kms.v1.KeySpec": "AES_256",
    }.items():
        found = run(tool("grpcurl"), "-plaintext", daemon.address, "describe", symbol)
        assert (0, True) == (found.returncode, words in found.stdout), (symbol, found)


def test_grpcurl_shows_the_details_of_an_error(daemon: Process) -> None:
    """A refusal carries ErrorInfo that a tool can print."""
    done = run(
        tool("grpcurl"), "-plaintext", "-d", '{"tenant_id": "!"}', daemon.address,
        "betrace.kms.v1.KeyManagementService/Encrypt",
    )  # fmt: skip
    assert done.returncode != 0
    assert "InvalidArgument" in done.stderr
    assert '"reason": "INVALID_REQUEST"' in done.stderr
    assert '"domain": "kms.betrace.dev"' in done.stderr


def test_the_batch_of_the_manual_runs(daemon: Process) -> None:
    """The line in docs/clients.md, with this daemon's address, seals an item."""
    text = Path("docs/clients.md").read_text()
    line = text[text.index("grpcurl -plaintext") :].split("```", 1)[0]
    line = line.replace("grpcurl", shlex.quote(tool("grpcurl")), 1).replace("127.0.0.1:50051", daemon.address)
    done = run("/bin/sh", "-c", line)
    assert 0 == done.returncode, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert b64decode(result["ciphertext_blob"]).startswith(b"\x02\x04\x78")
