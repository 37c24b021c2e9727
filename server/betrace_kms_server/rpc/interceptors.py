"""The edge of the server: whatever a handler raises becomes a status here, once, and is logged here, once.

A call that succeeds pays nothing: the request id is made when there is something to say. The caller may choose it with
the metadata `x-request-id`.
"""

import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError

from betrace_kms_server.errors import InvalidRequest, KmsError
from betrace_kms_server.rpc import status
from betrace_kms_server.telemetry.logs import cause_of

log = structlog.get_logger()

REQUEST_ID = "x-request-id"
_MALFORMED = object()
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns errors of unary handlers into statuses. Streams (health, reflection) answer for themselves."""

    def __init__(self) -> None:
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Return the method's handler, wrapped; each method is wrapped at its first call."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None or handler.unary_unary is None:
                return handler
            wrapped = self._wrapped[method] = grpc.unary_unary_rpc_method_handler(
                _guarded(handler.unary_unary, method),
                _tolerant(handler.request_deserializer),
                handler.response_serializer,
            )
        return wrapped


def _guarded(call: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            if request is _MALFORMED:
                raise InvalidRequest("the request is no valid message of this call: check fields and UTF-8 texts")
            return await call(request, context)
        except grpc.aio.AbortError:
            raise
        except KmsError as error:
            request_id = _request_id(context)
            log.warning(
                "Call failed",
                method=method,
                reason=error.reason,
                message=error.message,
                cause=cause_of(error),
                request_id=request_id,
            )
            answer = status.of_error(error, request_id)
        except Exception as error:  # the edge: a defect of ours must not show itself to the caller
            request_id = _request_id(context)
            log.error("internal error", method=method, request_id=request_id, exc_info=error)
            answer = status.of_defect(request_id)
        # Outside the except blocks, so that the abort does not carry the cause with it.
        await context.abort_with_status(answer)

    return guarded


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """Let a request that cannot be read reach the handler as `_MALFORMED`: gRPC would answer UNKNOWN by itself."""

    def tolerant(wire: bytes) -> Any:
        try:
            return deserialize(wire) if deserialize else wire
        except DecodeError:
            return _MALFORMED

    return tolerant


def _request_id(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == REQUEST_ID and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex
