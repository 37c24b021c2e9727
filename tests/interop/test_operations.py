"""What the setup guide tells an operator to run works: its curl and jq lines, and the script of the checklist."""

import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import FailedPrecondition, KmsClient
from betrace_kms_server import app

from tests.aws_proxy import PRINCIPAL, AwsProxy, aws_proxy
from tests.daemon import COMMAND, Process, spawned
from tests.integration.test_aws_daemon import aws
from tests.interop.tools import ROOT, tool

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

CHECKLIST = ROOT / "deploy" / "checks" / "pre-deployment.sh"
SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")
KMS_CHECK = "curl -s http://localhost:8080/q/health/ready | jq '.checks[] | select(.name == \"kms\")'"
HIT_RATE = """
hits=$(curl -s http://localhost:8080/q/metrics | grep 'kms_cache_hit_total{key_type="signing"}' | awk '{print $2}')
misses=$(curl -s http://localhost:8080/q/metrics | grep 'kms_cache_miss_total{key_type="signing"}' | awk '{print $2}')
hit_rate=$(echo "scale=2; $hits / ($hits + $misses) * 100" | bc)
echo "Cache hit rate: ${hit_rate}%"
"""


@dataclass
class Subject:
    """A daemon with a warm tenant, on a KMS that can be made to fail."""

    daemon: Process
    client: KmsClient
    proxy: AwsProxy
    data_dir: Path

    def shell(self, script: str) -> "subprocess.CompletedProcess[str]":
        """Run lines of the guide, with only the port changed."""
        return subprocess.run(
            ["bash", "-uo", "pipefail", "-c", script.replace("localhost:8080", self.daemon.ops_address)],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def checklist(self) -> "subprocess.CompletedProcess[str]":
        """Run the script of the checklist."""
        return self.shell(f"{shlex.quote(str(CHECKLIST))} http://localhost:8080")

    def still_serves(self, *, warm: bool = True) -> None:
        """Fail unless the service says SERVING, and the warm tenant is served or, if it must not be, told why not."""
        for call in (lambda: self.client.sign_span("warm", SPAN), lambda: self.client.encrypt("warm", b"payload")):
            with nullcontext() if warm else pytest.raises(FailedPrecondition, match="master key"):
                call()
        command = [str(COMMAND), "health", "--addr", self.client.target]
        assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == "SERVING\n"


@contextmanager
def subject(tmp_path: Path, moto: "MotoServer", key: str, **environ: str) -> Iterator[Subject]:
    """Run a daemon before a proxy before moto, and warm it."""
    with aws_proxy(moto.url) as proxy:
        names = {name.upper(): value for name, value in (aws(proxy.url, key) | environ).items()}
        names |= {"KMS_AUDIT_FILE": str(tmp_path / "audit.jsonl"), "AWS_KMS_CALL_TIMEOUT_MS": "1500"}
        arguments = ("--data-dir", str(tmp_path / "data"), "--listen", f"unix:{tmp_path}/kms.sock;identity=backend")
        with spawned(*arguments, environ=names) as daemon, KmsClient(f"unix:{tmp_path}/kms.sock") as client:
            daemon.wait_for("serving")
            for _ in range(10):
                client.sign_span("warm", SPAN)
                client.encrypt("warm", b"payload")
            yield Subject(daemon, client, proxy, tmp_path / "data")


@pytest.fixture(autouse=True)
def tools() -> None:
    """These tests need curl, jq and bc."""
    for name in ("curl", "jq", "bc"):
        tool(name)


def test_the_guides_lines_pass_with_only_the_port_changed(tmp_path: Path, moto: "MotoServer", kms_key: str) -> None:
    """Health, validate, status, metrics and hit rate as the guide writes them."""
    with subject(tmp_path, moto, kms_key) as on:
        health = on.shell(KMS_CHECK).stdout
        validate = "curl -s -X POST http://localhost:8080/api/admin/kms/validate | jq -r "
        assert on.shell(validate + ".overall").stdout == "PASS\n"
        assert on.shell(validate + "'.tests | keys_unsorted | length'").stdout == "10\n"
        assert on.shell("curl -s http://localhost:8080/api/admin/kms/status | jq -r '.provider'").stdout == "aws\n"
        signed = on.shell('curl -s http://localhost:8080/q/metrics | grep "kms_retrieve_signing_key_total"').stdout
        assert "kms_retrieve_signing_key_total 10.0\n" in signed
        assert on.shell(HIT_RATE).stdout == "Cache hit rate: 90.00%\n"
        assert '"status": "UP"' in health
        assert '"status": "operational"' in health
        done = on.checklist()  # an emulator is no production, and everything else passes
        assert (done.returncode, done.stdout.count("PASS  "), done.stdout.count("FAIL  ")) == (1, 3, 1), done.stdout
        assert "production_endpoints: FAIL: aws.kms.endpoint is set" in done.stdout
        assert "cache hit rate of signing keys: 90.0%" in done.stdout
        on.still_serves()


def stop(on: Subject, moto: "MotoServer", key: str) -> None:
    """Take KMS away."""
    on.proxy.always("drop")


def disable(on: Subject, moto: "MotoServer", key: str) -> None:
    """Disable the master key."""
    moto.kms().disable_key(key)


def deny(on: Subject, moto: "MotoServer", key: str) -> None:
    """Deny one action."""
    on.proxy.always("deny", "GenerateDataKey")


@pytest.mark.parametrize(
    ("failure", "advice"),
    [
        (
            stop,
            ["FAIL  health: DOWN", "no answer from KMS", "aws.kms.endpoint", "docs/troubleshooting.md#kms_unreachable"],
        ),
        (disable, ["FAIL  health: DOWN", "Disabled: enable it", "aws kms enable-key", "#master_key_unusable"]),
        (deny, ["FAIL  validation: FAIL", "generate_data_key: FAIL", "kms:GenerateDataKey", PRINCIPAL, "KEY"]),
    ],
    ids=["KMS stopped", "key disabled", "access denied"],
)
def test_each_failure_says_what_to_do_while_warm_tenants_are_served(
    tmp_path: Path, moto: "MotoServer", kms_key: str, failure: Any, advice: list[str]
) -> None:
    """The checklist fails with the next step, and so does the command; the gRPC service stays SERVING.

    Warm tenants are served, but not with keys of a master key that DescribeKey says is disabled: that fails closed.
    """
    with subject(tmp_path, moto, kms_key) as on:
        failure(on, moto, kms_key)
        time.sleep(app.READY_SECONDS)  # an answer of /q/health/ready may be this old
        done = on.checklist()
        assert done.returncode == 1
        for text in advice:
            assert text.replace("KEY", kms_key) in done.stdout, done.stdout
        command = subprocess.run(
            [COMMAND, "validate", "--admin-addr", f"unix:{on.data_dir}/admin.sock"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (command.returncode, "overall: FAIL" in command.stdout) == (1, True), command.stdout + command.stderr
        on.still_serves(warm=failure is not disable)


def test_without_a_daemon_the_checklist_says_so() -> None:
    """Nothing answers on port 1."""
    done = subprocess.run([CHECKLIST, "http://127.0.0.1:1"], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, "no daemon answers" in done.stdout) == (1, True)
    assert shutil.which("jq")
