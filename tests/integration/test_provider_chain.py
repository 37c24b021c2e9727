"""A deployment moves from AWS to OpenBao and on to an HSM, under load, and forgets where it came from."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import KmsClient

from tests.contract.vault_peer import make_key, token_file
from tests.daemon import Process, spawned
from tests.integration.test_pkcs11_daemon import pkcs11
from tests.integration.test_vault_daemon import vault

if TYPE_CHECKING:
    from tests.moto_server import MotoServer
    from tests.openbao_server import OpenBaoServer
    from tests.softhsm import Token

TENANTS = ("acme", "globex", "initech")
CALLERS = 3


def span(name: str) -> ComplianceSpan:
    """Return a span that can be signed."""
    return ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name=name)


@dataclass
class Load:
    """What callers made on the way. They go on while the daemon restarts, because their client waits for it."""

    address: str
    sealed: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Tenant, payload, ciphertext."""
    signed: list[tuple[str, str, bytes, str]] = field(default_factory=list)
    """Tenant, name of the span, signature, key id."""
    failures: list[Exception] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def work(self, caller: int) -> None:
        """Seal and sign until it is over."""
        number = 0
        with KmsClient(self.address, timeout=30) as client:
            while not self.over.wait(0.01):
                number += 1
                tenant, text = TENANTS[number % len(TENANTS)], f"{caller}-{number}"
                try:
                    message = client.encrypt(tenant, text.encode(), {"n": str(number % 5)}).ciphertext_blob
                    self.sealed.append((tenant, text, message))
                    signature = client.sign_span(tenant, span(text))
                    self.signed.append((tenant, text, signature.signature, signature.key_id))
                except Exception as error:  # noqa: BLE001  # it is looked at in the end
                    self.failures.append(error)


@contextmanager
def loaded(address: str) -> Iterator[Load]:
    """Call from several threads."""
    load = Load(address)
    callers = [threading.Thread(target=load.work, args=(number,)) for number in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        yield load
    finally:
        load.over.set()
        for caller in callers:
            caller.join()


def context(text: str) -> dict[str, str]:
    """Return the encryption context of a payload."""
    return {"n": str(int(text.rpartition("-")[2]) % 5)}


def moved(daemon: Process) -> None:
    """Wait until all keys of the store are under today's master key."""
    daemon.wait_for("Signing keys were moved to the master key")
    daemon.wait_for("Branch keys were moved to the master key")


def stop(daemon: Process) -> None:
    """Let it drain, as a rollout does."""
    daemon.process.terminate()
    assert 0 == daemon.process.wait(30)


def test_aws_is_left_for_vault_and_vault_for_an_hsm(
    tmp_path: Path, moto: "MotoServer", kms_key: str, bao: "OpenBaoServer", hsm_token: "Token"
) -> None:
    """No call fails; every message and signature made on the way opens and verifies, at the end by the HSM alone."""
    listen = f"unix:{tmp_path}/kms.sock"
    arguments = ("--data-dir", str(tmp_path / "data"), "--listen", listen)
    key = make_key(bao)
    aws = {"AWS_KMS_MASTER_KEY_ID": kms_key, "AWS_KMS_ENDPOINT": moto.url}
    openbao = vault(bao, key, token_file(bao, key, tmp_path))
    hsm = pkcs11(hsm_token, hsm_token.make_key())
    keep = {"KMS_STORE_ALLOW_EPHEMERAL": "true"}
    with ExitStack() as running:
        first = running.enter_context(spawned(*arguments, environ=aws | keep | {"BETRACE_KMS_PROVIDER": "aws"}))
        first.wait_for("KMS is usable")
        with KmsClient(listen) as client:
            mac = client.generate_mac("acme", "email", b"alice@example.com").mac
        load = running.enter_context(loaded(listen))
        while len(load.signed) < 20:
            assert not load.over.wait(0.05)
        stop(first)
        with spawned(*arguments, environ=aws | openbao | {"KMS_FORMER_PROVIDERS": "aws"}) as daemon:
            moved(daemon)
            made = len(load.signed)
            while len(load.signed) < made + 20:
                assert not load.over.wait(0.05)
            stop(daemon)
        with spawned(*arguments, environ=aws | openbao | hsm | {"KMS_FORMER_PROVIDERS": "vault,aws"}) as daemon:
            moved(daemon)
            made = len(load.signed)
            while len(load.signed) < made + 20:
                assert not load.over.wait(0.05)
            load.over.set()
            with KmsClient(listen) as client:
                for tenant, text, message in load.sealed:
                    assert text.encode() == client.decrypt(tenant, message, context(text)).plaintext
                anew = [
                    (tenant, text, client.re_encrypt(tenant, message, context(text), context(text)).ciphertext_blob)
                    for tenant, text, message in load.sealed
                ]
            stop(daemon)
    assert [] == load.failures
    assert 60 <= len(load.signed) <= len(load.sealed)
    with spawned(*arguments, environ=hsm) as daemon, KmsClient(listen) as client:
        daemon.wait_for("KMS is usable")
        for tenant, text, message in anew:
            assert text.encode() == client.decrypt(tenant, message, context(text)).plaintext
        for tenant, text, signature, key_id in load.signed:
            assert client.verify_span(tenant, span(text), signature, key_id).valid
        assert mac == client.generate_mac("acme", "email", b"alice@example.com").mac
