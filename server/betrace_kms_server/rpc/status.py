"""Which gRPC status each of our errors becomes, and the details that go with it.

Details are the standard ones (google/rpc/error_details.proto): ErrorInfo always, RetryInfo where another try is worth
it, RequestInfo with the id that the log has too. tests/unit/test_status.py fails when an error is missing here.
"""

import math
from collections.abc import Mapping

import grpc
from betrace.kms.v1 import key_management_pb2 as pb
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from betrace_kms_server.core import errors

DOMAIN = "kms.betrace.dev"
_MESSAGE_CHARACTERS = 1000
"""gRPC bounds all metadata of an answer together, at 8 KiB by default."""

STATUS: Mapping[type[errors.KmsError], grpc.StatusCode] = {
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.CallerNotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DoesNotOpen: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NoSigningKey: grpc.StatusCode.NOT_FOUND,
    errors.NoBranchKeyStore: grpc.StatusCode.FAILED_PRECONDITION,
    errors.MasterKeyUnusable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Locked: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TenantPendingShred: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TenantShredded: grpc.StatusCode.FAILED_PRECONDITION,
    errors.BadAnswer: grpc.StatusCode.INTERNAL,
    errors.KeyDamaged: grpc.StatusCode.DATA_LOSS,
    errors.AccessDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Throttled: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.BudgetExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.KmsUnreachable: grpc.StatusCode.UNAVAILABLE,
    errors.CredentialsUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Stopping: grpc.StatusCode.UNAVAILABLE,
    errors.StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.AuditUnavailable: grpc.StatusCode.UNAVAILABLE,
}


def of_error(error: errors.KmsError, request_id: str) -> grpc.Status:
    """Return the status for one of our errors."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(math.ceil(error.retry_after * 1000))
        details.append(retry)
    return _status(STATUS[type(error)], error.message[:_MESSAGE_CHARACTERS], details)


def item_status(error: errors.KmsError) -> pb.ItemStatus:
    """Return the status of one item of a batch: what a call for it alone would answer."""
    status = pb.ItemStatus(
        code=STATUS[type(error)].value[0], message=error.message[:_MESSAGE_CHARACTERS], reason=error.reason
    )
    if error.retry_after is not None:
        status.retry_delay.FromMilliseconds(math.ceil(error.retry_after * 1000))
    return status


def of_stop(request_id: str) -> grpc.Status:
    """Return the status for a call that comes while the daemon stops.

    The retry pushback (gRFC A6) is for gRPC itself: without it the tries of a retry policy would all come too early.
    """
    status = of_error(
        errors.Stopping("the daemon is stopping: repeat the call when it, or another daemon, serves"), request_id
    )
    pushback = ("grpc-retry-pushback-ms", str(int((errors.Stopping.retry_after or 0) * 1000)))
    answer: grpc.Status = status._replace(trailing_metadata=(*status.trailing_metadata, pushback))  # type: ignore[attr-defined]
    return answer


def of_defect(request_id: str) -> grpc.Status:
    """Return the status for an error that is no business of the caller's. The log has it under the request id."""
    return _status(
        grpc.StatusCode.INTERNAL,
        "internal error",
        [
            error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN),
            error_details_pb2.RequestInfo(request_id=request_id),
        ],
    )


def _status(code: grpc.StatusCode, message: str, details: list[Message]) -> grpc.Status:
    packed = []
    for detail in details:
        any_detail = any_pb2.Any()
        any_detail.Pack(detail)
        packed.append(any_detail)
    answer: grpc.Status = rpc_status.to_status(status_pb2.Status(code=code.value[0], message=message, details=packed))
    return answer
