"""The standard health service (grpc.health.v1), with watches that end when the server drains.

The servicer of grpcio-health-checking keeps its watches open while the server stops, so a single one makes `stop` wait
out its whole grace; and it holds a lock while it writes to a watcher, so one that does not read blocks the next change
for all. Here a watcher has an event of its own, and draining ends it.

Services: "" is the process (liveness) and never touches KMS; `betrace.kms.v1.KeyManagementService` serves from the
first time that the master key was usable until the drain; `kms` is the provider's state now.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
from betrace.kms.v1 import key_management_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

PROCESS = ""
KEY_MANAGEMENT = key_management_pb2.DESCRIPTOR.services_by_name["KeyManagementService"].full_name
KMS = "kms"

_Context = grpc.aio.ServicerContext[Any, Any]
_Status: TypeAlias = health_pb2.HealthCheckResponse


class HealthService(health_pb2_grpc.HealthServicer):
    """States of our services; what is not known is NOT_FOUND to Check and SERVICE_UNKNOWN to Watch."""

    def __init__(self) -> None:
        self._serving = {PROCESS: True, KEY_MANAGEMENT: False, KMS: False}
        self._withheld: frozenset[str] = frozenset()
        self._draining = False
        self._when_drained: list[Callable[[], None]] = []
        self._watchers: set[asyncio.Event] = set()

    def set(self, service: str, serving: bool) -> None:
        """Change a service's state. After `drain` nothing changes any more."""
        if not self._draining and self._serving.get(service) != serving:
            self._serving[service] = serving
            self._wake()

    def is_serving(self, service: str) -> bool:
        """Return a service's state now."""
        return self._serving[service] and service not in self._withheld

    def withhold(self, *services: str) -> None:
        """Declare these services NOT_SERVING, and no others, whatever `set` says of them meanwhile."""
        if self._withheld != (withheld := frozenset(services)):
            self._withheld = withheld
            self._wake()

    def drain(self) -> None:
        """Declare everything NOT_SERVING for good, notify the watchers, and end their calls."""
        self._serving = dict.fromkeys(self._serving, False)
        self._draining = True
        self._wake()
        for end in self._when_drained:
            end()

    def when_drained(self, end: Callable[[], None]) -> None:
        """Let a drain also end other streams."""
        self._when_drained.append(end)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> _Status:
        """Return a service's state now."""
        if request.service not in self._serving:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"unknown service: ask for one of {', '.join(map(repr, self._serving))}"
            )
        return _Status(status=self._state(request.service))

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:
        """Send a service's state, and then every change, until the caller leaves or the server drains."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        last = None
        try:
            while True:
                changed.clear()
                draining = self._draining  # a drain during the write below must still be reported
                state = self._state(request.service)
                if state != last:
                    await context.write(_Status(status=state))
                    last = state
                if draining:
                    return
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _wake(self) -> None:
        for changed in self._watchers:
            changed.set()

    def _state(self, service: str) -> int:
        serving = self._serving.get(service)
        if serving is None:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if serving and service not in self._withheld else _Status.NOT_SERVING
