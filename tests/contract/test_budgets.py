"""Budgets of data keys: exact however many callers there are, with a successor before anybody has to wait."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

import pytest
from betrace_kms_envelope import Message
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.errors import KmsUnreachable
from betrace_kms_server.core.keys import DataKey
from betrace_kms_server.data_keys.budget import Budget
from betrace_kms_server.data_keys.keyring import KeyRing

from tests.contract.doubles import CountedLocalProvider, FakeClock


class HeldProvider(CountedLocalProvider):
    """A provider whose KMS answers only when a test lets it, or not at all."""

    def __init__(self, master_key: bytes) -> None:
        super().__init__(master_key)
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.asked = asyncio.Event()
        self.down = False

    async def generate_data_key(self, number_of_bytes: int, context: Mapping[str, str]) -> DataKey:
        """Make a key once the test allows it."""
        key = await super().generate_data_key(number_of_bytes, context)
        self.asked.set()
        await self.may_answer.wait()
        if self.down:
            raise KmsUnreachable("no answer from KMS")
        return key


@pytest.fixture
def provider() -> HeldProvider:
    """A provider that can be held."""
    return HeldProvider(bytes(32))


def wrapped_key_of(message: bytes) -> bytes:
    """Return the wrapped data key of a message, which tells sealing keys apart."""
    return Message.parse(message).encrypted_data_keys[0].ciphertext


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
async def test_a_sealing_key_seals_no_more_than_its_budget(
    provider: HeldProvider, new_cache: Callable[..., KeyCache], limit: int
) -> None:
    """500 callers at once: no key seals more than its limit, and no key is wasted but the one in waiting."""
    ring = KeyRing(provider, new_cache(), max_messages=limit)
    sealed = await asyncio.gather(*(ring.seal("acme", b"%d" % number, {}) for number in range(500)))
    uses = Counter(wrapped_key_of(each.ciphertext) for each in sealed)
    opened = [(await ring.open("acme", each.ciphertext, {})).plaintext for each in sealed]
    assert max(uses.values()) == limit
    assert opened == [b"%d" % number for number in range(500)]
    assert provider.calls["GenerateDataKey"] <= -(-500 // max(1, int(limit * 0.9))) + 1


@pytest.mark.parametrize("limit", [1, 3, 50])
async def test_a_data_key_is_handed_out_no_more_than_its_budget(
    provider: HeldProvider, new_cache: Callable[..., KeyCache], limit: int
) -> None:
    """The same for what GenerateDataKey hands out."""
    ring = KeyRing(provider, new_cache(), max_uses=limit)
    keys = await asyncio.gather(*(ring.data_key("acme", 32, {}) for _ in range(200)))
    assert max(Counter(key.wrapped.blob for key in keys).values()) == limit


async def test_the_successor_is_there_before_the_limit(
    provider: HeldProvider, new_cache: Callable[..., KeyCache]
) -> None:
    """From 90 % on the next key is fetched in the background, and nobody waits for it meanwhile."""
    ring = KeyRing(provider, new_cache(), max_messages=10)
    for _ in range(9):
        await ring.seal("acme", b"payload", {})
    provider.may_answer.clear()
    provider.asked.clear()
    tenth = await ring.seal("acme", b"payload", {})  # starts the fetch, and does not wait
    await provider.asked.wait()
    provider.may_answer.set()
    eleventh = await ring.seal("acme", b"payload", {})
    assert wrapped_key_of(tenth.ciphertext) != wrapped_key_of(eleventh.ciphertext)
    assert provider.calls["GenerateDataKey"] == 2


async def test_a_successor_that_cannot_be_had_costs_nobody_before_the_limit(
    provider: HeldProvider, new_cache: Callable[..., KeyCache], clock: FakeClock
) -> None:
    """With KMS away the rest of the budget is used, then calls fail; one try for the successor, not one a call."""
    ring = KeyRing(provider, new_cache(), max_messages=100)
    await ring.seal("acme", b"payload", {})
    provider.down = True
    for _ in range(99):
        await ring.seal("acme", b"payload", {})
        await asyncio.sleep(0)
    tries = provider.calls["GenerateDataKey"]
    with pytest.raises(KmsUnreachable):
        await ring.seal("acme", b"payload", {})
    provider.down = False
    await ring.seal("acme", b"payload", {})
    assert tries == 2


async def test_fresh_keys_have_no_budget_and_take_none(
    provider: HeldProvider, new_cache: Callable[..., KeyCache]
) -> None:
    """`fresh` goes past the cache."""
    ring = KeyRing(provider, new_cache(), max_uses=1)
    first = await ring.data_key("acme", 32, {}, fresh=True)
    cached = await ring.data_key("acme", 32, {})
    assert (first.wrapped == cached.wrapped, provider.calls["GenerateDataKey"]) == (False, 2)


def test_no_limit_never_ends() -> None:
    """Without a limit only time ends a key."""
    budget = Budget(None)
    assert all(budget.spend() for _ in range(10_000))
    assert not budget.just_ran_low
