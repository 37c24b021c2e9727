"""The key ring over every provider: what it asks KMS for, what it opens, and what it never does."""

import asyncio
from collections.abc import Callable

import pytest
from betrace_kms_envelope import (
    DATA_KEY_BYTES,
    MAX_WRAPPED_KEY_BYTES,
    EncryptedDataKey,
    Message,
    Sealer,
    sealer,
)
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.errors import DoesNotOpen
from betrace_kms_server.core.master_keys import message_provider_id
from betrace_kms_server.core.tenancy import Context, DataKeyType, encryption_context, signing_context
from betrace_kms_server.data_keys.keyring import KeyRing
from betrace_kms_server.providers.protocol import KeyProvider

from tests.contract.doubles import FakeClock, Kms

CONTEXT = {"purpose": "backup"}

NewRing = Callable[..., KeyRing]


@pytest.fixture
def new_ring(kms: Kms, new_cache: Callable[..., KeyCache]) -> NewRing:
    """Give a maker of key rings on one KMS, each with a cache of its own as after a restart."""

    def make(max_size: int = 1000) -> KeyRing:
        return KeyRing(kms.provider, new_cache(max_size))

    return make


@pytest.fixture
def ring(new_ring: NewRing) -> KeyRing:
    """Give a key ring with an empty cache."""
    return new_ring()


async def refusal(ring: KeyRing, tenant_id: str, ciphertext: bytes, caller: Context) -> str:
    """Return the text with which a ciphertext is refused."""
    with pytest.raises(DoesNotOpen) as refused:
        await ring.open(tenant_id, ciphertext, caller)
    return str(refused.value)


def wrapped_key_of(message: bytes) -> bytes:
    """Return the wrapped data key in a message."""
    (encrypted,) = Message.parse(message).encrypted_data_keys
    return encrypted.ciphertext


async def message_with_context(provider: KeyProvider, whole: Context) -> bytes:
    """Return a message as somebody else with access to the master key may write it, under any context."""
    key = await provider.generate_data_key(DATA_KEY_BYTES, whole)
    arn = key.wrapped.master_key_arn
    wrapped = EncryptedDataKey(message_provider_id(arn), arn, key.wrapped.blob)
    return Sealer(wrapped, whole).seal(b"secret", key.material.raw)


@pytest.mark.parametrize("size", [0, 1, 65_536, 200_000])
async def test_what_was_sealed_opens(ring: KeyRing, kms: Kms, size: int) -> None:
    """A message opens to what was sealed, and both tell the master key."""
    plaintext = bytes(size)
    sealed = await ring.seal("acme", plaintext, CONTEXT)
    opened = await ring.open("acme", sealed.ciphertext, CONTEXT)
    assert (plaintext, kms.provider.master_key_arn) == (opened.plaintext, opened.master_key_arn)
    assert kms.provider.master_key_arn == sealed.master_key_arn


async def test_thousand_seals_ask_kms_once(ring: KeyRing, kms: Kms) -> None:
    """A thousand payloads of one tenant and context cost one GenerateDataKey and no Decrypt."""
    for number in range(1000):
        await ring.seal("acme", b"%d" % number, CONTEXT)
    assert {"GenerateDataKey": 1} == kms.calls


async def test_hundred_first_seals_at_once_ask_kms_once(ring: KeyRing, kms: Kms) -> None:
    """However many begin at once, one key is made for all."""
    await asyncio.gather(*(ring.seal("acme", b"secret", CONTEXT) for _ in range(100)))
    assert {"GenerateDataKey": 1} == kms.calls


async def test_open_after_a_restart_asks_kms_once(new_ring: NewRing, kms: Kms) -> None:
    """After a restart the messages under one data key cost one Decrypt together, and no new key."""
    ring = new_ring()
    sealed = [await ring.seal("acme", b"%d" % number, CONTEXT) for number in range(50)]
    kms.calls.clear()
    restarted = new_ring()
    opened = await asyncio.gather(*(restarted.open("acme", message.ciphertext, CONTEXT) for message in sealed))
    assert [b"%d" % number for number in range(50)] == [message.plaintext for message in opened]
    assert {"Decrypt": 1} == kms.calls


