"""Memory runs out under a daemon that makes keys and seals large messages: it serves, or it dies and loses nothing.

The limit is one of address space (RLIMIT_AS), set while the daemon works, at what it has by then and a bit: an
allocation past it fails. What the kernel's OOM killer does is `kill -9` (tests/faults/kill.py).
"""

import asyncio
import re
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from itertools import count
from pathlib import Path

from betrace_kms_client import AsyncKmsClient, Ciphertext, KmsClientError, SpanSignature

from tests.daemon import Process, spawned
from tests.faults.outcome import Outcome
from tests.faults.warm import SPAN

_MIB = 1024 * 1024
_LEFT = {"no memory is left": 0, "4 MiB of memory are left": 4 * _MIB, "32 MiB of memory are left": 32 * _MIB}
FAULTS = dict.fromkeys(
    _LEFT, "calls are served or refused, or the daemon dies at once; then all serve, and no acknowledged key is lost"
)
SHORT = ("no memory is left",)
_PAYLOAD = bytes(4_000_000)
_BEFORE, _MORE, _SIGNING = 2, 12, 3
"""Callers at once: those that seal large messages before the limit, and in addition from then on; those that sign."""
_BITES_SECONDS = 20.0
"""How long to wait for the first call that fails, on a busy machine."""
_WELL_SECONDS = 1.5
"""How long they call before memory runs out, so that keys are acknowledged and malloc has what such calls need."""


class _Load:
    """Callers, and what the daemon acknowledged to them."""

    def __init__(self, client: AsyncKmsClient) -> None:
        self.ended = Counter[str]()
        self.signatures: dict[str, SpanSignature] = {}
        self.messages: dict[str, Ciphertext] = {}
        self._client = client
        self._numbers = count()

    @property
    def all_served(self) -> bool:
        """Whether no call has failed yet."""
        return not set(self.ended) - {"served"}

    async def sign(self) -> None:
        """Let a new tenant have its first key."""
        tenant = f"tenant-{next(self._numbers)}"
        self.signatures[tenant] = await self._client.sign_span(tenant, SPAN)
        self.messages[tenant] = await self._client.encrypt(tenant, b"payload")

    async def seal(self) -> None:
        """Seal what is as large as a request may be."""
        await self._client.encrypt("large", _PAYLOAD)

    async def calling(self, over: asyncio.Event, *calls: str) -> None:
        """Let somebody make each of these calls until it is over."""

        async def repeat(call: str) -> None:
            while not over.is_set():
                try:
                    await getattr(self, call)()
                    self.ended["served"] += 1
                except KmsClientError as error:
                    self.ended[type(error).__name__] += 1
                    await asyncio.sleep(0.02)

        await asyncio.gather(*map(repeat, calls))

    async def lost(self, client: AsyncKmsClient) -> Sequence[str]:
        """Return which tenants have lost what was acknowledged."""
        wrong = list[str]()
        for tenant, signed in self.signatures.items():
            if not (await client.verify_span(tenant, SPAN, signed.signature, signed.key_id)).valid:
                wrong.append(f"{tenant}: a signature does not verify")
        for tenant, message in self.messages.items():
            if (await client.decrypt(tenant, message.ciphertext_blob)).plaintext != b"payload":
                wrong.append(f"{tenant}: a message opens as another")
        return wrong


async def run(folder: Path, faults: Sequence[str], seconds: float) -> AsyncIterator[Outcome]:
    """Inject each fault into a daemon of its own."""
    for number, fault in enumerate(faults):
        own = folder / str(number)
        own.mkdir(0o700)
        yield await _injected(own, fault, seconds)


async def _injected(folder: Path, fault: str, seconds: float) -> Outcome:
    listen = f"unix:{folder}/kms.sock"
    arguments = ("--data-dir", f"{folder}/data", "--listen", listen)
    problems = list[str]()
    with spawned(*arguments) as daemon:
        await asyncio.to_thread(daemon.wait_for, "serving", 60)
        async with AsyncKmsClient(listen, timeout=5) as client:
            load, over = _Load(client), asyncio.Event()
            some = asyncio.create_task(load.calling(over, *["sign"] * _SIGNING, *["seal"] * _BEFORE))
            await asyncio.sleep(_WELL_SECONDS)
            pid, unlimited = daemon.process.pid, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(pid, resource.RLIMIT_AS, (_address_space(pid) + _LEFT[fault], resource.RLIM_INFINITY))
            more = asyncio.create_task(load.calling(over, *["seal"] * _MORE))
            ends = time.monotonic() + seconds
            while time.monotonic() < ends + _BITES_SECONDS * load.all_served:  # noqa: ASYNC110  # callers run meanwhile
                await asyncio.sleep(0.1)
            died = _died(daemon)
            if not died:
                resource.prlimit(pid, resource.RLIMIT_AS, unlimited)
            over.set()
            await asyncio.gather(some, more)
            if not died and (refusal := await _refusal(load)):
                problems.append(f"the daemon lives and serves no more: {refusal}")
            daemon.process.terminate()
            await asyncio.to_thread(daemon.process.wait, 30)
    with spawned(*arguments) as daemon:
        await asyncio.to_thread(daemon.wait_for, "serving", 60)
        async with AsyncKmsClient(listen, timeout=20) as client:
            lost = await load.lost(client)
    if not died and load.all_served:
        problems.append("all calls were served: memory did not run out")
    ended = ", ".join(f"{name} {number:,}" for name, number in sorted(load.ended.items()))
    return Outcome(
        fault,
        f"{died or 'lived'}; calls: {ended}; {len(load.signatures):,} keys acknowledged, {len(lost)} lost",
        [*problems, *lost[:3]],
    )


def _address_space(pid: int) -> int:
    found = re.search(r"VmSize:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def _died(daemon: Process) -> str:
    """Return how a daemon ended, or nothing if it lives."""
    code = daemon.process.poll()
    return "" if code is None else f"died by signal {-code}" if code < 0 else f"exited with {code}"


async def _refusal(load: _Load) -> str:
    """Return why a first signature and a large message are not served now, or nothing."""
    for _ in range(100):
        try:
            await load.sign()
            await load.seal()
            return ""
        except KmsClientError as error:
            last = str(error)
        await asyncio.sleep(0.1)
    return last
