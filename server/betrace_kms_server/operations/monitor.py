"""Checks the master key regularly, so that everybody learns how KMS is doing without asking it.

DescribeKey, which costs little, says whether the master key is enabled. It does not say whether the daemon may use it:
a role without kms:Decrypt encrypts for weeks, and after the next restart no signing key opens any more. So at start,
and again after a call was refused, one key is also made and unwrapped. A round trip that succeeded is not repeated by
the regular checks: there is no standing cost.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from betrace_kms_server.core.errors import BadAnswer, DoesNotOpen, KmsError, MasterKeyUnusable, cause_of
from betrace_kms_server.core.keys import SEED_BYTES, WrappedKey
from betrace_kms_server.core.tenancy import VALIDATION_TENANT, encryption_context
from betrace_kms_server.providers.protocol import KeyProvider

log = structlog.get_logger()

RETRY_SECONDS = 2.0
"""How soon a master key is checked again that cannot be used, or that a call said cannot be used."""
UNKNOWN = "Unknown"
_CONTEXT = encryption_context(VALIDATION_TENANT, {})


@dataclass(frozen=True, slots=True)
class KmsState:
    """What one check of the master key showed."""

    usable: bool
    problem: str = ""
    """One sentence that says what to do next, if it cannot be used."""
    reason: str = ""
    """The error's machine-readable name, if it cannot be used."""
    latency_ms: float | None = None
    """How long DescribeKey took."""
    checked_at: float | None = None
    """When the check began, in seconds of a monotonic clock; None before the first."""
    enabled: bool = False
    """The service says that the master key is enabled, though the daemon may lack a permission on it."""
    withdrawn: bool = False
    """Somebody decided that the master key must not be used: see MasterKeyUnusable."""
    key_state: str = UNKNOWN
    """State of the master key as the service names it, or that it is not known."""


class KmsMonitor:
    """Checks the master key of `provider`, and reports each state to `changed`.

    `usable` is set from the first good one on.
    """

    def __init__(
        self,
        provider: KeyProvider,
        changed: Callable[[KmsState], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = KmsState(False, "the master key was not checked yet: ask again in a moment", "KMS_UNREACHABLE")
        self.usable = asyncio.Event()
        self._provider = provider
        self._changed = changed
        self._clock = clock
        self._checking = asyncio.Lock()
        self._check_requested = asyncio.Event()
        self._round_trip_due = True
        self._wrapped: WrappedKey | None = None

    async def watch(self, interval: float) -> None:
        """Check every `interval` seconds, and more often while the master key cannot be used."""
        while True:
            state = await self.fresh(0.0)
            await asyncio.sleep(min(interval, RETRY_SECONDS))  # KMS is asked at most this often, whatever is requested
            if state.usable:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._check_requested.wait(), interval - RETRY_SECONDS)
            async with self._checking:  # a check that runs now began before the request, and does not answer it
                if self._check_requested.is_set():
                    self._check_requested.clear()
                    self._round_trip_due, self._wrapped = True, None

    def request_check(self) -> None:
        """Let `watch` check soon, because a call said that the master key cannot be used."""
        self._check_requested.set()

    async def fresh(self, max_age: float) -> KmsState:
        """Return a state that is at most `max_age` seconds old; callers that ask at once share one check.

        Its age counts from the beginning of the check: what happens while an answer travels is not in it.
        """
        asked_at = self._clock()
        async with self._checking:
            if self.state.checked_at is None or self.state.checked_at < asked_at - max_age:
                await self._check()
            return self.state

    async def _check(self) -> None:
        """Check once. Logs what is wrong when it changes, not every time."""
        before, began = self.state, self._clock()
        problem, reason, cause, enabled, withdrawn = "", "", None, False, False
        key_state = UNKNOWN
        described = began
        try:
            try:
                await self._provider.check()
            finally:
                described = self._clock()
            enabled, key_state = True, "Enabled"
            await self._round_trip()
        except KmsError as error:
            problem, reason, cause = error.message, error.reason, cause_of(error)
            if isinstance(error, MasterKeyUnusable):
                withdrawn, key_state = error.withdrawn, error.state or key_state
        except Exception as error:  # a defect here must not end the watch for good
            problem, reason = f"checking the master key failed: {type(error).__name__}", "INTERNAL"
            log.error("Checking the master key failed", exc_info=error)
        latency_ms = (described - began) * 1000
        self.state = KmsState(not problem, problem, reason, latency_ms, began, enabled, withdrawn, key_state)
        if not problem:
            self.usable.set()
        try:
            self._changed(self.state)
        except Exception as error:  # nor may a defect of whoever listens
            log.error("Acting on the state of the master key failed", exc_info=error)
        if before.checked_at is not None and problem == before.problem:
            return
        if problem:
            log.error(f"KMS cannot be used: {problem}", cause=cause)  # noqa: G004
        else:
            log.info("KMS is usable, serving", master_key=self._provider.master_key_arn)

    async def _round_trip(self) -> None:
        """Make a key and unwrap it, if that is due. A repetition after a failure keeps the wrapped half."""
        if not self._round_trip_due:
            return
        if self._wrapped is None:
            self._wrapped = (await self._provider.generate_data_key(SEED_BYTES, _CONTEXT)).wrapped
        try:
            await self._provider.unwrap(self._wrapped, _CONTEXT)
        except DoesNotOpen as cause:
            raise BadAnswer(
                "KMS does not open what it wrapped a moment ago: check what answers there, and aws.kms.endpoint if it"
                " is set"
            ) from cause
        self._round_trip_due, self._wrapped = False, None
