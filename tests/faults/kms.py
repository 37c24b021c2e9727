"""KMS fails behind a proxy while a daemon works: what warm tenants and misses notice of each fault.

Warm calls are compared with those of healthy phases in between, a few hundred milliseconds each, so that what else the
machine does cancels out. Then the fault stays, for misses; their answers are timed by a client without a clock.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub

from tests import raw_grpc
from tests.authority import Authority, Pair
from tests.aws_proxy import AwsProxy, Verdict, aws_proxy
from tests.daemon import spawned
from tests.faults.interpose import Machine, machine
from tests.faults.outcome import Outcome, p99
from tests.faults.race import emulator

_PROMISE = "warm calls served; a miss makes at most 3 attempts and ends by its deadline"
FAULTS = {
    "KMS throttles": _PROMISE,
    "KMS answers 500": _PROMISE,
    "KMS denies all but DescribeKey": "warm calls served, misses refused with the action's name",
    "KMS hangs": _PROMISE,
    "KMS answers 5 s late": _PROMISE,
    "KMS resets connections": _PROMISE,
    "KMS resets connections after its work": _PROMISE,
    "KMS sends half a body": _PROMISE,
    "KMS sends a byte every 100 ms": _PROMISE,
    "KMS answers HTML": _PROMISE,
    "KMS has a certificate of another authority": _PROMISE,
    "KMS has no address in DNS": _PROMISE,
}
SHORT = ("KMS answers 500", "KMS has a certificate of another authority")
_VERDICTS: dict[str, Verdict] = dict(
    zip(
        FAULTS,
        ("throttle", "error", "deny", "stall", "late", "drop", "drop-answer", "half", "drip", "html", "drop", "drop"),
        strict=True,
    )
)
_WARM, _MISSES, _DEADLINE, _WAITERS, _PHASE = 5, 8, 1.0, 1000, 0.3
_DNS_CACHE_SECONDS = 11.0
"""How long the SDK's HTTP client remembers an address, and a bit."""
_ENCRYPT = "/betrace.kms.v1.KeyManagementService/Encrypt"


@dataclass
class _Figures:
    """Times are seconds."""

    served: int = 0
    refused: list[str] = field(default_factory=list)
    healthy: list[float] = field(default_factory=list)
    faulty: list[float] = field(default_factory=list)
    overrun: float = 0.0
    attempts: int = 0
    """The most KMS calls for one miss; an open breaker refuses some without one."""
    miss_served: bool = False
    calls_afterwards: int = 0
    waiters_served: int = 0

    def outcome(self, fault: str) -> Outcome:
        problems = [f"a warm call failed: {text}" for text in self.refused[:3]]
        if self.attempts > 3:
            problems.append(f"{self.attempts} attempts for one miss")
        if self.miss_served:
            problems.append("a miss was served: there was no fault")
        if (self.waiters_served, self.calls_afterwards) != (_WAITERS, 1):
            problems.append(f"{self.waiters_served} waiters served by {self.calls_afterwards} KMS calls")
        share = 100 * self.served / (self.served + len(self.refused))
        return Outcome(
            fault,
            f"{share:.4g} % of {self.served:,} warm calls served, p99 {p99(self.faulty) / p99(self.healthy):.2f}x;"
            f" misses {1000 * self.overrun:.0f} ms over their deadline, {self.attempts} attempts;"
            f" {self.waiters_served:,} waiters by {self.calls_afterwards} KMS call",
            problems,
        )


class _Kms:
    """KMS as the daemon sees it: a name, TLS, a proxy."""

    def __init__(self, proxy: AwsProxy, tls: ssl.SSLContext, folder: Path, good: Pair, machine: Machine) -> None:
        self.proxy = proxy
        self._tls = tls
        self._machine = machine
        self._good = good.write(folder / "good")
        self._bad = Authority().issue(host="localhost").write(folder / "bad")

    def fail(self, fault: str) -> None:
        actions = ("GenerateDataKey", "Encrypt", "Decrypt") if "DescribeKey" in fault else ()
        self.proxy.always(_VERDICTS[fault], *actions)
        if "certificate" in fault:
            self._tls.load_cert_chain(*self._bad)
        self._machine.set(names="DNS" in fault)

    def recover(self) -> None:
        self._tls.load_cert_chain(*self._good)
        self._machine.set()
        self.proxy.always("pass")


