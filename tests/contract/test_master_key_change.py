"""Changing the master key: what the old one wrapped opens, moves, and then needs the old one no more."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.errors import DoesNotOpen, KeyDamaged, MasterKeyUnusable
from betrace_kms_server.core.keys import KeyMaterial, WrappedKey
from betrace_kms_server.data_keys.keyring import KeyRing
from betrace_kms_server.providers.aws.provider import AwsProvider
from betrace_kms_server.signing_keys import rewrapping
from betrace_kms_server.signing_keys.seeds import rewrap_seed, unwrap_seed
from betrace_kms_server.signing_keys.signer import Signer
from betrace_kms_server.stores.sqlite.store import SqliteStore

from tests.contract.samples import span, stored_key
from tests.contract.test_sqlite_store import execute
from tests.moto_server import REGION, MotoServer

NewCache = Callable[..., KeyCache]
CONTEXT = {"purpose": "backup"}


def aws(moto: MotoServer, key: str, *former: str, region: str = REGION) -> AwsProvider:
    """Return a provider with a master key and former ones."""
    return AwsProvider(key, region=region, endpoint=moto.url, former_key_arns=former)


def signer(provider: AwsProvider, store: SqliteStore, new_cache: NewCache) -> Signer:
    """Return a signer as after a restart."""
    return Signer(
        provider,
        store,
        signing_keys=new_cache(),
        public_keys=new_cache(),
        auto_create=True,
        now=lambda: 1_700_000_000.0,
    )


async def test_what_the_former_key_wrapped_opens_while_it_is_listed(
    moto: MotoServer, kms_key: str, new_cache: NewCache
) -> None:
    """Messages and bare data keys: opened with the old ARN in decrypt-key-ids, refused without it."""
    new_key = moto.create_key()
    async with aws(moto, kms_key) as old, aws(moto, new_key, kms_key) as both, aws(moto, new_key) as new:
        before = KeyRing(old, new_cache())
        message = (await before.seal("acme", b"payload", CONTEXT)).ciphertext
        bare = await before.data_key("acme", 32, CONTEXT)
        during, after = KeyRing(both, new_cache()), KeyRing(new, new_cache())
        opened = await during.open("acme", message, CONTEXT)
        unwrapped = await during.open("acme", bare.wrapped.blob, CONTEXT)
        for ciphertext in (message, bare.wrapped.blob):
            with pytest.raises(DoesNotOpen, match=r"list that key in aws\.kms\.decrypt-key-ids"):
                await after.open("acme", ciphertext, CONTEXT)
        assert (opened.plaintext, opened.master_key_arn) == (b"payload", kms_key)
        assert (unwrapped.plaintext, unwrapped.master_key_arn) == (bytes(bare.material.raw), kms_key)


async def test_what_was_resealed_needs_the_former_key_no_more(
    moto: MotoServer, kms_key: str, new_cache: NewCache
) -> None:
    """Both kinds of ciphertext come back under the new master key, also for another context."""
    new_key = moto.create_key()
    async with aws(moto, kms_key) as old, aws(moto, new_key, kms_key) as both, aws(moto, new_key) as new:
        before, during, after = (KeyRing(provider, new_cache()) for provider in (old, both, new))
        message = (await before.seal("acme", b"payload", CONTEXT)).ciphertext
        bare = await before.data_key("acme", 64, CONTEXT)
        new_message = await during.reseal("acme", message, CONTEXT, {"purpose": "archive"})
        new_bare = await during.reseal("acme", bare.wrapped.blob, CONTEXT, {})
        opened = await after.open("acme", new_message.ciphertext, {"purpose": "archive"})
        unwrapped = await after.open("acme", new_bare.ciphertext, {})
        assert (opened.plaintext, new_message.master_key_arn) == (b"payload", new_key)
        assert (unwrapped.plaintext, new_bare.master_key_arn) == (bytes(bare.material.raw), new_key)
        with pytest.raises(DoesNotOpen):
            await during.reseal("rival", message, CONTEXT, {})


async def test_signing_keys_move_to_the_new_master_key(
    moto: MotoServer, kms_key: str, store: SqliteStore, new_cache: NewCache
) -> None:
    """With the old ARN listed they sign and move; after that they sign without it, with the same key."""
    new_key = moto.create_key()
    async with aws(moto, kms_key) as old, aws(moto, new_key, kms_key) as both, aws(moto, new_key) as new:
        first = await signer(old, store, new_cache).sign("acme", span())
        with pytest.raises(MasterKeyUnusable, match=rf"wrapped by {kms_key}, .* aws\.kms\.decrypt-key-ids"):
            await signer(new, store, new_cache).sign("acme", span())
        during = await signer(both, store, new_cache).sign("acme", span())
        await rewrapping.rewrap_signing_keys(both, store)
        after = await signer(new, store, new_cache).sign("acme", span())
    assert [first.signature] * 2 == [during.signature, after.signature]
    assert await store.wrapped_by() == {new_key}


async def test_keys_that_cannot_move_stay_as_they_are(
    moto: MotoServer, kms_key: str, store: SqliteStore, database: Path, new_cache: NewCache
) -> None:
    """A damaged row and one of an unknown master key are left alone, and the others move."""
    new_key, unknown = moto.create_key(), moto.create_key()
    async with aws(moto, kms_key) as old, aws(moto, new_key, kms_key) as both:
        for tenant in ("good", "damaged"):
            await signer(old, store, new_cache).sign(tenant, span())
        foreign = await store.create(stored_key("foreign", wrapped_seed=WrappedKey(b"blob", unknown)))
        execute(database, "UPDATE signing_keys SET public_key = zeroblob(32) WHERE tenant_id = 'damaged'")
        await rewrapping.rewrap_signing_keys(both, store)
        assert await store.active("foreign") == foreign
        assert await store.wrapped_by() == {new_key, kms_key, unknown}
        assert {tenant for tenant, _ in await store.wrapped_by_other_keys(new_key)} == {"damaged", "foreign"}


async def test_one_former_key_that_is_disabled_does_not_hold_up_the_others(
    moto: MotoServer, kms_key: str, store: SqliteStore, new_cache: NewCache
) -> None:
    """Keys of a former master key that works move; those of the disabled one stay, and the pass ends."""
    new_key, disabled = moto.create_key(), moto.create_key()
    async with aws(moto, disabled) as gone, aws(moto, kms_key) as old, aws(moto, new_key, disabled, kms_key) as now:
        await signer(gone, store, new_cache).sign("a-stays", span())
        await signer(old, store, new_cache).sign("b-moves", span())
        moto.kms().disable_key(disabled)
        await rewrapping.rewrap_signing_keys(now, store)
    assert [tenant for tenant, _ in await store.wrapped_by_other_keys(new_key)] == ["a-stays"]


async def test_what_does_not_unwrap_again_replaces_nothing(
    moto: MotoServer, kms_key: str, store: SqliteStore, new_cache: NewCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new wrapping is unwrapped and compared before it takes the old one's place."""
    async with aws(moto, kms_key) as old, aws(moto, moto.create_key(), kms_key) as now:
        await signer(old, store, new_cache).sign("acme", span())
        before = await store.active("acme")
        assert before is not None
        seed = await unwrap_seed(now, before)

        async def encrypt_something_else(key: KeyMaterial, context: dict[str, str]) -> WrappedKey:
            return (await now.generate_data_key(32, context)).wrapped

        monkeypatch.setattr(now, "wrap", encrypt_something_else)
        with pytest.raises(KeyDamaged):
            await rewrap_seed(now, store, before, seed)
    assert await store.active("acme") == before


