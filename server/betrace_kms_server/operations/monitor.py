"""Checks the master key in the background, so that how KMS is can be said without asking it.

DescribeKey says whether the key exists and is enabled, and nothing of whether the daemon may use it. So after KMS
denied an action, checks also wrap and unwrap a key, until that succeeds. A standing check costs one DescribeKey.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from betrace_kms_server.core.errors import AccessDenied, BadAnswer, KmsError, MasterKeyUnusable, cause_of
from betrace_kms_server.core.tenancy import encryption_context
from betrace_kms_server.providers.protocol import KeyProvider

log = structlog.get_logger()

_PROBE_CONTEXT = encryption_context("betrace-kms:check", {})
_PROBE_BYTES = 32

RETRY_SECONDS = 2.0
"""How soon a master key is checked again that cannot be used, or that a call found unusable."""


@dataclass(frozen=True, slots=True)
class KmsState:
    """What one check of the master key showed."""

    usable: bool
    problem: str = ""
    """One sentence that says what to do next, if it cannot be used."""
    reason: str = ""
    """The error's machine-readable name, if it cannot be used."""
    latency_ms: float | None = None
    checked_at: float | None = None
    """When the check was over, in seconds of a monotonic clock; None before the first."""
    key_forbidden: bool = False
    """Whether somebody disabled the master key or let it be deleted, so that what it wrapped may not be used."""


class KmsMonitor:
    """Checks the master key of `provider`, and calls `changed` with each state.

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
        self._permitted = True

    async def watch(self, interval: float) -> None:
        """Check every `interval` seconds, and more often while the master key cannot be used."""
        while True:
            self._check_requested.clear()  # before the check: a request during it may know more than its answer
            state = await self.fresh(0.0)
            await asyncio.sleep(min(interval, RETRY_SECONDS))  # KMS is asked at most this often, whoever requests it
            if state.usable:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._check_requested.wait(), interval - RETRY_SECONDS)

    def request_check(self, error: KmsError) -> None:
        """Let `watch` check soon, because a call found the master key unusable, or was denied."""
        if isinstance(error, AccessDenied):
            self._permitted = False
        self._check_requested.set()

    async def fresh(self, max_age: float) -> KmsState:
        """Return a state that is at most `max_age` seconds old; callers that ask at once share one check."""
        asked_at = self._clock()
        async with self._checking:
            if self.state.checked_at is None or self.state.checked_at < asked_at - max_age:
                await self._check()
            return self.state

    async def _check(self) -> None:
        """Check once. Logs what is wrong when it changes, not every time."""
        before, began = self.state, self._clock()
        problem, reason, cause, forbidden = "", "", None, False
        try:
            await self._provider.check()
            latency = (self._clock() - began) * 1000
            await self._try_permissions()
        except KmsError as error:
            latency = (self._clock() - began) * 1000
            problem, reason, cause = error.message, error.reason, cause_of(error)
            forbidden = isinstance(error, MasterKeyUnusable) and error.decided
        except Exception as error:  # a defect here must not end the watch for good
            latency = (self._clock() - began) * 1000
            problem, reason = f"the check of the master key failed: {type(error).__name__}", "INTERNAL"
            if problem != before.problem:
                log.error("The check of the master key failed", exc_info=error)
        now = self._clock()
        self.state = KmsState(not problem, problem, reason, latency, now, forbidden)
        if not problem:
            self.usable.set()
        self._changed(self.state)
        if before.checked_at is not None and problem == before.problem:
            return
        if problem:
            log.error(f"KMS cannot be used: {problem}", cause=cause)  # noqa: G004
        else:
            log.info("KMS is usable, serving", master_key=self._provider.master_key_arn)

    async def _try_permissions(self) -> None:
        """Wrap and unwrap a key, until that succeeded. Raises AccessDenied for the action that is missing."""
        if self._permitted:
            return
        made = await self._provider.generate_data_key(_PROBE_BYTES, _PROBE_CONTEXT)
        opened = await self._provider.unwrap(made.wrapped, _PROBE_CONTEXT)
        if opened.raw != made.material.raw:
            raise BadAnswer("KMS opened another key than it had wrapped: check what answers there")
        self._permitted = True
