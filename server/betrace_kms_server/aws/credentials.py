"""The daemon's own AWS credentials: found, refreshed and read again apart from the calls that they sign.

A slow STS, an instance metadata service that hangs or a credential process that never ends is no failure of KMS. So
`ready` comes before a call, has a time limit of its own, and its error says which of the two is at fault; signing then
takes what is there and never waits.

- One refresh runs at a time, and all who need it wait for it. While the old credentials are still good nobody waits.
- A source that is rewritten in place (a shared credentials file, a template of a Vault agent) is read again when its
  file changes, and after AWS refused what it gave. If the new content is not whole, the old credentials serve on.
- A credential process that does not end in time is killed with all that it started.
- STS is asked in the Region of the service, also by a web identity (IRSA) without a Region of its own.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from aiobotocore.credentials import AioCredentials, AioProcessProvider
from aiobotocore.session import AioSession
from botocore.exceptions import CredentialRetrievalError, NoCredentialsError, PartialCredentialsError

log = logging.getLogger(__name__)

SECONDS = 5.0
"""What a source of credentials may take."""
RETRY_SECONDS = 1.0
"""How soon a source that failed, or a file that may have changed, is read again."""
REFUSED_SECONDS = 5.0
"""How old credentials must be before a refusal by AWS lets them be obtained anew."""


class Credentials(Protocol):
    """What a client needs before it calls AWS."""

    async def ready(self) -> None:
        """Return when there are credentials to sign with. Raises what the SDK raises, or TimeoutError."""

    def refused(self) -> None:
        """Note that AWS refused what was signed with them."""


class NoCredentials:
    """For clients that are not AWS's."""

    async def ready(self) -> None:
        """See Credentials."""

    def refused(self) -> None:
        """See Credentials."""


class DaemonCredentials(AioCredentials):  # type: ignore[misc]  # aiobotocore ships no types
    """Credentials that clients of several services and Regions share; botocore signs with `get_frozen_credentials`."""

    method = "betrace-kms"

    def __init__(
        self,
        region: str,
        *,
        new_session: Callable[[], Any] = AioSession,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__("", "")
        self._region = region
        self._new_session = new_session
        self._seconds = seconds
        self._clock = clock
        self._source: Any = None
        self._frozen: Any = None
        self._obtained_at = 0.0
        self._obtaining: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._next_look = 0.0
        self._files: tuple[str, ...] = ()
        self._seen: tuple[object, ...] = ()
        self._children: set[asyncio.subprocess.Process] = set()

    async def get_frozen_credentials(self) -> Any:
        """Return what to sign with now; botocore calls this. Raises CredentialRetrievalError."""
        try:
            await self.ready()
        except Exception as cause:
            raise CredentialRetrievalError(provider=self.method, error_msg=type(cause).__name__) from cause
        return self._frozen

    async def ready(self) -> None:
        """See Credentials."""
        if self._frozen is not None and not self._due():
            return
        if self._failure is not None and self._clock() < self._next_look:
            if self._frozen is not None and not self._expired():
                return
            raise self._failure.with_traceback(None)
        if self._obtaining is None:
            self._obtaining = asyncio.create_task(self._obtain(), name="obtain AWS credentials")
            self._obtaining.add_done_callback(self._obtained)
        if self._frozen is not None and not self._expired():
            return
        await asyncio.shield(self._obtaining)

    def refused(self) -> None:
        """See Credentials."""
        if self._clock() - self._obtained_at >= REFUSED_SECONDS:
            self._source = self._frozen = None

    async def close(self) -> None:
        """End a refresh that runs."""
        if self._obtaining is not None:
            self._obtaining.cancel()
            await asyncio.wait([self._obtaining])

    def _due(self) -> bool:
        """Whether a refresh should begin: soon expired, or a file of the source changed."""
        if self._source is None or self._refresh_needed(None):
            return True
        now = self._clock()
        if now < self._next_look:
            return False
        self._next_look = now + RETRY_SECONDS
        if _fingerprints(self._files) == self._seen:
            return False
        self._source = None
        return True

    def _expired(self) -> bool:
        return self._refresh_needed(0)

    def _refresh_needed(self, within: int | None) -> bool:
        """Ask refreshable credentials whether they expire within so many seconds, by default within botocore's."""
        needed = getattr(self._source, "refresh_needed", None)
        return needed is not None and needed(within)

    async def _obtain(self) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                source = self._source or await self._find()
                frozen = await source.get_frozen_credentials()
        finally:
            await self._end_children()
        if not frozen.access_key or not frozen.secret_key:
            raise PartialCredentialsError(provider=source.method, cred_var="access key or secret key")
        self._source, self._frozen, self._obtained_at = source, frozen, self._clock()

    def _obtained(self, task: asyncio.Task[None]) -> None:
        self._obtaining = None
        if task.cancelled():
            return
        before, self._failure = self._failure, None
        if (error := task.exception()) is None:
            if before is not None:
                log.info("AWS credentials are there again")
            return
        self._failure = error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
        self._next_look = self._clock() + RETRY_SECONDS
        if before is None:
            log.warning("AWS credentials cannot be obtained: %s", type(error).__name__)

    async def _find(self) -> Any:
        session = self._new_session()
        session.set_config_variable("region", self._region)
        session.set_config_variable("sts_regional_endpoints", "regional")
        self._files = _files_of(session)
        self._seen = _fingerprints(self._files)
        for provider in session.get_component("credential_provider").providers:
            if isinstance(provider, AioProcessProvider):
                provider._popen = self._start
        source = await session.get_credentials()
        if source is None:
            raise NoCredentialsError
        return source

    async def _start(self, *command: str, **options: Any) -> asyncio.subprocess.Process:
        child = await asyncio.create_subprocess_exec(*command, **options, start_new_session=True)
        self._children.add(child)
        return child

    async def _end_children(self) -> None:
        """Kill credential processes that still run, with their process groups, and reap them."""
        while self._children:
            child = self._children.pop()
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                await child.wait()


def _files_of(session: Any) -> tuple[str, ...]:
    return tuple(os.path.expanduser(session.get_config_variable(name)) for name in ("credentials_file", "config_file"))


def _fingerprints(files: tuple[str, ...]) -> tuple[object, ...]:
    return tuple(map(_fingerprint, files))


def _fingerprint(file: str) -> object:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