async def test_a_move_that_kms_interrupts_goes_on_when_it_is_back(
    moto: MotoServer, kms_key: str, store: SqliteStore, new_cache: NewCache
) -> None:
    """With the new master key disabled nothing changes; when it is enabled the move ends by itself."""
    new_key = moto.create_key()
    async with aws(moto, kms_key) as old, aws(moto, new_key, kms_key) as both:
        signed = await signer(old, store, new_cache).sign("acme", span())
        before = await store.active("acme")
        moto.kms().disable_key(new_key)
        pauses = []

        async def pause(seconds: float) -> None:
            pauses.append((seconds, await store.active("acme") == before))
            if len(pauses) == 2:
                moto.kms().enable_key(new_key)

        await rewrapping.rewrap_signing_keys(both, store, sleep=pause)
        again = await signer(both, store, new_cache).sign("acme", span())
    assert (pauses, again.signature) == ([(30.0, True)] * 2, signed.signature)
    assert await store.wrapped_by() == {new_key}


async def test_a_row_that_changed_meanwhile_is_not_replaced(store: SqliteStore) -> None:
    """Replacing is compare and set: what another daemon wrote in between stays."""
    stored = await store.create(stored_key())
    first = replace(stored, wrapped_seed=WrappedKey(b"first", "arn:new"))
    await store.replace(stored, first)
    await store.replace(stored, replace(stored, wrapped_seed=WrappedKey(b"second", "arn:newer")))
    assert await store.get(stored.tenant_id, stored.key_id) == first


