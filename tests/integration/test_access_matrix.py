"""Kinds of credentials, calls and tenants against one daemon with sockets, tokens, mutual TLS and a policy.

Every pair that must not get in is a case of its own, named `test_refused_*`: the suite counts those and prints how many
there are.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub

from tests.authority import Authority, Pair
from tests.daemon import spawned

POLICY = """
[[rule]]
name = "meshed callers"
identities = ["spiffe://example.org/ns/eu/*", 'CN=Zahlungen Süd,*', "CN=Zahlungen Süd"]
tenants = ["eu-*"]
operations = ["GenerateDataKey", "GetPublicKeys"]
[[rule]]
name = "importer"
identities = ["importer"]
tenants = ["acme"]
operations = ["GenerateDataKey"]
"""
METHODS = sorted(pb.DESCRIPTOR.services_by_name["KeyManagementService"].methods_by_name)
TENANTS = ("acme", "eu-west", "eu", "EU-west")
TRUSTED, FOREIGN = Authority(), Authority()
EU = "spiffe://example.org/ns/eu/sa/api"
IMPORTER, FORMER = (secrets.token_urlsafe(32) for _ in range(2))

CERTIFICATES: dict[str, Callable[[], Pair]] = {
    "SPIFFE id": lambda: TRUSTED.issue("api", uris=[EU]),
    "subject": lambda: TRUSTED.issue("Zahlungen Süd"),
    "SPIFFE id of another namespace": lambda: TRUSTED.issue("api", uris=["spiffe://example.org/ns/us/sa/api"]),
    "SPIFFE id of another trust domain": lambda: TRUSTED.issue("api", uris=["spiffe://example.com/ns/eu/sa/api"]),
    "subject that looks like a SPIFFE id": lambda: TRUSTED.issue(EU),
    "subject that looks like a token's name": lambda: TRUSTED.issue("importer"),
    "SPIFFE id of another authority": lambda: FOREIGN.issue("api", uris=[EU]),
}
TOKENS = {
    "token": f"Bearer {IMPORTER}",
    "no token": None,
    "former token": f"Bearer {FORMER}",
    "name of a token": "Bearer importer",
    "token and more": f"Bearer {IMPORTER}x",
    "another scheme": f"Basic {IMPORTER}",
}
ALLOWED = {
    *product(("SPIFFE id", "subject"), ("GenerateDataKey", "GetPublicKeys"), ("eu-west",)),
    ("token", "GenerateDataKey", "acme"),
}
KNOWN = {"token", "socket of another name", *list(CERTIFICATES)[:-1]}
MATRIX = list(product((*CERTIFICATES, *TOKENS, "socket of another name"), METHODS, TENANTS))


@dataclass
class Callers:
    """Channels of all callers to one daemon."""

    folder: Path
    address: str
    channels: ExitStack
    open: dict[str, grpc.Channel] = field(default_factory=dict)

    def call(self, caller: str, method: str, tenant: str) -> grpc.StatusCode:
        """Make a call and return its status."""
        if caller not in self.open:
            self.open[caller] = self.channels.enter_context(self._connect(caller))
        request = getattr(pb, f"{method}Request")(tenant_id=tenant)
        if method == "GenerateDataKey":
            request.number_of_bytes = 32
        token = TOKENS.get(caller)
        metadata = [("authorization", token)] if token else None
        try:
            getattr(KeyManagementServiceStub(self.open[caller]), method)(request, metadata=metadata, timeout=20)
        except grpc.RpcError as refusal:
            error: Any = refusal
            code: grpc.StatusCode = error.code()
            return code
        return grpc.StatusCode.OK

    def _connect(self, caller: str) -> grpc.Channel:
        if caller not in CERTIFICATES:
            name = "tokens" if caller in TOKENS else "other"
            return grpc.insecure_channel(f"unix:{self.folder}/{name}.sock")
        pair = CERTIFICATES[caller]()
        return grpc.secure_channel(self.address, grpc.ssl_channel_credentials(TRUSTED.pem, pair.key, pair.certificate))


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callers]:
    """Run the daemon."""
    folder = tmp_path_factory.mktemp("matrix")
    chain, key = TRUSTED.issue("daemon", host="127.0.0.1").write(folder)
    values = {
        "server.tls.cert-file": chain,
        "server.tls.key-file": key,
        "server.tls.client-ca-file": folder / "ca.crt",
        "server.token-file": folder / "tokens",
        "policy.file": folder / "policy.toml",
    }
    (folder / "ca.crt").write_bytes(TRUSTED.pem)
    (folder / "tokens").touch(0o600)
    (folder / "tokens").write_text(f"importer {IMPORTER}\n")
    (folder / "policy.toml").write_text(POLICY)
    listen = f"127.0.0.1:0,unix:{folder}/tokens.sock,unix:{folder}/other.sock;identity=other"
    options = [word for name, value in values.items() for word in ("--set", f"kms.{name}={value}")]
    with (
        spawned("--data-dir", str(folder / "data"), "--listen", listen, *options) as daemon,
        ExitStack() as channels,
    ):
        daemon.wait_for("serving")
        yield Callers(folder, daemon.address, channels)


@pytest.mark.parametrize(("caller", "method", "tenant"), [case for case in MATRIX if case not in ALLOWED])
def test_refused_in_the_matrix(callers: Callers, caller: str, method: str, tenant: str) -> None:
    """Known callers are not allowed, others not authenticated, and a foreign certificate gets no connection."""
    expected = grpc.StatusCode.PERMISSION_DENIED if caller in KNOWN else grpc.StatusCode.UNAUTHENTICATED
    if caller == "SPIFFE id of another authority":
        expected = grpc.StatusCode.UNAVAILABLE
    assert expected == callers.call(caller, method, tenant)


@pytest.mark.parametrize(("caller", "method", "tenant"), sorted(ALLOWED))
def test_let_in(callers: Callers, caller: str, method: str, tenant: str) -> None:
    """What a rule allows works beside all that is refused."""
    assert grpc.StatusCode.OK == callers.call(caller, method, tenant)
