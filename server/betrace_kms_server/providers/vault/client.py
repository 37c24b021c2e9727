"""Requests to the HTTP API of OpenBao or Vault (developer.hashicorp.com/vault/api-docs), each bounded in time and size.

By aiohttp, which the daemon has for its own port: the usual client library, hvac, is synchronous.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson

MAX_ANSWER_BYTES = 64 * 1024
"""An answer to a wrapped key of 6,144 bytes has less than a quarter of it."""
CONNECTIONS = 32
ATTEMPTS = 2
"""Of a request whose connection ended without an answer: the server closes idle ones."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered: the status, and the JSON object in the body, or None if it holds none."""

    status: int
    body: Mapping[str, Any] | None = field(repr=False)

    @property
    def data(self) -> Mapping[str, Any]:
        """The data of a good answer."""
        data = (self.body or {}).get("data")
        return data if isinstance(data, dict) else {}

    @property
    def request_id(self) -> str | None:
        """The id under which the audit log of the server has the request."""
        found = (self.body or {}).get("request_id")
        return found if isinstance(found, str) and found else None

    @property
    def errors(self) -> str:
        """What a bad answer says. For the log, and to tell errors apart: never for callers."""
        errors = (self.body or {}).get("errors")
        return "; ".join(str(error) for error in errors)[:500] if isinstance(errors, list) else ""


class VaultClient:
    """One server. A context manager."""

    def __init__(
        self,
        address: str,
        *,
        namespace: str | None = None,
        ca_file: Path | None = None,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        self._address = address.rstrip("/")
        self._headers = {"X-Vault-Request": "true"} | ({"X-Vault-Namespace": namespace} if namespace else {})
        self._ca_file = ca_file
        self._certificate = certificate
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "VaultClient":
        """Open the session. Raises OSError or ssl.SSLError if a file of certificates cannot be used."""
        context: ssl.SSLContext | bool = True
        if self._address.startswith("https:"):
            context = await asyncio.to_thread(self._ssl_context)
        connector = aiohttp.TCPConnector(ssl=context, limit=CONNECTIONS)
        no_cookies = aiohttp.DummyCookieJar()
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, cookie_jar=no_cookies)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, token: str | None = None
    ) -> Answer:
        """Send one request below /v1/. Redirects are not followed: they could lead the token elsewhere.

        Raises aiohttp.ClientError or OSError if there is no answer.
        """
        if self._session is None:
            raise RuntimeError("the client is not open")
        headers = {} if token is None else {"X-Vault-Token": token}
        data = None if body is None else orjson.dumps(body)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with self._session.request(
                    method, f"{self._address}/v1/{path}", data=data, headers=headers, allow_redirects=False
                ) as response:
                    return Answer(response.status, await _json(response))
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if attempt == ATTEMPTS or isinstance(error, aiohttp.ClientConnectorError):
                    raise
        raise AssertionError("unreachable")

    def _ssl_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._certificate is not None:
            context.load_cert_chain(*self._certificate)
        return context


async def _json(response: aiohttp.ClientResponse) -> Mapping[str, Any] | None:
    content = await response.content.read(MAX_ANSWER_BYTES + 1)
    while len(content) <= MAX_ANSWER_BYTES and (more := await response.content.read(MAX_ANSWER_BYTES + 1)):
        content += more
    if len(content) > MAX_ANSWER_BYTES:
        return None
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
