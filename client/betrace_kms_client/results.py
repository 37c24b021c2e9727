"""What the calls return. No `repr` shows key material or plaintext."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from betrace.kms.v1.span_pb2 import ComplianceSpan, InclusionProof
from betrace_kms_envelope import EncryptedDataKey, KeyMaterial, Sealer, Sealing
from betrace_kms_evidence import PublicKey


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
class MessageKey:
    """A data key (32 bytes) to seal messages with, what their headers hold, and the ARN of its master key."""

    material: KeyMaterial
    encrypted_data_key: EncryptedDataKey
    header_context: Mapping[str, str] = field(repr=False)
    key_id: str

    def sealer(self) -> Sealer:
        """Return what seals payloads in one go."""
        return Sealer(self.encrypted_data_key, self.header_context)

    def sealing(self) -> Sealing:
        """Begin a message of any size."""
        return Sealing(self.sealer(), self.material.raw)


@dataclass(frozen=True, slots=True)
class ItemRefusal:
    """Why one item of a batch was neither sealed nor opened, as the error of a call for it alone would say.

    `status` is the name of a gRPC status; `retry_after` is in seconds, where another try is worth it.
    """

    status: str
    message: str
    reason: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Mac:
    """A MAC of 1 to 32 bytes, a blind index, and the ARN of the master key behind the tenant's key."""

    mac: bytes
    key_id: str


@dataclass(frozen=True, slots=True)
class SpanSignature:
    """A DSSE signature of a span.

    `signature` is 64 bytes, `key_id` 32 hexadecimal digits; `payload` is the canonical span if it was asked for, or
    else empty. With a `proof` the signature is that of the batch's tree head.
    """

    signature: bytes
    key_id: str
    algorithm: str
    payload_type: str
    payload: bytes = field(repr=False)
    proof: InclusionProof | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class SignedSpan:
    """A span with what signing it gave: what `verify_spans` takes."""

    span: ComplianceSpan = field(repr=False)
    signature: bytes
    key_id: str
    proof: InclusionProof | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class SpanRefusal:
    """Why one span of a batch was neither signed nor judged, as the error of a call for it alone would say.

    `status` is the name of a gRPC status; `retry_after` is in seconds, where another try is worth it.
    """

    status: str
    message: str
    reason: str = ""
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class PublicKeys:
    """Every public key that a tenant ever had, and the same as the JSON text of a key set (JWKS)."""

    keys: tuple[PublicKey, ...]
    jwks: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a signature belongs to a span, and why: VALID, UNKNOWN_KEY, BAD_SIGNATURE or KEY_REVOKED."""

    valid: bool
    reason: str
