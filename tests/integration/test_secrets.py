"""No secret leaves the daemon: canaries are driven through every path, and everything that it says is searched."""

import asyncio
import json
import os
import signal
import time
import urllib.request
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from betrace.kms.v1 import admin_pb2, span_pb2
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from betrace_kms_server.core.keys import StoredKey
from betrace_kms_server.core.tenancy import signing_context
from betrace_kms_server.providers.local import MASTER_KEY_FILE, LocalProvider, load_master_key
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE, open_sqlite

from tests.collector import collecting
from tests.daemon import COMMAND, spawned
from tests.integration.test_aws_daemon import aws

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

CANARY = b"canary-plaintext-3f9a7c"
SECRET_ACCESS_KEY = "canary-secret-access-key-55d1"
SESSION_TOKEN = "canary-session-token-8e02"
CONTEXT_VALUE = "canary-context-value-17aa"
SPAN_VALUE = "canary-span-value-90be"
TRACED = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
SPAN = span_pb2.ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")
SPAN.attributes["user"].string_value = SPAN_VALUE


def disguises(secret: bytes) -> Iterator[bytes]:
    """Yield a secret as the forms in which it might show, forwards and backwards."""
    yield from _forms(secret)
    yield from _forms(secret[::-1])


def _forms(secret: bytes) -> Iterator[bytes]:
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    yield b64encode(secret).rstrip(b"=")
    yield urlsafe_b64encode(secret).rstrip(b"=")
    yield repr(secret)[2:-1].encode()
    yield json.dumps(secret.decode("latin-1"))[1:-1].encode()


def shown(secrets: Iterable[bytes], places: Mapping[str, bytes]) -> list[str]:
    """Return the places that show a secret in any form."""
    forms = [form for secret in secrets for form in disguises(secret)]
    return [place for place, text in places.items() if any(form in text for form in forms)]


def seeds(data_dir: Path, unwrap: Callable[[StoredKey], bytes]) -> list[bytes]:
    """Return the seeds of every key of a daemon that has stopped."""

    async def rows() -> list[StoredKey]:
        async with open_sqlite(data_dir / DATABASE_FILE) as store:
            return [key async for key in store.rows()]

    return [unwrap(key) for key in asyncio.run(rows())]


class Errors:
    """Calls that may fail, and the texts and trailing metadata of those that did."""

    def __init__(self) -> None:
        self.said = b""
        self.count = 0
        self.token = ""

    def call(self, method: Any, request: Any) -> Any:
        """Return the answer, or None if the call failed."""
        try:
            token = [("authorization", f"Bearer {self.token}")] if self.token else []
            return method(request, metadata=[*TRACED, *token], timeout=10)
        except grpc.RpcError as error:
            self.count += 1
            self.said += f"{error} {error.details()} {error.trailing_metadata()}".encode()
            return None


