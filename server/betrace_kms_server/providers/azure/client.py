"""Requests to the REST API of Key Vault (learn.microsoft.com/rest/api/keyvault/keys) by the official client's pipeline.

The pipeline authenticates, answers challenges, and tries a request up to three times. `CryptographyClient` is not used:
it wraps in this process where it may read the public key, so the vault never hears of the key that was made, and it
does so under a key that is disabled.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from azure.core.credentials_async import AsyncSupportsTokenInfo
from azure.core.pipeline.policies import AsyncRetryPolicy
from azure.core.rest import HttpRequest
from azure.keyvault.keys.aio import KeyClient

from betrace_kms_server.providers.azure.key_ids import KeyId

RETRIES = 2
_SAFE_TO_REPEAT = frozenset({"GET", "POST"})
"""Methods of our requests: none changes anything in the vault."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered: the status, and the JSON object in the body, or None if it holds none."""

    status: int
    body: Mapping[str, Any] | None = field(repr=False)
    request_id: str | None = None
    """The id under which the vault's log has the request."""
    retry_after: float | None = None
    """Seconds after which the vault lets callers try again, if it says so."""

    @property
    def codes(self) -> frozenset[str]:
        """Codes of a bad answer, the outer one and those within it. To distinguish errors: never for callers."""
        codes, error = set(), (self.body or {}).get("error")
        while isinstance(error, dict):
            codes.add(str(error.get("code"))[:100])
            error = error.get("innererror") or error.get("innerError")
        return frozenset(codes)

    def raw(self, name: str) -> bytes | None:
        """Return the bytes of a field of a good answer (base64url without padding), or None if it holds none."""
        found = (self.body or {}).get(name)
        if not isinstance(found, str):
            return None
        try:
            raw = urlsafe_b64decode(found + "=" * (-len(found) % 4))
        except ValueError:
            return None
        return raw if encoded(raw) == found else None


class _Retries(AsyncRetryPolicy[Any, Any]):
    """Never waits as long as a vault asks for: the call would hold its place, and others would queue behind it."""

    def is_retry(self, settings: dict[str, Any], response: Any) -> bool:
        """See AsyncRetryPolicy."""
        answer = response.http_response
        if answer.status_code == 429 or "Retry-After" in answer.headers:
            return False
        return bool(super().is_retry(settings, response))


class VaultClient:
    """One vault. A context manager. `options` are those of every client of the SDK, such as `transport`."""

    def __init__(self, vault_url: str, credential: AsyncSupportsTokenInfo, **options: Any) -> None:
        retries = _Retries(retry_total=RETRIES, retry_backoff_factor=0.1, retry_backoff_max=1)
        # A redirect could lead the token elsewhere.
        self._client = KeyClient(
            vault_url,
            credential,  # type: ignore[arg-type]  # it takes both kinds, and asks for token infos where it can
            retry_policy=retries,
            permit_redirects=False,
            **options,
        )

    async def __aenter__(self) -> "VaultClient":
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._client.close()

    async def ask(self, key: KeyId, version: str = "", operation: str = "", **body: str) -> Answer:
        """Read a key, or do an operation with it; without a version, its current one.

        Raises what the SDK raises if there is no answer.
        """
        path = f"/keys/{key.key}/{version}" + (f"/{operation}" if operation else "")
        request = HttpRequest("POST", path, json=body) if operation else HttpRequest("GET", path)
        response = await self._client.send_request(request, retry_on_methods=_SAFE_TO_REPEAT)
        headers = response.headers
        return Answer(response.status_code, _json(response.content), headers.get("x-ms-request-id"), _seconds(headers))


def encoded(raw: bytes) -> str:
    """Return bytes as the API has them: base64url without padding."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _json(content: bytes) -> Mapping[str, Any] | None:
    try:
        found = json.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _seconds(headers: Mapping[str, str]) -> float | None:
    said = headers.get("Retry-After", "")
    return float(said) if said.isascii() and said.isdigit() and len(said) < 6 else None
