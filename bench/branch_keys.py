"""Encrypt with a context of its own each time: branch-key mode against data-key mode, through two real daemons.

    make bench-branch-keys
    .venv/bin/python -m bench.branch_keys --contexts 1000 --more 10000

Both daemons use one KMS and take turns of 50 calls, so that the machine's mood is the same for both; the ratio is that
of their times. Then the daemon with branch keys seals `--more` contexts, is started again, and opens everything. KMS
calls are those that the daemons count. All of it is done twice, with two KMS in processes of their own: moto, which
answers as fast as it can, and one that answers after `--latency` milliseconds, as AWS KMS does over a network.
"""

import argparse
import asyncio
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import grpc
import orjson
from betrace.kms.v1 import admin_pb2 as pb
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace_kms_client import AsyncKmsClient

from bench.envelope import kms
from tests.daemon import running
from tests.drills.fake_kms import ARN, fake_kms

TURN = 50


@dataclass(frozen=True, slots=True)
class Mode:
    """A daemon in one mode."""

    client: AsyncKmsClient
    admin: Any
    before: Mapping[str, int]
    """What it asked KMS for at its start, to find out whether it may."""

    async def seal(self, numbers: range) -> tuple[float, list[bytes]]:
        """Seal with one context for each number; return the seconds and the messages."""
        began = perf_counter()
        sealed = [await self.client.encrypt("acme", b"secret", {"record": str(number)}) for number in numbers]
        return perf_counter() - began, [message.ciphertext_blob for message in sealed]

    async def open(self, messages: list[bytes]) -> float:
        """Open what was sealed for the numbers from 0; return the seconds."""
        began = perf_counter()
        for number, message in enumerate(messages):
            assert b"secret" == (await self.client.decrypt("acme", message, {"record": str(number)})).plaintext
        return perf_counter() - began

    async def kms_calls(self) -> dict[str, int]:
        """Return the daemon's calls of KMS since its start."""
        made = Counter(await kms_calls(self.admin))
        return dict(made - Counter(self.before))


async def kms_calls(admin: Any) -> dict[str, int]:
    """Return a daemon's calls of KMS for keys."""
    status = orjson.loads((await admin.GetStatus(pb.GetStatusRequest())).json)
    return {name: sum(counts.values()) for name, counts in status["kms_calls"].items() if name != "DescribeKey"}


async def started(mode: str, folder: Path, endpoint: str, arn: str, resources: AsyncExitStack) -> Mode:
    """Start a daemon."""
    values = {
        "betrace_kms_provider": "aws",
        "aws_kms_master_key_id": arn,
        "aws_kms_endpoint": endpoint,
        "kms_store_allow_ephemeral": "true",
        "kms_budget_tenant_per_second": "0",
        "kms_encryption_mode": mode,
    }
    daemon = await resources.enter_async_context(running(folder, **values))
    client = await resources.enter_async_context(AsyncKmsClient(daemon.addresses[0]))
    channel = await resources.enter_async_context(grpc.aio.insecure_channel(f"unix:{folder}/admin.sock"))
    admin = KmsAdminServiceStub(channel)
    return Mode(client, admin, await kms_calls(admin))


async def measure(endpoint: str, arn: str, contexts: int, more: int) -> None:
    """Print the comparison."""
    with TemporaryDirectory() as folder:
        sealed: list[bytes] = []
        async with AsyncExitStack() as resources:
            modes = {
                mode: await started(mode, Path(folder, mode), endpoint, arn, resources)
                for mode in ("data-key", "branch-key")
            }
            seconds = dict.fromkeys(modes, 0.0)
            for start in range(0, contexts, TURN):
                for mode, daemon in modes.items():
                    took, messages = await daemon.seal(range(start, min(start + TURN, contexts)))
                    seconds[mode] += took
                    sealed += messages if mode == "branch-key" else []
            for mode, daemon in modes.items():
                calls = await daemon.kms_calls()
                print(f"{mode:>10}: {contexts} contexts sealed in {seconds[mode]:.2f} s, KMS calls {calls}")
            print(f"     ratio: {seconds['data-key'] / seconds['branch-key']:.1f}")
            took, messages = await modes["branch-key"].seal(range(contexts, more))
            sealed += messages
            calls = await modes["branch-key"].kms_calls()
            print(f"branch-key: {more} contexts sealed, the last {len(messages)} in {took:.2f} s, KMS calls {calls}")
        async with AsyncExitStack() as resources:
            again = await started("branch-key", Path(folder, "branch-key"), endpoint, arn, resources)
            took, calls = await again.open(sealed), await again.kms_calls()
            print(f"branch-key: after a restart {len(sealed)} opened in {took:.2f} s, KMS calls {calls}")


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, default=1000)
    parser.add_argument("--more", type=int, default=10_000, help="contexts in all for branch-key mode")
    parser.add_argument("--latency", type=float, default=10.0, help="of the second KMS, in milliseconds (default 10)")
    arguments = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    with kms() as (endpoint, arn):
        print("KMS is moto")
        asyncio.run(measure(endpoint, arn, arguments.contexts, arguments.more))
    seconds = arguments.latency / 1000
    with fake_kms(latency=(seconds, seconds)) as endpoint:
        print(f"KMS answers after {arguments.latency:g} ms")
        asyncio.run(measure(endpoint, ARN, arguments.contexts, arguments.more))


if __name__ == "__main__":
    main()
