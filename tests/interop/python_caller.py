"""Calls Encrypt without a pause until the standard input ends, as the programs in go/ and java/ do.

`python -m tests.interop.python_caller sync|asyncio TARGET`
"""

import asyncio
import json
import sys
import threading
from collections import Counter

from betrace_kms_client import AsyncKmsClient, KmsClient, KmsClientError

CALLS_AT_ONCE = 4
CALL_SECONDS = 20.0

_stopping = threading.Event()
_outcomes: "Counter[str]" = Counter()


def _call(client: KmsClient) -> None:
    while not _stopping.is_set():
        try:
            client.encrypt("acme", b"x")
            _outcomes["OK"] += 1
        except KmsClientError as error:
            _outcomes[f"{type(error).__name__}: {error}"] += 1


async def _call_async(client: AsyncKmsClient) -> None:
    while not _stopping.is_set():
        try:
            await client.encrypt("acme", b"x")
            _outcomes["OK"] += 1
        except KmsClientError as error:
            _outcomes[f"{type(error).__name__}: {error}"] += 1


def _sync(target: str) -> None:
    with KmsClient(target, timeout=CALL_SECONDS) as client:
        client.encrypt("acme", b"x")
        print("calling", flush=True)
        threads = [threading.Thread(target=_call, args=(client,)) for _ in range(CALLS_AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


async def _asyncio(target: str) -> None:
    async with AsyncKmsClient(target, timeout=CALL_SECONDS) as client:
        await client.encrypt("acme", b"x")
        print("calling", flush=True)
        await asyncio.gather(*(_call_async(client) for _ in range(CALLS_AT_ONCE)))


def main(kind: str, target: str) -> None:
    """Call, and print what became of the calls."""

    def wait() -> None:
        sys.stdin.read()
        _stopping.set()

    threading.Thread(target=wait, daemon=True).start()
    if kind == "sync":
        _sync(target)
    else:
        asyncio.run(_asyncio(target))
    failures = {name: count for name, count in _outcomes.items() if name != "OK"}
    print(json.dumps({"calls": _outcomes.total(), "failures": failures}))


if __name__ == "__main__":
    main(*sys.argv[1:3])
