"""The binary form of a wrapped key. Lengths are bytes, integers big endian.

Sealed by a Managed HSM (A256GCM under the encryption context)::

    4  "btaz"
    1  01          version of this form
    1  01          sealed by a Managed HSM
   16  version of the master key that sealed it (its 32 hexadecimal digits)
   12  IV
   16  tag
    n  ciphertext, of the length of the key

Sealed here, under a key of its own that a Key Vault wrapped, and signed by the vault::

    4  "btaz"
    1  01          version of this form
    1  02          sealed here and signed
   16  version of the master key
   16  version of the sign key
    2  length of the wrapped 32-byte key: 256, 384 or 512
    w  that key, wrapped with RSA-OAEP-256
   12  IV
   16  tag
    2  length of the ciphertext
    n  ciphertext (AES-256-GCM, NIST SP 800-38D), of the length of the key; the encryption context is its AAD
   64  signature, ES256 (RFC 7518, section 3.4)

What is signed is everything before the signature except for the version of the sign key, then, each after its length of
2 bytes, the id of the master key and that of the sign key, then the SHA-256 of the encryption context as associated
data (32 bytes). The ids bind the signature to the two keys: bytes of one vault mean nothing in another. The version of
the sign key is known only once the vault has signed; another version's public key does not verify the signature.

Whoever can read the public half of an RSA key can wrap with it. Only the signature shows that the daemon made a
wrapped key, so it is verified before anything is unwrapped.
"""

import hashlib
from dataclasses import dataclass, field

from betrace_kms_server.core.errors import DoesNotOpen

IV_BYTES, TAG_BYTES, SIGNATURE_BYTES = 12, 16, 64
RSA_BYTES = frozenset({256, 384, 512})
"""Sizes of what an RSA key of 2,048, 3,072 or 4,096 bits wraps."""
_HEADING = b"btaz\x01"
_BY_HSM, _SIGNED = b"\x01", b"\x02"
_VERSION_BYTES = 16


@dataclass(frozen=True, slots=True)
class Sealed:
    """An IV, a tag of 16 bytes and a ciphertext of AES-GCM."""

    iv: bytes
    tag: bytes
    ciphertext: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class HsmSealed:
    """A key that a Managed HSM sealed. `version` is that of the master key."""

    version: str
    sealed: Sealed

    def to_bytes(self) -> bytes:
        """Return its binary form."""
        sealed = self.sealed
        return b"".join((_HEADING, _BY_HSM, bytes.fromhex(self.version), sealed.iv, sealed.tag, sealed.ciphertext))


@dataclass(frozen=True, slots=True)
class SignedSealed:
    """A key that was sealed here, before or after the vault signed it."""

    version: str
    """Of the master key, 32 hexadecimal digits."""
    wrapped: bytes = field(repr=False)
    sealed: Sealed
    sign_version: str = ""
    signature: bytes = b""

    def signed_bytes(self, key_id: str, sign_key_id: str, associated_data: bytes) -> bytes:
        """Return what is signed."""
        ids = (_with_length(each.encode("ascii")) for each in (key_id, sign_key_id))
        return b"".join((self._head(), self._body(), *ids, hashlib.sha256(associated_data).digest()))

    def to_bytes(self) -> bytes:
        """Return its binary form."""
        return self._head() + bytes.fromhex(self.sign_version) + self._body() + self.signature

    def _head(self) -> bytes:
        return _HEADING + _SIGNED + bytes.fromhex(self.version)

    def _body(self) -> bytes:
        sealed = self.sealed
        return b"".join((_with_length(self.wrapped), sealed.iv, sealed.tag, _with_length(sealed.ciphertext)))


def parse_hsm_sealed(blob: bytes) -> HsmSealed:
    """Return a key that a Managed HSM sealed. Raises DoesNotOpen if the bytes are not exactly one."""
    reader = _Reader(blob, _HEADING + _BY_HSM)
    version = reader.take(_VERSION_BYTES).hex()
    sealed = Sealed(reader.take(IV_BYTES), reader.take(TAG_BYTES), reader.rest())
    if not sealed.ciphertext:
        raise DoesNotOpen
    return HsmSealed(version, sealed)


def parse_signed_sealed(blob: bytes) -> SignedSealed:
    """Return a key that was sealed here and signed. Raises DoesNotOpen if the bytes are not exactly one."""
    reader = _Reader(blob, _HEADING + _SIGNED)
    version, sign_version = reader.take(_VERSION_BYTES).hex(), reader.take(_VERSION_BYTES).hex()
    wrapped = reader.take_with_length()
    sealed = Sealed(reader.take(IV_BYTES), reader.take(TAG_BYTES), reader.take_with_length())
    signature = reader.rest()
    if len(wrapped) not in RSA_BYTES or not sealed.ciphertext or len(signature) != SIGNATURE_BYTES:
        raise DoesNotOpen
    return SignedSealed(version, wrapped, sealed, sign_version, signature)


class _Reader:
    def __init__(self, blob: bytes, heading: bytes) -> None:
        self._blob, self._at = blob, 0
        if self.take(len(heading)) != heading:
            raise DoesNotOpen

    def take(self, size: int) -> bytes:
        found = self._blob[self._at : self._at + size]
        if len(found) != size:
            raise DoesNotOpen
        self._at += size
        return found

    def take_with_length(self) -> bytes:
        return self.take(int.from_bytes(self.take(2), "big"))

    def rest(self) -> bytes:
        return self._blob[self._at :]


def _with_length(part: bytes) -> bytes:
    return len(part).to_bytes(2, "big") + part
