"""The machine fails under a daemon: its wall clock jumps, its disk is full, broken or read-only."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from betrace_kms_client import AsyncKmsClient

from tests.aws_proxy import AwsProxy, aws_proxy
from tests.daemon import COMMAND, spawned
from tests.faults.interpose import Machine, machine
from tests.faults.outcome import Outcome
from tests.faults.race import emulator
from tests.faults.warm import SPAN, Warm, recovered, refusal

_HOUR, _TEN_YEARS = 3600, 10 * 365 * 86400
_JUMPS = {
    "the clock jumps an hour ahead": _HOUR,
    "the clock jumps an hour back": -_HOUR,
    "the clock jumps ten years ahead": _TEN_YEARS,
    "the clock jumps ten years back": -_TEN_YEARS,
}
_DISKS = {
    "the disk is full": ("full", "make room"),
    "the disk reports I/O errors": ("broken", "kernel's log"),
    "the disk is read-only": ("read-only", "writable"),
}
_AUDITS: Mapping[str, Mapping[str, str]] = {
    "the disk of the audit trail is full": {},
    "the disk of a required audit trail is full": {"KMS_AUDIT_REQUIRED": "true"},
    "the disk of a durable audit trail is full": {"KMS_AUDIT_DURABLE": "true"},
}
FAULTS = (
    dict.fromkeys(_JUMPS, "warm calls served, no key lost or rotated early; misses that AWS refuses name the clock")
    | dict.fromkeys(_DISKS, "warm calls served, first signatures refused with what to do; no key lost or made twice")
    | {
        "the disk of the audit trail is full": "all calls served; the chain verifies",
        "the disk of a required audit trail is full": "calls refused until there is room; the chain verifies",
        "the disk of a durable audit trail is full": "calls refused until there is room; the chain verifies",
    }
)
SHORT = ("the clock jumps ten years ahead", "the disk reports I/O errors")


async def run(folder: Path, faults: Sequence[str], seconds: float) -> AsyncIterator[Outcome]:
    """Inject each fault into a daemon of its own."""
    unwell = machine(folder)
    for number, fault in enumerate(faults):
        own = folder / str(number)
        own.mkdir(0o700)
        unwell.set()
        if fault in _JUMPS:
            yield await _jump(own, fault, unwell, seconds)
        elif fault in _DISKS:
            yield await _disk(own, fault, unwell, seconds)
        else:
            yield await _audit(own, fault, unwell)


async def _jump(folder: Path, fault: str, unwell: Machine, seconds: float) -> Outcome:
    with ExitStack() as resources:
        url, arn = resources.enter_context(emulator())
        proxy = resources.enter_context(aws_proxy(url))
        proxy.checks_clock = True
        environ = unwell.environ | {
            "BETRACE_KMS_PROVIDER": "aws",
            "AWS_KMS_MASTER_KEY_ID": arn,
            "AWS_KMS_ENDPOINT": proxy.url,
            "KMS_STORE_ALLOW_EPHEMERAL": "true",
            "KMS_ROTATION_CHECK_CRON": "* * * * * ?",
        }
        listen = f"unix:{folder}/kms.sock"
        arguments = ("--data-dir", f"{folder}/data", "--listen", listen)
        daemon = resources.enter_context(spawned(*arguments, environ=environ))
        await asyncio.to_thread(daemon.wait_for, "serving", 60)
        async with AsyncKmsClient(listen, timeout=10) as client:
            warm = Warm(client)
            await warm.begin()
            async with warm.calling():
                await warm.alternate(lambda: unwell.set(clock_seconds=_JUMPS[fault]), unwell.set, seconds)
                unwell.set(clock_seconds=_JUMPS[fault])
                text = await refusal(client, "cold")
                unwell.set()
                await recovered(client, "cold")
            problems = [*warm.problems, *await warm.lost(), *await _too_many_keys(client, proxy)]
    if "clock" not in text:
        problems.append(f"a miss does not name the clock: {text}")
    return Outcome(fault, f"{warm}; a miss: {_reason(text)}", problems)


async def _too_many_keys(client: AsyncKmsClient, proxy: AwsProxy) -> Sequence[str]:
    """Return which tenants got keys that nobody asked for; keys of one sealing and one signing kind were made each."""
    counts = {tenant: len((await client.get_public_keys(tenant)).keys) for tenant in ("warm-0", "warm-1", "cold")}
    made = {tenant: proxy.tenant_calls[tenant] for tenant in ("warm-0", "warm-1")}
    found = [f"{tenant} has {count} keys" for tenant, count in counts.items() if count != 1]
    return found + [f"{tenant} needed {calls} KMS calls" for tenant, calls in made.items() if calls != 2]


async def _disk(folder: Path, fault: str, unwell: Machine, seconds: float) -> Outcome:
    kind, advice = _DISKS[fault]
    listen = f"unix:{folder}/kms.sock"
    arguments = ("--data-dir", f"{folder}/data", "--listen", listen)
    with spawned(*arguments, environ=unwell.environ) as daemon:
        await asyncio.to_thread(daemon.wait_for, "serving", 60)
        async with AsyncKmsClient(listen, timeout=10) as client:
            warm = Warm(client)
            await warm.begin()
            async with warm.calling():
                await warm.alternate(lambda: unwell.set_disk(kind), lambda: unwell.set_disk("well"), seconds)
                unwell.set_disk(kind)
                text = await refusal(client, "cold")
                unwell.set_disk("well")
                await recovered(client, "cold")
            signed = await client.sign_span("cold", SPAN)
            daemon.process.terminate()
            await asyncio.to_thread(daemon.process.wait, 30)
    problems = list(warm.problems)
    with spawned(*arguments) as daemon:
        await asyncio.to_thread(daemon.wait_for, "serving", 60)
        async with AsyncKmsClient(listen, timeout=10) as client:
            problems += await warm.lost(client)
            if [key.key_id for key in (await client.get_public_keys("cold")).keys] != [signed.key_id]:
                problems.append("the tenant that was refused has other keys after a restart")
    if advice not in text:
        problems.append(f"a first signature does not say what to do: {text}")
    return Outcome(fault, f"{warm}; a first signature: {_reason(text)}", problems)


async def _audit(folder: Path, fault: str, unwell: Machine) -> Outcome:
    listen, trail = f"unix:{folder}/kms.sock", folder / "audit.log"
    environ = {**unwell.environ, "KMS_AUDIT_FILE": str(trail), **_AUDITS[fault]}
    problems = list[str]()
    with spawned("--data-dir", f"{folder}/data", "--listen", listen, environ=environ) as daemon:
        await asyncio.to_thread(daemon.wait_for, "serving", 60)
        async with AsyncKmsClient(listen, timeout=10) as client:
            warm = Warm(client)
            await warm.begin()
            unwell.set_disk("full")
            async with warm.calling():
                await asyncio.sleep(0.5)
            served, refused = warm.served, len(warm.refused)
            unwell.set_disk("well")
            await recovered(client, "cold")
            problems += await warm.lost()
            daemon.process.terminate()
            await asyncio.to_thread(daemon.process.wait, 30)
    if (refused == 0) != (not _AUDITS[fault]) or (served == 0) != bool(_AUDITS[fault]):
        problems.append(f"{served} calls served and {refused} refused while the disk was full")
    verified = await asyncio.to_thread(
        subprocess.run, [str(COMMAND), "audit", "verify", str(trail)], capture_output=True, text=True, check=False
    )
    verdict = re.sub(r", head \w+", "", (verified.stdout + verified.stderr).strip().splitlines()[-1])
    if verified.returncode:
        problems.append(verdict)
    return Outcome(fault, f"{served} calls served, {refused} refused; then {verdict}", problems)


def _reason(text: str) -> str:
    return re.split(r"[:;]", text)[0][:90]
