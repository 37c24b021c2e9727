"""Which calls of a client travel together as one batch, and what becomes of them. No transport and no clock is in here.

Calls travel together that are alike in their `Key`: kind, tenant, and what a batch has once for all its items. A batch
holds at most 1,000 calls and `Terms.max_bytes`; it lasts as long as the last of its deadlines.

What a batch brings is, for each of its calls, the result of the item, the error of the item, or the error of the whole
batch where each call would have met it alone. In every other case the calls are to be made one by one (`ALONE`): no
call may fail because of its neighbours.
"""

import math
import random
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from betrace_kms_client import errors
from betrace_kms_client.channel import BACKOFF_MULTIPLIER, INITIAL_BACKOFF, MAX_ATTEMPTS, MAX_BACKOFF
from betrace_kms_client.errors import KmsClientError

MAX_ITEMS = 1_000
"""Items that the daemon takes in one call."""
MAX_ITEM_BYTES = 64 * 1024
"""A larger call costs more than the envelope around it: it travels alone, and holds no one up."""
MAX_BYTES = 4 * 1024 * 1024 - 256 * 1024
"""The daemon's default limit of a message, less room for what a batch adds to its calls."""
_LEAST_BYTES = 2 * MAX_ITEM_BYTES
_ITEM_OVERHEAD = 16
AVOIDED_SECONDS = 60.0
"""How long a batch call that the daemon refuses, or does not know, is not tried again."""
_MAX_AVOIDED = 10_000
SAME_DEADLINE = 0.005
"""Seconds by which the deadlines of two calls may differ and still count as one."""

_OF_ALL = (
    errors.Cancelled,
    errors.DeadlineExceeded,
    errors.FailedPrecondition,
    errors.Unauthenticated,
    errors.Unavailable,
)
_REASONS_OF_ALL = frozenset({"BUDGET_EXCEEDED", "KMS_ACCESS_DENIED", "KMS_THROTTLED"})
"""A batch that fails so fails because of its tenant's key, or of the daemon. Others, such as QUOTA_EXCEEDED or
OVERLOADED, may be of calls that would have passed alone."""

W = TypeVar("W")


def checked_delay(seconds: float) -> float:
    """Return for how long calls are to gather, or raise ValueError."""
    if not 0 <= seconds < math.inf:
        raise ValueError(f"coalesce_delay must be 0 or more seconds, not {seconds}")
    return seconds


class Alone:
    """Says that a call is to be made by itself."""


ALONE: Final = Alone()


@dataclass(frozen=True, slots=True)
class Key:
    """What the calls of a batch have in common: the name of the batch call, the tenant, and what else must be alike."""

    batch: str
    tenant_id: str
    shared: Hashable = None


@dataclass(slots=True, eq=False)
class Entry(Generic[W]):
    """A call that waits: its request, the size of that in bytes, its deadline on the caller's clock, and its waiter."""

    request: Any = field(repr=False)
    size: int
    deadline: float
    waiter: W


class Terms:
    """What the daemon allows, as far as is known: how large a batch may be, and which batch calls are to be avoided."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self._avoided: dict[tuple[str, str], float] = {}
        """Until when, by batch call and tenant; the tenant is empty where it does not matter."""

    def allow(self, key: Key, size: int, now: float) -> bool:
        """Return whether a call of `size` bytes may wait for others."""
        if size > MAX_ITEM_BYTES:
            return False
        return not self._avoided or not (
            self._avoids((key.batch, ""), now) or self._avoids((key.batch, key.tenant_id), now)
        )

    def outcome(self, key: Key, error: KmsClientError, now: float) -> "KmsClientError | Alone":
        """Return what each call of a failed batch gets, and remember what the error says about later batches.

        PERMISSION_DENIED by the policy may not hold for the single call, and UNIMPLEMENTED does not: the daemon is
        older than this client. What gRPC refuses is too large.
        """
        if isinstance(error, errors.Unimplemented):
            self._avoid((key.batch, ""), now)
        elif isinstance(error, errors.PermissionDenied) and error.reason == "CALLER_NOT_ALLOWED":
            self._avoid((key.batch, key.tenant_id), now)
        elif isinstance(error, errors.ResourceExhausted) and not error.reason:
            self.max_bytes = max(self.max_bytes // 2, _LEAST_BYTES)
        elif isinstance(error, _OF_ALL) or error.reason in _REASONS_OF_ALL:
            return error
        return ALONE

    def _avoids(self, what: tuple[str, str], now: float) -> bool:
        until = self._avoided.get(what)
        if until is None:
            return False
        if until > now:
            return True
        del self._avoided[what]
        return False

    def _avoid(self, what: tuple[str, str], now: float) -> None:
        if len(self._avoided) >= _MAX_AVOIDED:
            self._avoided.clear()  # they are found out again, each at the price of one call
        self._avoided[what] = now + AVOIDED_SECONDS


def batches_of(entries: Sequence[Entry[W]], max_bytes: int) -> Iterator[list[Entry[W]]]:
    """Split calls that are alike into batches, in order: as many as there need to be."""
    batch: list[Entry[W]] = []
    used = 0
    for entry in entries:
        size = entry.size + _ITEM_OVERHEAD
        if batch and (len(batch) == MAX_ITEMS or used + size > max_bytes):
            yield batch
            batch, used = [], 0
        batch.append(entry)
        used += size
    if batch:
        yield batch


def last(batch: Sequence[Entry[W]]) -> Entry[W]:
    """Return the call of a batch that waits longest: the first of those whose deadlines count as one."""
    latest = max(entry.deadline for entry in batch)
    return next(entry for entry in batch if entry.deadline >= latest - SAME_DEADLINE)


def pause_before(attempt: int, error: KmsClientError) -> float | None:
    """Return for how many seconds to wait before this attempt (2 for the second), or None if there must be none.

    An item is tried as often as gRPC tries a call by the client's service config, and for the same status.
    """
    if attempt > MAX_ATTEMPTS or not isinstance(error, errors.Unavailable):
        return None
    pause: float = min(INITIAL_BACKOFF * BACKOFF_MULTIPLIER ** (attempt - 2), MAX_BACKOFF)
    return pause * random.uniform(0.8, 1.2)  # noqa: S311  # gRFC A6: so that clients do not come back together
