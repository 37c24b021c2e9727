"""Coalescing for threads: calls that find one of their kind on its way gather, and travel together after it.

No thread of its own: the call that waits longest in a batch leads it, so that its own deadline is that of the batch,
and the others wait for it or for their own deadlines. A leader that leaves early, interrupted by a signal, hands on.

What is on its way holds up calls outside of it for at most `PATIENCE` seconds: it may wait for KMS for a key that they
do not need, or its thread may be gone. Then the next batch begins beside it.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from betrace_kms_client.batch_kinds import Kind, kind_of
from betrace_kms_client.coalescing import ALONE, Entry, Key, Terms, batches_of, checked_delay, last, pause_before
from betrace_kms_client.errors import KmsClientError, again, from_item_status, too_late

Send: TypeAlias = Callable[[Any, Any, float], Any]
"""Makes a call: a method of the stub, its request, and the seconds that it may take. Raises KmsClientError."""

PATIENCE = 0.1
"""Seconds: longer than a batch takes whose keys are cached, and shorter than any deadline that is worth setting."""


class _Waiter:
    """Where one call waits for its outcome: a result, an exception, ALONE, or the batch that it is to lead."""

    __slots__ = ("arrived", "outcome")

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.outcome: Any = None

    def give(self, outcome: Any) -> None:
        """Wake the call."""
        self.outcome = outcome
        self.arrived.set()


_Entry: TypeAlias = Entry[_Waiter]


@dataclass(slots=True, eq=False)
class _Lane:
    """The calls of one key, while one of them or a batch is on its way."""

    until: float
    """When what is on its way holds up no one any more."""
    waiting: list[_Entry] = field(default_factory=list)


@dataclass(slots=True)
class _Lead:
    """The batch that a call is to lead, and the lane that waits for it."""

    lane: _Lane
    entries: Sequence[_Entry]


class Coalescer:
    """Makes batches of the calls of threads. `send` makes a call, and `method_of` returns the method of a name."""

    def __init__(
        self,
        send: Send,
        method_of: Callable[[str], Any],
        target: str,
        delay: float,
        *,
        patience: float = PATIENCE,
    ) -> None:
        self._send = send
        self._method_of = method_of
        self._target = target
        self._delay = checked_delay(delay)
        self._patience = patience
        self._lock = threading.Lock()
        self._terms = Terms()
        self._lanes: dict[Key, _Lane] = {}

    def call(self, method: Any, request: Any, seconds: float) -> Any:
        """Return what the call of `method` returns, or an item of a batch that reads like it."""
        kind = kind_of(request)
        deadline, attempt = time.monotonic() + seconds, 1
        if kind is not None and seconds > self._delay:
            key, size = Key(kind.batch, request.tenant_id, kind.shared(request)), request.ByteSize()
            while self._allows(key, size):
                outcome = self._outcome(key, kind, method, Entry(request, size, deadline, _Waiter()))
                if outcome is ALONE:
                    break
                if isinstance(outcome, BaseException):
                    raise outcome
                if not hasattr(outcome, "status") or not outcome.status.code:  # the response of a single call has none
                    return outcome
                attempt, error = attempt + 1, from_item_status(outcome.status)
                pause = pause_before(attempt, error)
                if pause is None or time.monotonic() + pause >= deadline:
                    raise error
                time.sleep(pause)
            seconds = deadline - time.monotonic()
        return self._send(method, request, seconds)

    def _allows(self, key: Key, size: int) -> bool:
        with self._lock:
            return self._terms.allow(key, size, time.monotonic())

    def _outcome(self, key: Key, kind: Kind, method: Any, entry: _Entry) -> Any:
        now = time.monotonic()
        with self._lock:
            lane = self._lanes.get(key)
            if joins := lane is not None and lane.until > now:
                lane.waiting.append(entry)
            else:
                until = min(entry.deadline, now + self._delay + self._patience)
                lane = self._lanes[key] = _Lane(until, lane.waiting if lane else [])
            until = lane.until
        outcome: Any = _Lead(lane, [entry])
        if joins:
            outcome = self._wait(key, entry, until)
        elif self._delay:
            outcome = self._gathered(key, lane, entry)
        if not isinstance(outcome, _Lead):
            return outcome
        if len(outcome.entries) > 1:
            return self._lead(key, kind, entry, outcome)
        try:
            return self._send(method, entry.request, entry.deadline - time.monotonic())
        finally:
            self._hand_on(key, outcome.lane)

    def _gathered(self, key: Key, lane: _Lane, entry: _Entry) -> Any:
        """Let others come for a while, and return what this call is to do then."""
        try:
            time.sleep(self._delay)
        except BaseException:
            self._hand_on(key, lane)
            raise
        self._hand_on(key, lane, [entry])
        return self._wait(key, entry, entry.deadline)

    def _wait(self, key: Key, entry: _Entry, until: float) -> Any:
        """Return what a call gets, or raise DeadlineExceeded. It does not wait to be part of a batch after `until`."""
        try:
            while not entry.waiter.arrived.wait(max(0.0, min(until, entry.deadline) - time.monotonic())):
                if time.monotonic() >= entry.deadline:
                    raise too_late(self._target)
                until = self._go_past(key, entry)
        except BaseException:
            self._leave(key, entry)
            raise
        return entry.waiter.outcome

    def _go_past(self, key: Key, entry: _Entry) -> float:
        """Begin the next batch if a call waits for one, and what is on its way takes long. Returns the next `until`."""
        with self._lock:
            lane = self._lanes.get(key)
            if lane is None or entry not in lane.waiting:
                return entry.deadline
            if lane.until > time.monotonic():
                return lane.until
            lane = self._lanes[key] = _Lane(lane.until, lane.waiting)
        self._hand_on(key, lane)
        return lane.until

    def _leave(self, key: Key, entry: _Entry) -> None:
        with self._lock:
            lane = self._lanes.get(key)
            if lane is not None and entry in lane.waiting:
                lane.waiting.remove(entry)
            outcome = entry.waiter.outcome
        if isinstance(outcome, _Lead):  # just then
            self._hand_on(key, outcome.lane, [other for other in outcome.entries if other is not entry])

    def _lead(self, key: Key, kind: Kind, mine: _Entry, lead: _Lead) -> Any:
        """Make the call of a batch, give the others their outcomes, and return one's own."""
        entries = lead.entries
        outcomes: Sequence[Any] = [ALONE] * len(entries)
        try:
            request = kind.gathered(key.tenant_id, [entry.request for entry in entries])
            response = self._send(self._method_of(kind.batch), request, mine.deadline - time.monotonic())
            if len(response.results) == len(entries):
                outcomes = response.results
        except KmsClientError as error:
            with self._lock:
                outcome = self._terms.outcome(key, error, time.monotonic())
            outcomes = [outcome if outcome is ALONE else again(error) for _ in entries]
        except Exception as error:  # noqa: BLE001  # of gRPC, for example when the channel is closed: all calls meet it
            outcomes = [error] * len(entries)
        except BaseException:
            self._hand_on(key, lead.lane, [entry for entry in entries if entry is not mine])
            raise
        self._hand_on(key, lead.lane)
        own: Any = ALONE
        for entry, outcome in zip(entries, outcomes, strict=True):
            if entry is mine:
                own = outcome
            else:
                entry.waiter.give(outcome)
        return own

    def _hand_on(self, key: Key, lane: _Lane, first: Sequence[_Entry] = ()) -> None:
        """Let the next batch begin, with the calls that are given before those that wait. The lane ends without any."""
        with self._lock:
            if self._lanes.get(key) is not lane:  # it took too long, and another one was begun, which has the others
                for entry in first:
                    entry.waiter.give(ALONE)
                return
            waiting = [*first, *lane.waiting]
            batch = next(batches_of(waiting, self._terms.max_bytes), None)
            if batch is None:
                del self._lanes[key]
                return
            lane.waiting = waiting[len(batch) :]
            leader = last(batch)
            lane.until = min(leader.deadline, time.monotonic() + self._patience)
            leader.waiter.give(_Lead(lane, batch))
