"""Health and reflection over a real connection."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from betrace_kms_server import app
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.daemon import running, settings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health_stub(channel: Any) -> Any:
    """Return a health stub without a type: its type stubs lack the methods."""
    return health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("service", ["", "kms", "betrace.kms.v1.KeyManagementService"])
async def test_every_service_is_serving_once_the_master_key_is_usable(tmp_path: Path, service: str) -> None:
    """The process, the provider and the key service have states of their own."""
    async with running(tmp_path) as daemon, grpc.aio.insecure_channel(daemon.addresses[0]) as channel:
        answer = await health_stub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == SERVING


async def test_an_unknown_service_is_not_found_to_check_and_unknown_to_watch(tmp_path: Path) -> None:
    """As the health checking protocol asks for."""
    request = health_pb2.HealthCheckRequest(service="nobody")
    async with running(tmp_path) as daemon, grpc.aio.insecure_channel(daemon.addresses[0]) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="ask for one of") as caught:
            await health_stub(channel).Check(request)
        watch = health_stub(channel).Watch(request)
        first = await watch.read()
        watch.cancel()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert first.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def test_a_drain_tells_the_watchers_and_ends_their_calls(tmp_path: Path) -> None:
    """Stopping with an open watch does not wait out the grace, which here is far longer than the test may take."""
    async with asyncio.timeout(20):
        async with grpc.aio.insecure_channel("127.0.0.1:0") as _, asyncio.TaskGroup() as group:
            daemon_context = app.running(settings(tmp_path, kms_server_drain_seconds="600"))
            daemon = await daemon_context.__aenter__()
            channel = grpc.aio.insecure_channel(daemon.addresses[0])
            watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
            assert (await watch.read()).status == SERVING
            group.create_task(daemon_context.__aexit__(None, None, None))
            assert (await watch.read()).status == NOT_SERVING
            assert await watch.read() is grpc.aio.EOF
        await channel.close()


async def test_a_state_that_changed_reaches_the_watcher(tmp_path: Path) -> None:
    """A watch of `kms` follows the provider, and the key service keeps serving meanwhile."""
    async with running(tmp_path) as daemon, grpc.aio.insecure_channel(daemon.addresses[0]) as channel:
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(service="kms"))
        states = [(await watch.read()).status]
        daemon.health.set("kms", False)
        states.append((await watch.read()).status)
        key_service = await health_stub(channel).Check(
            health_pb2.HealthCheckRequest(service="betrace.kms.v1.KeyManagementService")
        )
        watch.cancel()
    assert (states, key_service.status) == ([SERVING, NOT_SERVING], SERVING)


async def listed(daemon: app.Daemon) -> list[str]:
    """Return the services that reflection names."""
    async with grpc.aio.insecure_channel(daemon.addresses[0]) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await call.read()
        call.cancel()
    return [service.name for service in answer.list_services_response.service]


async def test_reflection_names_the_services(tmp_path: Path) -> None:
    """grpcurl needs no files."""
    async with running(tmp_path) as daemon:
        names = await listed(daemon)
    assert "betrace.kms.v1.KeyManagementService" in names
    assert "grpc.health.v1.Health" in names


async def test_reflection_can_be_off(tmp_path: Path) -> None:
    """With kms.server.reflection=false nothing answers."""
    async with running(tmp_path, kms_server_reflection="false") as daemon:
        with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
            await listed(daemon)
