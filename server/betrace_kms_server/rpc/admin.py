"""KmsAdminService: what an operator asks the daemon for, on a socket that only its own user opens."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import orjson
from betrace.kms.v1 import admin_pb2 as pb
from betrace.kms.v1 import admin_pb2_grpc

from betrace_kms_server.core.errors import InvalidRequest
from betrace_kms_server.core.key_event import KeyEvent
from betrace_kms_server.core.shredding import Status
from betrace_kms_server.core.tenancy import check_key_id, check_tenant_id
from betrace_kms_server.data_keys.shredding import Outcome, Shredder
from betrace_kms_server.operations.emergency_stop import EmergencyStop, checked_reason
from betrace_kms_server.operations.validation import Validation
from betrace_kms_server.signing_keys.lifecycle import Lifecycle
from betrace_kms_server.signing_keys.rotation import Rotation
from betrace_kms_server.telemetry.observers import MessageShape, observed_as

_STATES: Mapping[Status, str] = {"pending": "PENDING_SHRED", "destroying": "DESTROYING", "shredded": "SHREDDED"}
_Context = grpc.aio.ServicerContext[Any, Any]


class AdminService(admin_pb2_grpc.KmsAdminServiceServicer):
    """The operator's service. `status` returns what JSON can say; `validate` is given whether it is for production."""

    def __init__(
        self,
        provider: str,
        *,
        validate: Callable[[bool], Awaitable[Validation]],
        status: Callable[[], dict[str, Any]],
        lifecycle: Lifecycle,
        rotation: Rotation,
        stop: EmergencyStop,
        shredder: Shredder,
    ) -> None:
        self._provider = provider
        self._validate = validate
        self._status = status
        self._lifecycle = lifecycle
        self._rotation = rotation
        self._stop = stop
        self._shredder = shredder

    async def Validate(self, request: pb.ValidateRequest, context: _Context) -> pb.ValidateResponse:
        """Return the outcome of all tests."""
        validation = await self._validate(request.production)
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

    @observed_as(MessageShape())
    async def RotateKeys(
        self, request: pb.RotateKeysRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.RotateKeysResponse:
        """Give one tenant, or every tenant, a new signing key."""
        if request.WhichOneof("scope") == "tenant_id":
            rotated = await self._lifecycle.rotate(check_tenant_id(request.tenant_id), event=event)
            return pb.RotateKeysResponse(rotated=int(rotated))
        if not request.all:
            raise InvalidRequest("give tenant_id, or all")
        outcome = await self._rotation.run_for_all(event)
        return pb.RotateKeysResponse(rotated=outcome.rotated, failed=outcome.failed)

    @observed_as(MessageShape(request_key_id=True))
    async def RevokeKey(
        self, request: pb.RevokeKeyRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.RevokeKeyResponse:
        """Revoke one key of a tenant."""
        active = await self._lifecycle.revoke(check_tenant_id(request.tenant_id), check_key_id(request.key_id), event)
        return pb.RevokeKeyResponse(active_key_id=active)

    @observed_as(MessageShape())
    async def InvalidateTenant(
        self, request: pb.InvalidateTenantRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.InvalidateTenantResponse:
        """Drop what is cached for a tenant."""
        entries = await self._lifecycle.invalidate(check_tenant_id(request.tenant_id))
        return pb.InvalidateTenantResponse(entries=entries)

    async def Lock(self, request: pb.LockRequest, context: _Context) -> pb.LockResponse:
        """Stop the use of keys: here at once, and everywhere by the key store."""
        stopped = await self._stop.lock(checked_reason(request.reason))
        return pb.LockResponse(
            entries=stopped.entries, stored=not stopped.store_problem, store_error=stopped.store_problem
        )

    async def Unlock(self, request: pb.UnlockRequest, context: _Context) -> pb.UnlockResponse:
        """End the emergency stop."""
        return pb.UnlockResponse(was_locked=await self._stop.unlock())

    @observed_as(MessageShape())
    async def ShredTenant(
        self, request: pb.ShredTenantRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.ShredTenantResponse:
        """Shred a tenant, cancel that, or open a tenant that was shredded."""
        tenant_id = check_tenant_id(request.tenant_id)
        if request.cancel and request.recreate:
            raise InvalidRequest("give cancel or recreate, not both")
        if request.cancel:
            return _shred_response(await self._shredder.cancel(tenant_id, event))
        if request.recreate:
            return _shred_response(await self._shredder.recreate(tenant_id, event))
        return _shred_response(await self._shredder.request(tenant_id, event))


def _shred_response(outcome: Outcome) -> pb.ShredTenantResponse:
    state = outcome.state
    answer = pb.ShredTenantResponse(
        state="OPEN" if state is None else _STATES[state.status],
        entries=outcome.entries,
        not_destroyed=outcome.not_destroyed,
    )
    if state is not None:
        answer.request_time.FromMilliseconds(state.since_ms)
        answer.due_time.FromMilliseconds(state.due_ms)
    if outcome.unrecoverable_after_ms is not None:
        answer.unrecoverable_after.FromMilliseconds(outcome.unrecoverable_after_ms)
    return answer
