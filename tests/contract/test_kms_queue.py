"""The queue for KMS: waiting for a connection of our own is no failure of KMS."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from betrace_kms_server.core.errors import KmsError, Overloaded
from betrace_kms_server.providers.aws.provider import AwsProvider
from betrace_kms_server.providers.aws.turns import IN_FLIGHT, Turns

from tests.contract.samples import ARN
from tests.contract.stub_kms import stubbed
from tests.moto_server import REGION

ANSWER = {"Plaintext": bytes(32), "CiphertextBlob": b"blob", "KeyId": ARN}


async def test_4000_cold_tenants_do_not_open_the_circuit() -> None:
    """A healthy KMS that takes 100 ms is asked for all of them, with at most as many calls as there are connections."""
    under_way = most = 0

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.1)
        under_way -= 1
        return ANSWER

    async with AwsProvider(ARN, region=REGION, client_factory=stubbed(answer)) as aws:

        async def one(number: int) -> str:
            try:
                await aws.generate_data_key(32, {"tenantId": str(number)})
            except KmsError as error:
                return error.reason
            return "OK"

        outcomes = Counter(await asyncio.gather(*map(one, range(4000))))
        assert (Counter(OK=4000), {REGION: "closed"}, IN_FLIGHT) == (outcomes, aws.breakers, most)


async def test_a_full_queue_refuses_at_once() -> None:
    """Whoever comes when too many wait already is told so, with a delay, and those who wait get their turn."""
    turns = Turns(in_flight=1, max_queued=2)
    go = asyncio.Event()
    done: list[int] = []

    async def call(number: int) -> None:
        async with turns.turn("Decrypt"):
            await go.wait()
            done.append(number)

    calls = [asyncio.create_task(call(number)) for number in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="kms:Decrypt"):
        await call(3)
    go.set()
    await asyncio.gather(*calls)
    assert [0, 1, 2] == done


async def test_a_wait_has_an_end() -> None:
    """A turn that does not come in time is refused, and its place in the queue is free again."""
    turns = Turns(in_flight=1, max_queued=1, seconds=0.01)
    async with turns.turn("Decrypt"):
        for _ in range(2):
            with pytest.raises(Overloaded):
                async with turns.turn("Decrypt"):
                    pass
    async with turns.turn("Decrypt"):
        pass


async def test_who_leaves_the_queue_takes_no_turn() -> None:
    """A caller that is cancelled while it waits costs nobody a place."""
    turns = Turns(in_flight=1, max_queued=1)
    async with turns.turn("Encrypt"):
        waiting = asyncio.create_task(turns.turn("Encrypt").__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with turns.turn("Encrypt"):
        pass


async def test_the_check_of_the_master_key_does_not_queue() -> None:
    """How KMS is can be asked while all places are taken."""
    gate = asyncio.Event()

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        if action != "DescribeKey":
            await gate.wait()
            return ANSWER
        return {"KeyMetadata": {"Arn": ARN, "KeyState": "Enabled"}}

    async with AwsProvider(ARN, region=REGION, client_factory=stubbed(answer)) as aws:
        calls = [asyncio.create_task(aws.generate_data_key(32, {})) for _ in range(IN_FLIGHT + 10)]
        await asyncio.sleep(0)
        await aws.check()
        gate.set()
        await asyncio.gather(*calls)
