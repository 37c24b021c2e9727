"""What each use of a data key notes in its event, and under what its key is cached."""

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest
from betrace_kms_envelope import MAX_WRAPPED_KEY_BYTES, EncryptedDataKey, Message, Sealer
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.errors import DoesNotOpen, KmsUnreachable
from betrace_kms_server.core.key_event import KeyEvent
from betrace_kms_server.core.keys import KeyMaterial, WrappedKey
from betrace_kms_server.core.master_keys import message_provider_id
from betrace_kms_server.core.tenancy import encryption_context
from betrace_kms_server.data_keys.batches import (
    Item,
    KeyItem,
    SharedContext,
    Turns,
    data_key_batch,
    open_batch,
    seal_batch,
)
from betrace_kms_server.data_keys.keyring import KeyRing, digest
from betrace_kms_server.data_keys.results import Sealed

from tests.contract.doubles import CountedLocalProvider

NewCache = Callable[..., KeyCache]
Call = Callable[[KeyRing, KeyEvent], Awaitable[object]]


@pytest.fixture
def kms() -> CountedLocalProvider:
    """Give a provider that counts."""
    return CountedLocalProvider(os.urandom(32))


async def test_every_use_notes_whether_the_cache_had_the_key(kms: CountedLocalProvider, new_cache: NewCache) -> None:
    """A miss is in the event of the call that had it, whatever the call; a hit is none."""
    writer = KeyRing(kms, new_cache())
    message = (await writer.seal("acme", b"x", {})).ciphertext
    bare = (await writer.data_key("acme", 32, {})).wrapped.blob
    calls: list[Call] = [
        lambda ring, event: ring.data_key("acme", 32, {}, event=event),
        lambda ring, event: ring.seal("acme", b"x", {}, event),
        lambda ring, event: ring.open("acme", message, {}, event),
        lambda ring, event: ring.open("acme", bare, {}, event),
    ]
    for number, call in enumerate(calls):
        ring = KeyRing(kms, new_cache())
        cold, warm = KeyEvent("call", "acme", cache_hit=True), KeyEvent("call", "acme", cache_hit=True)
        await call(ring, cold)
        await call(ring, warm)
        assert (False, True) == (cold.cache_hit, warm.cache_hit), number
    batched = [KeyEvent("call", "acme", cache_hit=True) for _ in range(3)]
    ring, shared = KeyRing(kms, new_cache()), SharedContext({})
    for event, is_fresh in zip(batched, (False, False, True), strict=True):
        await data_key_batch(ring, "acme", [KeyItem(32, shared, is_fresh)] * 2, Turns(), event)
    assert [False, True, False] == [event.cache_hit for event in batched]
    for fresh in (KeyEvent("call", "acme", cache_hit=True), KeyEvent("call", "acme", cache_hit=True)):
        await ring.data_key("acme", 32, {}, fresh=True, event=fresh)
        assert fresh.cache_hit is False


async def test_every_use_is_cached_for_its_tenant_use_and_context(
    kms: CountedLocalProvider, new_cache: NewCache
) -> None:
    """So that an invalidation drops them all, and no use or context meets the key of another."""
    cache = new_cache()
    ring = KeyRing(kms, cache)
    message = (await ring.seal("acme", b"x", {})).ciphertext
    keys = {(await ring.data_key("acme", 32, context)).wrapped.blob for context in ({}, {"a": "b"}, {"a": "c"})}
    bare = (await ring.data_key("acme", 32, {})).wrapped.blob
    await ring.open("acme", message, {})
    await ring.open("acme", bare, {})
    assert 3 == len(keys)
    assert {"sealing sealing key", "data key", "message key", "bare key"} == {key[0] for key in cache._entries}
    assert {("acme", kms.master_key_arn)} == {(key[2], key[1]) for key in cache._entries}
    assert 6 == cache.invalidate("acme")


async def test_unwrapped_key_names_its_master_key(kms: CountedLocalProvider, new_cache: NewCache) -> None:
    """The audit trail shows which one it was, for messages and bare keys alike."""
    ring = KeyRing(kms, new_cache())
    message = (await ring.seal("acme", b"x", {})).ciphertext
    bare = (await ring.data_key("acme", 32, {})).wrapped.blob
    opened = [await ring.open("acme", blob, {}) for blob in (message, bare)]
    assert {kms.master_key_arn} == {key.master_key_arn for key in opened}


