"""Keeps looking at the master key, so that everybody can be told how KMS is doing without asking it."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from betrace_kms_server.core.errors import KmsError, cause_of
from betrace_kms_server.providers.protocol import KeyProvider

log = structlog.get_logger()

RETRY_SECONDS = 2.0
"""How soon a master key is looked at again that cannot be used, or that a call said cannot be used."""


@dataclass(frozen=True, slots=True)
class KmsState:
    """What one look at the master key showed."""

    usable: bool
    problem: str = ""
    """One sentence that says what to do next, if it cannot be used."""
    reason: str = ""
    """The error's machine-readable name, if it cannot be used."""
    latency_ms: float | None = None
    checked_at: float | None = None
    """When the look was over, in seconds of a monotonic clock; None before the first."""


class KmsMonitor:
    """Looks at the master key of `provider`, and tells `changed` each state.

    `usable` is set from the first good one on.
    """

    def __init__(
        self,
        provider: KeyProvider,
        changed: Callable[[KmsState], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = KmsState(False, "the master key was not looked at yet: ask again in a moment", "KMS_UNREACHABLE")
        self.usable = asyncio.Event()
        self._provider = provider
        self._changed = changed
        self._clock = clock
        self._looking = asyncio.Lock()
        self._check_requested = asyncio.Event()

    async def watch(self, interval: float) -> None:
        """Look every `interval` seconds, and more often while the master key cannot be used."""
        while True:
            state = await self.fresh(0.0)
            await asyncio.sleep(min(interval, RETRY_SECONDS))  # however many doubt, KMS is asked at most this often
            if state.usable:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._check_requested.wait(), interval - RETRY_SECONDS)
            self._check_requested.clear()

    def request_check(self) -> None:
        """Let `watch` look soon, because a call said that the master key cannot be used."""
        self._check_requested.set()

    async def fresh(self, max_age: float) -> KmsState:
        """Return a state that is at most `max_age` seconds old; callers that ask at once share one look."""
        asked_at = self._clock()
        async with self._looking:
            if self.state.checked_at is None or self.state.checked_at < asked_at - max_age:
                await self._check()
            return self.state

    async def _check(self) -> None:
        """Look once. Says what is wrong when it changes, not every time."""
        before, began = self.state, self._clock()
        problem, reason, cause = "", "", None
        try:
            await self._provider.check()
        except KmsError as error:
            problem, reason, cause = error.message, error.reason, cause_of(error)
        except Exception as error:  # a defect here must not end the watch for good
            problem, reason = f"looking at the master key failed: {type(error).__name__}", "INTERNAL"
            log.error("Looking at the master key failed", exc_info=error)
        now = self._clock()
        self.state = KmsState(not problem, problem, reason, (now - began) * 1000, now)
        if not problem:
            self.usable.set()
        self._changed(self.state)
        if before.checked_at is not None and problem == before.problem:
            return
        if problem:
            log.error(f"KMS cannot be used: {problem}", cause=cause)  # noqa: G004
        else:
            log.info("KMS is usable, serving", master_key=self._provider.master_key_arn)
