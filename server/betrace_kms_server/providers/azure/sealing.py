"""How a key is sealed and opened: by a Managed HSM alone, or here, with a Key Vault that wraps and signs.

Each is given `ask`, which makes one request of the operation that runs, and raises our error for a bad answer.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from betrace_kms_server.core.errors import DoesNotOpen
from betrace_kms_server.providers.answers import Answers
from betrace_kms_server.providers.azure.client import Answer, encoded
from betrace_kms_server.providers.azure.errors import disabled
from betrace_kms_server.providers.azure.inspection import SEALS, SIGNS, WRAPS, Use
from betrace_kms_server.providers.azure.key_ids import KeyId
from betrace_kms_server.providers.azure.wrapped import (
    IV_BYTES,
    RSA_BYTES,
    SIGNATURE_BYTES,
    TAG_BYTES,
    HsmSealed,
    Sealed,
    SignedSealed,
    parse_hsm_sealed,
    parse_signed_sealed,
)

ANSWERS = Answers("Key Vault", "Key Vault ", "azure.key-vault.key-id, and the proxies on the route")
_WRAPPING_KEY_BYTES = 32
_COORDINATE_BYTES = 32
_PUBLIC_KEYS = 256
"""Versions of the sign key whose public half is kept."""


class Ask(Protocol):
    """Makes a request of an operation that runs. Raises a KmsError unless the answer is good."""

    async def __call__(self, key: KeyId, version: str = "", operation: str = "", **body: str) -> Answer:
        """See VaultClient.ask."""


class HsmSealing:
    """A Managed HSM seals and opens with A256GCM; the encryption context is the associated data."""

    def __init__(self, key: KeyId) -> None:
        self.keys: Mapping[KeyId, Use] = {key: SEALS}
        self._key = key

    async def seal(self, ask: Ask, action: str, plaintext: bytes, associated_data: bytes) -> bytes | None:
        """Return a sealed key, or None if the answer holds none. Raises BadAnswer."""
        answer = await ask(
            self._key, "", "encrypt", alg="A256GCM", value=encoded(plaintext), aad=encoded(associated_data)
        )
        version = _version(action, self._key, answer)
        iv, tag, ciphertext = (answer.raw(name) for name in ("iv", "tag", "value"))
        if not ciphertext or iv is None or tag is None:
            return None
        if (len(iv), len(tag), len(ciphertext)) != (IV_BYTES, TAG_BYTES, len(plaintext)):
            raise ANSWERS.bad(action, self._key.id, "is not one of A256GCM")
        return HsmSealed(version, Sealed(iv, tag, ciphertext)).to_bytes()

    async def open(self, ask: Ask, blob: bytes, associated_data: bytes) -> bytes | None:
        """Return the key that was sealed, or None if the answer holds none. Raises DoesNotOpen and BadAnswer."""
        found = parse_hsm_sealed(blob)
        answer = await ask(
            self._key,
            found.version,
            "decrypt",
            alg="A256GCM",
            value=encoded(found.sealed.ciphertext),
            iv=encoded(found.sealed.iv),
            tag=encoded(found.sealed.tag),
            aad=encoded(associated_data),
        )
        if _version("Decrypt", self._key, answer) != found.version:
            raise ANSWERS.bad("Decrypt", self._key.id, "names another version than the one that was asked")
        return answer.raw("value")


class SignedSealing:
    """Seals here, under a key of its own for each one, which a Key Vault wraps; the vault signs the result."""

    def __init__(self, key: KeyId, sign_key: KeyId) -> None:
        self.keys: Mapping[KeyId, Use] = {key: WRAPS, sign_key: SIGNS}
        self._key = key
        self._sign_key = sign_key
        self._public_keys: dict[str, ec.EllipticCurvePublicKey] = {}

    async def seal(self, ask: Ask, action: str, plaintext: bytes, associated_data: bytes) -> bytes | None:
        """Return a sealed key, or None if the answer holds none. Raises BadAnswer."""
        own = os.urandom(_WRAPPING_KEY_BYTES)
        answer = await ask(self._key, "", "wrapkey", alg="RSA-OAEP-256", value=encoded(own))
        version, wrapped = _version(action, self._key, answer), answer.raw("value")
        if not wrapped:
            return None
        if len(wrapped) not in RSA_BYTES:
            raise ANSWERS.bad(action, self._key.id, f"holds a wrapped key of {len(wrapped)} bytes")
        iv = os.urandom(IV_BYTES)
        ciphertext = AESGCM(own).encrypt(iv, plaintext, associated_data)
        sealed = Sealed(iv, ciphertext[-TAG_BYTES:], ciphertext[:-TAG_BYTES])
        unsigned = SignedSealed(version, wrapped, sealed)
        digest = self._digest(unsigned, associated_data)
        answer = await ask(self._sign_key, "", "sign", alg="ES256", value=encoded(digest))
        sign_version, signature = _version(action, self._sign_key, answer), answer.raw("value")
        if signature is None or not _verifies(await self._public_key(ask, action, sign_version), signature, digest):
            raise ANSWERS.bad(action, self._sign_key.id, "holds no signature that verifies")
        return replace(unsigned, sign_version=sign_version, signature=signature).to_bytes()

    async def open(self, ask: Ask, blob: bytes, associated_data: bytes) -> bytes | None:
        """Return the key that was sealed, or None if the answer holds none. Raises DoesNotOpen and BadAnswer."""
        found = parse_signed_sealed(blob)
        public_key = await self._public_key(ask, "Decrypt", found.sign_version)
        if not _verifies(public_key, found.signature, self._digest(found, associated_data)):
            raise DoesNotOpen
        answer = await ask(self._key, found.version, "unwrapkey", alg="RSA-OAEP-256", value=encoded(found.wrapped))
        if _version("Decrypt", self._key, answer) != found.version:
            raise ANSWERS.bad("Decrypt", self._key.id, "names another version than the one that was asked")
        own = answer.raw("value")
        if own is None or len(own) != _WRAPPING_KEY_BYTES:
            raise ANSWERS.bad("Decrypt", self._key.id, "holds no key of 32 bytes")
        try:
            return AESGCM(own).decrypt(found.sealed.iv, found.sealed.ciphertext + found.sealed.tag, associated_data)
        except InvalidTag:  # the signature says that it opened once
            raise ANSWERS.bad("Decrypt", self._key.id, "holds another key than the one that was wrapped") from None

    def _digest(self, sealed: SignedSealed, associated_data: bytes) -> bytes:
        return hashlib.sha256(sealed.signed_bytes(self._key.id, self._sign_key.id, associated_data)).digest()

    async def _public_key(self, ask: Ask, action: str, version: str) -> ec.EllipticCurvePublicKey:
        """Return the public half of a version of the sign key. Each is read once, and must be of that very key."""
        found = self._public_keys.get(version)
        if found is not None:
            return found
        answer = await ask(self._sign_key, version)
        body = answer.body or {}
        key, attributes = body.get("key"), body.get("attributes")
        if not isinstance(key, dict) or self._sign_key.version_of(key.get("kid")) != version:
            raise ANSWERS.bad(action, self._sign_key.id, "names another key than the one that was asked")
        if not isinstance(attributes, dict) or attributes.get("enabled") is not True:
            raise disabled(self._sign_key, version)
        public_key = _ec_public_key(key)
        if public_key is None:
            raise ANSWERS.bad(action, self._sign_key.id, "holds no public key on the curve P-256")
        if len(self._public_keys) >= _PUBLIC_KEYS:
            del self._public_keys[next(iter(self._public_keys))]
        self._public_keys[version] = public_key
        return public_key


def _version(action: str, key: KeyId, answer: Answer) -> str:
    """Return the version of the key that answered, which must be the one that was asked."""
    kid = (answer.body or {}).get("kid")
    version = key.version_of(kid)
    if version is None:
        raise ANSWERS.bad(action, key.id, "names another key than the one that was asked")
    return version


def _ec_public_key(key: Mapping[str, Any]) -> ec.EllipticCurvePublicKey | None:
    """Return the public key of a JSON Web Key (RFC 7518, section 6.2), or None if it is none on P-256."""
    x, y = (Answer(200, key).raw(name) for name in ("x", "y"))
    if key.get("crv") != "P-256" or x is None or y is None or {len(x), len(y)} != {_COORDINATE_BYTES}:
        return None
    try:
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1())
        return numbers.public_key()
    except ValueError:  # no point of the curve
        return None


def _verifies(public_key: ec.EllipticCurvePublicKey, signature: bytes, digest: bytes) -> bool:
    """Return whether an ES256 signature, r and s of 32 bytes each, is one of a SHA-256 digest."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    try:
        public_key.verify(encode_dss_signature(r, s), digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    except InvalidSignature:
        return False
    return True
