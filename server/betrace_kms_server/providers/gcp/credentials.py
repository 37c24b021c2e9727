"""The daemon's own credentials: Application Default Credentials, found and refreshed in a thread.

google-auth finds them: a file, Workload Identity of GKE, the metadata server, or federation with another identity
provider. It blocks, for as long as a metadata server does not answer, so nothing of it runs in the event loop. A token
is refreshed in the background before it ends; a call waits only if there is none.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import structlog

from betrace_kms_server.audit.daemon_thread import DaemonThread
from betrace_kms_server.core.errors import KmsError
from betrace_kms_server.providers.gcp.errors import without_credentials
from betrace_kms_server.providers.gcp.sdk import Credentials, Request, TokenState, auth, auth_errors

log = structlog.get_logger()

OBTAIN_SECONDS = 5.0
_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
Metadata = Sequence[tuple[str, str]]


class _BoundedRequest(Request):
    """An HTTP request that is bounded in time; google-auth allows two minutes."""

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = OBTAIN_SECONDS,
        **options: Any,
    ) -> Any:
        return super().__call__(url, method, body, headers, timeout, **options)  # type: ignore[no-untyped-call]


def application_default(request: Request) -> Credentials:
    """Return the credentials that google-auth finds in this environment. Blocks."""
    found, _project = auth.default(scopes=_SCOPES, request=request)
    return found


class GoogleCredentials:
    """Gives the headers of now. `find` returns credentials, which need no token yet."""

    def __init__(self, find: Callable[[Request], Credentials] = application_default) -> None:
        self.attempts: Counter[str] = Counter()
        """Attempts to obtain a token, by how they ended: OK, or the reason of the error."""
        self._find = find
        self._credentials: Credentials | None = None
        self._thread = DaemonThread("google-auth")
        self._obtaining: asyncio.Task[Credentials] | None = None

    async def close(self) -> None:
        """End what runs. The thread ends behind its request."""
        self._thread.shutdown(wait=False)
        if self._obtaining is not None:
            self._obtaining.cancel()
            await asyncio.gather(self._obtaining, return_exceptions=True)

    async def headers(self) -> Metadata:
        """Return what authorizes a call. Raises CredentialsUnavailable."""
        credentials = self._credentials
        if credentials is None or credentials.token_state is TokenState.INVALID:
            credentials = await self._obtained()
        elif credentials.token_state is TokenState.STALE:
            self._obtain()  # this one is good for minutes
        if credentials.token is None:  # refused in this moment, and the same was obtained again
            raise without_credentials(auth_errors.RefreshError())
        headers: dict[str, str] = {}
        credentials.apply(headers)
        return tuple((name.lower(), value) for name, value in headers.items())

    def refused(self, headers: Metadata) -> bool:
        """Forget the token of a call that was refused. Returns True: another may be obtained."""
        if self._credentials is not None and f"Bearer {self._credentials.token}" in dict(headers).values():
            self._credentials.token = None
        return True

    async def _obtained(self) -> Credentials:
        try:
            async with asyncio.timeout(OBTAIN_SECONDS):
                return await asyncio.shield(self._obtain())
        except TimeoutError as cause:
            raise without_credentials(cause) from cause

    def _obtain(self) -> "asyncio.Task[Credentials]":
        """Return the attempt that runs, or begin one: a single one for all who ask at a time."""
        if self._obtaining is None or self._obtaining.done():
            self._obtaining = asyncio.create_task(self._refresh(), name="obtain Google credentials")
            self._obtaining.add_done_callback(_retrieve)
        return self._obtaining

    async def _refresh(self) -> Credentials:
        work = partial(_refreshed, self._find, self._credentials)
        try:
            credentials = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except Exception as cause:
            error = without_credentials(cause)
            self.attempts[error.reason] += 1
            raise error from cause
        if self._credentials is None:
            account = getattr(credentials, "service_account_email", None)
            log.info("Google credentials were found", kind=type(credentials).__name__, account=account)
        self.attempts["OK"] += 1
        self._credentials = credentials
        return credentials


def _refreshed(find: Callable[[Request], Credentials], former: Credentials | None) -> Credentials:
    """Return credentials with a token. Runs in the thread."""
    request = _BoundedRequest()
    credentials = find(request) if former is None else former
    credentials.refresh(request)
    return credentials


def _retrieve(attempt: "asyncio.Task[Credentials]") -> None:
    """Retrieve the error of an attempt that no call may wait for: the next one reports it."""
    if not attempt.cancelled() and isinstance(error := attempt.exception(), KmsError):
        log.debug("Google credentials were not obtained", problem=error.message)
