"""Signing over every provider with a real key store: one key a tenant, made once, never replaced."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from betrace.kms.v1 import span_pb2
from betrace_kms_evidence import canonical_span, verify
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.errors import InvalidRequest, KeyDamaged, MasterKeyUnusable, NoSigningKey, StoreUnavailable
from betrace_kms_server.core.keys import StoredKey, WrappedKey
from betrace_kms_server.core.master_keys import step_to_configure
from betrace_kms_server.core.tenancy import signing_context
from betrace_kms_server.signing_keys.signer import Signer
from betrace_kms_server.stores.sqlite.store import SqliteStore
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tests.contract.doubles import FakeClock, Kms
from tests.contract.samples import ARN, span, stored_key

NewSigner = Callable[..., Signer]


@pytest.fixture
def new_signer(kms: Kms, store: SqliteStore, new_cache: Callable[..., KeyCache], clock: FakeClock) -> NewSigner:
    """Give a maker of signers on one KMS and one store, each with caches of its own as after a restart."""

    def make(*, auto_create: bool = True) -> Signer:
        return Signer(
            kms.provider,
            store,
            signing_keys=new_cache(),
            public_keys=new_cache(),
            auto_create=auto_create,
            now=clock,
        )

    return make


@pytest.fixture
def signer(new_signer: NewSigner) -> Signer:
    """Give a signer with empty caches."""
    return new_signer()


async def stored(kms: Kms, store: SqliteStore, *, size: int = 32, public_key: bytes | None = None) -> StoredKey:
    """Store a signing key as a daemon would, unless told otherwise, and return it."""
    key_id = "0123456789abcdef" * 2
    seed = await kms.provider.generate_data_key(size, signing_context("acme", key_id))
    if public_key is None and size == 32:
        public_key = Ed25519PrivateKey.from_private_bytes(seed.material.raw).public_key().public_bytes_raw()
    key = stored_key(key_id=key_id, wrapped_seed=seed.wrapped, public_key=public_key, provider=kms.provider.name)
    await store.create(key)
    kms.calls.clear()
    return key


async def verdict(
    signer: Signer, tenant_id: str, key_id: str, signed: span_pb2.ComplianceSpan, signature: bytes
) -> str:
    """Return the verdict on a signature."""
    return (await signer.verifier(tenant_id, [key_id])).verify(signed, signature, key_id)


async def test_signature_verifies_with_the_stored_public_key(signer: Signer, store: SqliteStore) -> None:
    """Anybody with the public key of the store verifies a signature, without us."""
    signed = await signer.sign("acme", span())
    key = await store.active("acme")
    assert key is not None
    assert (signed.key_id, canonical_span("acme", signed.key_id, span())) == (key.key_id, signed.payload)
    assert verify(Ed25519PublicKey.from_public_bytes(key.public_key), signed.signature, signed.payload)


async def test_thousand_signatures_ask_kms_once(signer: Signer, kms: Kms) -> None:
    """A thousand spans of one tenant cost one GenerateDataKey, and have one key id."""
    signed = [await signer.sign("acme", span(str(number))) for number in range(1000)]
    assert 1 == len({signature.key_id for signature in signed})
    assert {"GenerateDataKey": 1} == kms.calls


async def test_first_signatures_at_once_make_one_key(signer: Signer, kms: Kms, store: SqliteStore) -> None:
    """Five hundred first spans of a tenant at once make one key, by one call of KMS."""
    signed = await asyncio.gather(*(signer.sign("acme", span(str(number))) for number in range(500)))
    key = await store.active("acme")
    assert key is not None
    assert {key.key_id} == {signature.key_id for signature in signed}
    assert {"GenerateDataKey": 1} == kms.calls


async def test_signing_after_a_restart_unwraps_the_same_key(new_signer: NewSigner, kms: Kms) -> None:
    """After a restart a tenant signs with the same key, for one Decrypt; Ed25519 gives the very same signature."""
    before = await new_signer().sign("acme", span())
    kms.calls.clear()
    restarted = new_signer()
    after = [await restarted.sign("acme", span()) for _ in range(10)]
    assert [before] * 10 == after
    assert {"Decrypt": 1} == kms.calls


async def test_signing_key_lives_in_memory_for_its_time(signer: Signer, kms: Kms, clock: FakeClock) -> None:
    """When its time in memory is over a signing key is unwrapped anew, and is the same."""
    before = await signer.sign("acme", span())
    clock.now += 3600
    assert before == await signer.sign("acme", span())
    assert {"GenerateDataKey": 1, "Decrypt": 1} == kms.calls


async def test_two_daemons_agree_on_one_key(new_signer: NewSigner, store: SqliteStore) -> None:
    """Of two daemons that sign for a new tenant at once one makes the key, and the other adopts it."""
    one, other = new_signer(), new_signer()
    first, second = await asyncio.gather(one.sign("acme", span()), other.sign("acme", span()))
    assert first == second == await one.sign("acme", span())


async def test_each_tenant_has_its_own_key(signer: Signer) -> None:
    """Two tenants never share a key."""
    mine, theirs = await signer.sign("acme", span()), await signer.sign("globex", span())
    assert mine.key_id != theirs.key_id


async def test_row_of_a_new_key_tells_who_wrapped_it_and_when(
    signer: Signer, kms: Kms, store: SqliteStore, clock: FakeClock
) -> None:
    """A row records provider, master key and time, and that its key is active."""
    await signer.sign("acme", span())
    key = await store.active("acme")
    assert key is not None
    assert (kms.provider.name, kms.provider.master_key_arn, int(clock.now * 1000), "active") == (
        key.provider,
        key.wrapped_seed.master_key_arn,
        key.create_time_ms,
        key.status,
    )


async def test_without_auto_create_no_key_is_made(new_signer: NewSigner, kms: Kms, store: SqliteStore) -> None:
    """With kms.signing.auto-create off a tenant without a key is told so."""
    with pytest.raises(NoSigningKey, match=r"kms\.signing\.auto-create"):
        await new_signer(auto_create=False).sign("acme", span())
    assert (None, {}) == (await store.active("acme"), kms.calls)


async def test_without_auto_create_a_key_that_is_there_signs(new_signer: NewSigner) -> None:
    """kms.signing.auto-create is about making keys, not about using them."""
    before = await new_signer().sign("acme", span())
    assert before == await new_signer(auto_create=False).sign("acme", span())


async def test_key_that_could_not_be_stored_signs_nothing(signer: Signer, store: SqliteStore) -> None:
    """No signature leaves before its key is durable; once the store takes keys again, signing works."""
    await store._database.execute_fetchall("PRAGMA query_only=ON")
    with pytest.raises(StoreUnavailable):
        await signer.sign("acme", span())
    await store._database.execute_fetchall("PRAGMA query_only=OFF")
    assert None is await store.active("acme")
    signed = await signer.sign("acme", span())
    key = await store.active("acme")
    assert key is not None
    assert key.key_id == signed.key_id


@pytest.mark.parametrize(
    "unsignable",
    [
        pytest.param(span_pb2.ComplianceSpan(), id="empty"),
        pytest.param(span_pb2.ComplianceSpan(trace_id=bytes(16), span_id=b"12345678"), id="trace id all zero"),
        pytest.param(span_pb2.ComplianceSpan(trace_id=b"short", span_id=b"12345678"), id="trace id too short"),
    ],
)
async def test_span_that_cannot_be_signed_makes_no_key(
    signer: Signer, kms: Kms, store: SqliteStore, unsignable: span_pb2.ComplianceSpan
) -> None:
    """A bad request of a new tenant leaves nothing behind that lives for ever."""
    with pytest.raises(InvalidRequest):
        await signer.sign("acme", unsignable)
    assert (None, {}) == (await store.active("acme"), kms.calls)


async def test_own_signature_is_valid(new_signer: NewSigner, kms: Kms) -> None:
    """What was signed verifies, by the daemon that signed and by another one, which asks KMS for nothing."""
    signer = new_signer()
    signed = await signer.sign("acme", span())
    kms.calls.clear()
    for verifier in (signer, new_signer()):
        assert "VALID" == await verdict(verifier, "acme", signed.key_id, span(), signed.signature)
    assert {} == kms.calls


async def test_other_span_has_a_bad_signature(signer: Signer) -> None:
    """A signature covers every field of its span."""
    signed = await signer.sign("acme", span("user.login"))
    assert "BAD_SIGNATURE" == await verdict(signer, "acme", signed.key_id, span("user.logout"), signed.signature)


@pytest.mark.parametrize("signature", [b"", b"\x00" * 64, b"\xff" * 64, b"\x00" * 65])
async def test_rubbish_is_a_bad_signature(signer: Signer, signature: bytes) -> None:
    """Bytes that are no signature are a bad one, whatever their length."""
    signed = await signer.sign("acme", span())
    assert "BAD_SIGNATURE" == await verdict(signer, "acme", signed.key_id, span(), signature)


async def test_key_of_another_tenant_is_unknown(signer: Signer) -> None:
    """A tenant learns nothing of another's keys: they are unknown, also while they are in memory."""
    signed = await signer.sign("acme", span())
    assert "VALID" == await verdict(signer, "acme", signed.key_id, span(), signed.signature)
    assert "UNKNOWN_KEY" == await verdict(signer, "globex", signed.key_id, span(), signed.signature)


