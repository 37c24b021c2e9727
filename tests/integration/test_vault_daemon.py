"""Provider vault end to end: a real daemon, OpenBao's own server, and the way there from AWS."""

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import InvalidRequest, KmsClient

from tests.contract.vault_peer import make_key, token_file
from tests.daemon import COMMAND, spawned
from tests.integration.test_former_providers import status_of
from tests.integration.test_process import refused

if TYPE_CHECKING:
    from tests.moto_server import MotoServer
    from tests.openbao_server import OpenBaoServer

SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")


def vault(bao: "OpenBaoServer", key: str, token: Path) -> dict[str, str]:
    """Return the environment of a daemon with that transit key."""
    return {
        "BETRACE_KMS_PROVIDER": "vault",
        "VAULT_ADDRESS": bao.url,
        "VAULT_TRANSIT_KEY": key,
        "VAULT_AUTH_METHOD": "token",
        "VAULT_AUTH_TOKEN_FILE": str(token),
        "KMS_STORE_ALLOW_EPHEMERAL": "true",
    }


def test_aws_is_left_for_vault(tmp_path: Path, moto: "MotoServer", kms_key: str, bao: "OpenBaoServer") -> None:
    """What AWS wrapped opens and signs on the way, and after ReEncrypt without AWS; validate passes on Vault."""
    data = tmp_path / "data"
    arguments = ("--data-dir", str(data), "--listen", "127.0.0.1:0")
    aws = {
        "BETRACE_KMS_PROVIDER": "aws",
        "AWS_KMS_MASTER_KEY_ID": kms_key,
        "AWS_KMS_ENDPOINT": moto.url,
        "KMS_STORE_ALLOW_EPHEMERAL": "true",
    }
    key = make_key(bao)
    there = vault(bao, key, token_file(bao, key, tmp_path))
    with spawned(*arguments, environ=aws) as daemon, KmsClient(daemon.address) as client:
        first = client.sign_span("acme", SPAN)
        mac = client.generate_mac("acme", "email", b"alice@example.com").mac
        sealed = client.encrypt("acme", b"payload", {"field": "email"}).ciphertext_blob
        bare = client.generate_data_key("acme")
    assert "add aws to kms.former-providers" in refused(*arguments, environ=there)
    both = {**aws, **there, "KMS_FORMER_PROVIDERS": "aws"}
    with spawned(*arguments, environ=both) as daemon, KmsClient(daemon.address) as client:
        assert b"payload" == client.decrypt("acme", sealed, {"field": "email"}).plaintext
        daemon.wait_for("Signing keys were moved to the master key")
        daemon.wait_for("Branch keys were moved to the master key")
        resealed = client.re_encrypt("acme", sealed, {"field": "email"}, {"field": "email"}).ciphertext_blob
        rewrapped = client.re_encrypt("acme", bare.ciphertext_blob).ciphertext_blob
        found = status_of(data)
        assert (f"vault:transit/{key}", [kms_key]) == (
            found["kms"]["master_key"],
            found["former_master_keys"]["configured"],
        )
    with spawned(*arguments, environ=there) as daemon, KmsClient(daemon.address) as client:
        assert b"payload" == client.decrypt("acme", resealed, {"field": "email"}).plaintext
        assert bare.plaintext == client.decrypt("acme", rewrapped).plaintext
        assert (first, mac) == (
            client.sign_span("acme", SPAN),
            client.generate_mac("acme", "email", b"alice@example.com").mac,
        )
        with pytest.raises(InvalidRequest, match=r"its provider in kms\.former-providers"):
            client.decrypt("acme", sealed, {"field": "email"})
        validated = subprocess.run(
            [str(COMMAND), "validate", "--admin-addr", f"unix:{data}/admin.sock"],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert (0, "") == (validated.returncode, validated.stderr)


def test_unfit_key_refuses_the_start(tmp_path: Path, bao: "OpenBaoServer") -> None:
    """The daemon exits, and says which key to make."""
    key = make_key(bao, exportable=True)
    given = vault(bao, key, token_file(bao, key, tmp_path))
    refusal = refused("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", environ=given)
    assert f"vault:transit/{key} is exportable: make another key" in refusal


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"VAULT_ADDRESS": ""}, "vault.address is missing"),
        ({"VAULT_ADDRESS": "http://vault.example.com:8200"}, "must begin with https://"),
        ({"VAULT_TRANSIT_KEY": ""}, "vault.transit.key is missing"),
        ({"VAULT_AUTH_TOKEN_FILE": ""}, "vault.auth.token-file is missing"),
        ({"VAULT_AUTH_METHOD": "approle"}, "vault.auth.role is missing"),
        ({"VAULT_AUTH_METHOD": "kubernetes"}, "vault.auth.role is missing"),
        ({"VAULT_AUTH_METHOD": "cert"}, "vault.auth.cert-file and vault.auth.key-file are needed"),
        ({"VAULT_AUTH_METHOD": "ldap"}, "vault.auth.method"),
    ],
)
def test_settings_that_are_not_whole(
    changed: dict[str, str], problem: str, tmp_path: Path, bao: "OpenBaoServer"
) -> None:
    """Each is named before anything is asked."""
    given = vault(bao, "any", tmp_path / "token") | changed
    assert problem in refused("--data-dir", str(tmp_path), "--listen", "127.0.0.1:0", environ=given)


def test_without_vault_the_daemon_starts_and_reports_it(tmp_path: Path, bao: "OpenBaoServer") -> None:
    """It serves once Vault answers."""
    key = make_key(bao)
    given = vault(bao, key, token_file(bao, key, tmp_path)) | {"VAULT_ADDRESS": "http://127.0.0.1:1"}
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", environ=given) as daemon:
        daemon.wait_for("KMS cannot be used: no answer from Vault")
        assert daemon.process.poll() is None
