"""What a call can raise: one exception for each gRPC status that the daemon uses.

::

    KmsClientError
    ├── InvalidRequest        INVALID_ARGUMENT: the request is malformed, or the ciphertext does not open
    ├── NotFound              NOT_FOUND: the tenant has no key where none may be made
    ├── FailedPrecondition    FAILED_PRECONDITION: the master key cannot be used
    ├── KeyDataLoss           DATA_LOSS: a stored key is damaged
    ├── PermissionDenied      PERMISSION_DENIED: KMS denies the daemon an action
    ├── Unauthenticated       UNAUTHENTICATED: the daemon does not know the caller
    ├── ResourceExhausted     RESOURCE_EXHAUSTED: throttled, past a quota, or a message is too large
    ├── Unavailable           UNAVAILABLE: the daemon, KMS or the key store does not answer
    ├── DeadlineExceeded      DEADLINE_EXCEEDED: no answer within the client's timeout
    ├── Unimplemented         UNIMPLEMENTED: the daemon is older than this client
    ├── Cancelled             CANCELLED: the call was cancelled
    └── InternalError         anything else: a defect; the daemon's log has it under `request_id`
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import grpc
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from betrace.kms.v1.key_management_pb2 import ItemStatus
    from google.protobuf.any_pb2 import Any as AnyMessage

_DETAILS = "grpc-status-details-bin"


class KmsClientError(Exception):
    """A call that failed.

    `reason` is the daemon's name for the condition, e.g. "CIPHERTEXT_DOES_NOT_OPEN", or "" if the daemon did not
    answer. `retry_after` is in seconds, None where another try is not worth it.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        request_id: str = "",
        retry_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.request_id = request_id
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})


class InvalidRequest(KmsClientError):
    """The request is malformed, or the ciphertext does not open."""


class NotFound(KmsClientError):
    """The tenant has no key where none may be made."""


class FailedPrecondition(KmsClientError):
    """The master key cannot be used, or an operator put the emergency stop in force (reason LOCKED)."""


class KeyDataLoss(KmsClientError):
    """A stored key is damaged."""


class PermissionDenied(KmsClientError):
    """KMS denies the daemon an action."""


class Unauthenticated(KmsClientError):
    """The daemon does not know the caller."""


class ResourceExhausted(KmsClientError):
    """KMS throttles, a quota or a budget is used up, or a message is too large."""


class Unavailable(KmsClientError):
    """The daemon, KMS or the key store does not answer."""


class DeadlineExceeded(KmsClientError):
    """No answer within the client's timeout."""


class Unimplemented(KmsClientError):
    """The daemon is older than this client."""


class Cancelled(KmsClientError):
    """The call was cancelled."""


class InternalError(KmsClientError):
    """A defect; the daemon's log has it under `request_id`."""


EXCEPTIONS: Mapping[grpc.StatusCode, type[KmsClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.DATA_LOSS: KeyDataLoss,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def from_rpc_error(error: grpc.RpcError, target: str) -> KmsClientError:
    """Return the exception for a failed call to `target`, with what the status's details say."""
    code = error.code()
    info, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo(), None
    for detail in _details(error):
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(request.DESCRIPTOR):
            detail.Unpack(request)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
    message = error.details() or code.name
    if code is grpc.StatusCode.UNAVAILABLE and not info.reason:
        message = f"no daemon answers at {target}: start it, or give the address that it listens on"
    elif code is grpc.StatusCode.RESOURCE_EXHAUSTED and not info.reason:
        message = f"the message is too large for the daemon: raise kms.server.max-message-bytes ({message})"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = _too_late(target)
    return EXCEPTIONS.get(code, InternalError)(
        message,
        reason=info.reason,
        request_id=request.request_id,
        retry_after=None if retry is None else retry.retry_delay.ToMilliseconds() / 1000,
        metadata=info.metadata,
    )


def too_late(target: str) -> DeadlineExceeded:
    """Return the exception for a call to `target` that was not answered within its timeout."""
    return DeadlineExceeded(_too_late(target))


def from_item_status(status: "ItemStatus") -> KmsClientError:
    """Return the exception for an item of a batch: the one that a call for it alone would raise."""
    kind = _BY_NUMBER.get(status.code, InternalError)
    return kind(status.message, reason=status.reason, retry_after=retry_after_of(status))


def retry_after_of(status: "ItemStatus") -> float | None:
    """Return after how many seconds another try of an item is worth it, or None if the daemon does not say."""
    return status.retry_delay.ToMilliseconds() / 1000 if status.HasField("retry_delay") else None


def again(error: KmsClientError) -> KmsClientError:
    """Return an exception like this one, caused by it: each of several calls raises one of its own."""
    copy = type(error)(
        error.message,
        reason=error.reason,
        request_id=error.request_id,
        retry_after=error.retry_after,
        metadata=error.metadata,
    )
    copy.__cause__ = error
    return copy


_BY_NUMBER = {code.value[0]: kind for code, kind in EXCEPTIONS.items()}


def _too_late(target: str) -> str:
    return f"no answer from {target} in time: check that the daemon runs and what it logs, or raise the timeout"


def _details(error: grpc.RpcError) -> "list[AnyMessage]":
    trailing: Iterable[tuple[str, bytes]] = error.trailing_metadata() or ()  # type: ignore[assignment]
    for name, value in trailing:
        if name == _DETAILS:
            return list(status_pb2.Status.FromString(value).details)
    return []
