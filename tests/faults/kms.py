"""KMS fails behind a proxy while a daemon works: what warm tenants and misses notice of each fault, in figures.

`make test-faults` runs it for longer and prints the figures, `test_kms.py` for a short time.
"""

import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import click
import grpc
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub

from tests.aws_proxy import AwsProxy, Verdict, aws_proxy
from tests.daemon import spawned
from tests.faults.race import emulator

FAULTS = tuple(verdict for verdict in get_args(Verdict) if verdict not in ("pass", "deny"))
"""A denial is no outage: it is what the operator wants, and keys do not outlive it."""
WARM, MISSES, DEADLINE, WAITERS = 5, 8, 1.0, 1000


@dataclass
class Figures:
    """What one fault did. Times are seconds."""

    fault: str
    served: int = 0
    failed: int = 0
    times: list[float] = field(default_factory=list, repr=False)
    overrun: float = 0.0
    attempts: int = 0
    """The most KMS calls for one miss; an open breaker refuses some without one."""
    calls_afterwards: int = 0
    waiters_served: int = 0

    @property
    def p99(self) -> float:
        """The 99th percentile of warm calls."""
        return statistics.quantiles(self.times, n=100)[98]

    def row(self, healthy: float) -> str:
        """Return the figures as a line, with the ratio to a healthy phase's p99."""
        return (
            f"{self.fault:12} warm {100 * self.served / (self.served + self.failed):6.2f} % of {self.served:6,}"
            f"  p99 {1000 * self.p99:6.1f} ms ({self.p99 / healthy:4.2f}x)  overrun {1000 * self.overrun:6.1f} ms"
            f"  attempts {self.attempts}"
            f"  afterwards {self.waiters_served} waiters, {self.calls_afterwards} KMS calls"
        )


class Drill:
    """One daemon on one proxy."""

    def __init__(self, channel: grpc.aio.Channel, proxy: AwsProxy) -> None:
        self._stub: Any = KeyManagementServiceStub(channel)  # without the retries of our client
        self._proxy = proxy
        self._number = 0

    async def phase(self, fault: Verdict, seconds: float) -> Figures:
        """Let KMS fail for some time, then recover."""
        figures, stop, first = Figures(fault), asyncio.Event(), 0
        for number in range(WARM):
            await self._encrypt(f"warm-{number}", 20)
        self._proxy.always(fault)
        callers = [asyncio.create_task(self._warm(figures, number, stop)) for number in range(WARM)]
        ends = time.monotonic() + seconds
        if fault != "pass":
            first = self._number + 1
            alone = await self._miss()
            others = await asyncio.gather(*(self._miss() for _ in range(MISSES)))
            figures.overrun = max(alone, *others)
        await asyncio.sleep(max(0.0, ends - time.monotonic()))
        if fault != "pass":
            figures.attempts = max(self._proxy.tenant_calls[f"cold-{first + each}"] for each in range(MISSES + 1))
        self._proxy.always("pass")
        stop.set()
        await asyncio.gather(*callers)
        await self._recovered()
        self._number += 1
        answers = await asyncio.gather(*(self._encrypt(f"waited-{self._number}", 60) for _ in range(WAITERS)))
        figures.waiters_served = sum(answers)
        figures.calls_afterwards = self._proxy.tenant_calls[f"waited-{self._number}"]
        return figures

    async def _warm(self, figures: Figures, number: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            began = time.monotonic()
            if await self._encrypt(f"warm-{number}", 20):
                figures.served += 1
            else:
                figures.failed += 1
            figures.times.append(time.monotonic() - began)
            await asyncio.sleep(0.005)

    async def _miss(self) -> float:
        """Ask for a tenant that is not cached; return by how many seconds the answer came after the deadline."""
        self._number += 1
        began = time.monotonic()
        await self._encrypt(f"cold-{self._number}", DEADLINE)
        return max(0.0, time.monotonic() - began - DEADLINE)

    async def _recovered(self) -> None:
        for _ in range(300):
            self._number += 1
            if await self._encrypt(f"probe-{self._number}", 20):
                return
            await asyncio.sleep(0.2)
        raise AssertionError("misses still fail 60 s after KMS came back")

    async def _encrypt(self, tenant: str, seconds: float) -> bool:
        try:
            await self._stub.Encrypt(pb.EncryptRequest(tenant_id=tenant, plaintext=b"payload"), timeout=seconds)
        except grpc.aio.AioRpcError:
            return False
        return True


async def drill(folder: Path, url: str, arn: str, faults: tuple[Verdict, ...], seconds: float) -> list[Figures]:
    """Run a healthy phase and one for each fault; the healthy one comes first."""
    listen = f"unix:{folder}/kms.sock"
    with aws_proxy(url) as proxy:
        environ = {
            "BETRACE_KMS_PROVIDER": "aws",
            "AWS_KMS_MASTER_KEY_ID": arn,
            "AWS_KMS_REGION": "us-east-1",
            "AWS_KMS_ENDPOINT": proxy.url,
            "KMS_STORE_ALLOW_EPHEMERAL": "true",
            "KMS_CACHE_MAX_SIZE": "100000",
        }
        with spawned("--data-dir", f"{folder}/data", "--listen", listen, environ=environ) as daemon:
            await asyncio.to_thread(daemon.wait_for, "serving", 60)
            async with grpc.aio.insecure_channel(listen) as channel:
                one = Drill(channel, proxy)
                return [await one.phase(fault, seconds) for fault in ("pass", *faults)]


@click.command()
@click.option("--seconds", default=20.0, show_default=True, help="how long each fault lasts")
def main(seconds: float) -> None:
    """Let KMS fail in each way, and print what was measured."""
    with tempfile.TemporaryDirectory(prefix="kms") as folder, emulator() as (url, arn):
        healthy, *rest = asyncio.run(drill(Path(folder), url, arn, FAULTS, seconds))
    for figures in (healthy, *rest):
        click.echo(figures.row(healthy.p99))
    raise SystemExit(any(problems(figures) for figures in rest))


def problems(figures: Figures) -> list[str]:
    """Return what is not as it must be, apart from times of warm calls, which depend on the machine."""
    found = []
    if figures.failed:
        found.append(f"{figures.fault}: {figures.failed} warm calls failed")
    if figures.attempts > 3:
        found.append(f"{figures.fault}: {figures.attempts} attempts for one miss")
    if (figures.waiters_served, figures.calls_afterwards) != (WAITERS, 1):
        found.append(
            f"{figures.fault}: {figures.waiters_served} waiters served by {figures.calls_afterwards} KMS calls"
        )
    return found


if __name__ == "__main__":
    main()
