"""Every error that a caller or an operator can meet, named for its condition.

::

    KmsError
    ├── Unauthenticated           the caller did not say who it is, or not with valid credentials
    ├── CallerNotAllowed          the caller is known, and no rule of the policy lets it do this
    ├── InvalidRequest            a field is missing, malformed or too large
    ├── DoesNotOpen               a ciphertext does not open, for whatever reason: one text, no oracle
    ├── NoSigningKey              the tenant has no key and none may be made
    ├── NoBranchKeyStore          MACs are asked for, and there is no table to keep their keys
    ├── MasterKeyUnusable         the master key is missing, disabled, pending deletion or of another usage
    ├── BadAnswer                 KMS answered, and not what it was asked for
    ├── KeyDamaged                a stored key is not what it was when it was written
    ├── AccessDenied              KMS denies one of our four actions
    ├── Throttled                 KMS asks us to slow down
    ├── QuotaExceeded             a tenant used up its quota of calls to this daemon
    ├── BudgetExceeded            a tenant, or the daemon, used up its budget of calls to KMS
    ├── Overloaded                more calls wait for KMS than the daemon lets wait
    ├── KmsUnreachable            no answer from KMS in time
    ├── CredentialsUnavailable    the daemon's own AWS credentials are missing or expired
    ├── Stopping                  the daemon stops before the key came that a call waits for
    ├── StoreUnavailable          the key store is unreachable, full or read-only
    ├── Locked                    an operator's emergency stop is in force
    ├── TenantPendingShred        the tenant's keys are to be destroyed, which can still be cancelled
    ├── TenantShredded            the tenant's keys were destroyed, or are being destroyed
    └── AuditUnavailable          the audit trail cannot be written, and kms.audit.required is set
    StartRefused                  the daemon cannot start safely; exit code 2

Messages are written for the caller: they say what to do next and hold no key material, plaintext, token or raw answer
of an SDK. What an SDK said stays in ``__cause__``, for the log. Which gRPC status an error becomes is the business of
rpc/status.py alone.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

_CAUSE_CHARACTERS = 300
LOCKED = (
    "an emergency stop is in force, and no key is used until it ends: ask the operators of this daemon, who can end it"
    " on the admin socket with `betrace-kms unlock`"
)
"""Text of Locked."""
PENDING_SHRED = (
    "the tenant's keys are about to be destroyed, and nothing is encrypted or decrypted for it: ask the operators of"
    " this daemon, who can cancel that with `betrace-kms shred --cancel` until it is due"
)
SHREDDED = (
    "the tenant was shredded, and what was encrypted for it is lost: to encrypt for it anew, ask the operators of this"
    " daemon for `betrace-kms shred --recreate`"
)

Place = Literal["volume", "table", "process"]


class KmsError(Exception):
    """An error whose message may be shown to the caller.

    `metadata` holds names and numbers that help a program (google.rpc.ErrorInfo), never secrets.
    """

    reason: ClassVar[str]
    """Machine-readable name of the condition, UPPER_SNAKE_CASE as google.rpc.ErrorInfo asks for."""

    retry_after: float | None = None
    """Seconds after which the same call may succeed, where it may."""

    def __init__(self, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})


class Unauthenticated(KmsError):
    """The call carries no credentials that this address accepts. The text is one for every cause."""

    reason = "UNAUTHENTICATED"


class CallerNotAllowed(KmsError):
    """No rule lets this caller do this for this tenant, be there such a tenant or not."""

    reason = "CALLER_NOT_ALLOWED"

    def __init__(self, identity: str, operation: str) -> None:
        who = f"caller {identity}" if identity else "a caller that is not authenticated"
        super().__init__(
            f"{who} may not call {operation} for this tenant: ask the daemon's operator for a rule in kms.policy.file",
            metadata={"identity": identity, "operation": operation},
        )


class InvalidRequest(KmsError):
    """A field is missing, malformed or too large; the message names it."""

    reason = "INVALID_REQUEST"


class DoesNotOpen(KmsError):
    """A ciphertext does not open. The text is one for every cause, so that no one learns how close a forgery came."""

    reason = "CIPHERTEXT_DOES_NOT_OPEN"

    def __init__(self) -> None:
        super().__init__(
            "the ciphertext does not open: check that it is whole and that tenant_id and encryption_context are those"
            " it was made with; if its master key is no longer the daemon's, list that key in aws.kms.decrypt-key-ids,"
            " or its provider in kms.former-providers"
        )


class NoSigningKey(KmsError):
    """The tenant has no signing key and `kms.signing.auto-create` is off."""

    reason = "NO_SIGNING_KEY"


class NoBranchKeyStore(KmsError):
    """The key store is a DynamoDB table, and no table of branch keys is configured, where the keys of MACs are."""

    reason = "NO_BRANCH_KEY_STORE"

    def __init__(self) -> None:
        super().__init__(
            "there is no table for the keys of MACs: make one with `betrace-kms keystore init`, and"
            " set kms.branch-keys.table"
        )


class MasterKeyUnusable(KmsError):
    """The master key does not exist, is disabled, is pending deletion, or is no symmetric encryption key.

    `state` is the key's state if the service named it, and NotFound if it knows no such key. `withdrawn` is set if
    somebody decided that the key must not be used: then the keys that it wrapped must not be used from the cache
    either. An outage is no such decision.
    """

    reason = "MASTER_KEY_UNUSABLE"

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        state: str | None = None,
        withdrawn: bool = False,
    ) -> None:
        super().__init__(message, metadata=metadata)
        self.state = state
        self.withdrawn = withdrawn


class BadAnswer(KmsError):
    """KMS answered, and not what it was asked for: a key of another length, of another master key, or no key.

    The answer is not used, and the call is not repeated: what answers there is broken or is not KMS.
    """

    reason = "KMS_BAD_ANSWER"


class KeyDamaged(KmsError):
    """A stored key is not what was written. It is left as it is and never replaced."""

    reason = "KEY_DAMAGED"


class AccessDenied(KmsError):
    """KMS denies one of our four actions; the message names it.

    `principal` is whom KMS takes the daemon for, if it said so. It is for operators: callers must not learn it.
    """

    reason = "KMS_ACCESS_DENIED"

    def __init__(
        self, message: str, *, metadata: Mapping[str, str] | None = None, principal: str | None = None
    ) -> None:
        super().__init__(message, metadata=metadata)
        self.principal = principal


class Throttled(KmsError):
    """KMS asks for fewer calls."""

    reason = "KMS_THROTTLED"
    retry_after = 2.0


class QuotaExceeded(KmsError):
    """The quota of calls of a tenant is used up. `retry_after` is until this call passes, if no other comes first."""

    reason = "QUOTA_EXCEEDED"
    retry_after = 1.0

    def __init__(self, retry_after: float = 1.0) -> None:
        super().__init__(
            "the tenant's quota of calls is used up: call again when RetryInfo says, send fewer calls or smaller"
            " batches, or let the daemon's operator raise kms.quota.tenant-per-second"
        )
        self.retry_after = retry_after


class BudgetExceeded(KmsError):
    """The budget of calls to KMS of a tenant or of the daemon is used up. `retry_after` is until the next token."""

    reason = "BUDGET_EXCEEDED"
    retry_after = 1.0

    def __init__(self, scope: str = "tenant", retry_after: float = 1.0) -> None:
        super().__init__(
            f"the {scope}'s budget of calls to KMS is used up: reuse data keys and encryption contexts, or raise"
            f" kms.budget.{'tenant-' if scope == 'tenant' else ''}per-second",
            metadata={"budget": scope},
        )
        self.retry_after = retry_after


class Overloaded(KmsError):
    """More calls wait for a service than this daemon lets wait. The service itself is not at fault."""

    reason = "OVERLOADED"
    retry_after = 2.0


class KmsUnreachable(KmsError):
    """No answer from KMS in time, or one that says that it is out of order."""

    reason = "KMS_UNREACHABLE"
    retry_after = 1.0


class CredentialsUnavailable(KmsError):
    """The daemon's own AWS credentials are missing, expired or refused."""

    reason = "KMS_CREDENTIALS_UNAVAILABLE"
    retry_after = 5.0


