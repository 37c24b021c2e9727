"""Value types of keys. No `repr` shows material.

Raw key bytes live in KeyMaterial, which zeroes them when the last reference to it goes. CPython counts references, so
that is at once, and never under the feet of somebody who still seals with it: dropping a cache entry only unlinks it.
Copies that OpenSSL, botocore or a protobuf message made are beyond our reach; SECURITY.md says which.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SEED_BYTES = 32
"""Size of an Ed25519 seed (RFC 8032, section 5.1.5)."""

KeyStatus = Literal["active", "rotated", "revoked"]


class KeyMaterial:
    """Raw key bytes, zeroed when the last holder lets go."""

    __slots__ = ("_buffer",)

    def __init__(self, raw: bytes | bytearray) -> None:
        self._buffer = bytearray(raw)

    def __len__(self) -> int:
        return len(self._buffer)

    def __repr__(self) -> str:
        return f"<KeyMaterial of {len(self._buffer)} bytes>"

    def __reduce__(self) -> str:
        raise TypeError("key material is not serialised")

    def __del__(self) -> None:
        self._buffer[:] = bytes(len(self._buffer))

    @property
    def raw(self) -> bytearray:
        """The bytes themselves. Hold on to the KeyMaterial for as long as you use them."""
        return self._buffer


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A key encrypted by a master key: the KMS ciphertext (1 to 6,144 bytes) and the ARN of what wrapped it."""

    blob: bytes = field(repr=False)
    master_key_arn: str


@dataclass(frozen=True, slots=True)
class DataKey:
    """A data key (1 to 1,024 bytes) in plaintext and wrapped."""

    material: KeyMaterial
    wrapped: WrappedKey


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A tenant's Ed25519 key, ready to sign. The private half lives inside OpenSSL, which zeroes it when freed."""

    key_id: str
    private_key: Ed25519PrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A signing key as the key store holds it: the seed only wrapped, the public key plain."""

    tenant_id: str
    key_id: str
    provider: str
    wrapped_seed: WrappedKey
    public_key: bytes
    status: KeyStatus
    create_time_ms: int
    """Milliseconds since the Unix epoch."""
    rotate_time_ms: int | None = None
    """When a newer key replaced it, if one did."""
    revoke_time_ms: int | None = None
    """When it was revoked, if it was."""

    def checksum(self) -> bytes:
        """Return the SHA-256 over everything that never changes in a row, to tell a damaged one (32 bytes)."""
        digest = hashlib.sha256()
        for part in (
            self.tenant_id.encode(),
            self.key_id.encode(),
            self.provider.encode(),
            self.wrapped_seed.master_key_arn.encode(),
            self.wrapped_seed.blob,
            self.public_key,
            str(self.create_time_ms).encode(),
        ):
            digest.update(len(part).to_bytes(4, "big"))
            digest.update(part)
        return digest.digest()
