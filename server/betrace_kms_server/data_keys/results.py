"""What sealing, opening and keys of messages return."""

from dataclasses import dataclass, field

from betrace_kms_envelope import EncryptedDataKey

from betrace_kms_server.core.keys import KeyMaterial
from betrace_kms_server.core.tenancy import Context


@dataclass(frozen=True, slots=True)
class Sealed:
    """A ciphertext and the master key behind it."""

    ciphertext: bytes
    master_key_arn: str


@dataclass(frozen=True, slots=True)
class Opened:
    """What a ciphertext held, and the master key behind it."""

    plaintext: bytes = field(repr=False)
    master_key_arn: str


@dataclass(frozen=True, slots=True)
class MessageKey:
    """A data key to seal messages with, what their headers must hold, and the master key behind it."""

    material: KeyMaterial
    encrypted: EncryptedDataKey
    context: Context = field(repr=False)
    master_key_arn: str


@dataclass(frozen=True, slots=True)
class OpeningKey:
    """An unwrapped data key, and the master key behind it."""

    material: KeyMaterial
    master_key_arn: str
