"""Admits calls: who calls, may that caller do this for this tenant, and how much."""

from typing import Any, Protocol

from betrace_kms_server.access.identity import Authenticator, Caller, Context
from betrace_kms_server.access.quotas import CallQuota
from betrace_kms_server.core.key_event import KeyEvent


class Policy(Protocol):
    """Decides what callers may do."""

    def check(self, caller: Caller, operation: str, tenant_id: str) -> str:
        """Return the name of the rule that allows this call, for the audit line. Raises CallerNotAllowed.

        `operation` is the name of the call, e.g. "SignSpan"; `tenant_id` is as the caller sent it.
        """


class Access:
    """Admits the calls of one server. Without a policy every caller that is identified may do everything.

    `quota`, if there is one, is to be spent by each call that `check` let through.
    """

    def __init__(
        self, authenticator: Authenticator, policy: Policy | None = None, quota: CallQuota | None = None
    ) -> None:
        self._authenticator = authenticator
        self._policy = policy
        self.quota = quota
        self.recognised = authenticator.recognised
        self.by_connection = authenticator.by_connection

    def identify(self, context: Context, event: KeyEvent | None, recognised: Caller | None = None) -> Caller:
        """Return the caller, and note it in the call's event. Raises Unauthenticated."""
        caller = recognised or self._authenticator.identify(context)
        if event is not None:
            event.identity = caller.name
        return caller

    def check(self, caller: Caller, operation: str, request: Any, event: KeyEvent | None) -> None:
        """Raise CallerNotAllowed unless the policy, if there is one, allows this call for `request.tenant_id`."""
        if self._policy is None:
            return
        rule = self._policy.check(caller, operation, request.tenant_id)
        if event is not None:
            event.rule = rule
