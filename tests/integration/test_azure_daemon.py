"""Provider azure end to end: a real daemon with the identity of a pod, which finds the vault through a proxy."""

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import KmsClient
from betrace_kms_server.core.errors import StartRefused

from tests.daemon import COMMAND, settings, spawned
from tests.integration.test_former_providers import status_of
from tests.keyvault_server import HSM, VAULT

if TYPE_CHECKING:
    from tests.keyvault_server import Key, KeyVaultServer

SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")


def azure(server: "KeyVaultServer", key: "Key", sign_key: "Key | None", folder: Path) -> dict[str, str]:
    """Return the environment of a daemon with those keys."""
    return {
        "BETRACE_KMS_PROVIDER": "azure",
        "AZURE_KEY_VAULT_KEY_ID": key.id,
        "AZURE_KEY_VAULT_SIGN_KEY_ID": "" if sign_key is None else sign_key.id,
        "KMS_STORE_ALLOW_EPHEMERAL": "true",
        **server.environment(folder / "federated-token"),
    }


def test_a_daemon_with_the_identity_of_a_pod(tmp_path: Path, key_vault: "KeyVaultServer") -> None:
    """By the settings of production, official names of hosts included; validate passes, and keys outlive a restart."""
    data = tmp_path / "data"
    arguments = ("--data-dir", str(data), "--listen", "127.0.0.1:0")
    key = key_vault.create_key()
    given = azure(key_vault, key, key_vault.create_key("EC"), tmp_path)
    with spawned(*arguments, environ=given) as daemon, KmsClient(daemon.address) as client:
        first = client.sign_span("acme", SPAN)
        sealed = client.encrypt("acme", b"payload", {"field": "email"}).ciphertext_blob
        assert key.id == status_of(data)["kms"]["master_key"]
        validated = subprocess.run(
            [str(COMMAND), "validate", "--admin-addr", f"unix:{data}/admin.sock"],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert (0, "") == (validated.returncode, validated.stderr)
        metrics = daemon.metrics()
        assert 0 < sum(value for name, value in metrics.items() if name.startswith("kms_calls_total{"))
        for unwanted in (key_vault.federated, *key_vault.tokens, "Request URL"):
            assert unwanted not in daemon.log
    with spawned(*arguments, environ=given) as daemon, KmsClient(daemon.address) as client:
        assert b"payload" == client.decrypt("acme", sealed, {"field": "email"}).plaintext
        assert first == client.sign_span("acme", SPAN)


def test_without_the_vault_the_daemon_starts_and_reports_it(tmp_path: Path, key_vault: "KeyVaultServer") -> None:
    """It serves once Key Vault answers."""
    given = azure(key_vault, key_vault.create_key(), key_vault.create_key("EC"), tmp_path)
    given["HTTPS_PROXY"] = "http://127.0.0.1:1"
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", environ=given) as daemon:
        daemon.wait_for("KMS cannot be used: no answer from Key Vault")
        assert daemon.process.poll() is None


KEY, SIGN_KEY = f"{VAULT}/keys/betrace", f"{VAULT}/keys/betrace-sign"


@pytest.mark.parametrize(
    ("key", "sign_key", "problem"),
    [
        ("", "", r"azure.key-vault.key-id is missing"),
        (f"{KEY}/{'0' * 32}", SIGN_KEY, "must be https://NAME.vault.azure.net/keys/KEY .* without a version"),
        ("http://betrace.vault.azure.net/keys/betrace", SIGN_KEY, "must be https://NAME"),
        ("https://betrace.vault.azure.net.evil.example/keys/betrace", SIGN_KEY, "must be https://NAME"),
        ("https://user@betrace.vault.azure.net/keys/betrace", SIGN_KEY, "must be https://NAME"),
        (KEY, "", "azure.key-vault.sign-key-id is missing: name an EC P-256 key of the same vault"),
        (KEY, KEY, "names the master key"),
        (KEY, "https://other.vault.azure.net/keys/sign", f"must be {VAULT}/keys/KEY"),
        (KEY, f"{SIGN_KEY}/{'0' * 32}", "without a version"),
        (f"{HSM}/keys/betrace", SIGN_KEY, "a Managed HSM needs none: leave it out"),
    ],
)
def test_settings_that_are_not_whole(key: str, sign_key: str, problem: str, tmp_path: Path) -> None:
    """Each is named before anything is asked."""
    with pytest.raises(StartRefused, match=problem):
        settings(
            tmp_path,
            betrace_kms_provider="azure",
            azure_key_vault_key_id=key,
            azure_key_vault_sign_key_id=sign_key,
        )


@pytest.mark.parametrize("suffix", ["azure.net", "azure.cn", "usgovcloudapi.net"])
def test_clouds(suffix: str, tmp_path: Path) -> None:
    """Those that Azure has."""
    place = f"https://betrace.vault.{suffix}/keys"
    found = settings(
        tmp_path,
        betrace_kms_provider="azure",
        azure_key_vault_key_id=f"{place}/betrace",
        azure_key_vault_sign_key_id=f"{place}/sign",
    )
    assert f"{place}/betrace" == found.azure_key_id
