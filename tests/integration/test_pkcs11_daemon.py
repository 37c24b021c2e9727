"""Provider pkcs11 end to end: a real daemon, SoftHSM, the way there from a file, and to another key."""

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import KmsClient

from tests.daemon import COMMAND, spawned
from tests.integration.test_former_providers import status_of
from tests.integration.test_process import refused

if TYPE_CHECKING:
    from tests.softhsm import Token

SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")


def pkcs11(token: "Token", key: str) -> dict[str, str]:
    """Return the environment of a daemon with that key."""
    return {
        "BETRACE_KMS_PROVIDER": "pkcs11",
        "PKCS11_MODULE": str(token.module),
        "PKCS11_TOKEN_LABEL": token.label,
        "PKCS11_KEY_LABEL": key,
        "PKCS11_PIN_FILE": str(token.pin_file),
        "KMS_STORE_ALLOW_EPHEMERAL": "true",
    }


def test_a_key_file_is_left_for_an_hsm_and_its_key_for_another(tmp_path: Path, hsm_token: "Token") -> None:
    """What the file wrapped opens and signs on the way; then the label changes, and all moves to the other key."""
    data = tmp_path / "data"
    arguments = ("--data-dir", str(data), "--listen", "127.0.0.1:0")
    first, second = hsm_token.make_key(), hsm_token.make_key()
    with spawned(*arguments) as daemon, KmsClient(daemon.address) as client:
        signed = client.sign_span("acme", SPAN)
        sealed = client.encrypt("acme", b"payload", {"field": "email"}).ciphertext_blob
    there = pkcs11(hsm_token, first)
    assert "add local to kms.former-providers" in refused(*arguments, environ=there)
    with (
        spawned(*arguments, environ=there | {"KMS_FORMER_PROVIDERS": "local"}) as daemon,
        KmsClient(daemon.address) as client,
    ):
        assert b"payload" == client.decrypt("acme", sealed, {"field": "email"}).plaintext
        daemon.wait_for("Signing keys were moved to the master key")
        resealed = client.re_encrypt("acme", sealed, {"field": "email"}, {"field": "email"}).ciphertext_blob
        assert f"pkcs11:token={hsm_token.label};object={first}" == status_of(data)["kms"]["master_key"]
    rotated = pkcs11(hsm_token, second) | {"PKCS11_FORMER_KEY_LABELS": first}
    with spawned(*arguments, environ=rotated) as daemon, KmsClient(daemon.address) as client:
        daemon.wait_for("Signing keys were moved to the master key")
        assert b"payload" == client.decrypt("acme", resealed, {"field": "email"}).plaintext
        assert signed == client.sign_span("acme", SPAN)
        validated = subprocess.run(
            [str(COMMAND), "validate", "--admin-addr", f"unix:{data}/admin.sock"],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert (0, "") == (validated.returncode, validated.stderr)


def test_unfit_key_refuses_the_start(tmp_path: Path, hsm_token: "Token") -> None:
    """The daemon exits, and says which key to make."""
    key = hsm_token.make_key("", "--key-type", "AES:32", "--sensitive", "--private", "--usage-decrypt", "--extractable")
    refusal = refused("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", environ=pkcs11(hsm_token, key))
    assert f"object={key} may leave the token (CKA_EXTRACTABLE is True): make another key as" in refusal


def test_a_wrong_pin_does_not_end_the_daemon(tmp_path: Path, hsm_token: "Token") -> None:
    """Whoever starts it again would try the PIN again, until the token locks."""
    pin = tmp_path / "pin"
    pin.touch(0o600)
    pin.write_text("not-the-pin")
    given = pkcs11(hsm_token, "any") | {"PKCS11_PIN_FILE": str(pin)}
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", environ=given) as daemon:
        daemon.wait_for("KMS cannot be used: the token refused the PIN, which is not tried again")
        assert daemon.process.poll() is None
