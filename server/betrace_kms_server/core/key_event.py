"""What happened to a key, noted on the way: read by the audit trail, by traces and by logs.

The edge that begins something (a call, a job of the daemon's own) makes a KeyEvent and passes it down, and whatever
happens below notes what only it knows: the cache a miss. Only the request ids of KMS arrive by a context variable,
because a provider does not know for whom it is asked; asyncio hands it on to the tasks that a call starts.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

R = TypeVar("R")

DAEMON = "daemon"
"""The caller of what the daemon does automatically."""


@dataclass(slots=True)
class KeyEvent:
    """One operation with keys of one tenant. Holds no key, plaintext or context of a caller."""

    operation: str
    """Name of the call, e.g. "SignSpan", or of the daemon's own job, e.g. "RefreshKey"."""
    tenant_id: str
    key_id: str = ""
    """Id of the signing key, or ARN of the master key behind a data key."""
    caller: str = DAEMON
    """The caller's address and what its client calls itself."""
    result: str = "OK"
    """OK, or the reason of the error."""
    cache_hit: bool | None = None
    """None where no cache was asked."""
    kms_request_ids: list[str] = field(default_factory=list)
    """AWS request ids of the calls to KMS that this operation waited for, to join with CloudTrail."""
    request_id: str = ""
    trace_id: str = ""
    """W3C trace id (32 hexadecimal digits), if the caller sent one."""
    items: int = 1
    """Number of spans or payloads, in a batch."""
    identity: str = ""
    """Who the caller is, if it was authenticated."""
    rule: str = ""
    """The rule of the policy that allowed the call, if there is a policy. Not for callers."""
    unrecoverable_after: str = ""
    """Of a shredding: from when no copy of the key that is known of is left (RFC 3339), if that is known."""
    span: Any = field(default=None, repr=False)
    """The trace span, if this operation is traced."""


Recorder = Callable[[KeyEvent], None]
"""Takes an event that is over. Never raises and never waits."""

current_event: ContextVar[KeyEvent | None] = ContextVar("current_event", default=None)
"""Whose KMS request ids the running task collects, if the call is observed."""


def ignore(event: KeyEvent) -> None:
    """Record nothing."""


def note_miss(event: KeyEvent | None) -> None:
    """Note in an event, if there is one, that a cache was asked in vain."""
    if event is not None:
        event.cache_hit = False


def part_of(whole: KeyEvent | None, operation: str, tenant_id: str, key_id: str) -> KeyEvent:
    """Return an event of its own for something that is done within another, if there is one."""
    whole = whole or KeyEvent(operation, tenant_id)
    calls = list(whole.kms_request_ids)
    return replace(
        whole, operation=operation, tenant_id=tenant_id, key_id=key_id, result="OK", items=1, kms_request_ids=calls
    )


async def recorded(event: KeyEvent, record: Recorder, work: Awaitable[R]) -> R:
    """Do what an event is about, as the current one, and record how it ended. Raises what `work` raises."""
    token = current_event.set(event)
    try:
        return await work
    except Exception as error:
        event.result = getattr(error, "reason", "INTERNAL")
        raise
    finally:
        current_event.reset(token)
        record(event)


def note_shared(event: KeyEvent | None, other: KeyEvent | None) -> None:
    """Note in an event that it waited for KMS calls that were made for another one."""
    if event is not None and other is not None and event is not other:
        event.kms_request_ids += other.kms_request_ids


class KmsCall(Protocol):
    """One call to KMS, while it runs."""

    def answered(self, request_id: str | None) -> None:
        """Note the request id of KMS's answer, be it good or bad."""


KmsObserver = Callable[[str, str], AbstractContextManager[KmsCall]]
"""Observes a call to KMS, given its action ("Decrypt") and region; how it ends is known by what leaves the context."""


class _Unobserved:
    def answered(self, request_id: str | None) -> None: ...


def unobserved(action: str, region: str) -> AbstractContextManager[KmsCall]:
    """Observe nothing."""
    return nullcontext(_Unobserved())
