"""The edge of the server: whatever a handler raises becomes a status here, once, and is logged here, once.

A call that succeeds pays nothing: the request id is made when there is something to say. The caller may choose it with
the metadata `x-request-id`.
"""

import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError

from betrace_kms_server.core.errors import InvalidRequest, KmsError, cause_of
from betrace_kms_server.rpc.status import STATUS, of_defect, of_error
from betrace_kms_server.telemetry.observers import NO_SHAPE, REQUEST_ID, UNOBSERVED, CallObserver, MessageShape

log = structlog.get_logger()

_OURS = "/betrace.kms.v1."
_MALFORMED = object()
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns errors of unary handlers into statuses, and shows `observer` the calls of our own services.

    Streams (health, reflection) answer for themselves.
    """

    def __init__(self, observer: CallObserver) -> None:
        self._observer = observer
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
            observer = self._observer if method.startswith(_OURS) else UNOBSERVED
            wrapped = self._wrapped[method] = grpc.unary_unary_rpc_method_handler(
                _guarded(handler.unary_unary, method, observer),
                _tolerant(handler.request_deserializer),
                handler.response_serializer,
            )
        return wrapped


def _guarded(call: Callable[..., Awaitable[Any]], path: str, observer: CallObserver) -> Callable[..., Awaitable[Any]]:
    service, _, method = path.lstrip("/").rpartition("/")
    shape: MessageShape = getattr(call, "shape", NO_SHAPE)
    takes_event = shape is not NO_SHAPE

    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        began = time.perf_counter()
        event = None
        if observer.keeps_events:
            known = NO_SHAPE if request is _MALFORMED else shape
            try:
                event = observer.begin(
                    service, method, known, request, context.invocation_metadata() or (), context.peer()
                )
            except Exception as error:  # noqa: BLE001  # logged, and none of the caller's business
                _log_defect("begin", error)
        status, reason, response, request_id = "CANCELLED", "CANCELLED", None, ""
        try:
            if request is _MALFORMED:
                raise InvalidRequest("the request is no valid message of this call: check fields and UTF-8 texts")
            observer.admit(method)
            response = await (call(request, context, event) if takes_event else call(request, context))
            status, reason = "OK", "OK"
            return response
        except grpc.aio.AbortError:
            raise
        except KmsError as error:
            status, reason = STATUS[type(error)].name, error.reason
            request_id = _request_id(context)
            log.warning(
                "Call failed",
                method=path,
                reason=error.reason,
                message=error.message,
                cause=cause_of(error),
                request_id=request_id,
            )
            answer = of_error(error, request_id)
        except Exception as error:  # the edge: a defect of ours must not show itself to the caller
            status, reason = "INTERNAL", "INTERNAL"
            request_id = _request_id(context)
            log.error("internal error", method=path, request_id=request_id, exc_info=error)
            answer = of_defect(request_id)
        finally:
            if event is not None and request_id:
                event.request_id = request_id
            try:
                observer.end(method, status, time.perf_counter() - began, event, shape, reason, response)
            except Exception as error:  # noqa: BLE001  # as above
                _log_defect("end", error)
        # Outside the except blocks, so that the abort does not carry the cause with it. gRPC keeps the error that
        # aborts a call in a cycle with this frame; the request must not wait there for the garbage collector.
        request = response = None
        await context.abort_with_status(answer)

    return guarded


_logged: set[tuple[str, type[Exception]]] = set()


def _log_defect(where: str, error: Exception) -> None:
    """Log a defect of the observer, once for each kind: a call is answered whether or not it is observed."""
    if (kind := (where, type(error))) not in _logged:
        _logged.add(kind)
        log.error("A call could not be observed; more of this kind are not logged", where=where, exc_info=error)


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """Let a request that cannot be read reach the handler as `_MALFORMED`: gRPC would answer UNKNOWN automatically."""

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
