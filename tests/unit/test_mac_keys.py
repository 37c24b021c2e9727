"""MACs under a beacon key, computed again with nothing but the standard library."""

import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_server.core.errors import InvalidRequest
from betrace_kms_server.core.keys import KeyMaterial
from betrace_kms_server.data_keys.mac_keys import BeaconKey, purpose_of, purpose_of_mac
from hypothesis import given
from hypothesis import strategies as st

VECTORS: Mapping[str, Any] = json.loads((Path(__file__).parents[1] / "vectors/macs.json").read_text("utf-8"))
KEY = BeaconKey(KeyMaterial(bytes(range(32))), "arn")
PURPOSES = st.text("abcdefghijklmnopqrstuvwxyz0123456789._-", min_size=1, max_size=64)


def mac(purpose: str, message: bytes, bits: int = 256, key: BeaconKey = KEY) -> bytes:
    """Return a MAC as the daemon computes it."""
    checked = purpose_of(purpose, bits)
    return key.key_for(checked).mac(message, checked.bits)


def whole_mac(beacon_key: bytes, purpose: str, message: bytes) -> bytes:
    """Return all 256 bits by RFC 5869, whose first block is all that 32 bytes need, and RFC 2104."""
    extracted = hmac.digest(bytes(32), beacon_key, "sha256")
    key = hmac.digest(extracted, b"betrace-kms/mac/v1\x00" + purpose.encode() + b"\x01", "sha256")
    return hmac.digest(key, message, "sha256")


@given(purpose=PURPOSES, message=st.binary(max_size=200), bits=st.integers(8, 256))
def test_mac_is_what_the_standards_say(purpose: str, message: bytes, bits: int) -> None:
    """The leftmost bits, and zeros after them."""
    whole = int.from_bytes(whole_mac(bytes(range(32)), purpose, message), "big")
    size = (bits + 7) // 8
    wanted = (whole >> (256 - bits) << (8 * size - bits)).to_bytes(size, "big")
    assert wanted == mac(purpose, message, bits)


@pytest.mark.parametrize("vector", VECTORS["macs"], ids=lambda vector: f"{vector['purpose']}-{vector['bits']}")
def test_published_mac_stays_what_it_is(vector: Mapping[str, Any]) -> None:
    """An index that was stored must be found for ever."""
    key = BeaconKey(KeyMaterial(bytes.fromhex(VECTORS["beaconKey"])), "arn")
    message = bytes.fromhex(vector["message"])
    assert vector["mac"] == mac(vector["purpose"], message, vector["bits"], key).hex()


def test_zero_bits_are_all_bits() -> None:
    """As the protocol says."""
    assert mac("email", b"x", 0) == mac("email", b"x", 256)


def test_purposes_have_keys_of_their_own() -> None:
    """So equal values in two columns do not look equal, nor does the same split between purpose and message."""
    assert 4 == len({mac(*each) for each in (("a", b"x"), ("b", b"x"), ("ab", b"x"), ("a", b"bx"))})


@pytest.mark.parametrize("purpose", ["", "Email", "e mail", "é", "a\x00b", "a\n", "a" * 65, "a/b"])
def test_malformed_purpose_is_refused(purpose: str) -> None:
    """By a sentence that says what a purpose is."""
    with pytest.raises(InvalidRequest, match="purpose must be"):
        purpose_of(purpose, 256)


@pytest.mark.parametrize("bits", [1, 7, 257, 2**32 - 1])
def test_impossible_length_is_refused(bits: int) -> None:
    """Fewer than 8 bits say nothing, more than 256 are not there."""
    with pytest.raises(InvalidRequest, match="bits must be 8 to 256"):
        purpose_of("email", bits)


@pytest.mark.parametrize(
    ("bits", "size"), [(0, 0), (0, 15), (0, 33), (127, 16), (120, 15), (128, 15), (129, 16), (130, 32), (256, 31)]
)
def test_mac_that_proves_nothing_is_not_verified(bits: int, size: int) -> None:
    """Too short, or with another length than it is said to have."""
    with pytest.raises(InvalidRequest, match=r"must be 128|must have as many bytes"):
        purpose_of_mac("email", bits, bytes(size))


@given(bits=st.integers(128, 256), message=st.binary(max_size=50), data=st.data())
def test_only_the_mac_itself_matches(bits: int, message: bytes, data: st.DataObject) -> None:
    """Any flipped bit is noticed, also one that is not used."""
    made = mac("email", message, bits)
    purpose = purpose_of_mac("email", bits, made)
    assert KEY.key_for(purpose).matches(message, purpose.bits, made)
    flipped = bytearray(made)
    place = data.draw(st.integers(0, 8 * len(made) - 1))
    flipped[place // 8] ^= 1 << place % 8
    assert not KEY.key_for(purpose).matches(message, purpose.bits, bytes(flipped))


def test_nothing_secret_is_shown() -> None:
    """Neither key appears in a repr."""
    key = KEY.key_for(purpose_of("email", 256))
    assert bytes(range(32)).hex() not in repr(KEY)
    assert bytes(key.material.raw).hex() not in repr(key)
