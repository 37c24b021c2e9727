"""A service fails behind a proxy while a daemon works: what warm tenants and misses notice of each of its faults.

Warm calls are compared with those of healthy phases in between, a few hundred milliseconds each, so that what else the
machine does cancels out. Then the fault stays, for misses; their answers are timed by a client without a clock.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub

from tests import raw_grpc
from tests.faults.outcome import Outcome, p99
from tests.faults.warm import SPAN

_WARM, _MISSES, _DEADLINE, _WAITERS, _PHASE = 5, 8, 1.0, 1000, 0.3
_SERVICE = "/betrace.kms.v1.KeyManagementService/"


class Service(Protocol):
    """What a daemon stands on."""

    def fail(self, fault: str) -> None:
        """Fail from now on."""

    def recover(self) -> None:
        """Work again."""

    def settle_seconds(self, fault: str) -> float:
        """Return how long a fault takes to reach misses."""

    def attempts(self, tenants: Sequence[str]) -> int:
        """Return the most attempts that were made for one miss of these tenants."""

    def kms_calls(self, tenant: str) -> int:
        """Return how many KMS calls were made for a tenant."""


@dataclass
class _Figures:
    """Times are seconds."""

    served: int = 0
    refused: list[str] = field(default_factory=list)
    healthy: list[float] = field(default_factory=list)
    faulty: list[float] = field(default_factory=list)
    overrun: float = 0.0
    attempts: int = 0
    """The most for one miss; an open breaker refuses some without one."""
    wrongly: str = ""
    """What became of a miss that should have ended otherwise."""
    calls_afterwards: int = 0
    waiters_served: int = 0
    refusal: str = ""
    """The last of a waiter or a miss."""

    def outcome(self, fault: str) -> Outcome:
        problems = [f"a warm call failed: {text}" for text in self.refused[:3]]
        if self.attempts > 3:
            problems.append(f"{self.attempts} attempts for one miss")
        if self.wrongly:
            problems.append(self.wrongly)
        if (self.waiters_served, self.calls_afterwards) != (_WAITERS, 1):
            problems.append(
                f"{self.waiters_served} waiters served by {self.calls_afterwards} KMS calls: {self.refusal}"
            )
        share = 100 * self.served / (self.served + len(self.refused))
        return Outcome(
            fault,
            f"{share:.4g} % of {self.served:,} warm calls served, p99 {p99(self.faulty) / p99(self.healthy):.2f}x;"
            f" misses {1000 * self.overrun:.0f} ms over their deadline, {self.attempts} attempts;"
            f" {self.waiters_served:,} waiters by {self.calls_afterwards} KMS call",
            problems,
        )


class Drill:
    """One daemon, and callers without the retries of our client; `method` is what they call: Encrypt or SignSpan.

    `keys` are the ids of the keys by which each tenant was served.
    """

    def __init__(self, channel: grpc.aio.Channel, address: str, service: Service, method: str = "Encrypt") -> None:
        self.keys: dict[str, set[str]] = {}
        self._stub: Any = KeyManagementServiceStub(channel)
        self._address = address
        self._service = service
        self._method = method
        self._number = 0
        self._refusal = ""

    async def run(self, fault: str, seconds: float, *, misses_served: bool = False) -> Outcome:
        """Let the service fail and recover for some time, then fail for misses, then recover.

        With `misses_served` the fault is one that misses survive, if they have the time.
        """
        figures, stop = _Figures(), asyncio.Event()
        for number in range(_WARM):
            await self._call(f"warm-{number}")
        self._times = figures.healthy
        warm = [asyncio.create_task(self._warm(figures, number, stop)) for number in range(_WARM)]
        await self._alternate(figures, fault, seconds)
        self._times = []  # what follows is not compared
        await self._recovered()
        self._service.fail(fault)
        await asyncio.sleep(self._service.settle_seconds(fault))
        first = self._number + 1
        with ThreadPoolExecutor(_MISSES) as pool:
            figures.overrun = max(0.0, await self._miss(pool))
            figures.overrun = max(figures.overrun, *await asyncio.gather(*(self._miss(pool) for _ in range(_MISSES))))
        figures.attempts = self._service.attempts([f"cold-{first + each}" for each in range(_MISSES + 1)])
        self._number += misses_served
        if misses_served and not await self._served(f"cold-{self._number}", 20):
            figures.wrongly = f"a miss was refused: {self._refusal}"
        if not misses_served and await self._served(f"cold-{self._number}", _DEADLINE):
            figures.wrongly = "a miss was served: there was no fault"
        self._service.recover()
        stop.set()
        await asyncio.gather(*warm)
        await self._recovered()
        self._number += 1
        tenant = f"waited-{self._number}"
        figures.waiters_served = sum(await asyncio.gather(*(self._served(tenant, 60) for _ in range(_WAITERS))))
        figures.calls_afterwards = self._service.kms_calls(tenant)
        figures.refusal = self._refusal
        return figures.outcome(fault)

    async def _alternate(self, figures: _Figures, fault: str, seconds: float) -> None:
        ends, misses = time.monotonic() + seconds, []
        while time.monotonic() < ends:
            for self._times in (figures.faulty, figures.healthy):
                if self._times is figures.faulty:
                    self._service.fail(fault)
                else:
                    self._service.recover()
                self._number += 1
                misses.append(asyncio.create_task(self._served(f"brief-{self._number}", _PHASE)))
                await asyncio.sleep(_PHASE)
        await asyncio.gather(*misses)

    async def _warm(self, figures: _Figures, number: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            began, times = time.monotonic(), self._times
            try:
                await self._call(f"warm-{number}")
                figures.served += 1
            except grpc.aio.AioRpcError as error:
                figures.refused.append(str(error.details()))
            times.append(time.monotonic() - began)
            await asyncio.sleep(0.005)

    async def _miss(self, pool: ThreadPoolExecutor) -> float:
        """Ask for a tenant that is not cached; return by how many seconds the answer came after the deadline."""
        self._number += 1
        request = self._request(f"cold-{self._number}").SerializeToString()

        def call() -> float:
            began = time.monotonic()
            timeout = [(b"grpc-timeout", f"{_DEADLINE:.0f}S".encode())]
            raw_grpc.call(self._address, f"{_SERVICE}{self._method}", request, timeout)
            return time.monotonic() - began - _DEADLINE

        return await asyncio.get_running_loop().run_in_executor(pool, call)

    async def _recovered(self) -> None:
        """Wait until misses are served again, so often that no breaker is in doubt."""
        in_a_row, ends = 0, time.monotonic() + 60
        while in_a_row < 5:
            assert time.monotonic() < ends, "misses still fail 60 s after the service came back"
            self._number += 1
            in_a_row = in_a_row + 1 if await self._served(f"probe-{self._number}", 20) else 0
            await asyncio.sleep(0.05)

    async def _served(self, tenant: str, seconds: float) -> bool:
        try:
            await self._call(tenant, seconds)
        except grpc.aio.AioRpcError as error:
            self._refusal = str(error.details())
            return False
        return True

    async def _call(self, tenant: str, seconds: float = 20) -> None:
        answer = await getattr(self._stub, self._method)(self._request(tenant), timeout=seconds)
        self.keys.setdefault(tenant, set()).add(answer.key_id)

    def _request(self, tenant: str) -> Any:
        if self._method == "Encrypt":
            return pb.EncryptRequest(tenant_id=tenant, plaintext=b"payload")
        return pb.SignSpanRequest(tenant_id=tenant, span=SPAN)
