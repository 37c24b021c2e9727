"""Where Google's libraries get access tokens, played on loopback: a metadata server, and an OAuth 2.0 endpoint."""

import json
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

ACCOUNT = "betrace-kms@betrace-test.iam.gserviceaccount.com"
_ACCOUNTS = "/computeMetadata/v1/instance/service-accounts"


@dataclass
class TokenServer:
    """Issues tokens that live for `seconds`, as long as `refusal` is None: a status and its JSON body."""

    address: str = ""
    tokens: list[str] = field(default_factory=list)
    issued: Callable[[str], None] = lambda token: None
    """Is called with each new token."""
    seconds: int = 3600
    refusal: tuple[int, Mapping[str, str]] | None = None
    answering: threading.Event = field(default_factory=threading.Event)
    """Cleared while it hangs."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which the libraries take it for the metadata server."""
        return {"GCE_METADATA_HOST": self.address, "GCE_METADATA_IP": self.address}

    def key_file(self, folder: Path) -> Path:
        """Write the key of a service account whose tokens come from here."""
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        path = folder / "account.json"
        path.touch(0o600)
        path.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "project_id": "betrace-test",
                    "private_key_id": "1",
                    "private_key": private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
                    "client_email": ACCOUNT,
                    "client_id": "1",
                    "token_uri": f"http://{self.address}/token",
                }
            )
        )
        return path

    def respond(self, path: str) -> tuple[int, Any]:
        """Return status and body of an answer."""
        self.answering.wait(20)
        if path in ("/token", f"{_ACCOUNTS}/default/token", f"{_ACCOUNTS}/{ACCOUNT}/token"):
            if self.refusal is not None:
                return self.refusal
            token = f"ya29.{secrets.token_hex(16)}"
            self.tokens.append(token)
            self.issued(token)
            return 200, {"access_token": token, "expires_in": self.seconds, "token_type": "Bearer"}
        if path == f"{_ACCOUNTS}/default/":
            return 200, {"aliases": ["default"], "email": ACCOUNT, "scopes": []}
        if path == "/computeMetadata/v1/project/project-id":
            return 200, "betrace-test"
        if path == "/computeMetadata/v1/universe/universe-domain":
            return 200, "googleapis.com"
        return (200, "") if path == "/" else (404, "")


@contextmanager
def token_server() -> Iterator[TokenServer]:
    """Run a server in threads of this process."""
    played = TokenServer()
    played.answering.set()

    class Handler(BaseHTTPRequestHandler):
        def _respond(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = played.respond(urlsplit(self.path).path)
            content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Metadata-Flavor", "Google")
            self.send_header("Content-Type", "application/text" if isinstance(body, str) else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _respond

        def log_message(self, *arguments: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    played.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield played
    finally:
        played.answering.set()
        server.shutdown()
        thread.join()
        server.server_close()
