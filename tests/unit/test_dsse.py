"""DSSE v1 with Ed25519: the pre-authentication encoding, and what does not verify."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from betrace_kms_evidence import ALGORITHM, PAYLOAD_TYPE, dsse, pre_authentication_encoding, sign, verify
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

RFC_8032: Sequence[Mapping[str, str]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "ed25519_rfc8032.json").read_text("utf-8")
)["vectors"]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC_KEY = KEY.public_key()
PAYLOAD = b'{"name":"user.login"}'


def flipped(data: bytes) -> Iterator[bytes]:
    """Give the data with each of its bits flipped, one at a time."""
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def test_names_of_the_format() -> None:
    """Payload type and algorithm are part of the format: another name is another format."""
    assert ("application/vnd.betrace.span.v1+json", "Ed25519") == (PAYLOAD_TYPE, ALGORITHM)


def test_pae_of_the_specification() -> None:
    """The example of DSSE's protocol.md comes out as printed there."""
    assert b"DSSEv1 29 http://example.com/HelloWorld 11 hello world" == pre_authentication_encoding(
        "http://example.com/HelloWorld", b"hello world"
    )


def test_pae_of_nothing() -> None:
    """Lengths are there even if type and payload are empty."""
    assert b"DSSEv1 0  0 " == pre_authentication_encoding("", b"")


def test_pae_counts_bytes() -> None:
    """Lengths count bytes of UTF-8, not characters, and the payload stays as it is."""
    assert b"DSSEv1 3 \xe2\x82\xac 4 \x00\xff \n" == pre_authentication_encoding("€", b"\x00\xff \n")


def test_pae_tells_type_from_payload() -> None:
    """Moving bytes between type and payload changes the encoding."""
    assert pre_authentication_encoding("a 1 b", b"c") != pre_authentication_encoding("a", b"b 1 c")


@pytest.mark.parametrize("vector", RFC_8032, ids=lambda vector: vector["name"])
def test_ed25519_of_rfc_8032(vector: Mapping[str, str]) -> None:
    """The curve beneath is RFC 8032's: seed, public key and signature are those of its section 7.1."""
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["seed"]))
    message = bytes.fromhex(vector["message"])
    assert vector["public_key"] == key.public_key().public_bytes_raw().hex()
    assert vector["signature"] == key.sign(message).hex()
    key.public_key().verify(bytes.fromhex(vector["signature"]), message)


def test_signature_covers_the_encoding() -> None:
    """A signature is Ed25519's over the encoding with our payload type, 64 bytes."""
    signed = b"DSSEv1 36 application/vnd.betrace.span.v1+json 21 " + PAYLOAD
    signature = sign(KEY, PAYLOAD)
    assert KEY.sign(signed) == signature
    assert dsse.SIGNATURE_BYTES == len(signature)
    PUBLIC_KEY.verify(signature, signed)


def test_verify_accepts_what_sign_made() -> None:
    """What one signs, the other verifies, for our type and for another."""
    assert verify(PUBLIC_KEY, sign(KEY, PAYLOAD), PAYLOAD)
    assert verify(PUBLIC_KEY, sign(KEY, b"", "text/plain"), b"", "text/plain")


def test_signatures_are_deterministic() -> None:
    """The same payload under the same key has the same signature, so evidence can be compared."""
    assert sign(KEY, PAYLOAD) == sign(Ed25519PrivateKey.from_private_bytes(bytes(range(32))), PAYLOAD)


def test_every_flipped_bit_of_the_signature_is_refused() -> None:
    """No bit of a signature can be changed."""
    assert not any(verify(PUBLIC_KEY, changed, PAYLOAD) for changed in flipped(sign(KEY, PAYLOAD)))


def test_every_flipped_bit_of_the_payload_is_refused() -> None:
    """No bit of a payload can be changed."""
    signature = sign(KEY, PAYLOAD)
    assert not any(verify(PUBLIC_KEY, signature, changed) for changed in flipped(PAYLOAD))


def test_flipped_bits_of_the_public_key_are_refused() -> None:
    """A signature verifies under its own key only; some bytes are no key at all, and none verifies."""
    signature = sign(KEY, PAYLOAD)
    for changed in flipped(PUBLIC_KEY.public_bytes_raw()):
        assert not verify(Ed25519PublicKey.from_public_bytes(changed), signature, PAYLOAD)


@pytest.mark.parametrize("size", [0, 1, 32, 63, 65, 128])
def test_signatures_of_other_sizes_are_refused(size: int) -> None:
    """What is shorter or longer than 64 bytes is a bad signature, not an error."""
    signature = sign(KEY, PAYLOAD)
    assert not verify(PUBLIC_KEY, (signature * 2)[:size], PAYLOAD)


@pytest.mark.parametrize("payload_type", ["application/vnd.betrace.span.v2+json", "", PAYLOAD_TYPE + " "])
def test_another_payload_type_is_refused(payload_type: str) -> None:
    """A signature made for one kind of document never verifies as another kind."""
    assert not verify(PUBLIC_KEY, sign(KEY, PAYLOAD, payload_type), PAYLOAD)
    assert not verify(PUBLIC_KEY, sign(KEY, PAYLOAD), PAYLOAD, payload_type)


def test_a_bare_signature_is_refused() -> None:
    """A signature over the payload itself, without the encoding, does not verify."""
    assert not verify(PUBLIC_KEY, KEY.sign(PAYLOAD), PAYLOAD)