async def test_key_that_nobody_has_is_unknown(signer: Signer) -> None:
    """A key id that was never given out is unknown."""
    signed = await signer.sign("acme", span())
    assert "UNKNOWN_KEY" == await verdict(signer, "acme", "0" * 32, span(), signed.signature)


async def test_key_that_was_made_after_it_was_unknown_is_found(signer: Signer, kms: Kms, store: SqliteStore) -> None:
    """That a key was unknown is not remembered: another daemon may make it the next moment."""
    assert "UNKNOWN_KEY" == await verdict(signer, "acme", "0123456789abcdef" * 2, span(), bytes(64))
    await stored(kms, store)
    assert "BAD_SIGNATURE" == await verdict(signer, "acme", "0123456789abcdef" * 2, span(), bytes(64))


async def test_revoked_key_is_told(new_signer: NewSigner, database: Path) -> None:
    """A good signature of a key that was revoked is answered by that fact."""
    signed = await new_signer().sign("acme", span())
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("UPDATE signing_keys SET status = 'revoked', revoke_time_ms = 1700000000000")
    assert "KEY_REVOKED" == await verdict(new_signer(), "acme", signed.key_id, span(), signed.signature)


async def test_key_that_is_in_the_store_signs(signer: Signer, kms: Kms, store: SqliteStore) -> None:
    """The rows of the tests below are good but for what each is about."""
    key = await stored(kms, store)
    assert key.key_id == (await signer.sign("acme", span())).key_id


