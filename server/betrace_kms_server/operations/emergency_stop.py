"""The emergency stop: while it is in force, the daemon caches no secret key and uses none for callers.

It is a row of the key store, so that it reaches every daemon on that store and outlives a restart. The daemon that an
operator asks stops at once, whatever the store does, and writes the row again and again until the store has it. What
a check cannot read changes nothing. Until the first check was good the state is not known, and no key is used.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from betrace_kms_server.cache.key_caches import KeyCaches
from betrace_kms_server.core.errors import LOCKED, InvalidRequest, KmsError, Locked, StoreUnavailable, cause_of
from betrace_kms_server.core.lock_state import LockState
from betrace_kms_server.stores.protocol import KeyStore

log = structlog.get_logger()

_UNKNOWN = "the key store was not yet asked whether an emergency stop is in force: call again in a moment"
_REASON_CHARACTERS = 200


def checked_reason(text: str) -> str:
    """Return an operator's reason. Raises InvalidRequest for one that is no line of 1 to 200 characters."""
    if not 1 <= len(text) <= _REASON_CHARACTERS or not text.isprintable() or not text.strip():
        raise InvalidRequest(f"reason must be one line of 1 to {_REASON_CHARACTERS} printable characters")
    return text


@dataclass(frozen=True, slots=True)
class Stopped:
    """What a lock did."""

    entries: int
    """Cache entries that were dropped."""
    store_problem: str
    """Why the store does not have it, so that other daemons were not reached; "" if it has."""


class EmergencyStop:
    """Keeps the state of one daemon. `changed` gets whether keys are refused, at each change of that."""

    def __init__(
        self,
        store: KeyStore,
        caches: KeyCaches,
        changed: Callable[[bool], None],
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.state: LockState | None = None
        """The stop that is in force, if it is known."""
        self.refuses = asyncio.Event()
        """Set while keys are refused: a stop is in force, or it is not known yet whether one is."""
        self.permits = asyncio.Event()
        """Set while they are not."""
        self._known = False
        self._unsaved = False
        self._store = store
        self._caches = caches
        self._changed = changed
        self._now = now
        self._turn = asyncio.Lock()
        self._problem = ""
        self.refuses.set()
        caches.lock()
        changed(True)

    @property
    def refusing(self) -> bool:
        """Whether keys are refused now."""
        return self.refuses.is_set()

    def refusal(self) -> KmsError:
        """Return what a call is refused with."""
        return Locked(LOCKED) if self._known else StoreUnavailable(_UNKNOWN)

    async def lock(self, reason: str) -> Stopped:
        """Stop this daemon at once, and then every daemon on its store."""
        state = LockState(reason, int(self._now() * 1000))
        self._unsaved = True
        entries = self._apply(state)
        async with self._turn:
            problem = await self._save()
        return Stopped(entries, problem)

    async def unlock(self) -> bool:
        """End the stop, for every daemon on the store. Returns whether one was in force here.

        Raises StoreUnavailable, and then this daemon stays as it is.
        """
        before = self.state
        async with self._turn:
            await self._store.set_lock(None)
            if self.state is before:  # else a lock came while the store answered: it is written next
                self._unsaved = False
                self._apply(None)
        return before is not None

    async def check(self) -> None:
        """Do what the store says, or let the store have what it lacks. A store that fails changes nothing."""
        async with self._turn:
            if self._unsaved:
                await self._save()
                return
            try:
                found = await self._store.lock_state()
            except Exception as error:  # noqa: BLE001  # a defect must not end the watch for good
                self._report(error)
                return
            self._problem = ""
            if not self._unsaved:  # no lock came while the store answered
                self._apply(found)

    async def watch(self, interval: float) -> None:
        """Check every `interval` seconds."""
        while True:
            await asyncio.sleep(interval)
            await self.check()

    async def _save(self) -> str:
        """Write the present stop to the store. Returns what went wrong."""
        state = self.state
        try:
            await self._store.set_lock(state)
        except Exception as error:  # noqa: BLE001  # as above
            return self._report(error)
        self._unsaved = self.state is not state
        self._problem = ""
        return ""

    def _apply(self, state: LockState | None) -> int:
        """Make a state this daemon's. Returns how many cache entries were dropped."""
        before, self.state = (self.state, self._known), state
        self._known = True
        entries = 0
        if state is not None:
            self.refuses.set()
            self.permits.clear()
            entries = self._caches.lock()
        else:
            self.refuses.clear()
            self.permits.set()
            self._caches.unlock()
        if before != (state, True):
            if state is not None:
                log.error("Emergency stop: every secret key was dropped, and calls are refused", reason=state.reason)
            elif before[0] is not None:
                log.warning("The emergency stop has ended: calls are answered again")
            self._changed(self.refusing)
        return entries

    def _report(self, error: Exception) -> str:
        """Log a failure of the store when it changes, not every time. Returns its text."""
        text = error.message if isinstance(error, KmsError) else "internal error: the daemon's log has it"
        if text != self._problem:
            self._problem = text
            known = isinstance(error, KmsError)
            log.error(
                f"The emergency stop cannot be read or written: {text}",  # noqa: G004
                cause=cause_of(error),
                exc_info=None if known else error,
            )
        return text