@pytest.mark.parametrize(
    ("tenant", "context"),
    [
        pytest.param("globex", CONTEXT, id="another tenant"),
        pytest.param("acme", {"purpose": "audit"}, id="another context"),
        pytest.param("acme", {}, id="no context"),
    ],
)
async def test_each_tenant_and_context_has_its_own_key(ring: KeyRing, kms: Kms, tenant: str, context: Context) -> None:
    """Sealing for another tenant or context takes another data key."""
    mine = await ring.seal("acme", b"secret", CONTEXT)
    other = await ring.seal(tenant, b"secret", context)
    assert wrapped_key_of(mine.ciphertext) != wrapped_key_of(other.ciphertext)
    assert {"GenerateDataKey": 2} == kms.calls


async def test_sealing_key_lives_for_its_time(ring: KeyRing, kms: Kms, clock: FakeClock) -> None:
    """When a sealing key's time is over the next seal makes another, and what the old one sealed still opens."""
    before = await ring.seal("acme", b"before", CONTEXT)
    clock.now += 3600
    after = await ring.seal("acme", b"after", CONTEXT)
    assert {"GenerateDataKey": 2} == kms.calls
    assert wrapped_key_of(before.ciphertext) != wrapped_key_of(after.ciphertext)
    assert b"before" == (await ring.open("acme", before.ciphertext, CONTEXT)).plaintext


async def test_data_key_is_cached(ring: KeyRing, kms: Kms) -> None:
    """Who asks for a data key again gets the same one, from memory."""
    first, second = await ring.data_key("acme", 32, CONTEXT), await ring.data_key("acme", 32, CONTEXT)
    assert (first.material.raw, first.wrapped) == (second.material.raw, second.wrapped)
    assert {"GenerateDataKey": 1} == kms.calls


async def test_fresh_data_key_is_nobody_elses(ring: KeyRing, kms: Kms) -> None:
    """A fresh data key is neither the cached one nor cached itself."""
    cached, fresh, fresher, again = [
        await ring.data_key("acme", 32, CONTEXT, fresh=fresh) for fresh in (False, True, True, False)
    ]
    assert 3 == len({bytes(key.material.raw) for key in (cached, fresh, fresher)})
    assert cached.material.raw == again.material.raw
    assert {"GenerateDataKey": 3} == kms.calls


async def test_data_keys_of_two_sizes_are_two(ring: KeyRing) -> None:
    """A data key of another size is another key, not a part of the first."""
    short, long = await ring.data_key("acme", 16, CONTEXT), await ring.data_key("acme", 32, CONTEXT)
    assert (16, 32) == (len(short.material), len(long.material))
    assert short.material.raw != long.material.raw[:16]


async def test_data_key_opens_again(new_ring: NewRing) -> None:
    """The wrapped half of a data key opens to the plain half, also after a restart."""
    key = await new_ring().data_key("acme", 32, CONTEXT)
    opened = await new_ring().open("acme", key.wrapped.blob, CONTEXT)
    assert key.material.raw == opened.plaintext


@pytest.mark.parametrize("handed_out_first", [True, False])
async def test_key_that_was_handed_out_never_seals(ring: KeyRing, handed_out_first: bool) -> None:
    """The key in a message is not the one that GenerateDataKey gave away, whichever was made first."""
    if handed_out_first:
        await ring.data_key("acme", 32, CONTEXT)
    sealed = await ring.seal("acme", b"secret", CONTEXT)
    handed_out = await ring.data_key("acme", 32, CONTEXT)
    assert handed_out.wrapped.blob != wrapped_key_of(sealed.ciphertext)


@pytest.mark.parametrize(
    ("tenant", "context"),
    [
        pytest.param("globex", CONTEXT, id="another tenant"),
        pytest.param("Acme", CONTEXT, id="another case"),
        pytest.param("acme", {"purpose": "audit"}, id="another value"),
        pytest.param("acme", {}, id="no context"),
        pytest.param("acme", {**CONTEXT, "more": "x"}, id="a pair too many"),
    ],
)
async def test_who_gives_another_tenant_or_context_opens_nothing(ring: KeyRing, tenant: str, context: Context) -> None:
    """Neither a message nor a bare data key opens for another tenant or under another context, in memory or not."""
    message = (await ring.seal("acme", b"secret", CONTEXT)).ciphertext
    bare = (await ring.data_key("acme", 32, CONTEXT)).wrapped.blob
    for ciphertext in (message, bare):
        await ring.open("acme", ciphertext, CONTEXT)
        assert str(DoesNotOpen()) == await refusal(ring, tenant, ciphertext, context)