def drive(stub: Any, errors: Errors) -> list[bytes]:
    """Make every call, well and badly, and return the keys that the daemon handed out."""
    call: Any = errors.call
    bound: Any = {"encryption_context": {"email": CONTEXT_VALUE}}
    keys = []
    for fresh in (False, True):
        request = pb.GenerateDataKeyRequest(tenant_id="acme", key_spec=pb.AES_256, **bound, fresh=fresh)
        key = call(stub.GenerateDataKey, request)
        if key:
            keys.append(key.plaintext)
            call(
                stub.Decrypt,
                pb.DecryptRequest(tenant_id="acme", ciphertext_blob=key.ciphertext_blob, **bound),
            )
            call(stub.Decrypt, pb.DecryptRequest(tenant_id="rival", ciphertext_blob=key.ciphertext_blob))
    sealed = call(stub.Encrypt, pb.EncryptRequest(tenant_id="acme", plaintext=CANARY, **bound))
    if sealed:
        blob = sealed.ciphertext_blob
        for tenant in ("acme", "rival"):
            call(stub.Decrypt, pb.DecryptRequest(tenant_id=tenant, ciphertext_blob=blob, **bound))
            call(stub.Decrypt, pb.DecryptRequest(tenant_id=tenant, ciphertext_blob=blob[:-3], **bound))
            call(stub.ReEncrypt, pb.ReEncryptRequest(tenant_id=tenant, ciphertext_blob=blob, **bound))
    call(stub.Decrypt, pb.DecryptRequest(tenant_id="acme", ciphertext_blob=CANARY))
    call(stub.Encrypt, pb.EncryptRequest(tenant_id="no tenant", plaintext=CANARY))
    call(
        stub.Encrypt,
        pb.EncryptRequest(tenant_id="acme", plaintext=CANARY, encryption_context={"tenantId": CONTEXT_VALUE}),
    )
    call(stub.Encrypt, pb.EncryptRequest(tenant_id="cold", plaintext=CANARY, **bound))
    signed = call(stub.SignSpan, pb.SignSpanRequest(tenant_id="acme", span=SPAN, return_payload=True))
    bad = span_pb2.ComplianceSpan(trace_id=b"short", name=SPAN_VALUE)
    call(stub.SignSpan, pb.SignSpanRequest(tenant_id="acme", span=bad))
    call(stub.SignSpan, pb.SignSpanRequest(tenant_id="cold", span=SPAN))
    call(stub.SignSpans, pb.SignSpansRequest(tenant_id="acme", spans=[SPAN, bad], mode=pb.BATCH_PROOF))
    if signed:
        call(
            stub.VerifySpan,
            pb.VerifySpanRequest(tenant_id="acme", span=SPAN, signature=signed.signature, key_id=signed.key_id),
        )
        call(stub.VerifySpan, pb.VerifySpanRequest(tenant_id="acme", span=bad, signature=b"x", key_id=signed.key_id))
    call(stub.GetPublicKeys, pb.GetPublicKeysRequest(tenant_id="acme"))
    return keys


def fetched(address: str) -> bytes:
    """Return everything that the HTTP port shows."""
    found = b""
    for path in ("/q/health", "/q/metrics", "/api/admin/kms/status", "POST /api/admin/kms/validate"):
        request = urllib.request.Request(
            f"http://{address}{path.removeprefix('POST ')}", method="POST" if path.startswith("POST") else "GET"
        )
        with suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            found += answer.read()
    return found


@pytest.mark.parametrize("form", ["console", "json"])
def test_no_secret_shows_in_logs_errors_traces_metrics_or_audit_lines(
    tmp_path: Path, moto: "MotoServer", kms_key: str, form: str
) -> None:
    """Every call with KMS up, then with the key disabled, at log level debug, with all telemetry on."""
    data_dir, trail = tmp_path / "data", tmp_path / "audit.jsonl"
    names = {name.upper(): value for name, value in aws(moto.url, kms_key).items()}
    environ = names | {
        "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        "AWS_SESSION_TOKEN": SESSION_TOKEN,
        "KMS_LOG_LEVEL": "debug",
        "KMS_LOG_FORMAT": form,
        "KMS_AUDIT_FILE": str(trail),
        "KMS_SERVER_LISTEN": f"unix:{tmp_path}/kms.sock",
        "KMS_DATA_DIR": str(data_dir),
    }
    errors = Errors()
    with collecting() as collector:
        environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_TRACES_SAMPLER": "parentbased_always_on"}
        with spawned(environ=environ) as daemon:
            daemon.wait_for("serving")
            with (
                grpc.insecure_channel(f"unix:{tmp_path}/kms.sock") as channel,
                grpc.insecure_channel(f"unix:{data_dir}/admin.sock") as admin,
            ):
                stub: Any = KeyManagementServiceStub(channel)
                keys = drive(stub, errors)
                said = fetched(daemon.ops_address)
                moto.kms().disable_key(kms_key)
                keys += drive(stub, errors)
                errors.call(KmsAdminServiceStub(admin).Validate, admin_pb2.ValidateRequest())
                errors.call(
                    KmsAdminServiceStub(admin).InvalidateTenant, admin_pb2.InvalidateTenantRequest(tenant_id="acme")
                )
                keys += drive(stub, errors)
                said += fetched(daemon.ops_address)
            daemon.process.terminate()
            daemon.process.wait(timeout=30)
    places = {
        "log": daemon.log.encode(),
        "errors": errors.said,
        "traces and pushed metrics": collector.wire,
        "HTTP": said,
        "audit trail": trail.read_bytes(),
    }
    moto.kms().enable_key(kms_key)

    def unwrap(key: StoredKey) -> bytes:
        context = dict(signing_context(key.tenant_id, key.key_id))
        return moto.kms().decrypt(key.wrapped_seed.blob, context)[0]

    secrets = [
        CANARY,
        *keys,
        *seeds(data_dir, unwrap),
        *(text.encode() for text in (SECRET_ACCESS_KEY, SESSION_TOKEN, CONTEXT_VALUE, SPAN_VALUE)),
    ]
    assert errors.count >= 20
    assert len(keys) >= 3
    assert len(secrets) > len(keys) + 5
    assert {place: len(text) > 1000 for place, text in places.items()} == dict.fromkeys(places, True)
    assert shown(secrets, places) == []


