"""Data keys wrapped by a branch key, as the AWS KMS hierarchical keyring does. Pure; KMS and stores are not known here.

Section names are those of the AWS Encryption SDK specification, framework/aws-kms/aws-kms-hierarchical-keyring.md. An
encrypted data key has provider id "aws-kms-hierarchy", the branch key's id as provider info, and this ciphertext
("Ciphertext")::

    16  salt       random, for the derivation of the wrapping key
    12  IV         random
    16  version    UUID of the branch key's version
    32  encrypted data key
    16  authentication tag

Wrapping key ("Branch Key Wrapping"): 32 bytes by NIST SP 800-108 in counter mode with HMAC-SHA-256 of the branch key. A
counter of 32 bits stands before the fixed data: "aws-kms-hierarchy" 00 salt 00 00 01 00, which are label, separator,
context and the length of the key in bits. AES-256-GCM wraps under it; each data key has a salt of its own, so no
wrapping key is used twice.

AAD ("Branch Key Wrapping and Unwrapping AAD"): "aws-kms-hierarchy", branch key id, version (16 bytes), and the
encryption context as in a message's header, without its length.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from betrace_kms_envelope import DATA_KEY_BYTES, EncryptedDataKey, context_bytes
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from betrace_kms_server.core.errors import DoesNotOpen
from betrace_kms_server.core.keys import KeyMaterial

PROVIDER_ID = "aws-kms-hierarchy"
BRANCH_KEY_BYTES = 32
_PROVIDER_ID = PROVIDER_ID.encode()
_SALT_BYTES, _IV_BYTES, _VERSION_BYTES, _TAG_BYTES = 16, 12, 16, 16
_IV_AT = _SALT_BYTES
_VERSION_AT = _IV_AT + _IV_BYTES
_KEY_AT = _VERSION_AT + _VERSION_BYTES
CIPHERTEXT_BYTES = _KEY_AT + DATA_KEY_BYTES + _TAG_BYTES
_KEY_BITS = (8 * BRANCH_KEY_BYTES).to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class BranchKey:
    """One version of a branch key (32 bytes), and the master key behind it."""

    branch_key_id: str
    version: UUID
    material: KeyMaterial
    master_key_arn: str

    def wrap(self, data_key: bytes | bytearray, context: Mapping[str, str]) -> EncryptedDataKey:
        """Wrap a data key of 32 bytes under the encryption context of its message."""
        salt, iv = os.urandom(_SALT_BYTES), os.urandom(_IV_BYTES)
        encrypted = AESGCM(self._wrapping_key(salt)).encrypt(iv, data_key, self._aad(context))
        ciphertext = b"".join((salt, iv, self.version.bytes, encrypted))
        return EncryptedDataKey(PROVIDER_ID, self.branch_key_id, ciphertext)

    def unwrap(self, encrypted: EncryptedDataKey, context: Mapping[str, str]) -> bytes:
        """Return the data key that this version wrapped for a message of this context. Raises DoesNotOpen."""
        if version_of(encrypted) != self.version:
            raise DoesNotOpen
        salt, iv = encrypted.ciphertext[:_IV_AT], encrypted.ciphertext[_IV_AT:_VERSION_AT]
        try:
            return AESGCM(self._wrapping_key(salt)).decrypt(iv, encrypted.ciphertext[_KEY_AT:], self._aad(context))
        except InvalidTag:
            raise DoesNotOpen from None

    def _wrapping_key(self, salt: bytes) -> bytes:
        fixed = b"".join((_PROVIDER_ID, b"\x00", salt, _KEY_BITS))
        derivation = KBKDFHMAC(
            hashes.SHA256(), Mode.CounterMode, BRANCH_KEY_BYTES, 4, None, CounterLocation.BeforeFixed, None, None, fixed
        )
        return derivation.derive(self.material.raw)

    def _aad(self, context: Mapping[str, str]) -> bytes:
        return b"".join((_PROVIDER_ID, self.branch_key_id.encode(), self.version.bytes, context_bytes(context)))


def version_of(encrypted: EncryptedDataKey) -> UUID | None:
    """Return the version that wrapped a data key; None if it is not one of 32 bytes that a branch key wrapped."""
    if encrypted.provider_id != PROVIDER_ID or len(encrypted.ciphertext) != CIPHERTEXT_BYTES:
        return None
    return UUID(bytes=encrypted.ciphertext[_VERSION_AT:_KEY_AT])
