"""What cold or abusive tenants do to the others: `make drill-cold`.

Two cases against a KMS that answers in 50 to 100 ms: many tenants that need their first key at once, and one tenant
that asks for fresh keys past a KMS quota of 50 calls a second. Each has warm calls and liveness probes beside it.
"""

import asyncio
import json
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import click
import grpc
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.daemon import Process, spawned
from tests.drills.fake_kms import ARN, fake_kms

_WARM_CALLERS = 4


@dataclass
class Figures:
    """Seconds that calls took, and how the cold ones ended."""

    warm: list[float] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        """Return the figures as text."""
        text = ", ".join(
            f"{name} p99 {p99(part) * 1000:.0f} max {max(part, default=0) * 1000:.0f} ms of {len(part)}"
            for name, part in (("warm", self.warm), ("probe", self.probes))
        )
        return f"{text}; cold max {max(self.cold, default=0):.1f} s, {json.dumps(self.outcomes)}"


def p99(seconds: list[float]) -> float:
    """Return the 99th percentile."""
    return sorted(seconds)[int(len(seconds) * 0.99)] if seconds else 0.0


@contextmanager
def daemon(quota: int = 0, **environ: str) -> Iterator[Process]:
    """Run a daemon with a fake KMS, as processes of their own."""
    with tempfile.TemporaryDirectory(prefix="cold") as folder, fake_kms(quota) as url:
        listen = f"unix:{folder}/kms.sock"
        settings = {
            "BETRACE_KMS_PROVIDER": "aws",
            "AWS_KMS_MASTER_KEY_ID": ARN,
            "AWS_KMS_ENDPOINT": url,
            "KMS_STORE_ALLOW_EPHEMERAL": "true",
            "KMS_CACHE_MAX_SIZE": "10000",
            "AWS_ACCESS_KEY_ID": "drill",
            "AWS_SECRET_ACCESS_KEY": "drill",
        }
        with spawned("--data-dir", f"{folder}/data", "--listen", listen, environ=settings | environ) as process:
            process.wait_for("serving")
            yield process


@asynccontextmanager
async def watched(address: str, figures: Figures) -> AsyncIterator[None]:
    """Make warm calls and liveness probes while the body runs."""
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        kms = KeyManagementServiceStub(channel)
        health = health_pb2_grpc.HealthStub(channel)
        request = pb.EncryptRequest(tenant_id="warm", plaintext=b"x" * 100)
        await kms.Encrypt(request, timeout=10)

        async def repeat(call: Callable[[], Awaitable[object]], into: list[float], pause: float) -> None:
            while True:
                began = time.perf_counter()
                await call()
                into.append(time.perf_counter() - began)
                await asyncio.sleep(pause)

        tasks = [
            asyncio.create_task(repeat(lambda: kms.Encrypt(request, timeout=60), figures.warm, 0.005))
            for _ in range(_WARM_CALLERS)
        ]
        probe = health_pb2.HealthCheckRequest()
        tasks.append(asyncio.create_task(repeat(lambda: health.Check(probe, timeout=60), figures.probes, 0.05)))  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(ended, asyncio.CancelledError):
                    figures.outcomes[f"warm or probe: {ended!r}"[:200]] += 1


async def timed(call: Callable[[], Awaitable[object]], figures: Figures, prefix: str = "") -> None:
    """Make one cold call, and note how it ended."""
    began = time.perf_counter()
    try:
        await call()
        figures.outcomes[f"{prefix}OK"] += 1
    except grpc.aio.AioRpcError as error:
        figures.outcomes[f"{prefix}{error.code().name}"] += 1
    figures.cold.append(time.perf_counter() - began)


async def cold_tenants(address: str, tenants: int) -> Figures:
    """Let many tenants need their first key at once, in a process of its own: its work shall delay no warm call."""
    figures = Figures()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        await asyncio.wrap_future(process.submit(_imported))
        async with watched(address, figures):
            cold = await asyncio.wrap_future(process.submit(_call_cold, address, tenants))
    figures.cold, figures.outcomes = cold.cold, figures.outcomes + cold.outcomes
    return figures


def _imported() -> None:
    """Let the process import this module before anything is measured."""


def _call_cold(address: str, tenants: int) -> Figures:
    figures = Figures()

    async def call_all() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            kms = KeyManagementServiceStub(channel)

            def encrypt(number: int) -> Callable[[], Awaitable[object]]:
                request = pb.EncryptRequest(tenant_id=f"cold-{number}", plaintext=b"x" * 100)
                return lambda: kms.Encrypt(request, timeout=60)

            await asyncio.gather(*(timed(encrypt(number), figures) for number in range(tenants)))

    asyncio.run(call_all())
    return figures


async def abusive_tenant(address: str, others: int, seconds: float) -> Figures:
    """Let one tenant ask for fresh keys as fast as 100 callers can, while others need their first key."""
    figures = Figures()
    async with grpc.aio.insecure_channel(address) as channel, watched(address, figures):
        kms = KeyManagementServiceStub(channel)
        fresh = pb.GenerateDataKeyRequest(tenant_id="abuser", key_spec=pb.AES_256, fresh=True)
        ignored = Figures()

        async def abuse() -> None:
            while True:
                await timed(lambda: kms.GenerateDataKey(fresh, timeout=20), ignored, "abuser ")
                await asyncio.sleep(0.02)

        abusers = [asyncio.create_task(abuse()) for _ in range(100)]
        await asyncio.sleep(1)

        async def other(number: int) -> None:
            await asyncio.sleep(number * seconds / others)
            request = pb.EncryptRequest(tenant_id=f"other-{number}", plaintext=b"x")
            await timed(lambda: kms.Encrypt(request, timeout=10), figures, "other ")

        await asyncio.gather(*(other(number) for number in range(others)))
        for task in abusers:
            task.cancel()
        await asyncio.gather(*abusers, return_exceptions=True)
        figures.outcomes += ignored.outcomes
    return figures


@click.command()
@click.option("--tenants", multiple=True, type=int, default=(2000, 5000), show_default=True)
@click.option("--others", default=82, show_default=True)
@click.option("--seconds", default=10.0, show_default=True)
def main(tenants: tuple[int, ...], others: int, seconds: float) -> None:
    """Print what warm calls, probes and other tenants get."""
    for number in tenants:
        with daemon() as process:
            click.echo(f"{number:,} cold tenants: {asyncio.run(cold_tenants(process.address, number)).line()}")
    if others:
        with daemon(quota=50) as process:
            figures = asyncio.run(abusive_tenant(process.address, others, seconds))
            click.echo(f"one tenant past a quota of 50/s: {figures.line()}")


if __name__ == "__main__":
    main()