class _Drill:
    """One daemon, and callers without the retries of our client."""

    def __init__(self, channel: grpc.aio.Channel, address: str, kms: _Kms) -> None:
        self._stub: Any = KeyManagementServiceStub(channel)
        self._address = address
        self._kms = kms
        self._number = 0

    async def run(self, fault: str, seconds: float) -> Outcome:
        """Let KMS fail and recover for some time, then fail for misses, then recover."""
        figures, stop = _Figures(), asyncio.Event()
        for number in range(_WARM):
            await self._encrypt(f"warm-{number}")
        self._times = figures.healthy
        warm = [asyncio.create_task(self._warm(figures, number, stop)) for number in range(_WARM)]
        await self._alternate(figures, fault, seconds)
        self._times = []  # what follows is not compared
        await self._recovered()
        self._kms.fail(fault)
        if "DNS" in fault:
            await asyncio.sleep(_DNS_CACHE_SECONDS)
        first = self._number + 1
        with ThreadPoolExecutor(_MISSES) as pool:
            figures.overrun = max(0.0, await self._miss(pool))
            figures.overrun = max(figures.overrun, *await asyncio.gather(*(self._miss(pool) for _ in range(_MISSES))))
        figures.attempts = max(self._kms.proxy.tenant_calls[f"cold-{first + each}"] for each in range(_MISSES + 1))
        figures.miss_served = await self._served(f"cold-{self._number}", _DEADLINE)
        self._kms.recover()
        stop.set()
        await asyncio.gather(*warm)
        await self._recovered()
        self._number += 1
        tenant = f"waited-{self._number}"
        figures.waiters_served = sum(await asyncio.gather(*(self._served(tenant, 60) for _ in range(_WAITERS))))
        figures.calls_afterwards = self._kms.proxy.tenant_calls[tenant]
        return figures.outcome(fault)

    async def _alternate(self, figures: _Figures, fault: str, seconds: float) -> None:
        ends, misses = time.monotonic() + seconds, []
        while time.monotonic() < ends:
            for self._times in (figures.faulty, figures.healthy):
                if self._times is figures.faulty:
                    self._kms.fail(fault)
                else:
                    self._kms.recover()
                self._number += 1
                misses.append(asyncio.create_task(self._served(f"brief-{self._number}", _PHASE)))
                await asyncio.sleep(_PHASE)
        await asyncio.gather(*misses)

    async def _warm(self, figures: _Figures, number: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            began, times = time.monotonic(), self._times
            try:
                await self._encrypt(f"warm-{number}")
                figures.served += 1
            except grpc.aio.AioRpcError as error:
                figures.refused.append(str(error.details()))
            times.append(time.monotonic() - began)
            await asyncio.sleep(0.005)

    async def _miss(self, pool: ThreadPoolExecutor) -> float:
        """Ask for a tenant that is not cached; return by how many seconds the answer came after the deadline."""
        self._number += 1
        request = pb.EncryptRequest(tenant_id=f"cold-{self._number}", plaintext=b"payload").SerializeToString()

        def call() -> float:
            began = time.monotonic()
            raw_grpc.call(self._address, _ENCRYPT, request, [(b"grpc-timeout", f"{_DEADLINE:.0f}S".encode())])
            return time.monotonic() - began - _DEADLINE

        return await asyncio.get_running_loop().run_in_executor(pool, call)

    async def _recovered(self) -> None:
        """Wait until misses are served again, so often that no breaker is in doubt."""
        in_a_row, ends = 0, time.monotonic() + 60
        while in_a_row < 5:
            assert time.monotonic() < ends, "misses still fail 60 s after KMS came back"
            self._number += 1
            in_a_row = in_a_row + 1 if await self._served(f"probe-{self._number}", 20) else 0
            await asyncio.sleep(0.05)

    async def _served(self, tenant: str, seconds: float) -> bool:
        try:
            await self._encrypt(tenant, seconds)
        except grpc.aio.AioRpcError:
            return False
        return True

    async def _encrypt(self, tenant: str, seconds: float = 20) -> None:
        await self._stub.Encrypt(pb.EncryptRequest(tenant_id=tenant, plaintext=b"payload"), timeout=seconds)


async def run(folder: Path, faults: Sequence[str], seconds: float) -> AsyncIterator[Outcome]:
    """Inject the faults one after the other into one daemon."""
    authority, tls, unwell = Authority(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), machine(folder)
    good = authority.issue(host="localhost")
    (folder / "ca.pem").write_bytes(authority.pem)
    with ExitStack() as resources:
        url, arn = resources.enter_context(emulator())
        proxy = resources.enter_context(aws_proxy(url, tls=tls))
        kms = _Kms(proxy, tls, folder, good, unwell)
        kms.recover()
        listen = f"unix:{folder}/kms.sock"
        environ = unwell.environ | {
            "BETRACE_KMS_PROVIDER": "aws",
            "AWS_KMS_MASTER_KEY_ID": arn,
            "AWS_KMS_REGION": "us-east-1",
            "AWS_KMS_ENDPOINT": proxy.url.replace("127.0.0.1", "localhost"),
            "AWS_CA_BUNDLE": str(folder / "ca.pem"),
            "KMS_STORE_ALLOW_EPHEMERAL": "true",
            "KMS_CACHE_MAX_SIZE": "100000",
        }
        arguments = ("--data-dir", f"{folder}/data", "--listen", f"127.0.0.1:0,{listen}")
        daemon = resources.enter_context(spawned(*arguments, environ=environ))
        await asyncio.to_thread(daemon.wait_for, "serving", 60)
        async with grpc.aio.insecure_channel(listen) as channel:
            drill = _Drill(channel, daemon.address, kms)
            for fault in faults:
                yield await drill.run(fault, seconds)