class Stopping(KmsError):
    """The daemon stops, and ended the load of the key that this call waits for."""

    reason = "STOPPING"
    retry_after = 1.0


class StoreUnavailable(KmsError):
    """The key store cannot be read or written now.

    `place` names the place of the cause: the volume or the table of the store, or this process.
    """

    reason = "KEY_STORE_UNAVAILABLE"
    retry_after = 1.0

    def __init__(self, message: str, *, metadata: Mapping[str, str] | None = None, place: Place = "volume") -> None:
        super().__init__(message, metadata=metadata)
        self.place = place


class Locked(KmsError):
    """An emergency stop is in force: another try helps only after an operator has ended it."""

    reason = "LOCKED"


class TenantPendingShred(KmsError):
    """An operator asked to shred the tenant. Another try helps only after an operator has cancelled that."""

    reason = "TENANT_PENDING_SHRED"

    def __init__(self, message: str = PENDING_SHRED, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message, metadata=metadata)


class TenantShredded(KmsError):
    """The tenant's keys were destroyed, or are being destroyed. What they sealed is lost for ever."""

    reason = "TENANT_SHREDDED"

    def __init__(self, message: str = SHREDDED, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message, metadata=metadata)


class AuditUnavailable(KmsError):
    """What is done now could not be recorded, and `kms.audit.required` is set."""

    reason = "AUDIT_UNAVAILABLE"
    retry_after = 1.0


class StartRefused(Exception):
    """The daemon does not start: each line says what to fix. The process exits with code 2."""


def cause_of(error: BaseException) -> str | None:
    """Return what an SDK or a library said, for the log alone: it may name principals and endpoints."""
    cause = error.__cause__
    if cause is None:
        return None
    try:
        said = str(cause)
    except Exception:  # noqa: BLE001  # some exceptions of libraries cannot be printed
        said = "(no text)"
    return f"{type(cause).__name__}: {said}"[:_CAUSE_CHARACTERS]
