"""What every key provider must do. A new one joins by an entry in conftest.PROVIDERS."""

import asyncio
import os
from collections.abc import Callable

import pytest
from betrace_kms_server.core.errors import DoesNotOpen
from betrace_kms_server.core.keys import KeyMaterial, WrappedKey
from betrace_kms_server.core.master_keys import message_provider_id, provider_of
from betrace_kms_server.core.tenancy import Context

from tests.contract.doubles import Kms

CONTEXT = {"tenantId": "acme", "keyType": "encryption", "purpose": "backup"}


@pytest.mark.parametrize("size", [1, 16, 32, 1024])
async def test_data_key_has_the_size_that_was_asked_for(kms: Kms, size: int) -> None:
    """A data key has as many bytes as were asked for, from the smallest to the largest that KMS makes."""
    made = await kms.provider.generate_data_key(size, CONTEXT)
    assert size == len(made.material)


@pytest.mark.parametrize("size", [1, 16, 32, 1024])
async def test_wrapped_key_opens_to_the_same_key(kms: Kms, size: int) -> None:
    """What was wrapped unwraps to the same bytes."""
    made = await kms.provider.generate_data_key(size, CONTEXT)
    opened = await kms.provider.unwrap(made.wrapped, CONTEXT)
    assert made.material.raw == opened.raw


async def test_data_keys_are_distinct(kms: Kms) -> None:
    """No two data keys are equal, wrapped or not, even when made at once for one context."""
    made = await asyncio.gather(*(kms.provider.generate_data_key(32, CONTEXT) for _ in range(20)))
    assert (20, 20) == (len({bytes(key.material.raw) for key in made}), len({key.wrapped.blob for key in made}))


async def test_wrapped_key_does_not_show_the_key(kms: Kms) -> None:
    """The wrapped key does not hold the plaintext."""
    made = await kms.provider.generate_data_key(32, CONTEXT)
    assert bytes(made.material.raw) not in made.wrapped.blob


async def test_wrapped_key_names_its_master_key(kms: Kms) -> None:
    """A wrapped key carries the ARN of the master key, which is also the first that may unwrap."""
    made = await kms.provider.generate_data_key(32, CONTEXT)
    assert kms.provider.master_key_arn == made.wrapped.master_key_arn == kms.provider.decrypt_key_arns[0]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({**CONTEXT, "tenantId": "evil"}, id="another tenant"),
        pytest.param({**CONTEXT, "keyType": "signing"}, id="another use"),
        pytest.param({**CONTEXT, "purpose": "Backup"}, id="another case"),
        pytest.param({"tenantId": "acme", "keyType": "encryption"}, id="a pair missing"),
        pytest.param({**CONTEXT, "more": "x"}, id="a pair too many"),
        pytest.param(
            {"tenantId": "acme", "keyType": "encryption", "purposeb": "ackup"}, id="a name longer by a letter"
        ),
        pytest.param({}, id="none"),
    ],
)
async def test_another_context_does_not_open(kms: Kms, other: Context) -> None:
    """A key opens only under the very pairs that it was wrapped with."""
    made = await kms.provider.generate_data_key(32, CONTEXT)
    with pytest.raises(DoesNotOpen):
        await kms.provider.unwrap(made.wrapped, other)


async def test_order_of_the_context_does_not_matter(kms: Kms) -> None:
    """Encryption contexts are unordered: the same pairs in another order open."""
    made = await kms.provider.generate_data_key(32, CONTEXT)
    opened = await kms.provider.unwrap(made.wrapped, dict(reversed(CONTEXT.items())))
    assert made.material.raw == opened.raw