async def test_key_with_another_public_key_is_damaged(signer: Signer, kms: Kms, store: SqliteStore) -> None:
    """A seed that does not belong to its public key signs nothing, and no key takes its place."""
    key = await stored(kms, store, public_key=bytes(32))
    with pytest.raises(KeyDamaged, match=key.key_id):
        await signer.sign("acme", span())
    assert (key, {"Decrypt": 1}) == (await store.active("acme"), kms.calls)


@pytest.mark.parametrize("size", [16, 31, 33, 64])
async def test_seed_of_another_size_is_damaged(signer: Signer, kms: Kms, store: SqliteStore, size: int) -> None:
    """A seed is 32 bytes; anything else signs nothing, and no key takes its place."""
    key = await stored(kms, store, size=size)
    with pytest.raises(KeyDamaged, match=key.key_id):
        await signer.sign("acme", span())
    assert key == await store.active("acme")


async def test_seed_of_another_key_is_damaged(signer: Signer, kms: Kms, store: SqliteStore) -> None:
    """A wrapped seed is bound to its tenant and key id: in another row it does not unwrap, and is not replaced."""
    good = await signer.sign("globex", span())
    theirs = await store.get("globex", good.key_id)
    assert theirs is not None
    key = stored_key("acme", wrapped_seed=theirs.wrapped_seed, public_key=theirs.public_key)
    await store.create(key)
    with pytest.raises(KeyDamaged, match=key.key_id):
        await signer.sign("acme", span())
    assert key == await store.active("acme")


async def test_altered_row_is_damaged_for_signing_and_verifying(
    new_signer: NewSigner, kms: Kms, store: SqliteStore, database: Path
) -> None:
    """Nobody signs or verifies with a row that was altered, and no key takes its place."""
    signed = await new_signer().sign("acme", span())
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("UPDATE signing_keys SET public_key = zeroblob(32)")
    kms.calls.clear()
    restarted = new_signer()
    with pytest.raises(KeyDamaged):
        await restarted.sign("acme", span())
    with pytest.raises(KeyDamaged):
        await verdict(restarted, "acme", signed.key_id, span(), signed.signature)
    assert {} == kms.calls


async def test_key_of_an_unknown_master_key_names_it(signer: Signer, kms: Kms, store: SqliteStore) -> None:
    """A row under a master key that is not configured tells which one to configure, and is not replaced."""
    key = stored_key(wrapped_seed=WrappedKey(b"seed", ARN))
    await store.create(key)
    with pytest.raises(MasterKeyUnusable, match=step_to_configure(ARN, kms.provider.name)) as raised:
        await signer.sign("acme", span())
    assert ARN in raised.value.message
    assert (key, {}) == (await store.active("acme"), kms.calls)


async def test_key_of_an_unknown_master_key_still_verifies(signer: Signer, store: SqliteStore) -> None:
    """To verify takes only the public key, whatever became of the master key."""
    private_key = Ed25519PrivateKey.generate()
    key = stored_key(wrapped_seed=WrappedKey(b"seed", ARN), public_key=private_key.public_key().public_bytes_raw())
    await store.create(key)
    assert "BAD_SIGNATURE" == await verdict(signer, "acme", key.key_id, span(), bytes(64))
