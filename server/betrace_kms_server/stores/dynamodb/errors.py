"""What the AWS SDK raises for a call to DynamoDB, as StoreUnavailable with one sentence that says what to do."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from betrace_kms_server.aws import sdk_errors as aws_sdk
from betrace_kms_server.aws.holder import DAEMON, Holder
from betrace_kms_server.core.errors import StoreUnavailable
from betrace_kms_server.host.process import descriptor_shortage

PERMISSIONS: Mapping[str, str] = {
    "TransactGetItems": "dynamodb:GetItem",
    "TransactWriteItems": "dynamodb:PutItem and dynamodb:UpdateItem",
}
"""What an action needs that has no permission of its own name (DynamoDB developer guide, transaction-apis-iam)."""

_DENIED = re.compile(r"not authorized to perform: (dynamodb:[A-Za-z]{1,64})")
_CODE = re.compile(r"[A-Za-z.]{1,64}")
_REASONS = re.compile(r"specific reasons \[([A-Za-z, ]*)\]")
_CONDITION = "ConditionalCheckFailed"


@dataclass(frozen=True, slots=True)
class Call:
    """A call that failed: its action, its table by ARN, or by name while nothing else is known, and who made it."""

    action: str
    table: str
    holder: Holder


def _permission(cause: BaseException, action: str) -> str:
    """Return the permission that is missing: the one that AWS names, which of a transaction is a part's."""
    said = _DENIED.search(_message(cause))
    return said[1] if said else PERMISSIONS.get(action, f"dynamodb:{action}")


def _denied(cause: BaseException, call: Call) -> StoreUnavailable:
    permission = _permission(cause, call.action)
    return StoreUnavailable(
        f"DynamoDB denies {permission} on {call.table}: allow it to {call.holder.role} in its IAM policy, and in"
        " the policies of the table and of the VPC endpoint if there are such",
        metadata={"action": permission, "table": call.table},
        place="table",
    )


def _throttled(_cause: BaseException, call: Call) -> StoreUnavailable:
    return StoreUnavailable(
        f"DynamoDB throttles dynamodb:{call.action} on {call.table}: try again later; if it stays, raise the table's"
        " maximum throughput, or ask AWS for a higher quota",
        place="table",
    )


def _contended(_cause: BaseException, call: Call) -> StoreUnavailable:
    return StoreUnavailable(
        f"too many write to the same tenant in {call.table} at once (dynamodb:{call.action}): try again later",
        place="table",
    )


def _missing(_cause: BaseException, call: Call) -> StoreUnavailable:
    return StoreUnavailable(
        f"the DynamoDB table {call.table} is not there: check kms.store.table, kms.branch-keys.table and"
        " kms.store.region; if it was deleted, restore it from a backup",
        place="table",
    )


def _unreachable(_cause: BaseException, call: Call) -> StoreUnavailable:
    if shortage := descriptor_shortage():
        return StoreUnavailable(shortage, place="process")
    return StoreUnavailable(
        f"no answer from DynamoDB to dynamodb:{call.action} on {call.table}: check kms.store.region, the route to"
        " DynamoDB, and kms.store.endpoint if it is set",
        place="table",
    )


def _changing(_cause: BaseException, call: Call) -> StoreUnavailable:
    return StoreUnavailable(
        f"the DynamoDB table {call.table} is being changed (dynamodb:{call.action}): try again when it is ACTIVE",
        place="table",
    )


def _credentials(_cause: BaseException, call: Call) -> StoreUnavailable:
    return StoreUnavailable(
        f"{call.holder.credentials} for the key store are missing, expired or refused: check {call.holder.role}, the"
        " environment and the machine's clock",
        place="table",
    )


Translation = Callable[[BaseException, Call], StoreUnavailable]

CODES: Mapping[str, Translation] = {
    # Amazon DynamoDB API reference, "Errors" of the actions that we use
    "ContinuousBackupsUnavailableException": _changing,
    "InternalServerError": _unreachable,
    "LimitExceededException": _throttled,
    "ProvisionedThroughputExceededException": _throttled,
    "ReplicatedWriteConflictException": _contended,
    "ResourceInUseException": _changing,
    "ResourceNotFoundException": _missing,
    "TableNotFoundException": _missing,
    "TransactionConflictException": _contended,
    "TransactionInProgressException": _contended,
    **dict.fromkeys(aws_sdk.DENIED_CODES, _denied),
    **dict.fromkeys(aws_sdk.THROTTLED_CODES, _throttled),
    **dict.fromkeys(aws_sdk.UNREACHABLE_CODES, _unreachable),
    **dict.fromkeys(aws_sdk.CREDENTIALS_CODES, _credentials),
}


