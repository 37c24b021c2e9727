"""Provider gcp end to end: a real daemon, and Cloud KMS and the metadata server as they are played on loopback."""

import base64
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import KmsClient

from tests.authority import Authority
from tests.daemon import COMMAND, spawned
from tests.google_tokens import ACCOUNT, token_server
from tests.integration.test_former_providers import status_of
from tests.integration.test_process import refused

if TYPE_CHECKING:
    from tests.cloud_kms_server import CloudKmsServer

SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")
KEY = "projects/betrace-test/locations/global/keyRings/betrace/cryptoKeys/key"


def gcp(endpoint: str, key: str = KEY) -> dict[str, str]:
    """Return the environment of a daemon with that key."""
    return {
        "BETRACE_KMS_PROVIDER": "gcp",
        "GCP_KMS_KEY_NAME": key,
        "GCP_KMS_ENDPOINT": endpoint,
        "KMS_STORE_ALLOW_EPHEMERAL": "true",
    }


def test_workload_identity_over_tls(tmp_path: Path) -> None:
    """As in GKE: tokens of the metadata server, and a certificate that is verified. `validate` passes.

    The SDK was asked to log its requests, and there is neither a key nor a token in the log.
    """
    from tests.cloud_kms_server import cloud_kms_server  # late: importing the SDK takes a second

    authority = Authority()
    pair = authority.issue(host="127.0.0.1")
    ca, data = tmp_path / "ca.pem", tmp_path / "data"
    ca.write_bytes(authority.pem)
    with cloud_kms_server(tls=(pair.certificate, pair.key)) as server, token_server() as tokens:
        server.tokens = {"none yet"}
        tokens.issued = server.tokens.add
        key = server.make_key()
        given = gcp(f"https://{server.address}", key.name)
        given |= {**tokens.environment, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(ca), "CLOUDSDK_CONFIG": str(tmp_path)}
        given |= {"GOOGLE_SDK_PYTHON_LOGGING_SCOPE": "google", "KMS_LOG_LEVEL": "debug", "GCP_KMS_RANDOM": "hsm"}
        with spawned("--data-dir", str(data), "--listen", "127.0.0.1:0", environ=given) as daemon:
            daemon.wait_for("KMS is usable, serving")
            assert ACCOUNT in daemon.wait_for("Google credentials were found")
            with KmsClient(daemon.address) as client:
                made = client.generate_data_key("acme", fresh=True)
                assert key.name == made.key_id
                assert made.plaintext == client.decrypt("acme", made.ciphertext_blob).plaintext
                sealed = client.encrypt("acme", b"payload", {"field": "email"}).ciphertext_blob
                assert b"payload" == client.decrypt("acme", sealed, {"field": "email"}).plaintext
                assert key.name.encode() in sealed
                assert client.sign_span("acme", SPAN) == client.sign_span("acme", SPAN)
            done = subprocess.run(
                [str(COMMAND), "validate", "--admin-addr", f"unix:{data}/admin.sock"],
                capture_output=True,
                text=True,
                check=False,
                timeout=30,
            )
            assert (0, "") == (done.returncode, done.stderr)
            assert key.name == status_of(data)["kms"]["master_key"]
            for secret in (base64.b64encode(made.plaintext).decode(), *tokens.tokens):
                assert secret not in daemon.log
        given["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"] = ""
        with spawned("--data-dir", str(data), "--listen", "127.0.0.1:0", environ=given) as daemon:
            daemon.wait_for("KMS cannot be used: TLS with Cloud KMS fails")


def test_unfit_key_refuses_the_start(tmp_path: Path, cloud_kms: "CloudKmsServer") -> None:
    """The daemon exits, and says which key to make."""
    from tests.cloud_kms_server import Purpose

    key = cloud_kms.make_key(purpose=Purpose.MAC)
    given = gcp(cloud_kms.url, key.name)
    refusal = refused("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", environ=given)
    assert f"{key.name} has the purpose MAC: make another key with --purpose=encryption" in refusal


def test_without_credentials_the_daemon_starts_and_reports_it(tmp_path: Path) -> None:
    """It serves once they are there."""
    given = gcp("https://127.0.0.1:1") | {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "absent.json")}
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", environ=given) as daemon:
        daemon.wait_for("KMS cannot be used: the daemon's own Google credentials cannot be obtained: none are found")
        assert daemon.process.poll() is None


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path) -> None:
    """An installation without the SDK says what to install."""
    (tmp_path / "google_crc32c.py").write_text("raise ModuleNotFoundError('absent', name='google_crc32c')")
    given = gcp("http://127.0.0.1:1") | {"PYTHONPATH": str(tmp_path)}
    refusal = refused("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", environ=given)
    assert "provider gcp needs google_crc32c: run pip install 'betrace-kms[server,gcp]'" in refusal
