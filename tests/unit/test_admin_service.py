"""The operator's service over a real gRPC server, the daemon behind it played by answers."""

import json
import tempfile
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import pytest
from betrace.kms.v1 import admin_pb2 as pb
from betrace.kms.v1 import admin_pb2_grpc
from betrace_kms_server.operations import validation
from betrace_kms_server.operations.validation_run import Test
from betrace_kms_server.rpc.admin import AdminService
from betrace_kms_server.rpc.interceptors import ErrorInterceptor
from betrace_kms_server.telemetry.observers import UNOBSERVED

TESTS = [
    Test("encrypt", True, 37.5, "slower than the target of 10 ms", 10),
    Test("decrypt", False, message="KMS denies kms:Decrypt"),
]

if TYPE_CHECKING:
    Stub: TypeAlias = admin_pb2_grpc.KmsAdminServiceAsyncStub


@pytest.fixture
def dropped() -> list[str]:
    """Give the tenants whose caches were dropped."""
    return []


@pytest.fixture
def outcomes() -> list[validation.Validation]:
    """Give the outcomes of the validations to come."""
    return [validation.Validation("aws", TESTS, ["allow kms:Decrypt"], 1.5e9)]


@pytest.fixture
async def admin(dropped: list[str], outcomes: list[validation.Validation]) -> AsyncIterator["Stub"]:
    """Give a client of the service, behind the interceptor that turns our errors into statuses."""

    async def validate(production: bool) -> validation.Validation:
        return outcomes.pop(-1 if production else 0)

    async def invalidate(tenant_id: str) -> int:
        dropped.append(tenant_id)
        return 3

    server = grpc.aio.server(interceptors=[ErrorInterceptor(UNOBSERVED)])
    status: dict[str, Any] = {"provider": "aws", "cache": {"size": 3}}
    lifecycle: Any = SimpleNamespace(invalidate=invalidate)
    rotation: Any = None
    stop: Any = None
    shredder: Any = None
    service = AdminService(
        "aws",
        validate=validate,
        status=lambda: status,
        lifecycle=lifecycle,
        rotation=rotation,
        stop=stop,
        shredder=shredder,
    )
    admin_pb2_grpc.add_KmsAdminServiceServicer_to_server(service, server)
    with tempfile.TemporaryDirectory(prefix="kms") as folder:
        server.add_insecure_port(f"unix:{folder}/admin.sock")
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{folder}/admin.sock") as channel:
            yield admin_pb2_grpc.KmsAdminServiceStub(channel)
        await server.stop(None)


async def test_validation_is_passed_on(admin: "Stub") -> None:
    """All tests arrive in their order with latency and message, and one that failed fails the whole."""
    answer = await admin.Validate(pb.ValidateRequest())
    assert ("aws", False, ["allow kms:Decrypt"]) == (answer.provider, answer.passed, list(answer.recommendations))
    assert [
        ("encrypt", True, 37.5, "slower than the target of 10 ms"),
        ("decrypt", False, 0.0, "KMS denies kms:Decrypt"),
    ] == [(test.name, test.passed, test.latency_ms, test.message) for test in answer.tests]


async def test_validation_passes_if_every_test_did(admin: "Stub", outcomes: list[validation.Validation]) -> None:
    """Without a failure the whole has passed."""
    outcomes[:] = [validation.Validation("aws", TESTS[:1], [validation.READY], 1.5e9)]
    answer = await admin.Validate(pb.ValidateRequest())
    assert (True, [validation.READY]) == (answer.passed, list(answer.recommendations))


async def test_validation_may_be_for_production(admin: "Stub", outcomes: list[validation.Validation]) -> None:
    """The request says what for."""
    outcomes.append(validation.Validation("aws", [Test("production_callers", False)], ["give them a token"], 1.5e9))
    answer = await admin.Validate(pb.ValidateRequest(production=True))
    assert ["production_callers"] == [test.name for test in answer.tests]


async def test_status_is_json(admin: "Stub") -> None:
    """The status names the provider, and is JSON that may grow."""
    answer = await admin.GetStatus(pb.GetStatusRequest())
    assert ("aws", {"provider": "aws", "cache": {"size": 3}}) == (answer.provider, json.loads(answer.json))


async def test_invalidation_is_for_one_tenant(admin: "Stub", dropped: list[str]) -> None:
    """The tenant's entries go, and the answer says how many."""
    answer = await admin.InvalidateTenant(pb.InvalidateTenantRequest(tenant_id="acme"))
    assert (3, ["acme"]) == (answer.entries, dropped)


@pytest.mark.parametrize("tenant_id", ["", "a b", "x" * 129])
async def test_invalidation_of_no_tenant_is_refused(admin: "Stub", dropped: list[str], tenant_id: str) -> None:
    """A tenant id that cannot be one is told as such, and nothing is dropped."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await admin.InvalidateTenant(pb.InvalidateTenantRequest(tenant_id=tenant_id))
    assert (grpc.StatusCode.INVALID_ARGUMENT, []) == (raised.value.code(), dropped)
