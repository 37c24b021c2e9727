"""The daemon's own token: obtained by a login or read from a file, renewed in time, and obtained anew when it ends.

A token is renewed, in the background, when two thirds of its time are over. Every check of the master key asks for the
token, so a daemon that nobody calls keeps its own. Nothing here is on the way of a warm call.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from betrace_kms_server.core.errors import CredentialsUnavailable, KmsError
from betrace_kms_server.host.trusted_files import Signature, Untrusted, read_trusted, signature
from betrace_kms_server.providers.vault.client import Answer, VaultClient
from betrace_kms_server.providers.vault.errors import rejected, unanswered

log = structlog.get_logger()

OBTAIN_SECONDS = 5.0
SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_GROUP_READS, _ALL_READ = 0o040, 0o044
_RENEW_AT = 2 / 3


@dataclass(frozen=True, slots=True)
class Login:
    """How the daemon authenticates: `method` is "token", "kubernetes", "approle" or "cert"."""

    method: str
    mount: str
    role: str | None = None
    file: Path | None = None
    """Of the token, the service account's token, or the secret id."""

    @property
    def described(self) -> str:
        """What an operator is to look at."""
        if self.method == "token":
            return f"check the token in {self.file}, its time to live and its policies"
        return f"check the role {self.role or ''} of auth/{self.mount}".replace("role  of", "roles of")


@dataclass(frozen=True, slots=True)
class _Token:
    text: str = field(repr=False)
    obtained_at: float
    seconds: float
    """Its time to live when it was obtained; 0 if it does not end."""
    renewable: bool
    file: Signature | None = None

    def left(self, now: float) -> float:
        return self.seconds - (now - self.obtained_at) if self.seconds else float("inf")


class Tokens:
    """Gives the token of now. `clock` is monotonic, in seconds."""

    def __init__(self, client: VaultClient, login: Login, clock: Callable[[], float] = time.monotonic) -> None:
        self.attempts: Counter[str] = Counter()
        """Attempts to obtain a token, by how they ended: OK, or the reason of the error."""
        self._client = client
        self._login = login
        self._clock = clock
        self._token: _Token | None = None
        self._obtaining = asyncio.Lock()
        self._renewal: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """End a renewal that runs."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)

    async def token(self) -> str:
        """Return a token that has not ended. Raises CredentialsUnavailable, or KmsUnreachable if Vault is away."""
        token = self._token
        if token is None or self._is_over(token):
            token = await self._obtain(token)
        elif token.left(self._clock()) < token.seconds * (1 - _RENEW_AT) and self._renewal is None:
            self._renewal = asyncio.create_task(self._renew(token), name="renew the token of Vault")
        return token.text

    async def accepted(self, text: str) -> bool:
        """Return whether Vault knows a token, after it denied a call: then the denial is about its policies."""
        answer = await self.ask("GET", "auth/token/lookup-self", token=text)
        return answer.status == 200

    async def another(self, text: str) -> str | None:
        """Return a token in place of one that Vault does not know, or None if there is no other."""
        try:
            token = await self._obtain(self._token if self._token and self._token.text == text else None)
        except CredentialsUnavailable:
            return None
        return None if token.text == text else token.text

    def _is_over(self, token: _Token) -> bool:
        if token.left(self._clock()) <= 0:
            return True
        return token.file is not None and signature(self._path(), follow=True) != token.file

    def _path(self) -> Path:
        return self._login.file or SERVICE_ACCOUNT_TOKEN

    async def _obtain(self, former: _Token | None) -> _Token:
        """Obtain a token, once for all who ask at a time."""
        async with self._obtaining:
            if self._token is not None and self._token is not former and not self._is_over(self._token):
                return self._token
            try:
                async with asyncio.timeout(OBTAIN_SECONDS):
                    self._token = await (self._read() if self._login.method == "token" else self._log_in())
            except Exception as cause:
                error = unanswered(cause)
                self.attempts[error.reason] += 1
                raise error from cause
            self.attempts["OK"] += 1
            return self._token

    async def _read(self) -> _Token:
        text, file = self._content(_GROUP_READS)
        now = self._clock()
        answer = await self._client.ask("GET", "auth/token/lookup-self", token=text)
        if answer.status == 403:
            raise rejected(self._login.described)
        if answer.status != 200:
            raise unanswered(OSError(f"status {answer.status}"))
        return _Token(text, now, _seconds(answer.data, "ttl"), answer.data.get("renewable") is True, file)

    async def _log_in(self) -> _Token:
        body: dict[str, str] = {}
        if self._login.method == "approle":
            body = {"role_id": self._login.role or "", "secret_id": self._content(_GROUP_READS)[0]}
        elif self._login.method == "kubernetes":
            body = {"role": self._login.role or "", "jwt": self._content(_ALL_READ)[0]}
        elif self._login.role:
            body = {"name": self._login.role}
        now = self._clock()
        answer = await self._client.ask("POST", f"auth/{self._login.mount}/login", body)
        return self._granted(answer, now)

    def _granted(self, answer: Answer, now: float) -> _Token:
        if answer.status in (400, 401, 403, 404):
            raise rejected(self._login.described)
        granted = (answer.body or {}).get("auth")
        text = granted.get("client_token") if isinstance(granted, dict) else None
        if answer.status != 200 or not isinstance(granted, dict) or not isinstance(text, str) or not text.isascii():
            raise unanswered(OSError(f"status {answer.status}"))
        return _Token(text, now, _seconds(granted, "lease_duration"), granted.get("renewable") is True)

    def _content(self, readers: int) -> tuple[str, Signature]:
        try:
            content, file = read_trusted(self._path(), readers=readers, follow=True)
        except Untrusted as cause:
            raise rejected(str(cause)) from cause
        text = content.decode("ascii", "replace").strip()
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise rejected(f"{self._path()} holds no token")
        return text, file

    async def _renew(self, token: _Token) -> None:
        """Renew a token; where that gives less than half of its time, obtain another."""
        try:
            now = self._clock()
            if token.renewable:
                answer = await self.ask("POST", "auth/token/renew-self", {}, token=token.text)
                if answer.status == 200:
                    renewed = self._granted(answer, now)
                    if renewed.seconds * 2 >= token.seconds:
                        if self._token is token:
                            self._token = _Token(token.text, now, renewed.seconds, renewed.renewable, token.file)
                        return
            if self._login.method != "token":
                await self._obtain(token)
        except KmsError as error:
            log.warning("The token of Vault could not be renewed", problem=error.message)
        finally:
            self._renewal = None

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, token: str) -> Answer:
        """Send a request of the daemon's own, bounded in time. Raises our errors where there is no answer."""
        try:
            async with asyncio.timeout(OBTAIN_SECONDS):
                return await self._client.ask(method, path, body, token=token)
        except Exception as cause:
            raise unanswered(cause) from cause


def _seconds(found: Mapping[str, Any], name: str) -> float:
    value = found.get(name)
    return float(value) if isinstance(value, int | float) and value > 0 else 0.0