@pytest.mark.parametrize("end", [signal.SIGABRT, signal.SIGSEGV])
def test_no_secret_shows_in_a_crash_or_in_the_traces_of_grpc(tmp_path: Path, end: signal.Signals) -> None:
    """A daemon that crashes leaves a traceback without secrets and no core file, though the limits allow one.

    gRPC and Python are asked for all that they can tell; tokens and the local master key are searched for too.
    """
    data_dir, trail, token = tmp_path / "data", tmp_path / "audit.jsonl", tmp_path / "token"
    environ = {
        "KMS_LOG_LEVEL": "debug",
        "KMS_AUDIT_FILE": str(trail),
        "KMS_SERVER_LISTEN": f"unix:{tmp_path}/kms.sock",
        "KMS_SERVER_TOKEN_FILE": str(token),
        "KMS_DATA_DIR": str(data_dir),
        "GRPC_VERBOSITY": "debug",
        "GRPC_TRACE": "all",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONASYNCIODEBUG": "1",
    }
    errors, folder = Errors(), Path.cwd()
    cores = set(folder.glob("core*"))
    unlimited = ("sh", "-c", 'ulimit -c unlimited; exec "$0" "$@"', str(COMMAND), "serve")
    with spawned(environ=environ, command=unlimited) as daemon:
        daemon.wait_for("serving")
        errors.token = token.read_text("ascii").strip()
        with (
            grpc.insecure_channel(f"unix:{tmp_path}/kms.sock") as channel,
            grpc.insecure_channel(f"unix:{data_dir}/admin.sock") as admin,
        ):
            stub: Any = KeyManagementServiceStub(channel)
            keys = drive(stub, errors)
            said = fetched(daemon.ops_address)
            for call, request in (
                ("GetStatus", admin_pb2.GetStatusRequest()),
                ("Validate", admin_pb2.ValidateRequest()),
            ):
                said += str(errors.call(getattr(KmsAdminServiceStub(admin), call), request)).encode()
            errors.token = errors.token[::-1]
            drive(stub, errors)
        for _ in range(200):  # lines that a thread has not written yet would go with the process
            if b"Validate" in trail.read_bytes():
                break
            time.sleep(0.05)
        daemon.process.send_signal(end)
        _, status = os.waitpid(daemon.process.pid, 0)
        daemon.wait_for("Current thread")
    assert (os.WTERMSIG(status), os.WCOREDUMP(status)) == (end, False)
    assert set(folder.glob("core*")) == cores
    master = load_master_key(data_dir / MASTER_KEY_FILE, create=False)
    provider = LocalProvider(master)

    def unwrap(key: StoredKey) -> bytes:
        seed = asyncio.run(provider.unwrap(key.wrapped_seed, signing_context(key.tenant_id, key.key_id)))
        return bytes(seed.raw)

    secrets = [
        *(CANARY, CONTEXT_VALUE.encode(), SPAN_VALUE.encode(), master, token.read_bytes().strip()),
        *keys,
        *seeds(data_dir, unwrap),
    ]
    assert len(keys) == 2
    assert len(secrets) > 7
    places = {"log": daemon.log.encode(), "errors": errors.said, "HTTP": said, "audit trail": trail.read_bytes()}
    assert {place: len(text) > 1000 for place, text in places.items()} == dict.fromkeys(places, True)
    assert shown(secrets, places) == []
