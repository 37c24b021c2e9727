"""Seal and open of 1 KiB with a fresh context each time: our branch keys against the official hierarchical keyring.

    make bench-envelope
    .venv/bin/python -m bench.hierarchical_keyring --rounds 20 --ops 100

Both use one branch key in one table, which the official library made, and both have it in their caches: KMS and
DynamoDB, moto in a process of its own, are not asked again. Ours is what the daemon runs for a call, KeyRing.seal and
KeyRing.open. Everybody opens the same messages, which we sealed. The contenders take turns within each round; only
ratios are worth comparing between runs.
"""

import argparse
import asyncio
import os
import statistics
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from time import perf_counter_ns

from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.data_keys.branch_keys import BranchKeys
from betrace_kms_server.data_keys.branch_messages import BranchMessages
from betrace_kms_server.data_keys.keyring import KeyRing
from betrace_kms_server.providers.aws.provider import AwsProvider
from betrace_kms_server.stores.dynamodb.branch_keys import open_branch_keys

from bench.envelope import PAYLOAD, kms
from tests.interop.hierarchy import OfficialBranchKeys
from tests.interop.sdk import REGION, TENANT, Sdk, whole_context

OURS, THEIRS = "betrace-kms, branch keys", "aws-encryption-sdk, hierarchical keyring"
Use = Callable[[dict[str, str], bytes], Awaitable[bytes]]
"""Seals a payload, or opens a message, under the caller's context."""


async def _ignore(_tenant_id: str) -> None:
    """Nobody rotates here."""


@asynccontextmanager
async def key_ring(official: OfficialBranchKeys) -> AsyncIterator[KeyRing]:
    """Run the daemon's core with branch keys on the table."""
    async with (
        AwsProvider(official.kms_key, region=REGION, endpoint=official.endpoint) as provider,
        open_branch_keys(official.table, region=REGION, endpoint=official.endpoint) as store,
    ):
        caches = [KeyCache(name, ttl=3600, max_size=1000) for name in ("encryption", "branch")]
        keys = BranchKeys(provider, store, caches[1], logical_name=official.logical_name, changed=_ignore)
        yield KeyRing(provider, caches[0], branch_messages=BranchMessages(keys, seals=True))
        for cache in caches:
            await cache.close()


def uses(ring: KeyRing, sdk: Sdk) -> dict[tuple[str, str], Use]:
    """Return what is measured, by contender and operation."""

    async def our_seal(context: dict[str, str], payload: bytes) -> bytes:
        return (await ring.seal(TENANT, payload, context)).ciphertext

    async def our_open(context: dict[str, str], message: bytes) -> bytes:
        return bytes((await ring.open(TENANT, message, context)).plaintext)

    async def their_seal(context: dict[str, str], payload: bytes) -> bytes:
        return sdk.seal(payload, whole_context(context))

    async def their_open(context: dict[str, str], message: bytes) -> bytes:
        plaintext, found = sdk.open(message)
        assert found == whole_context(context)
        return plaintext

    return {
        (OURS, "seal"): our_seal,
        (THEIRS, "seal"): their_seal,
        (OURS, "open"): our_open,
        (THEIRS, "open"): their_open,
    }


async def measure(rounds: int, ops: int) -> dict[tuple[str, str], list[int]]:
    """Return the nanoseconds of every operation, by contender and operation."""
    took: dict[tuple[str, str], list[int]] = defaultdict(list)
    with kms() as (endpoint, arn):
        official = OfficialBranchKeys(endpoint, arn, "branch-keys", "branch-keys")
        official.make_table()
        official.create(TENANT, {"department": "bench"})
        async with key_ring(official) as ring:
            measured = list(uses(ring, official.sdk(TENANT)).items())
            fresh = ({"record": str(number)} for number in count())
            sealed = []
            for context in ({"record": f"sealed {number}"} for number in range(ops)):
                sealed.append((context, (await ring.seal(TENANT, PAYLOAD, context)).ciphertext))
            for number in range(-1, rounds):  # the first round warms the caches
                for key, use in measured:
                    for context, message in sealed:
                        arguments = (next(fresh), PAYLOAD) if key[1] == "seal" else (context, message)
                        start = perf_counter_ns()
                        result = await use(*arguments)
                        nanoseconds = perf_counter_ns() - start
                        assert key[1] == "seal" or result == PAYLOAD
                        if number >= 0:
                            took[key].append(nanoseconds)
                measured.append(measured.pop(0))
    return took


def main() -> None:
    """Measure, and print medians in microseconds and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20, help="how often each contender has its turn (default 20)")
    parser.add_argument("--ops", type=int, default=100, help="seals and opens in a turn (default 100)")
    arguments = parser.parse_args()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    took = asyncio.run(measure(arguments.rounds, arguments.ops))
    medians = {key: statistics.median(nanoseconds) / 1000 for key, nanoseconds in took.items()}
    print(f"{'1 KiB, a fresh context each, microseconds':42}{'seal':>10}{'open':>10}")
    for name in (OURS, THEIRS):
        print(f"{name:42}{medians[name, 'seal']:10.1f}{medians[name, 'open']:10.1f}")
    ratios = [medians[THEIRS, operation] / medians[OURS, operation] for operation in ("seal", "open")]
    print(f"{'ratio of medians, theirs / ours':42}{ratios[0]:9.1f}x{ratios[1]:9.1f}x")


if __name__ == "__main__":
    main()