DEFECTS = frozenset(
    {
        "DuplicateItem",
        "IdempotentParameterMismatchException",
        "ItemCollectionSizeLimitExceeded",
        "ItemCollectionSizeLimitExceededException",
        "ValidationError",
        "ValidationException",
    }
)
"""Codes and reasons that only a request of ours which is wrong can have."""

LASTING_REASONS: Mapping[str, Translation] = {"AccessDenied": _denied, "ResourceNotFound": _missing}
PASSING_REASONS: Mapping[str, Translation] = {
    "ProvisionedThroughputExceeded": _throttled,
    "RequestLimitExceeded": _throttled,
    "ThrottlingError": _throttled,
    "InternalServerError": _unreachable,
    "ReplicatedWriteConflict": _contended,
    "TransactionConflict": _contended,
}
"""Why a transaction was cancelled as a whole. For a passing reason it may be tried again at once."""


def translated(cause: Exception, action: str, table: str, holder: Holder = DAEMON) -> StoreUnavailable:
    """Return our error for whatever a call through the SDK raised.

    `table` is the table's ARN, or its name as long as nothing else is known. `holder` is whose credentials signed.
    """
    call = Call(action, table, holder)
    if (trouble := aws_sdk.trouble_of(cause, "DynamoDB")) is not None:
        return StoreUnavailable(trouble.message, metadata={"kind": trouble.kind})
    if isinstance(cause, ClientError):
        return _of_answer(cause, call)
    if isinstance(cause, aws_sdk.CREDENTIALS):
        return _credentials(cause, call)
    if isinstance(cause, aws_sdk.NETWORK):
        return _unreachable(cause, call)
    return StoreUnavailable(
        f"the AWS SDK fails at dynamodb:{action} on {table} with {type(cause).__name__}: check kms.store.endpoint and"
        " the AWS_* environment",
        metadata={"kind": "sdk"},
    )


def _of_answer(cause: ClientError, call: Call) -> StoreUnavailable:
    if (
        getattr(cause, "operation_name", call.action) != call.action
    ):  # the SDK asked STS for credentials first, and STS refused
        return _credentials(cause, call)
    known = CODES.get(code_of(cause)) or _of_cancellation(_cancellation_reasons(cause))
    if known is not None:
        return known(cause, call)
    status = aws_sdk.status_of(cause)
    if status == 403:
        return _denied(cause, call)
    if status >= 500:
        return _unreachable(cause, call)
    code = code_of(cause)
    named = code if _CODE.fullmatch(code) else "an error without a name"
    return StoreUnavailable(
        f"DynamoDB refuses dynamodb:{call.action} on {call.table} with {named}: check kms.store.endpoint and the"
        " table's name, and report it if both are right",
        metadata={"kind": "unknown_code"},
    )


def _of_cancellation(reasons: frozenset[str]) -> Translation | None:
    """Return what the reasons of a cancelled transaction mean: a defect first, then what lasts, then what passes."""
    if not reasons.isdisjoint(DEFECTS):
        return None
    known = {**LASTING_REASONS, **PASSING_REASONS}
    return next((translation for reason, translation in known.items() if reason in reasons), None)


def is_refusal(cause: BaseException) -> bool:
    """Return whether a write was not done because one of its conditions does not hold."""
    return code_of(cause) == "ConditionalCheckFailedException" or _CONDITION in _cancellation_reasons(cause)


def is_contention(cause: BaseException) -> bool:
    """Return whether a write was not done because others were in its way, so that it may be tried again at once."""
    if code_of(cause) in ("TransactionConflictException", "ReplicatedWriteConflictException"):
        return True
    reasons = _cancellation_reasons(cause)
    return bool(reasons) and reasons <= PASSING_REASONS.keys()


def _cancellation_reasons(cause: BaseException) -> frozenset[str]:
    if code_of(cause) != "TransactionCanceledException" or not isinstance(cause, ClientError):
        return frozenset()
    listed: Any = cause.response.get("CancellationReasons")
    if listed:
        return frozenset(reason.get("Code", "None") for reason in listed) - {"None"}
    said = _REASONS.search(_message(cause))
    return frozenset(said[1].replace(" ", "").split(",")) - {"None"} if said else frozenset()


def code_of(cause: BaseException | None) -> str:
    """Return AWS's code of an error; of one that AWS did not answer, nothing."""
    return aws_sdk.code_of(cause) if isinstance(cause, ClientError) else ""


def _message(cause: BaseException) -> str:
    return (
        str(getattr(cause, "response", {}).get("Error", {}).get("Message", ""))
        if isinstance(cause, ClientError)
        else ""
    )
