"""The daemon's own AWS credentials, obtained apart from the calls that need them.

botocore fetches credentials inside a call, so that a slow STS, metadata service or `credential_process` looks like a
slow KMS. Here they are obtained before a call, with a bound of their own and by one task for all who wait, and clients
get an object that only hands out what is there. What this keeps:

- While credentials are valid, a call never waits for their renewal; a renewal that fails is tried again, and what is
  held serves until it expires.
- A source that fails is asked again after `pause` seconds, however many calls need it.
- Files that were rewritten are read again, at most every `pause` seconds, and at once when AWS refused what is held.
  A file that is unreadable or empty for the moment costs nothing: what is held stays.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import ClientError, ConfigParseError, NoCredentialsError, PartialCredentialsError

from betrace_kms_server.aws.credential_chain import CredentialChain, Fingerprint, MalformedCredentials
from betrace_kms_server.aws.holder import DAEMON, Holder
from betrace_kms_server.aws.sdk_errors import NETWORK, THROTTLED_CODES, code_of, trouble_of
from betrace_kms_server.core.errors import CredentialsUnavailable, cause_of

log = logging.getLogger(__name__)

OBTAIN_SECONDS = 10.0
"""What a source of credentials may take: a `credential_process` that starts an interpreter needs seconds."""
PAUSE_SECONDS = 2.0

_OF_THE_MACHINE = frozenset({"container-role", "iam-role"})
"""Sources behind the files. A file that is empty while it is rewritten must not make the daemon the node's role."""


@dataclass(frozen=True, slots=True)
class _Held:
    """Credentials that were obtained, and the SDK's object that may renew them."""

    found: Any = field(repr=False)
    frozen: ReadOnlyCredentials = field(repr=False)
    expires_at: datetime | None

    @property
    def source(self) -> str:
        return str(self.found.method)

    def wants_renewal(self) -> bool:
        return self.expires_at is not None and bool(self.found.refresh_needed())


