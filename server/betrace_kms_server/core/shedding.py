"""Load shedding: whether a call may wait for KMS, for the key store, or for a thread.

A call whose keys are in the cache is answered without a wait, so however full the daemon is, such a call takes nothing
from others. Only what would stay is refused.
"""

from contextvars import ContextVar

from betrace_kms_server.core.errors import Overloaded

_may_wait: ContextVar[bool] = ContextVar("may_wait", default=True)


def forbid_waiting() -> None:
    """Let the call that this task serves wait for nothing."""
    _may_wait.set(False)


def check_may_wait() -> None:
    """Raise Overloaded if the call that this task serves may not wait. To be asked before what makes it wait."""
    if not _may_wait.get():
        raise Overloaded(
            "more calls are in flight than kms.server.max-calls-in-flight allows, and this one would have to wait: call"
            " again a little later"
        )
