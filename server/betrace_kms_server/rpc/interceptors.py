"""The edge of the server: whatever a handler raises becomes a status here, once, and is logged here, once.

That holds for the handlers of calls and of streams, for reading a request, for putting an answer into bytes, and for
observers: gRPC itself would send the text of an exception to the caller. A call that succeeds pays nothing: the request
id is made when there is something to say. The caller may choose it with the metadata `x-request-id`.

A call that no one waits for any more, because its caller left or its deadline is over, ends without an answer and is
counted as what it is. If its time is over when it arrives, its request is not even read.
"""

import asyncio
import re
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
import structlog

from betrace_kms_server.access.admission import Access
from betrace_kms_server.access.identity import Caller, Recognised
from betrace_kms_server.core.errors import KmsError, Overloaded, cause_of
from betrace_kms_server.core.shedding import forbid_waiting
from betrace_kms_server.rpc.deadlines import Deadline
from betrace_kms_server.rpc.gate import MAX_STREAMS, CallGate
from betrace_kms_server.rpc.health import KEY_MANAGEMENT
from betrace_kms_server.rpc.metadata_bounds import LargeMetadata, is_large
from betrace_kms_server.rpc.reception import receive
from betrace_kms_server.rpc.requests import Unread, reader, unread
from betrace_kms_server.rpc.status import STATUS, of_defect, of_error, of_stop
from betrace_kms_server.telemetry.observers import NO_SHAPE, REQUEST_ID, UNOBSERVED, CallObserver, MessageShape

log = structlog.get_logger()

_UNAWAITED = Unread("")
_OURS = "/betrace.kms.v1."
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns errors of handlers into statuses, and shows `observer` the calls of our own services.

    `access`, if it is given, admits those calls before their handlers run.

    A stream's handler is a coroutine that writes with its context, or an asynchronous generator.
    """

    def __init__(self, observer: CallObserver, gate: CallGate | None = None, access: Access | None = None) -> None:
        self._observer = observer
        self._gate = gate or CallGate()
        self._access = access
        self._anyone = Recognised(None)
        self._large_metadata = LargeMetadata()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Return the method's handler, wrapped; each method is wrapped at its first call by each caller."""
        method, found = handler_call_details.method, self._anyone
        metadata = handler_call_details.invocation_metadata or ()
        if is_large(metadata):
            return self._large_metadata.refuse()
        if self._access is not None:
            found = self._access.recognised(metadata) or found
        wrapped: _Handler = found.handlers.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = found.handlers[method] = self._wrap(handler, method, found.caller)
        return wrapped

    def _wrap(
        self, handler: "grpc.RpcMethodHandler[Any, Any]", method: str, caller: Caller | None
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        read, write, gate = reader(handler.request_deserializer, method), handler.response_serializer, self._gate
        if handler.unary_unary is not None:
            ours = method.startswith(_OURS)
            observer, access = (self._observer, self._access) if ours else (UNOBSERVED, None)
            if access is not None and caller is None and not access.by_connection:
                read = unread  # it will be refused, and may be large
            # A stream for gRPC: so what it receives is ours, and gRPC keeps neither the bytes nor the message.
            return grpc.stream_unary_rpc_method_handler(
                _guarded(handler.unary_unary, method, observer, gate, read, write, access, caller)
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                _guarded_stream(handler.unary_stream, method, gate), read, write
            )
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                _guarded_stream(handler.stream_stream, method, gate), read, write
            )
        return handler


