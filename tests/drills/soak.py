"""Mixed calls for minutes: does the daemon's memory grow, do files or threads stay behind? `make drill-soak`.

Every RPC, well and badly: warm and cold tenants (a new one again and again, in a cache that is full), batches, callers
that leave, deadlines that pass, requests that are refused, rotations and revocations. The key store grows with what is
made; that is on the disk. The daemon runs by itself, and is measured from outside.
"""

import asyncio
import json
import random
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import grpc
from betrace.kms.v1 import admin_pb2
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from betrace.kms.v1.span_pb2 import ComplianceSpan

from tests.daemon import Process, spawned
from tests.drills.slope import slope

CALLERS = 16
WARM = 20
CACHE = 200
WARM_UP = 0.25
"""The share of the calls before which nothing is measured: caches and arenas fill up."""
SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")
BAD_SPAN = ComplianceSpan(trace_id=b"short", name="user.login")


@dataclass
class Sample:
    """The daemon after a number of calls."""

    calls: int
    rss_kib: int
    files: int
    threads: int


@dataclass
class Soak:
    """What was called, how it ended, and what the daemon looked like meanwhile."""

    calls: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0

    def measured(self) -> list[Sample]:
        """Return the samples after the warm-up."""
        return [sample for sample in self.samples if sample.calls >= WARM_UP * self.calls]

    def lines(self) -> Iterator[str]:
        """Yield the figures as text."""
        yield f"{self.calls:,} calls in {self.seconds:.0f} s: {json.dumps(dict(sorted(self.outcomes.items())))}"
        samples = self.measured()
        x = [sample.calls / 100_000 for sample in samples]
        for name, unit, values in (
            ("memory (RSS)", "KiB", [sample.rss_kib for sample in samples]),
            ("open files", "", [sample.files for sample in samples]),
            ("threads", "", [sample.threads for sample in samples]),
        ):
            if len(samples) < 10:
                yield f"{name}: {values[0]:,} to {values[-1]:,} {unit}; too few samples for a slope"
                continue
            found = slope(x, values)
            verdict = "grows" if found.grows else "no growth"
            yield (
                f"{name}: {values[0]:,} to {values[-1]:,} {unit}, {found.value:+,.1f} +/- {found.margin:,.1f} {unit}"
                f" for each 100,000 calls (95 %, {len(samples)} samples): {verdict}"
            )