async def test_a_message_of_a_replica_in_another_region_opens_here(moto: MotoServer, new_cache: NewCache) -> None:
    """One multi-Region key, two Regions: what was sealed under the one opens under its replica, either way."""
    primary = moto.create_key(multi_region=True)
    replica = str(moto.kms().replicate_key(primary, "eu-west-1").arn)
    async with aws(moto, primary) as here, aws(moto, replica, region="eu-west-1") as there:
        for writer, reader in ((here, there), (there, here)):
            sealed = await KeyRing(writer, new_cache()).seal("acme", b"payload", CONTEXT)
            opened = await KeyRing(reader, new_cache()).open("acme", sealed.ciphertext, CONTEXT)
            assert (sealed.master_key_arn, opened.master_key_arn) == (writer.master_key_arn, reader.master_key_arn)
            assert opened.plaintext == b"payload"


@pytest.mark.parametrize(
    "arn",
    [
        "arn:aws:kms:eu-west-1:123456789012:key/mrk-11112222333344445555666677778888",
        "arn:aws:kms:eu-west-1:999999999999:key/mrk-00001111222233334444555566667777",
        "arn:aws-cn:kms:eu-west-1:123456789012:key/mrk-00001111222233334444555566667777",
        "arn:aws:kms:eu-west-1:123456789012:alias/mrk-00001111222233334444555566667777",
        "mrk-00001111222233334444555566667777",
        "",
    ],
)
def test_only_the_same_key_of_another_region_is_a_replica(arn: str) -> None:
    """Another id, account, partition or kind of resource is another key."""
    ours = "arn:aws:kms:us-east-1:123456789012:key/mrk-00001111222233334444555566667777"
    provider = AwsProvider(ours, region=REGION)
    assert provider.unwrapping_key_for(ours.replace("us-east-1", "ap-south-1")) == ours
    assert provider.unwrapping_key_for(arn) is None


async def test_single_region_keys_have_no_replicas() -> None:
    """Two single-Region keys of one id in two Regions are two keys."""
    ours = "arn:aws:kms:us-east-1:123456789012:key/00000000-1111-2222-3333-444444444444"
    assert AwsProvider(ours, region=REGION).unwrapping_key_for(ours.replace("us-east-1", "eu-west-1")) is None


async def test_a_former_key_that_is_disabled_is_told(moto: MotoServer, kms_key: str, new_cache: NewCache) -> None:
    """If no key unwraps, the answer is the one that an operator can do something about."""
    new_key = moto.create_key()
    async with aws(moto, kms_key) as old, aws(moto, new_key, kms_key) as both:
        bare = await KeyRing(old, new_cache()).data_key("acme", 32, CONTEXT)
        moto.kms().disable_key(kms_key)
        with pytest.raises(MasterKeyUnusable, match=kms_key):
            await KeyRing(both, new_cache()).open("acme", bare.wrapped.blob, CONTEXT)