@pytest.mark.parametrize(
    "ciphertext",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x00", id="a byte"),
        pytest.param(b"\x01\x80" + bytes(500), id="a version 1 message"),
        pytest.param(b"\x02\x04\x78", id="a message's first bytes"),
        pytest.param(b"\x02\x04\x78" + bytes(500), id="a message of zeros"),
        pytest.param(b"\x02\x00\x14" + bytes(500), id="a suite that does not commit"),
        pytest.param(b"\x01\x02\x02\x00\x78" + bytes(180), id="rubbish like a blob of AWS"),
        pytest.param(b"btl1" + bytes(44), id="rubbish like a local blob"),
        pytest.param(b"\xff" * MAX_WRAPPED_KEY_BYTES, id="rubbish of the largest size"),
        pytest.param(b"\xff" * (MAX_WRAPPED_KEY_BYTES + 1), id="too large for a wrapped key"),
    ],
)
async def test_rubbish_does_not_open(ring: KeyRing, ciphertext: bytes) -> None:
    """Whatever is wrong with a ciphertext, the text is the same."""
    assert str(DoesNotOpen()) == await refusal(ring, "acme", ciphertext, CONTEXT)


@pytest.mark.parametrize("ciphertext", [b"", b"\x01\x80" + bytes(500), b"\xff" * (MAX_WRAPPED_KEY_BYTES + 1)])
async def test_kms_is_not_asked_about_what_it_cannot_open(ring: KeyRing, kms: Kms, ciphertext: bytes) -> None:
    """Version 1 messages and what is too short or too long never get to KMS."""
    await refusal(ring, "acme", ciphertext, CONTEXT)
    assert {} == kms.calls


async def test_version_1_message_stays_closed_even_with_our_key(ring: KeyRing, kms: Kms) -> None:
    """A message is told by its first bytes: one that would open is refused when they say version 1."""
    message = (await ring.seal("acme", b"secret", CONTEXT)).ciphertext
    assert str(DoesNotOpen()) == await refusal(ring, "acme", b"\x01\x80" + message[2:], CONTEXT)


async def test_message_of_a_foreign_master_key_does_not_open(ring: KeyRing, kms: Kms) -> None:
    """A message under a master key that is not ours is refused without a call of KMS."""
    message = await message_with_context(kms.foreign, encryption_context("acme", CONTEXT))
    kms.calls.clear()
    assert str(DoesNotOpen()) == await refusal(ring, "acme", message, CONTEXT)
    assert {} == kms.calls


async def test_bare_key_of_a_foreign_master_key_does_not_open(ring: KeyRing, kms: Kms) -> None:
    """A bare data key under a master key that is not ours does not open, though its context is right."""
    key = await kms.foreign.generate_data_key(32, encryption_context("acme", CONTEXT))
    assert str(DoesNotOpen()) == await refusal(ring, "acme", key.wrapped.blob, CONTEXT)


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param({"purpose": "backup"}, id="neither tenantId nor keyType"),
        pytest.param({"purpose": "backup", "keyType": "encryption"}, id="no tenantId"),
        pytest.param({"purpose": "backup", "tenantId": "acme"}, id="no keyType"),
        pytest.param({"purpose": "backup", "tenantId": "acme", "keyType": "signing"}, id="a signing key"),
        pytest.param({"purpose": "backup", "tenantid": "acme", "keyType": "encryption"}, id="another spelling"),
    ],
)
async def test_key_without_tenant_and_use_does_not_open(ring: KeyRing, kms: Kms, whole: Context) -> None:
    """What others wrapped under our master key for their own purposes opens for no tenant, bare or in a message."""
    bare = (await kms.provider.generate_data_key(32, whole)).wrapped.blob
    message = await message_with_context(kms.provider, whole)
    for ciphertext in (bare, message):
        assert str(DoesNotOpen()) == await refusal(ring, "acme", ciphertext, CONTEXT)


async def test_wrapped_key_of_a_message_does_not_open_by_itself(ring: KeyRing, kms: Kms) -> None:
    """Who cuts the wrapped key out of a message cannot have it unwrapped, to open later messages without the daemon."""
    for caller in ({}, CONTEXT):
        wrapped = wrapped_key_of((await ring.seal("acme", b"secret", caller)).ciphertext)
        for given in ({}, CONTEXT):
            assert str(DoesNotOpen()) == await refusal(ring, "acme", wrapped, given)


