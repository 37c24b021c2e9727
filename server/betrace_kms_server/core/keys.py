"""Value types of keys. No `repr` shows material.

Dropping a cache entry only unlinks its KeyMaterial, which goes with its last holder. Copies that OpenSSL, botocore or a
protobuf message made are beyond our reach; SECURITY.md says which.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from betrace_kms_envelope import KeyMaterial as KeyMaterial
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SEED_BYTES = 32
"""Size of an Ed25519 seed (RFC 8032, section 5.1.5)."""

KeyStatus = Literal["active", "rotated", "revoked"]

_TIMES: Mapping[str, tuple[frozenset[bool], bool]] = {
    "active": (frozenset({False}), False),
    "rotated": (frozenset({True}), False),
    "revoked": (frozenset({True, False}), True),
}
"""For each status, whether a key may have a rotate time, and whether it has a revoke time."""


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
        """Return the SHA-256 over the key and its wrapping, to detect a damaged row (32 bytes)."""
        return _sha256(
            self.tenant_id,
            self.key_id,
            self.provider,
            self.wrapped_seed.master_key_arn,
            self.wrapped_seed.blob,
            self.public_key,
            str(self.create_time_ms),
        )

    def state_checksum(self) -> bytes:
        """Return the SHA-256 over the key, its status and its times, to detect a damaged row (32 bytes).

        It leaves out the wrapping, which `checksum` covers: a daemon of an earlier version that moves a key to
        another master key keeps `checksum` right and does not know this one.
        """
        return _sha256(
            self.tenant_id,
            self.key_id,
            self.provider,
            self.public_key,
            self.status,
            *(
                "" if time is None else str(time)
                for time in (self.create_time_ms, self.rotate_time_ms, self.revoke_time_ms)
            ),
        )

    def is_intact(self, checksum: bytes, state_checksum: bytes | None) -> bool:
        """Check a row as it was read against the checksums that it was stored with.

        A row of an earlier version has no state checksum. Where such a daemon retires a key that has one, it leaves
        that of the earlier state: so the checksum of an earlier state is accepted, that of a later one never.
        """
        if not self.times_fit_status() or self.checksum() != checksum:
            return False
        return state_checksum is None or state_checksum in (each.state_checksum() for each in self._states())

    def times_fit_status(self) -> bool:
        """Check that the key has the times that its status needs, and no others."""
        rotated, revoked = _TIMES.get(self.status, (frozenset(), False))
        return (self.rotate_time_ms is not None) in rotated and (self.revoke_time_ms is not None) == revoked

    def _states(self) -> "Iterator[StoredKey]":
        """Yield this key in its present state and in every earlier one, backwards."""
        yield self
        if self.status == "revoked" and self.rotate_time_ms is not None:
            yield replace(self, status="rotated", revoke_time_ms=None)
        if self.status != "active":
            yield replace(self, status="active", rotate_time_ms=None, revoke_time_ms=None)


def _sha256(*parts: str | bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(4, "big"))
        digest.update(raw)
    return digest.digest()
