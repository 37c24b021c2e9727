"""KmsAdminService: what an operator asks the daemon for, on a socket that only its own user opens."""

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import orjson
from betrace.kms.v1 import admin_pb2 as pb
from betrace.kms.v1 import admin_pb2_grpc

from betrace_kms_server.tenancy import check_tenant_id
from betrace_kms_server.validation import Validation

_Context = grpc.aio.ServicerContext[Any, Any]


class AdminService(admin_pb2_grpc.KmsAdminServiceServicer):
    """The operator's service. `invalidate` drops what all caches hold for a tenant and returns the number of entries.

    `status` returns what JSON can say.
    """

    def __init__(
        self,
        provider: str,
        *,
        validate: Callable[[], Awaitable[Validation]],
        status: Callable[[], dict[str, Any]],
        invalidate: Callable[[str], Awaitable[int]],
    ) -> None:
        self._provider = provider
        self._validate = validate
        self._status = status
        self._invalidate = invalidate

    async def Validate(self, request: pb.ValidateRequest, context: _Context) -> pb.ValidateResponse:
        """Return the outcome of all tests."""
        validation = await self._validate()
        return pb.ValidateResponse(
            provider=validation.provider,
            passed=validation.passed,
            tests=[
                pb.ValidationTest(
                    name=test.name, passed=test.passed, latency_ms=test.latency_ms or 0.0, message=test.message
                )
                for test in validation.tests
            ],
            recommendations=validation.recommendations,
        )

    async def GetStatus(self, request: pb.GetStatusRequest, context: _Context) -> pb.GetStatusResponse:
        """Return the daemon's state."""
        return pb.GetStatusResponse(provider=self._provider, json=orjson.dumps(self._status()).decode())

    async def InvalidateTenant(
        self, request: pb.InvalidateTenantRequest, context: _Context
    ) -> pb.InvalidateTenantResponse:
        """Drop what is cached for a tenant."""
        return pb.InvalidateTenantResponse(entries=await self._invalidate(check_tenant_id(request.tenant_id)))

    async def RotateKeys(self, request: pb.RotateKeysRequest, context: _Context) -> NoReturn:
        """Not in this version."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this version does not rotate signing keys")

    async def RevokeKey(self, request: pb.RevokeKeyRequest, context: _Context) -> NoReturn:
        """Not in this version."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this version does not revoke signing keys")