class AwsCredentials:
    """Credentials for clients of one daemon; a client takes this object for one of the SDK's.

    `holder` is whose they are. `generation` rises when they change. `attempts` counts how attempts to obtain them
    ended, by outcome.
    """

    method = "betrace-kms"

    def __init__(
        self,
        region: str,
        *,
        holder: Holder = DAEMON,
        seconds: float = OBTAIN_SECONDS,
        pause: float = PAUSE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.holder = holder
        self.generation = 0
        self.attempts: Counter[str] = Counter()
        self._chain = CredentialChain(region)
        self._seconds = seconds
        self._pause = pause
        self._clock = clock
        self._now = now
        self._held: _Held | None = None
        self._failure: CredentialsUnavailable | None = None
        self._fingerprint: Fingerprint | None = None
        self._stale = True  # the sources are to be read anew, not only renewed
        self._awaited = False  # even calls with valid credentials wait for the attempt that runs
        self._attempt: asyncio.Task[None] | None = None
        self._again = False  # the attempt that runs is to be followed by another
        self._next_check = self._last_attempt = float("-inf")
        self._refused_generation = 0

    async def ready(self) -> None:
        """Return when there are credentials to sign with. Raises CredentialsUnavailable."""
        self._check()
        while self._attempt is not None and (self._awaited or not self._usable()):
            await asyncio.wait([self._attempt])
            if self._awaited:  # AWS has refused meanwhile what that attempt may have read
                self._check()
        if not self._usable():
            failure = self._failure or _unavailable(NoCredentialsError(), self._seconds, self.holder)
            raise CredentialsUnavailable(failure.message, metadata=failure.metadata) from failure.__cause__

    def refused(self, generation: int) -> None:
        """Note that AWS refused credentials of a generation, so that the next call waits until they are read anew."""
        self._refused_generation = max(generation, self._refused_generation)
        rewritten = self._chain.fingerprint() != self._fingerprint
        if generation == self.generation and (rewritten or self._clock() >= self._last_attempt + self._pause):
            self._again = self._attempt is not None
            self._read_anew()

    async def replaced(self) -> bool:
        """Return whether there are others than those that AWS refused, read anew where that is due."""
        await self.ready()
        return self.generation > self._refused_generation

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """See botocore's Credentials: the SDK asks before it signs."""
        await self.ready()
        if self._held is None:
            raise NoCredentialsError
        return self._held.frozen

    async def get_account_id(self) -> str | None:
        """See botocore's Credentials."""
        found: str | None = (await self.get_frozen_credentials()).account_id
        return found

    def get_deferred_property(self, _name: str) -> Callable[[], Awaitable[str | None]]:
        """See botocore's Credentials: the SDK asks for the account id alone, for endpoints that have it."""
        return self.get_account_id

    async def load_credentials(self) -> "AwsCredentials":
        """See botocore's CredentialResolver: a session takes this object in the place of its chain."""
        return self

    async def close(self) -> None:
        """End an attempt that runs."""
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait([self._attempt])

    def _read_anew(self) -> None:
        self._stale = self._awaited = True
        self._next_check = float("-inf")

    def _usable(self) -> bool:
        held = self._held
        return held is not None and (held.expires_at is None or self._now() < held.expires_at)

    def _check(self) -> None:
        """Begin an attempt if one is due."""
        if self._attempt is not None or self._clock() < self._next_check:
            return
        self._next_check = self._clock() + self._pause
        fingerprint = self._chain.fingerprint()
        if fingerprint != self._fingerprint:
            self._fingerprint = fingerprint
            self._stale = self._awaited = True
        if self._stale or not self._usable() or (self._held is not None and self._held.wants_renewal()):
            self._attempt = asyncio.create_task(self._obtain(), name="obtain AWS credentials")

    async def _obtain(self) -> None:
        outcome = "CANCELLED"
        try:
            async with asyncio.timeout(self._seconds):
                found = await self._chain.load() if self._stale or self._held is None else self._held.found
                frozen = await self._chain.frozen(found)
            self._keep(_Held(found, frozen, getattr(found, "_expiry_time", None)))
            outcome = "OK"
        except Exception as cause:  # noqa: BLE001  # sources raise whatever they like
            error = _unavailable(cause, self._seconds, self.holder)
            outcome = error.metadata["kind"]
            self._fail(error, cause)
        finally:
            self.attempts[outcome] += 1
            self._attempt, self._awaited = None, False
            self._last_attempt = self._clock()
            self._next_check = self._last_attempt + self._pause
            if self._again:
                self._again = False
                self._read_anew()

    def _keep(self, held: _Held) -> None:
        before = self._held
        if before is not None and self._usable() and held.source in _OF_THE_MACHINE and held.source != before.source:
            raise NoCredentialsError
        if before is None or held.frozen != before.frozen:
            self.generation += 1
        if self._failure is not None:
            log.info("There are AWS credentials again, from %s", held.source)
        elif before is not None and held.frozen != before.frozen and self._stale:
            log.info("The AWS credentials were replaced, by those of %s", held.source)
        self._held, self._stale, self._failure = held, False, None

    def _fail(self, error: CredentialsUnavailable, cause: Exception) -> None:
        error.__cause__ = cause
        if self._failure is None or self._failure.message != error.message:
            expires = self._held.expires_at if self._held is not None else None
            until = "" if expires is None else f"; those that are held expire at {expires.isoformat()}"
            log.warning("%s%s (%s)", error.message, until, cause_of(error))
        self._failure = error
        self._stale = self._stale or not self._usable()


def _unavailable(cause: Exception, seconds: float, holder: Holder) -> CredentialsUnavailable:
    """Return our error for whatever a source of credentials raised."""
    kind, what = _explained(cause, seconds, holder)
    return CredentialsUnavailable(f"{holder.credentials} {what}", metadata={"kind": kind})


def _explained(cause: Exception, seconds: float, holder: Holder) -> tuple[str, str]:
    """Return the kind of a failure, and what became of the credentials with the next step."""
    if (trouble := trouble_of(cause, _SOURCE)) is not None:
        return trouble.kind, f"cannot be obtained: {trouble.message}"
    if isinstance(cause, TimeoutError):
        return "timeout", f"did not arrive within {seconds:g} s: check what gives them {_SOURCES}"
    if isinstance(cause, ClientError):
        if code_of(cause) in THROTTLED_CODES:
            return "throttled", "are throttled by STS: they are asked for again automatically"
        return "refused", "are refused by STS: check the role's trust policy and the machine's clock"
    if isinstance(cause, NoCredentialsError):
        return "missing", f"are missing: {holder.step_without}"
    if isinstance(cause, RuntimeError):
        return "expired", f"were expired when they arrived: check what gives them {_SOURCES} and the clock"
    if isinstance(cause, (PartialCredentialsError, MalformedCredentials, ConfigParseError, LookupError, TypeError)):
        return "incomplete", f"are incomplete or malformed: check what gives them {_SOURCES}"
    if isinstance(cause, ValueError):
        return "incomplete", f"are malformed, or AWS_ENDPOINT_URL is: check both {_SOURCES}"
    if isinstance(cause, NETWORK):
        return "unreachable", f"cannot be obtained: check the way to what gives them {_SOURCES}"
    return "failed", f"are missing, expired or refused: check {holder.role} and what gives them {_SOURCES}"


_SOURCE = "what gives the AWS credentials"
_SOURCES = "(STS, instance metadata, container agent, credential_process, credentials file)"
