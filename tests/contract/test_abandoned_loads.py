"""Loads that no one waits for any more: KMS is not called for them, and what it was asked already is not wasted."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from betrace_kms_server.cache.key_cache import REFRESH_AT, KeyCache
from betrace_kms_server.data_keys.keyring import KeyRing
from betrace_kms_server.providers.aws.region import CALLS_OF_TENANT

from tests.contract.doubles import FakeClock
from tests.contract.samples import ARN
from tests.contract.stub_kms import provider, stubbed


class HeldKms:
    """A KMS that answers when a test lets it, and knows for which records it was asked."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.asked: list[str] = []

    async def __call__(self, action: str, parameters: Mapping[str, Any]) -> Any:
        self.asked.append(parameters["EncryptionContext"]["record"])
        await self.may_answer.wait()
        return {"KeyId": ARN, "CiphertextBlob": b"wrapped %d" % len(self.asked), "Plaintext": bytes(32)}


@pytest.fixture
def kms() -> HeldKms:
    return HeldKms()


@pytest.fixture
async def ring(kms: HeldKms, new_cache: Callable[..., KeyCache]) -> AsyncIterator[KeyRing]:
    async with provider(stubbed(kms)) as aws:
        yield KeyRing(aws, new_cache())


def seal(ring: KeyRing, record: str) -> "asyncio.Task[Any]":
    return asyncio.create_task(ring.seal("acme", b"payload", {"record": record}))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def leave(*callers: "asyncio.Task[Any]") -> None:
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)


async def test_queued_loads_are_given_up_and_sent_ones_land(ring: KeyRing, kms: HeldKms) -> None:
    """100 callers leave: KMS hears of those with a slot, whose keys are cached, and of one that is awaited."""
    callers = [seal(ring, str(number)) for number in range(100)]
    await settle()
    another = seal(ring, "50")
    await settle()
    await leave(*callers)
    sent = [str(number) for number in range(CALLS_OF_TENANT)]
    assert sent == kms.asked
    kms.may_answer.set()
    await another
    assert [*sent, "50"] == kms.asked
    for record in sent:
        await seal(ring, record)
    assert [*sent, "50"] == kms.asked


@pytest.mark.parametrize("turns", range(4))
async def test_who_comes_as_the_last_one_leaves_gets_a_key(ring: KeyRing, kms: HeldKms, turns: int) -> None:
    """So many turns of the loop after: a load that ends because it was given up is none of the newcomer's."""
    running = [seal(ring, f"running {number}") for number in range(CALLS_OF_TENANT)]
    await settle()
    queued = seal(ring, "queued")
    await settle()
    queued.cancel()
    for _ in range(turns):
        await asyncio.sleep(0)
    newcomer = seal(ring, "queued")
    await settle()
    kms.may_answer.set()
    await asyncio.gather(newcomer, *running)
    assert 1 == kms.asked.count("queued")


async def test_refresh_is_not_given_up(kms: HeldKms, new_cache: Callable[..., KeyCache], clock: FakeClock) -> None:
    """No caller waits for it, and the daemon does."""
    kms.may_answer.set()
    async with provider(stubbed(kms)) as aws:
        ring = KeyRing(aws, new_cache())
        await seal(ring, "warm")
        clock.now += 3600 * REFRESH_AT
        kms.may_answer.clear()
        running = [seal(ring, f"running {number}") for number in range(CALLS_OF_TENANT)]
        await settle()
        await seal(ring, "warm")  # starts the refresh, which queues
        await settle()
        assert 1 == kms.asked.count("warm")
        kms.may_answer.set()
        await asyncio.gather(*running)
        await settle()
        assert 2 == kms.asked.count("warm")
