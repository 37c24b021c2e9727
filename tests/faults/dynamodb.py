"""DynamoDB fails behind a proxy while a daemon keeps its keys there: first signatures are refused or done once.

KMS is behind the same proxy and works. Afterwards the table is read without the daemon: each tenant has one key, that
by which the tenant was served.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import grpc
from betrace_kms_server.stores.dynamodb.creation import create_table
from betrace_kms_server.stores.dynamodb.store import open_dynamodb

from tests.aws_proxy import AwsProxy, Verdict, aws_proxy
from tests.daemon import spawned
from tests.faults.drill import Drill
from tests.faults.outcome import Outcome
from tests.faults.race import REGION, emulator

_PROMISE = (
    "warm calls served; a first signature makes at most 3 attempts of a call and ends by its deadline;"
    " no key is lost or made twice"
)
_WRITES_RESET = "DynamoDB resets connections after each write"
FAULTS = {
    "DynamoDB throttles": _PROMISE,
    "DynamoDB answers 500": _PROMISE,
    "DynamoDB hangs": _PROMISE,
    "DynamoDB resets connections": _PROMISE,
    "DynamoDB resets connections after its work": _PROMISE,
    _WRITES_RESET: "all calls served, because the daemon reads what a write without an answer did; no key made twice",
    "DynamoDB sends half a body": _PROMISE,
    "DynamoDB answers HTML": _PROMISE,
}
SHORT = ("DynamoDB resets connections after its work", _WRITES_RESET)
_VERDICTS: dict[str, Verdict] = dict(
    zip(FAULTS, ("throttle", "error", "stall", "drop", "drop-answer", "drop-answer", "half", "html"), strict=True)
)
_WRITES = ("TransactWriteItems", "PutItem", "UpdateItem")
_OF_KMS = frozenset({"GenerateDataKey", "Encrypt", "Decrypt", "DescribeKey"})


class _Table:
    """DynamoDB as the daemon sees it."""

    def __init__(self, proxy: AwsProxy) -> None:
        self._proxy = proxy

    def fail(self, fault: str) -> None:
        verdict = _VERDICTS[fault]
        self._proxy.attempts.clear()
        if fault == _WRITES_RESET:
            self._proxy.always(verdict, *_WRITES)
        else:
            self._proxy.judge = lambda action: "pass" if action in _OF_KMS else verdict

    def recover(self) -> None:
        self._proxy.always("pass")

    def settle_seconds(self, _fault: str) -> float:
        return 0.0

    def attempts(self, _tenants: Sequence[str]) -> int:
        return max(self._proxy.attempts.values())

    def kms_calls(self, tenant: str) -> int:
        return self._proxy.tenant_calls[tenant]


async def run(folder: Path, faults: Sequence[str], seconds: float) -> AsyncIterator[Outcome]:
    """Inject each fault into a daemon with a table of its own, because moto slows down as a table grows."""
    with ExitStack() as resources:
        url, arn = resources.enter_context(emulator())
        proxy = resources.enter_context(aws_proxy(url))
        for number, fault in enumerate(faults):
            proxy.tenant_calls.clear()
            async for _ in create_table(f"keys-{number}", region=REGION, endpoint=url):
                pass
            environ = {
                "BETRACE_KMS_PROVIDER": "aws",
                "AWS_KMS_MASTER_KEY_ID": arn,
                "AWS_KMS_ENDPOINT": proxy.url,
                "KMS_STORE": "dynamodb",
                "KMS_STORE_TABLE": f"keys-{number}",
                "KMS_STORE_ENDPOINT": proxy.url,
                "KMS_CACHE_VERSION_CHECK_SECONDS": "1",
                "KMS_LOCK_CHECK_SECONDS": "1",
                "KMS_CACHE_MAX_SIZE": "100000",
            }
            listen = f"unix:{folder}/kms-{number}.sock"
            arguments = ("--data-dir", f"{folder}/data-{number}", "--listen", f"127.0.0.1:0,{listen}")
            with spawned(*arguments, environ=environ) as daemon:
                await asyncio.to_thread(daemon.wait_for, "serving", 60)
                async with grpc.aio.insecure_channel(listen) as channel:
                    drill = Drill(channel, daemon.address, _Table(proxy), "SignSpan")
                    outcome = await drill.run(fault, seconds, misses_served=fault == _WRITES_RESET)
            kept, wrong = await _compared(url, f"keys-{number}", drill)
            figure = f"{outcome.figure}; {kept:,} keys kept, {len(wrong)} lost or made twice"
            yield replace(outcome, figure=figure, problems=[*outcome.problems, *wrong[:3]])


async def _compared(url: str, table: str, drill: Drill) -> tuple[int, Sequence[str]]:
    """Return how many keys a table has, and which tenants have more than one, or others than they were served by."""
    async with open_dynamodb(table, region=REGION, endpoint=url) as store:
        rows = [(row.tenant_id, row.key_id) async for row in store.rows()]
    counts = Counter(tenant for tenant, _ in rows)
    wrong = [f"{tenant} has {count} keys" for tenant, count in counts.items() if count > 1]
    served = {(tenant, key_id) for tenant, key_ids in drill.keys.items() for key_id in key_ids}
    return len(rows), wrong + [f"the key of {tenant} is not kept" for tenant, _ in served - set(rows)]
