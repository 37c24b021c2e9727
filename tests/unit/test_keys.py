"""Value types of keys: nothing shows material, and material is zeroed when, and only when, nobody holds it."""

import asyncio
import copy
import dataclasses
import gc
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.keys import (
    SEED_BYTES,
    DataKey,
    KeyMaterial,
    SigningKey,
    StoredKey,
    WrappedKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SECRET = b"thirty-two bytes of key material"
WRAPPED = WrappedKey(b"wrapped", "arn:aws:kms:us-east-1:123456789012:key/abcd")
PRIVATE_KEY = Ed25519PrivateKey.from_private_bytes(SECRET)
STORED = StoredKey(
    tenant_id="acme",
    key_id="00112233445566778899aabbccddeeff",
    provider="aws",
    wrapped_seed=WRAPPED,
    public_key=PRIVATE_KEY.public_key().public_bytes_raw(),
    status="active",
    create_time_ms=1_700_000_000_000,
)


def data_key() -> DataKey:
    return DataKey(KeyMaterial(SECRET), WRAPPED)


def zeroed(buffer: bytearray) -> bool:
    return bytes(len(SECRET)) == buffer


@pytest.mark.parametrize(
    "value",
    [KeyMaterial(SECRET), data_key(), SigningKey("id", PRIVATE_KEY), WRAPPED, STORED],
    ids=lambda value: type(value).__name__,
)
def test_reprs_show_no_material(value: object) -> None:
    """Neither repr, str nor a format shows key bytes, wrapped or plain, in any spelling."""
    for text in (repr(value), str(value), f"{value}", repr([value])):
        for spelling in (SECRET.decode(), SECRET.hex(), repr(list(SECRET)), "wrapped key", "b'wrapped'"):
            assert spelling not in text


def test_reprs_help_all_the_same() -> None:
    """A repr tells size and names, which a log may have."""
    assert "<KeyMaterial of 32 bytes>" == repr(KeyMaterial(SECRET))
    assert f"WrappedKey(master_key_arn='{WRAPPED.master_key_arn}')" == repr(WRAPPED)
    assert f"DataKey(material=<KeyMaterial of 32 bytes>, wrapped={WRAPPED!r})" == repr(data_key())
    assert "SigningKey(key_id='id')" == repr(SigningKey("id", PRIVATE_KEY))


@pytest.mark.parametrize("raw", [SECRET, bytearray(SECRET)], ids=["bytes", "bytearray"])
def test_material_holds_a_copy(raw: bytes | bytearray) -> None:
    """Material has its bytes for itself, so wiping it, or the original, leaves the other as it is."""
    material = KeyMaterial(raw)
    buffer = material._buffer
    assert SECRET == material.raw
    assert 32 == len(material)
    del material
    assert zeroed(buffer)
    assert SECRET == raw


def test_raw_is_the_buffer_itself() -> None:
    """Looking at the bytes makes no copy that would outlive the wiping."""
    material = KeyMaterial(SECRET)
    assert material.raw is material.raw is material._buffer


def test_zeroed_when_the_last_reference_goes() -> None:
    """Material is zeroed at once when its last holder lets go, and not before."""
    material = KeyMaterial(SECRET)
    buffer, second = material._buffer, DataKey(material, WRAPPED)
    del material
    assert SECRET == buffer
    del second
    assert zeroed(buffer)


def test_zeroed_when_an_exception_passes() -> None:
    """A function that fails leaves no material behind."""
    held: list[bytearray] = []

    def fail() -> None:
        material = KeyMaterial(SECRET)
        held.append(material._buffer)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        fail()
    assert zeroed(held[0])


@pytest.fixture
def no_garbage_collector() -> Iterator[None]:
    """Leave wiping to reference counts: a cycle that holds a key would only be found by chance."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collector")
async def test_dropping_an_entry_wipes_it() -> None:
    """A cached key that nobody uses is zeroed when its entry goes, by whatever way; the loop's own hold ends first."""
    clock = [0.0]
    cache = KeyCache("data", ttl=10, max_size=1, clock=lambda: clock[0], jitter=lambda: 0.0)
    key = ("data key", "arn", "acme")
    buffers = []

    async def load() -> DataKey:
        loaded = data_key()
        buffers.append(loaded.material._buffer)
        return loaded

    await cache.get_or_load(key, load)
    cache.invalidate("acme")
    await cache.get_or_load(key, load)
    await cache.get_or_load(("data key", "arn", "globex"), load)
    clock[0] = 10
    cache.drop_expired()
    await cache.get_or_load(key, load)
    await cache.delete(key)
    await cache.set(key, await load())
    await cache.set(key, None)
    await asyncio.sleep(0)
    assert [True] * 5 == [zeroed(buffer) for buffer in buffers]


@pytest.mark.usefixtures("no_garbage_collector")
async def test_dropping_an_entry_between_lookup_and_use_wipes_nothing() -> None:
    """Whoever has looked a key up can use it to the end, though its entry goes meanwhile."""
    cache = KeyCache("data", ttl=10, max_size=1)

    async def load() -> DataKey:
        return data_key()

    looked_up = await cache.get_or_load(("data key", "arn", "acme"), load)
    buffer = looked_up.material._buffer
    cache.invalidate("acme")
    await cache.clear()
    await asyncio.sleep(0)
    assert 0 == len(cache)
    assert SECRET == looked_up.material.raw
    del looked_up
    assert zeroed(buffer)


@pytest.mark.parametrize("value", [KeyMaterial(SECRET), data_key(), SigningKey("id", PRIVATE_KEY)], ids=repr)
def test_pickling_is_refused(value: object) -> None:
    """Keys are not serialised, whatever the protocol."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises((TypeError, pickle.PicklingError)):
            pickle.dumps(value, protocol)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copying_material_is_refused(duplicate: Any) -> None:
    """No second copy of the bytes comes to be unnoticed."""
    with pytest.raises(TypeError, match="not serialised"):
        duplicate(KeyMaterial(SECRET))


def test_material_has_no_place_for_more() -> None:
    """Nothing can be hung onto material, where it would not be wiped."""
    with pytest.raises(AttributeError):
        KeyMaterial(SECRET).note = SECRET  # type: ignore[attr-defined]


def test_values_are_frozen() -> None:
    """A key that somebody holds never becomes another."""
    for value in (data_key(), WRAPPED, STORED, SigningKey("id", PRIVATE_KEY)):
        name = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, "other")


def test_seed_is_that_of_ed25519() -> None:
    """A seed is the 32 bytes that RFC 8032 takes."""
    assert 32 == SEED_BYTES


@pytest.mark.parametrize(
    "change",
    [
        {"tenant_id": "acme2"},
        {"key_id": "ff112233445566778899aabbccddeeff"},
        {"provider": "local"},
        {"wrapped_seed": WrappedKey(b"wrappee", WRAPPED.master_key_arn)},
        {"wrapped_seed": WrappedKey(b"wrapped", WRAPPED.master_key_arn + "e")},
        {"public_key": bytes(32)},
        {"create_time_ms": 1_700_000_000_001},
    ],
    ids=lambda change: next(iter(change)),
)
def test_checksum_changes_with_every_field(change: dict[str, Any]) -> None:
    """A row in which anything was changed is told by its checksum."""
    assert STORED.checksum() != dataclasses.replace(STORED, **change).checksum()


def test_checksum_covers_every_field_but_the_status() -> None:
    """Status and its times change in a key's life and are left out; a field of later must not be forgotten."""
    covered = {"tenant_id", "key_id", "provider", "wrapped_seed", "public_key", "create_time_ms"}
    changing = {"status", "rotate_time_ms", "revoke_time_ms"}
    assert covered | changing == {field.name for field in dataclasses.fields(StoredKey)}
    changed = dataclasses.replace(STORED, status="revoked", rotate_time_ms=1, revoke_time_ms=2)
    assert STORED.checksum() == changed.checksum()


def test_checksum_tells_fields_apart() -> None:
    """Moving a character from one field to the next changes the checksum."""
    moved = dataclasses.replace(STORED, tenant_id="acme0", key_id=STORED.key_id[1:])
    assert STORED.tenant_id + STORED.key_id == moved.tenant_id + moved.key_id
    assert STORED.checksum() != moved.checksum()


def test_checksum_never_changes() -> None:
    """Checksums are in key stores: this one was computed with sha256sum from lengths and fields."""
    assert 32 == len(STORED.checksum())
    assert "940c5d1c4e7ae5e58622b987338fcff5d1bc28f009bd87e80ba92a8839266f1e" == STORED.checksum().hex()
