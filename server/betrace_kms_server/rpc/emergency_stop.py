"""Refuses calls that use keys while an emergency stop is in force.

Which methods it lets through is a list, so that a new method is refused until somebody decides otherwise. A call that
was running when the stop came has no answer either.
"""

import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from betrace.kms.v1 import key_management_pb2

from betrace_kms_server.operations.emergency_stop import EmergencyStop

_SERVICE = f"/{key_management_pb2.DESCRIPTOR.services_by_name['KeyManagementService'].full_name}/"
_WITHOUT_SECRETS = frozenset({"GetPublicKeys", "VerifySpan", "VerifySpans"})
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class EmergencyStopInterceptor(grpc.aio.ServerInterceptor):
    """Comes after ErrorInterceptor, which makes the refusal a status and asks for each handler once."""

    def __init__(self, stop: EmergencyStop) -> None:
        self._stop = stop

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Return the method's handler, refusing if the method may need a secret key."""
        handler = await continuation(handler_call_details)
        service, name = handler_call_details.method.rsplit("/", 1)
        if handler is None or handler.unary_unary is None or f"{service}/" != _SERVICE or name in _WITHOUT_SECRETS:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            _refusing(handler.unary_unary, self._stop), handler.request_deserializer, handler.response_serializer
        )


def _refusing(call: Callable[..., Awaitable[Any]], stop: EmergencyStop) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(call)  # keeps what the handler declared by `observed_as`
    async def refusing(*request: Any) -> Any:
        if stop.refusing:
            raise stop.refusal()
        response = await call(*request)
        if stop.refusing:
            raise stop.refusal()
        return response

    return refusing