class Caller:
    """Makes calls of all kinds."""

    def __init__(self, channel: grpc.aio.Channel, admin: grpc.aio.Channel, soak: Soak, seed: int) -> None:
        self._kms: Any = KeyManagementServiceStub(channel)
        self._admin: Any = KmsAdminServiceStub(admin)
        self._soak = soak
        self._random = random.Random(seed)  # noqa: S311  # a mix of calls, not secrets
        self._cold = 0
        self._seed = seed

    async def run(self, over: asyncio.Event) -> None:
        """Call until it is over."""
        kinds: list[Callable[[str], Awaitable[None]]] = [self._warm] * 60
        for kind, share in (
            (self._batch, 4),
            (self._refused, 10),
            (self._cancelled, 10),
            (self._too_late, 5),
            (self._churned, 5),
            (self._operated, 1),
        ):
            kinds += [kind] * share
        while not over.is_set():
            await self._random.choice(kinds)(f"warm-{self._random.randrange(WARM)}")

    async def _ask(self, call: Callable[..., Awaitable[Any]], request: Any, seconds: float = 30.0) -> Any:
        self._soak.calls += 1
        try:
            answer = await call(request, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            self._soak.outcomes[error.code().name] += 1
            return None
        self._soak.outcomes["OK"] += 1
        return answer

    async def _warm(self, tenant: str) -> None:
        sealed = await self._ask(self._kms.Encrypt, pb.EncryptRequest(tenant_id=tenant, plaintext=b"x" * 300))
        if sealed:
            blob = sealed.ciphertext_blob
            await self._ask(self._kms.Decrypt, pb.DecryptRequest(tenant_id=tenant, ciphertext_blob=blob))
            await self._ask(self._kms.ReEncrypt, pb.ReEncryptRequest(tenant_id=tenant, ciphertext_blob=blob))
        signed = await self._ask(self._kms.SignSpan, pb.SignSpanRequest(tenant_id=tenant, span=SPAN))
        if signed:
            made = {"span": SPAN, "signature": signed.signature, "key_id": signed.key_id}
            await self._ask(self._kms.VerifySpan, pb.VerifySpanRequest(tenant_id=tenant, **made))
            await self._ask(
                self._kms.VerifySpans, pb.VerifySpansRequest(tenant_id=tenant, spans=[pb.SignedSpan(**made)] * 5)
            )
        await self._ask(
            self._kms.GenerateDataKey, pb.GenerateDataKeyRequest(tenant_id=tenant, key_spec=pb.AES_256, fresh=False)
        )
        await self._ask(self._kms.GetPublicKeys, pb.GetPublicKeysRequest(tenant_id=tenant))

    async def _batch(self, tenant: str) -> None:
        mode = self._random.choice([pb.EACH, pb.BATCH_PROOF])
        spans = [SPAN] * 50 + [BAD_SPAN]
        await self._ask(self._kms.SignSpans, pb.SignSpansRequest(tenant_id=tenant, spans=spans, mode=mode))

    async def _refused(self, tenant: str) -> None:
        await self._ask(self._kms.Encrypt, pb.EncryptRequest(tenant_id="no tenant", plaintext=b"x"))
        await self._ask(self._kms.Decrypt, pb.DecryptRequest(tenant_id=tenant, ciphertext_blob=b"nonsense" * 20))
        await self._ask(self._kms.SignSpan, pb.SignSpanRequest(tenant_id=tenant, span=BAD_SPAN))

    async def _cancelled(self, tenant: str) -> None:
        self._soak.calls += 1
        request = pb.EncryptRequest(tenant_id=self._next() if self._random.random() < 0.1 else tenant, plaintext=b"x")
        call = self._kms.Encrypt(request, timeout=30)
        await asyncio.sleep(self._random.uniform(0, 0.002))
        call.cancel()
        code = await call.code()
        self._soak.outcomes["left by the caller" if code is grpc.StatusCode.CANCELLED else code.name] += 1

    async def _too_late(self, tenant: str) -> None:
        await self._ask(self._kms.SignSpan, pb.SignSpanRequest(tenant_id=tenant, span=SPAN), 0.001)

    async def _churned(self, _: str) -> None:
        tenant = self._next()
        await self._ask(self._kms.Encrypt, pb.EncryptRequest(tenant_id=tenant, plaintext=b"x"))
        await self._ask(self._kms.SignSpan, pb.SignSpanRequest(tenant_id=tenant, span=SPAN))

    async def _operated(self, tenant: str) -> None:
        await self._ask(self._admin.InvalidateTenant, admin_pb2.InvalidateTenantRequest(tenant_id=tenant))
        await self._ask(self._admin.GetStatus, admin_pb2.GetStatusRequest())
        if self._random.random() < 0.05:  # each makes a row that GetPublicKeys returns from then on
            churned = self._next()
            signed = await self._ask(self._kms.SignSpan, pb.SignSpanRequest(tenant_id=churned, span=SPAN))
            await self._ask(self._admin.RotateKeys, admin_pb2.RotateKeysRequest(tenant_id=churned))
            if signed:
                revoke = admin_pb2.RevokeKeyRequest(tenant_id=churned, key_id=signed.key_id)
                await self._ask(self._admin.RevokeKey, revoke)
            await self._ask(self._admin.Validate, admin_pb2.ValidateRequest())

    def _next(self) -> str:
        self._cold += 1
        return f"cold-{self._seed}-{self._cold}"


def sample(daemon: Process, calls: int) -> Sample:
    """Look at a daemon from outside, and let it answer its HTTP port meanwhile."""
    for page in ("/q/metrics", "/api/admin/kms/status"):
        with urllib.request.urlopen(f"http://{daemon.ops_address}{page}", timeout=30) as answer:
            answer.read()
    process = Path(f"/proc/{daemon.process.pid}")
    fields = dict(line.split(":", 1) for line in (process / "status").read_text("ascii").splitlines())
    files = len(list((process / "fd").iterdir()))
    return Sample(calls, int(fields["VmRSS"].split()[0]), files, int(fields["Threads"]))


@contextmanager
def subject() -> Iterator[tuple[Process, str, str]]:
    """Run a daemon with a small cache; yield it, its address and its admin socket."""
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        listen = f"unix:{folder}/kms.sock"
        environ = {
            "KMS_CACHE_MAX_SIZE": str(CACHE),
            "KMS_AUDIT_FILE": f"{folder}/audit.log",
            "KMS_PROCESS_DUMPABLE": "true",  # so that its files can be counted from outside
        }
        with spawned("--data-dir", f"{folder}/data", "--listen", listen, environ=environ) as daemon:
            yield daemon, listen, f"unix:{folder}/data/admin.sock"


@asynccontextmanager
async def calling(listen: str, admin: str, soak: Soak) -> AsyncIterator[None]:
    """Call while the body runs."""
    over = asyncio.Event()
    async with (
        grpc.aio.insecure_channel(listen) as channel,
        grpc.aio.insecure_channel(admin) as operator,
        asyncio.TaskGroup() as tasks,
    ):
        for seed in range(CALLERS):
            tasks.create_task(Caller(channel, operator, soak, seed).run(over))
        try:
            yield
        finally:
            over.set()


async def soaked(seconds: float, limit: int, pause: float) -> Soak:
    """Call for some time, or until there were so many calls; look at the daemon every `pause` seconds."""
    soak, began = Soak(), time.monotonic()
    with subject() as (daemon, listen, admin):
        await asyncio.to_thread(daemon.wait_for, "Listening", 60)
        await _ready(listen)
        async with calling(listen, admin, soak):
            while time.monotonic() - began < seconds and soak.calls < limit:
                await asyncio.sleep(pause)
                soak.samples.append(await asyncio.to_thread(sample, daemon, soak.calls))
    soak.seconds = time.monotonic() - began
    return soak


async def _ready(listen: str) -> None:
    async with grpc.aio.insecure_channel(listen) as channel:
        request = pb.EncryptRequest(tenant_id="warm-0", plaintext=b"x")
        await KeyManagementServiceStub(channel).Encrypt(request, timeout=60, wait_for_ready=True)


@click.command()
@click.option("--minutes", default=10.0, show_default=True)
@click.option("--calls", default=1_000_000, show_default=True, help="End earlier, after so many.")
def main(minutes: float, calls: int) -> None:
    """Call a daemon in every way, and print what it holds more and more of."""
    for line in asyncio.run(soaked(minutes * 60, calls, 5.0)).lines():
        click.echo(line)


if __name__ == "__main__":
    main()
