"""OpenBao as the peer that `make bench-peer` compares us with.

One server in memory on loopback, without TLS, as ours is there. Its audit log is a file, where it is on; OpenBao then
answers a call only when the line is written, as we do with `kms.audit.required`. Callers have a token with a policy for
the transit engine and not the policy `default`, whose templates cost each call another 280 us.
"""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.openbao_server import OpenBaoServer, binary, openbao_server

SIGNING, ENCRYPTION = "acme-signing", "acme-encryption"


@dataclass(frozen=True, slots=True)
class OpenBao:
    """A server that has its keys, and whom to call it as."""

    server: OpenBaoServer
    token: str

    @property
    def url(self) -> str:
        """Its address."""
        return self.server.url

    @property
    def process_id(self) -> int:
        """Its process."""
        return self.server.process_id

    @property
    def audit(self) -> Path | None:
        """Its audit log, if it is on."""
        return self.server.audit

    def call(self, path: str, body: Mapping[str, Any]) -> tuple[Any, int]:
        """Return the data of an answer, and how many bytes its body has; raise HTTPError where it is an error."""
        return self.server.sized_call(path, body, token=self.token)


def version() -> str:
    """Return the version of the binary."""
    program = binary()
    assert program
    said = subprocess.run([program, "version"], capture_output=True, text=True, check=True).stdout
    return said.split()[1].removeprefix("v")


@contextmanager
def openbao(folder: Path, *, audit: bool) -> Iterator[OpenBao]:
    """Run a server with an Ed25519 and an AES-256-GCM key of the transit engine."""
    with openbao_server(folder, audit=audit) as server:
        server.call(f"transit/keys/{SIGNING}", {"type": "ed25519"})
        server.call(f"transit/keys/{ENCRYPTION}", {"type": "aes256-gcm96"})
        server.call("sys/policies/acl/transit", {"policy": 'path "transit/*" { capabilities = ["create", "update"] }'})
        yield OpenBao(server, server.token("transit"))
