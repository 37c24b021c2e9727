"""The health service without a server: what a watcher is told when things change under it."""

from typing import Any

from betrace_kms_server.rpc.health import HealthService
from grpc_health.v1 import health_pb2

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Watcher:
    """A call's context that records what is written, and drains the service during the first write."""

    def __init__(self, service: HealthService) -> None:
        self.service = service
        self.states: list[Any] = []

    async def write(self, answer: health_pb2.HealthCheckResponse) -> None:
        """Record a state."""
        self.states.append(answer.status)
        self.service.drain()


async def test_a_drain_during_a_write_is_still_told() -> None:
    """A watcher that is being told SERVING while the drain begins is told NOT_SERVING before its call ends."""
    service = HealthService()
    watcher: Any = Watcher(service)
    await service.Watch(health_pb2.HealthCheckRequest(service=""), watcher)
    assert watcher.states == [SERVING, NOT_SERVING]


async def test_nothing_serves_again_after_a_drain() -> None:
    """A late answer of KMS does not make a stopping daemon ready."""
    service = HealthService()
    service.drain()
    service.set("kms", True)
    answer = await service.Check(health_pb2.HealthCheckRequest(service="kms"), None)  # type: ignore[arg-type]
    assert answer.status == NOT_SERVING
