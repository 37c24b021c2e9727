"""Warm tenants of a daemon: they call all the time, and what they were given is asked for again in the end."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import AsyncKmsClient, Ciphertext, KmsClientError, SpanSignature

from tests.faults.outcome import p99

SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")
_TENANTS, _PHASE = 5, 0.3


class Warm:
    """Tenants whose keys are in memory. Use `calling` around what is to happen to the daemon."""

    def __init__(self, client: AsyncKmsClient) -> None:
        self.served = 0
        self.refused: list[str] = []
        self._client = client
        self._healthy: list[float] = []
        self._faulty: list[float] = []
        self._times = self._healthy
        self._signatures: dict[str, SpanSignature] = {}
        self._messages: dict[str, Ciphertext] = {}

    async def begin(self) -> None:
        """Let each tenant have its keys."""
        for tenant in (f"warm-{number}" for number in range(_TENANTS)):
            self._signatures[tenant] = await self._client.sign_span(tenant, SPAN)
            self._messages[tenant] = await self._client.encrypt(tenant, b"payload")

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Let all tenants call until the end."""
        stop = asyncio.Event()
        tasks = [asyncio.create_task(self._call(tenant, stop)) for tenant in self._signatures]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def alternate(self, fail: Callable[[], Any], recover: Callable[[], Any], seconds: float) -> None:
        """Let something fail and recover in turns of a few hundred milliseconds, and compare the tenants' calls."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            for change, times in ((fail, self._faulty), (recover, self._healthy)):
                self._times = times
                if asyncio.iscoroutine(changing := change()):
                    await changing
                await asyncio.sleep(_PHASE)
        self._times = []

    async def lost(self, later: AsyncKmsClient | None = None) -> Sequence[str]:
        """Return what was given to the tenants and is not accepted any more, perhaps by a daemon that came later."""
        client, wrong = later or self._client, []
        for tenant, signed in self._signatures.items():
            if not (await client.verify_span(tenant, SPAN, signed.signature, signed.key_id)).valid:
                wrong.append(f"{tenant}: a signature does not verify")
            if b"payload" != (await client.decrypt(tenant, self._messages[tenant].ciphertext_blob)).plaintext:
                wrong.append(f"{tenant}: a message opens as another")
        return wrong

    @property
    def problems(self) -> Sequence[str]:
        """Calls that failed."""
        return [f"a warm call failed: {text}" for text in self.refused[:3]]

    def __str__(self) -> str:
        share = 100 * self.served / (self.served + len(self.refused))
        ratio = f", p99 {p99(self._faulty) / p99(self._healthy):.2f}x" if self._faulty else ""
        return f"{share:.4g} % of {self.served:,} warm calls served{ratio}"

    async def _call(self, tenant: str, stop: asyncio.Event) -> None:
        while not stop.is_set():
            began, times = time.monotonic(), self._times
            try:
                await self._client.sign_span(tenant, SPAN)
                await self._client.encrypt(tenant, b"more")
                self.served += 2
            except KmsClientError as error:
                self.refused.append(str(error))
            times.append(time.monotonic() - began)
            await asyncio.sleep(0.005)


async def refusal(client: AsyncKmsClient, tenant: str) -> str:
    """Return why a tenant cannot get its first key."""
    try:
        await client.sign_span(tenant, SPAN)
    except KmsClientError as error:
        return str(error)
    return "served: there was no fault"


async def recovered(client: AsyncKmsClient, tenant: str) -> None:
    """Wait until a tenant gets its first key."""
    for _ in range(200):
        try:
            await client.sign_span(tenant, SPAN)
            return
        except KmsClientError as error:
            last = error
        await asyncio.sleep(0.1)
    raise AssertionError(f"calls still fail 20 s after the machine is well: {last}")
