"""What the calls return. No `repr` shows key material or plaintext."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DataKey:
    """A data key in plaintext and wrapped, and the ARN of the master key that wrapped it."""

    plaintext: bytes = field(repr=False)
    ciphertext_blob: bytes = field(repr=False)
    key_id: str


@dataclass(frozen=True, slots=True)
class Ciphertext:
    """A sealed payload: an AWS Encryption SDK message, and the ARN of its master key."""

    ciphertext_blob: bytes = field(repr=False)
    key_id: str


@dataclass(frozen=True, slots=True)
class Plaintext:
    """An opened payload, or an unwrapped data key, and the ARN of the master key that it was under."""

    plaintext: bytes = field(repr=False)
    key_id: str


@dataclass(frozen=True, slots=True)
class SpanSignature:
    """A DSSE signature of a span.

    `signature` is 64 bytes, `key_id` 32 hexadecimal digits; `payload` is the canonical span if it was asked for, or
    else empty.
    """

    signature: bytes
    key_id: str
    algorithm: str
    payload_type: str
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a signature belongs to a span, and why: VALID, UNKNOWN_KEY, BAD_SIGNATURE or KEY_REVOKED."""

    valid: bool
    reason: str
