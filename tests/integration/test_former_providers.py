"""Leaving a provider end to end, as docs/master-key-change.md tells: real daemons on one data folder, moto as AWS."""

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import InvalidRequest, KmsClient

from tests.daemon import COMMAND, spawned
from tests.integration.test_process import refused

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")


def status_of(data_dir: Path) -> Any:
    """Return what `betrace-kms status --json` prints."""
    command = [str(COMMAND), "status", "--json", "--admin-addr", f"unix:{data_dir}/admin.sock"]
    return orjson.loads(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout)


def test_local_is_left_for_aws(tmp_path: Path, moto: "MotoServer", kms_key: str) -> None:
    """What was made with the local provider opens and signs on the way, and at the end without that provider."""
    data = tmp_path / "data"
    arguments = ("--data-dir", str(data), "--listen", "127.0.0.1:0")
    aws = {
        "BETRACE_KMS_PROVIDER": "aws",
        "AWS_KMS_MASTER_KEY_ID": kms_key,
        "AWS_KMS_ENDPOINT": moto.url,
        "KMS_STORE_ALLOW_EPHEMERAL": "true",
    }
    with spawned(*arguments) as daemon, KmsClient(daemon.address) as client:
        first = client.sign_span("acme", SPAN)
        mac = client.generate_mac("acme", "email", b"alice@example.com").mac
        sealed = client.encrypt("acme", b"payload").ciphertext_blob
    assert "add local to kms.former-providers" in refused(*arguments, environ=aws)
    both = {**aws, "KMS_FORMER_PROVIDERS": "local"}
    with spawned(*arguments, environ=both) as daemon, KmsClient(daemon.address) as client:
        assert b"payload" == client.decrypt("acme", sealed).plaintext
        daemon.wait_for("Signing keys were moved to the master key")
        daemon.wait_for("Branch keys were moved to the master key")
        shown = status_of(data)["former_master_keys"]
        assert {"signing keys": 0, "branch keys": 0} == shown["left"]
        assert 1 == len(shown["configured"])
        resealed = client.re_encrypt("acme", sealed).ciphertext_blob
    (data / "local-master.key").unlink()
    with spawned(*arguments, environ=aws) as daemon, KmsClient(daemon.address) as client:
        assert b"payload" == client.decrypt("acme", resealed).plaintext
        assert first == client.sign_span("acme", SPAN)
        assert mac == client.generate_mac("acme", "email", b"alice@example.com").mac
        with pytest.raises(InvalidRequest, match=r"its provider in kms\.former-providers"):
            client.decrypt("acme", sealed)


@pytest.mark.parametrize(
    ("former", "problem"),
    [
        ("gcp2", "'gcp2' is no provider"),
        ("local", "kms.former-providers names local, which is betrace.kms.provider"),
        ("aws,aws", "names a provider twice"),
        ("aws", "aws.kms.master-key-id is missing"),
    ],
)
def test_former_providers_that_cannot_be(former: str, problem: str, tmp_path: Path) -> None:
    """The daemon does not start."""
    arguments = ("--data-dir", str(tmp_path), "--listen", "127.0.0.1:0", "--set", f"kms.former-providers={former}")
    assert problem in refused(*arguments)


def test_lost_local_key_of_a_former_provider_is_not_made_anew(tmp_path: Path, moto: "MotoServer", kms_key: str) -> None:
    """A new file could unwrap nothing."""
    assert "local-master.key is missing" in refused(
        *("--data-dir", str(tmp_path), "--listen", "127.0.0.1:0"),
        environ={
            "BETRACE_KMS_PROVIDER": "aws",
            "AWS_KMS_MASTER_KEY_ID": kms_key,
            "AWS_KMS_ENDPOINT": moto.url,
            "KMS_STORE_ALLOW_EPHEMERAL": "true",
            "KMS_FORMER_PROVIDERS": "local",
        },
    )
    assert not (tmp_path / "local-master.key").exists()