async def test_context_may_hold_any_text(kms: Kms) -> None:
    """Names and values of a context are Unicode, also beyond the basic plane, and empty values are fine."""
    context = {"tenantId": "acme", "Straße": "Ærøskøbing", "鍵": "🗝️ café", "empty": ""}
    made = await kms.provider.generate_data_key(32, context)
    opened = await kms.provider.unwrap(made.wrapped, context)
    assert made.material.raw == opened.raw


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda blob: blob[:-1], id="cut short by a byte"),
        pytest.param(lambda blob: blob[:10], id="cut short to ten bytes"),
        pytest.param(lambda blob: b"", id="empty"),
        pytest.param(lambda blob: blob + b"\0", id="longer by a byte"),
        pytest.param(lambda blob: blob[:-1] + bytes([blob[-1] ^ 1]), id="last bit flipped"),
        pytest.param(lambda blob: bytes([blob[0] ^ 1]) + blob[1:], id="first byte altered"),
        pytest.param(lambda blob: b"\x01\x02\x02\x00" + bytes(180), id="rubbish like a blob of AWS"),
        pytest.param(lambda blob: b"\xff" * 6144, id="rubbish of the largest size"),
    ],
)
async def test_damaged_blob_does_not_open(kms: Kms, damage: Callable[[bytes], bytes]) -> None:
    """A wrapped key that was altered in any way does not open."""
    made = await kms.provider.generate_data_key(32, CONTEXT)
    damaged = WrappedKey(damage(made.wrapped.blob), made.wrapped.master_key_arn)
    with pytest.raises(DoesNotOpen):
        await kms.provider.unwrap(damaged, CONTEXT)


async def test_key_of_a_foreign_master_key_does_not_open(kms: Kms) -> None:
    """A key whose row names a master key that is not ours does not open, though its context is right."""
    made = await kms.foreign.generate_data_key(32, CONTEXT)
    with pytest.raises(DoesNotOpen):
        await kms.provider.unwrap(made.wrapped, CONTEXT)


async def test_key_that_claims_our_master_key_does_not_open(kms: Kms) -> None:
    """A key that a foreign master key wrapped does not open under the ARN of ours either."""
    made = await kms.foreign.generate_data_key(32, CONTEXT)
    with pytest.raises(DoesNotOpen):
        await kms.provider.unwrap(WrappedKey(made.wrapped.blob, kms.provider.master_key_arn), CONTEXT)


async def test_our_key_under_a_foreign_arn_does_not_open(kms: Kms) -> None:
    """The ARN beside a wrapped key is believed: under another one, even a key of ours does not open."""
    made = await kms.provider.generate_data_key(32, CONTEXT)
    with pytest.raises(DoesNotOpen):
        await kms.provider.unwrap(WrappedKey(made.wrapped.blob, kms.foreign.master_key_arn), CONTEXT)


@pytest.mark.parametrize("size", [1, 32, 4096])
async def test_key_that_is_there_already_is_wrapped(kms: Kms, size: int) -> None:
    """A key that was not made here is wrapped under the master key and the context, and opens to the same bytes."""
    key = KeyMaterial(os.urandom(size))
    wrapped = await kms.provider.wrap(key, CONTEXT)
    opened = await kms.provider.unwrap(wrapped, CONTEXT)
    assert (key.raw, kms.provider.master_key_arn) == (opened.raw, wrapped.master_key_arn)


async def test_key_that_is_wrapped_again_opens_under_the_new_context_only(kms: Kms) -> None:
    """Wrapping a key under another context gives a blob of its own."""
    made = await kms.provider.generate_data_key(32, CONTEXT)
    again = await kms.provider.wrap(made.material, {"tenantId": "acme", "keyType": "encryption"})
    assert made.wrapped.blob != again.blob
    with pytest.raises(DoesNotOpen):
        await kms.provider.unwrap(again, CONTEXT)


async def test_provider_tells_which_master_key_unwraps(kms: Kms) -> None:
    """What our master key wrapped is for our master key, and what a foreign one wrapped is for none."""
    ours, foreign = kms.provider.master_key_arn, kms.foreign.master_key_arn
    assert (ours, None) == (kms.provider.unwrapping_key_for(ours), kms.provider.unwrapping_key_for(foreign))


async def test_usable_master_key_passes_the_check(kms: Kms) -> None:
    """check() returns when the master key can be used, and leaves its ARN as it was."""
    arn = kms.provider.master_key_arn
    await kms.provider.check()
    assert arn == kms.provider.master_key_arn


async def test_names_are_those_of_the_formats(kms: Kms) -> None:
    """Rows and messages that are written today hold these names for ever, so they must not change."""
    own = ("azure", "gcp", "vault", "pkcs11")
    expected = {"local": "betrace-local", "aws": "aws-kms", **{name: name for name in own}}
    assert expected[kms.provider.name] == message_provider_id(kms.provider.master_key_arn)
    assert kms.provider.name == provider_of(kms.provider.master_key_arn)