async def test_number_of_wrapped_keys_is_bounded_as_configured(kms: CountedLocalProvider, new_cache: NewCache) -> None:
    """The bound of the key ring is the one that holds, below and above the default."""
    data_key = await kms.generate_data_key(32, encryption_context("acme", {}))
    provider_id = message_provider_id(kms.master_key_arn)
    ours = EncryptedDataKey(provider_id, data_key.wrapped.master_key_arn, data_key.wrapped.blob)
    message = Sealer(ours, encryption_context("acme", {})).seal(b"x", data_key.material.raw)
    fields = Message.parse(message).fields
    foreign = b"".join((5).to_bytes(2, "big") + b"other" + b"\0\1x\0\1x" for _ in range(10))
    at = message.index(fields) + fields.index((1).to_bytes(2, "big") + len(provider_id).to_bytes(2, "big"))
    many = message[:at] + (11).to_bytes(2, "big") + foreign + message[at + 2 :]
    for bound, asked in ((10, 0), (11, 1)):
        kms.calls.clear()
        with pytest.raises(DoesNotOpen):  # the header's tag no longer verifies
            await KeyRing(kms, new_cache(), max_encrypted_data_keys=bound).open("acme", many, {})
        assert asked == kms.calls["Decrypt"], bound


@pytest.mark.parametrize(("size", "asked"), [(1, 1), (MAX_WRAPPED_KEY_BYTES, 1), (MAX_WRAPPED_KEY_BYTES + 1, 0)])
async def test_bare_key_of_any_size_that_kms_takes_is_tried(
    kms: CountedLocalProvider, new_cache: NewCache, size: int, asked: int
) -> None:
    """1 to 6,144 bytes."""
    with pytest.raises(DoesNotOpen):
        await KeyRing(kms, new_cache()).open("acme", b"\5" * size, {})
    assert asked == kms.calls["Decrypt"]


class TwoKeys(CountedLocalProvider):
    """A provider with a former master key, whose unwraps end as a test says."""

    outcomes: dict[str, Exception] = {}  # noqa: RUF012  # set for each test

    @property
    def decrypt_key_arns(self) -> list[str]:
        """Return today's and a former master key."""
        return [self.master_key_arn, "former"]

    async def unwrap(self, wrapped: WrappedKey, context: object) -> KeyMaterial:
        """Raise what the test says of this master key."""
        if (error := self.outcomes.get(wrapped.master_key_arn)) is not None:
            raise error
        return KeyMaterial(bytes(32))


async def test_bare_key_is_tried_under_each_master_key(new_cache: NewCache) -> None:
    """The first that unwraps is taken; if none does, an outage says more than a refusal, and is what is raised."""
    kms = TwoKeys(os.urandom(32))
    ring = KeyRing(kms, new_cache())
    kms.outcomes = {kms.master_key_arn: DoesNotOpen()}
    assert "former" == (await ring.open("acme", b"one", {})).master_key_arn
    kms.outcomes = {kms.master_key_arn: KmsUnreachable("away")}
    assert "former" == (await ring.open("acme", b"two", {})).master_key_arn
    kms.outcomes = {kms.master_key_arn: KmsUnreachable("away"), "former": DoesNotOpen()}
    with pytest.raises(KmsUnreachable, match="away"):
        await ring.open("acme", b"three", {})


def test_digest_does_not_depend_on_the_order_of_pairs() -> None:
    """Two callers that give one context in two orders share a key."""
    assert digest({"a": "1", "b": "2"}) == digest({"b": "2", "a": "1"})
    assert digest({"a": "1", "b": "2"}) != digest({"a": "2", "b": "1"})


async def test_data_key_is_under_its_message_or_not(kms: CountedLocalProvider) -> None:
    """Its commitment and the header's tag decide, and a key of another length is none."""
    context = encryption_context("acme", {})
    data_key = await kms.generate_data_key(32, context)
    arn = data_key.wrapped.master_key_arn
    encrypted = EncryptedDataKey(message_provider_id(arn), arn, data_key.wrapped.blob)
    message = Sealer(encrypted, context).seal(b"x", data_key.material.raw)
    raw, parsed = bytes(data_key.material.raw), Message.parse(message)
    tag_at = len(message) - (4 + 4 + 12 + 4 + 1 + 16) - 16
    assert parsed.is_under(raw)
    assert not parsed.is_under(bytes(32))
    assert not parsed.is_under(raw[:31])
    for at in (10, tag_at, tag_at + 15):
        changed = message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]
        assert not Message.parse(changed).is_under(raw), at
    assert not Message.parse(message[: tag_at + 8]).is_under(raw)


async def test_a_large_batch_gives_the_loop_turns(kms: CountedLocalProvider, new_cache: NewCache) -> None:
    """Sealing, opening, and making keys: others are served between its milliseconds."""
    ring, context, turns = KeyRing(kms, new_cache()), SharedContext({}), 0
    await ring.seal("acme", b"x", {})

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    sealed = await seal_batch(ring, "acme", [Item(bytes(4096), context)] * 1000, Turns())
    assert turns > 3
    turns = 0
    messages = [Item(each.ciphertext, context) for each in sealed if isinstance(each, Sealed)]
    assert 1000 == len(await open_batch(ring, "acme", messages, Turns()))
    assert turns > 3
    turns = 0
    items = [KeyItem(32, context, fresh=True)] * 1000
    assert 1000 == len({id(key) for key in await data_key_batch(ring, "acme", items, Turns())})
    assert turns > 3
    counting.cancel()