async def test_message_of_an_earlier_version_opens_and_is_sealed_again(new_ring: NewRing, kms: Kms) -> None:
    """Its key has keyType `encryption`; what ReEncrypt makes of it has `sealing`, as every new message."""
    ring = new_ring()
    old = await message_with_context(kms.provider, encryption_context("acme", CONTEXT))
    assert b"secret" == (await ring.open("acme", old, CONTEXT)).plaintext
    again = (await ring.reseal("acme", old, CONTEXT, {"field": "email"})).ciphertext
    assert encryption_context("acme", {"field": "email"}, "sealing") == Message.parse(again).context
    assert b"secret" == (await new_ring().open("acme", again, {"field": "email"})).plaintext


async def test_key_type_of_new_messages(kms: Kms, new_cache: Callable[..., KeyCache]) -> None:
    """Each type opens whatever is written now, and no key of one type seals for the other, even with one cache."""
    cache = new_cache()
    key_types: tuple[DataKeyType, DataKeyType] = ("encryption", "sealing")
    rings = [KeyRing(kms.provider, cache, sealing_key_type=key_type) for key_type in key_types]
    for writer, key_type in zip(rings, key_types, strict=True):
        sealed = (await writer.seal("acme", b"secret", CONTEXT)).ciphertext
        assert key_type == Message.parse(sealed).context["keyType"]
        for reader in rings:
            assert b"secret" == (await reader.open("acme", sealed, CONTEXT)).plaintext


@pytest.mark.parametrize("caller", [{}, {"keyId": "0" * 32}])
async def test_seed_of_a_signing_key_does_not_open(ring: KeyRing, kms: Kms, caller: Context) -> None:
    """Who gets hold of a row of the key store cannot have its seed unwrapped by Decrypt."""
    seed = await kms.provider.generate_data_key(32, signing_context("acme", "0" * 32))
    assert str(DoesNotOpen()) == await refusal(ring, "acme", seed.wrapped.blob, caller)


async def test_message_that_others_wrote_for_us_opens(ring: KeyRing, kms: Kms) -> None:
    """A message with the whole context opens, whoever wrote it; the format's own pairs are not the caller's to give."""
    whole = encryption_context("acme", CONTEXT) | {"aws-crypto-note": "theirs"}
    message = await message_with_context(kms.provider, whole)
    assert b"secret" == (await ring.open("acme", message, CONTEXT)).plaintext


async def test_eviction_between_lookup_and_seal_harms_nobody(new_ring: NewRing) -> None:
    """With room for one key and two tenants who take turns, every message still opens."""
    ring = new_ring(max_size=1)
    tenants = ["acme", "globex"] * 20
    sealed = await asyncio.gather(*(ring.seal(tenant, tenant.encode(), CONTEXT) for tenant in tenants))
    opened = await asyncio.gather(
        *(ring.open(tenant, message.ciphertext, CONTEXT) for tenant, message in zip(tenants, sealed, strict=True))
    )
    assert tenants == [message.plaintext.decode() for message in opened]


async def test_cache_holds_no_more_than_it_may(new_ring: NewRing, kms: Kms) -> None:
    """With room for one key a tenant who comes back after another gets a new key."""
    ring = new_ring(max_size=1)
    for tenant in ("acme", "acme", "globex", "acme"):
        await ring.seal(tenant, b"secret", CONTEXT)
    assert {"GenerateDataKey": 3} == kms.calls


async def test_key_in_use_outlives_its_eviction(new_ring: NewRing) -> None:
    """A data key that somebody holds is not wiped when the cache drops it."""
    ring = new_ring(max_size=1)
    held = await ring.data_key("acme", 32, CONTEXT)
    before = bytes(held.material.raw)
    await ring.data_key("globex", 32, CONTEXT)
    assert before == held.material.raw
    assert before != bytes(32)


async def test_failure_is_not_cached(ring: KeyRing, kms: Kms) -> None:
    """A wrapped key that did not open under a wrong context opens under the right one afterwards."""
    bare = (await ring.data_key("acme", 32, CONTEXT)).wrapped.blob
    await refusal(ring, "acme", bare, {})
    assert 32 == len((await ring.open("acme", bare, CONTEXT)).plaintext)


async def test_a_message_of_many_frames_opens_in_slices(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others get a turn of the loop after each thousand of its frames."""
    monkeypatch.setattr(sealer, "FRAME_BYTES", 1)
    plaintext = bytes(4_500)
    message = (await ring.seal("acme", plaintext, {})).ciphertext
    assert b"warm" == (await ring.open("acme", (await ring.seal("acme", b"warm", {})).ciphertext, {})).plaintext
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    assert plaintext == (await ring.open("acme", message, {})).plaintext
    beside.cancel()
    assert 4 == turns