def _guarded(
    call: Callable[..., Awaitable[Any]],
    path: str,
    observer: CallObserver,
    gate: CallGate,
    read: Callable[[bytes], Any],
    serialize: Callable[[Any], bytes] | None = None,
    access: Access | None = None,
    recognised: Caller | None = None,
) -> Callable[..., Awaitable[Any]]:
    service, _, method = path.lstrip("/").rpartition("/")
    shape: MessageShape = getattr(call, "shape", NO_SHAPE)
    takes_event = shape is not NO_SHAPE
    quota = None if access is None else access.quota
    is_limited = service == KEY_MANAGEMENT  # an operator's call, and a probe, must get through

    async def guarded(_: Any, context: _Context) -> Any:
        deadline, received = Deadline(context), b""
        if not deadline.was_over:  # or gRPC would keep 96 bytes for good: https://github.com/grpc/grpc/issues/43360
            received = await receive(context, gate)
            deadline = Deadline(context)
        gate.received += 1
        if gate.refusing:
            gate.refused += 1
            gate.ended += 1
            await context.abort_with_status(of_stop(_request_id(context)))
        began = time.perf_counter()
        event, request = None, _UNAWAITED
        if not deadline.was_over:
            try:
                if read is not unread:
                    await gate.large.admit(len(received))
                request = read(received)
            except Overloaded as refusal:
                request = Unread(refusal.message, Overloaded)
            except asyncio.CancelledError:  # while it waited for room: it is counted below, like one that came too late
                request = _UNAWAITED
        del received
        if observer.keeps_events:
            known = NO_SHAPE if isinstance(request, Unread) else shape
            try:
                event = observer.begin(
                    service, method, known, request, context.invocation_metadata() or (), context.peer()
                )
            except Exception as error:  # noqa: BLE001  # logged, and none of the caller's business
                _log_defect("begin", error)
        status, reason, request_id = "CANCELLED", "CANCELLED", ""
        response = wire = answer = None
        try:
            if request is _UNAWAITED:
                raise asyncio.CancelledError
            if is_limited and gate.is_full:
                forbid_waiting()
            if access is not None:
                caller = access.identify(context, event, recognised)
            if isinstance(request, Unread):
                raise request.error(request.problem)
            if access is not None:
                access.check(caller, method, request, event)
            if quota is not None:
                quota.spend(request.tenant_id, shape.items(request))
            observer.admit(method)
            response = await (call(request, context, event) if takes_event else call(request, context))
            wire = response
            if serialize is not None:
                wire = serialize(response)
                gate.large.answer(len(wire), context.peer)
            status = reason = "OK"
        except (grpc.aio.AbortError, grpc.aio.InternalError):
            raise
        except asyncio.CancelledError:
            status = reason = deadline.status()
            raise
        except Exception as error:  # noqa: BLE001  # the edge: it is logged below
            status, reason, request_id, answer = _failure(error, path, context)
        finally:
            if event is not None and request_id:
                event.request_id = request_id
            try:
                recorded = observer.end(method, status, time.perf_counter() - began, event, shape, reason, response)
                if recorded is not None:
                    await recorded
            except KmsError as error:  # what must be recorded, and was not, has no answer
                *_, answer = _failure(error, path, context)
            except Exception as error:  # noqa: BLE001  # as above
                _log_defect("end", error)
            finally:
                gate.ended += 1
        if answer is None:
            return wire
        # Outside the except blocks, so that the abort does not carry the cause with it. gRPC keeps the error that
        # aborts a call in a cycle with this frame; the request must not wait there for the garbage collector.
        del request, response, wire
        await context.abort_with_status(answer)

    return guarded


def _guarded_stream(call: Callable[..., Any], path: str, gate: CallGate) -> Callable[..., Awaitable[None]]:
    async def guarded(request: Any, context: _Context) -> None:
        if gate.streams >= MAX_STREAMS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MAX_STREAMS} streams are open: end one, or call Check instead of Watch",
            )
        gate.streams += 1
        try:
            if isinstance(request, Unread):
                raise request.error(request.problem)
            answers = call(request, context)
            if isinstance(answers, AsyncGenerator):
                async with aclosing(answers):
                    async for answer in answers:
                        await context.write(answer)
            else:
                await answers
            return
        except (grpc.aio.AbortError, grpc.aio.InternalError):
            raise
        except Exception as error:  # noqa: BLE001  # the edge
            *_, failed = _failure(error, path, context)
        finally:
            gate.streams -= 1
        await context.abort_with_status(failed)

    return guarded


def _failure(error: Exception, path: str, context: _Context) -> tuple[str, str, str, grpc.Status]:
    """Log an error. Returns its status and reason, the request id, and the answer to the caller."""
    request_id = _request_id(context)
    code = STATUS.get(type(error)) if isinstance(error, KmsError) else None
    if isinstance(error, KmsError) and code is not None:
        log.warning(
            "Call failed",
            method=path,
            reason=error.reason,
            message=error.message,
            cause=cause_of(error),
            request_id=request_id,
        )
        return code.name, error.reason, request_id, of_error(error, request_id)
    log.error("internal error", method=path, request_id=request_id, exc_info=error)
    return "INTERNAL", "INTERNAL", request_id, of_defect(request_id)


_logged: set[tuple[str, type[Exception]]] = set()


def _log_defect(where: str, error: Exception) -> None:
    """Log a defect of the observer, once for each kind: a call is answered whether or not it is observed."""
    if (kind := (where, type(error))) not in _logged:
        _logged.add(kind)
        log.error("A call could not be observed; more of this kind are not logged", where=where, exc_info=error)


def _request_id(context: _Context) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == REQUEST_ID and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex
