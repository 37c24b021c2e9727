"""Callers take what a daemon needs: file descriptors, sockets, memory for answers that they do not read, cache entries.

Each daemon is a process of its own, and so is each attack (tests/drills/attacks.py), because a daemon that has too many
connections closes those of the process that holds most. The limit of open files is changed while the daemon runs.
"""

import asyncio
import multiprocessing
import os
import resource
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import grpc
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from betrace_kms_client import AsyncKmsClient, KmsClientError

from tests.daemon import spawned
from tests.drills.attacks import ATTACKS
from tests.drills.hostile import megabytes
from tests.faults.outcome import Outcome
from tests.faults.warm import SPAN, Warm, recovered, refusal

_NO_DESCRIPTOR = "no file descriptor is left"
_CHURN = "10,000 tenants churn a cache of 1,000"
_ATTACKS = {
    "2,000 sockets are idle": "idle connections",
    "callers do not read 4 MiB answers": "unread answers",
}
FAULTS = {
    _NO_DESCRIPTOR: "warm calls served, first signatures refused with what to do; no key lost or made twice",
    **dict.fromkeys(_ATTACKS, "warm calls served, new callers too; memory is bounded"),
    _CHURN: "warm calls served; no cache holds more than its bound, and memory does not grow with the rounds",
}
SHORT = tuple(FAULTS)
_FULL_SECONDS = 5.0
"""What is this long injects an attack whole, and all tenants."""
_MOST_MEGABYTES, _MOST_GROWTH_MEGABYTES = 512.0, 16.0
"""The limit in deploy/kubernetes; `make drill-hostile`, with fewer callers beside, demands 256."""
_MOST_DESCRIPTORS = 1_200
"""`kms.server.max-connections` of 1,000, what the daemon itself has open, and what comes in a quarter of a second."""
_LAST = 10
"""Samples in which the surplus must be gone, once all have come."""
_TENANTS, _CACHED, _ROUNDS, _AT_ONCE = 10_000, 1_000, 2, 16
_SIGNS = 8
"""Each tenant of so many signs, too: a first signature costs a commit."""


async def run(folder: Path, faults: Sequence[str], seconds: float) -> AsyncIterator[Outcome]:
    """Inject each fault into a daemon of its own."""
    scale = min(1.0, seconds / _FULL_SECONDS)
    for number, fault in enumerate(faults):
        own = folder / str(number)
        own.mkdir(0o700)
        if fault == _NO_DESCRIPTOR:
            yield await _descriptors(own, fault, seconds)
        elif fault == _CHURN:
            yield await _churn(own, fault, scale)
        else:
            yield await _attacked(own, fault, max(scale, 0.1))


async def _descriptors(folder: Path, fault: str, seconds: float) -> Outcome:
    listen = f"unix:{folder}/kms.sock"
    arguments = ("--data-dir", f"{folder}/data", "--listen", listen)
    with spawned(*arguments) as daemon:
        await asyncio.to_thread(daemon.wait_for, "serving", 60)
        pid = daemon.process.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)

        def exhaust() -> None:
            highest = max(map(int, os.listdir(f"/proc/{pid}/fd")))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (_first_free(pid, highest), hard))

        def recover() -> None:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))

        async with AsyncKmsClient(listen, timeout=10) as client:
            warm = Warm(client)
            await warm.begin()
            async with warm.calling():
                await warm.alternate(exhaust, recover, seconds)
                exhaust()
                text = await refusal(client, "cold")
                newcomer = await _newcomer(listen, 2.0)
                recover()
                await recovered(client, "cold")
            signed = await client.sign_span("cold", SPAN)
            afterwards = await _newcomer(listen, 20.0)
            daemon.process.terminate()
            await asyncio.to_thread(daemon.process.wait, 30)
    problems = list(warm.problems)
    with spawned(*arguments) as daemon:
        await asyncio.to_thread(daemon.wait_for, "serving", 60)
        async with AsyncKmsClient(listen, timeout=10) as client:
            problems += await warm.lost(client)
            if [key.key_id for key in (await client.get_public_keys("cold")).keys] != [signed.key_id]:
                problems.append("the tenant that was refused has other keys after a restart")
    if "ulimit -n" not in text:
        problems.append(f"a first signature does not say what to do: {text}")
    if newcomer:
        problems.append("a new caller was served: there was a descriptor left")
    if not afterwards:
        problems.append("a new caller was not served afterwards")
    return Outcome(fault, f"{warm}; a first signature: {text.split(':')[0]}; new callers served afterwards", problems)


def _first_free(pid: int, highest: int) -> int:
    """Return the lowest descriptor that a process does not use: with that as its limit it can open nothing."""
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return next(number for number in range(highest + 2) if number not in used)


async def _attacked(folder: Path, fault: str, scale: float) -> Outcome:
    listen = f"unix:{folder}/kms.sock"
    with spawned("--data-dir", f"{folder}/data", "--listen", f"127.0.0.1:0,{listen}") as daemon:
        await asyncio.to_thread(daemon.wait_for, "serving", 60)
        async with AsyncKmsClient(listen, timeout=10) as client:
            warm = Warm(client)
            await warm.begin()
            attack = multiprocessing.get_context("spawn").Process(
                target=ATTACKS[_ATTACKS[fault]], args=(daemon.address, scale)
            )
            newcomers, peak, held = 0, 0.0, [0]
            refused = list[str]()
            async with warm.calling():
                attack.start()
                while attack.is_alive():
                    if await _newcomer(daemon.address, 10.0):
                        newcomers += 1
                    else:
                        refused.append("a new caller was not served")
                    peak = max(peak, megabytes(daemon.process.pid))
                    held.append(len(os.listdir(f"/proc/{daemon.process.pid}/fd")))
                    await asyncio.sleep(0.1)
            problems = [*warm.problems, *refused[:3], *await warm.lost()]
    if attack.exitcode:
        problems.append(f"the attack failed: {attack.exitcode}")
    if min(held[-_LAST:]) > _MOST_DESCRIPTORS:
        problems.append(f"{min(held[-_LAST:]):,} descriptors are still open")
    if peak >= _MOST_MEGABYTES:
        problems.append(f"{peak:.0f} MB of memory")
    return Outcome(
        fault,
        f"{warm}; {newcomers} new callers served meanwhile; at most {max(held):,} descriptors and {peak:.0f} MB",
        problems,
    )


async def _churn(folder: Path, fault: str, scale: float) -> Outcome:
    """Let many tenants call in rounds, so that each call of theirs misses."""
    tenants, cached = int(_TENANTS * scale), int(_CACHED * scale)
    listen = f"unix:{folder}/kms.sock"
    environ = {"KMS_CACHE_MAX_SIZE": str(cached)}
    with spawned("--data-dir", f"{folder}/data", "--listen", listen, environ=environ) as daemon:
        await asyncio.to_thread(daemon.wait_for, "serving", 60)
        async with AsyncKmsClient(listen, timeout=30) as client:
            warm = Warm(client)
            await warm.begin()
            messages: dict[str, bytes] = {}
            memory, problems = list[float](), list[str]()
            async with warm.calling():
                for _ in range(_ROUNDS):
                    names = iter(range(tenants))
                    await asyncio.gather(*(_churned(client, names, messages, problems) for _ in range(_AT_ONCE)))
                    memory.append(megabytes(daemon.process.pid))
                    problems += _past_bounds(await asyncio.to_thread(daemon.metrics), cached)
            metrics = await asyncio.to_thread(daemon.metrics)
            problems += [*warm.problems, *await warm.lost()]
    entries = max(value for name, value in metrics.items() if name.startswith("kms_cache_entries"))
    evicted = sum(value for name, value in metrics.items() if name.startswith("kms_cache_evictions_total"))
    growth = memory[-1] - memory[0]
    if growth > _MOST_GROWTH_MEGABYTES:
        problems.append(f"memory grew by {growth:.0f} MB in the last round")
    if evicted < tenants - cached:
        problems.append(f"only {evicted:.0f} keys were evicted: the tenants did not churn the cache")
    return Outcome(
        fault,
        f"{warm}; {tenants:,} tenants in {_ROUNDS} rounds: at most {entries:,.0f} of {cached:,} entries,"
        f" {evicted:,.0f} evicted, memory {growth:+.0f} MB after the first round",
        problems[:5],
    )


async def _churned(client: AsyncKmsClient, names: Iterator[int], messages: dict[str, bytes], wrong: list[str]) -> None:
    """Let each tenant decrypt what it has, and encrypt."""
    for name in names:
        tenant = f"churn-{name}"
        try:
            if tenant in messages and (await client.decrypt(tenant, messages[tenant])).plaintext != b"payload":
                wrong.append(f"{tenant}: a message opens as another")
            messages[tenant] = (await client.encrypt(tenant, b"payload")).ciphertext_blob
            if name % _SIGNS == 0:
                await client.sign_span(tenant, SPAN)
        except KmsClientError as error:
            wrong.append(f"{tenant}: {error}")


def _past_bounds(metrics: Mapping[str, float], cached: int) -> Sequence[str]:
    """Return which caches hold more than they may."""
    found = {name: value for name, value in metrics.items() if name.startswith("kms_cache_entries")}
    return [f"{name} is {value:.0f}, past {cached}" for name, value in found.items() if value > cached]


async def _newcomer(address: str, seconds: float) -> bool:
    """Return whether somebody who connects now, and does not try again, is served."""
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        request: Any = pb.EncryptRequest(tenant_id="warm-0", plaintext=b"payload")
        try:
            await cast(Any, KeyManagementServiceStub(channel)).Encrypt(request, timeout=seconds)
        except grpc.aio.AioRpcError:
            return False
    return True
