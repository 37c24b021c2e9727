"""AWS Encryption SDK messages, sealed and opened under a data key that the caller has. Pure: no network, no SDK."""

from betrace_kms_envelope.format import (
    DATA_KEY_BYTES,
    FRAME_BYTES,
    KNOWN_MESSAGES,
    MAX_HEADER_BYTES,
    MAX_WRAPPED_KEY_BYTES,
    DoesNotOpen,
    EncryptedDataKey,
    context_bytes,
)
from betrace_kms_envelope.key_material import KeyMaterial
from betrace_kms_envelope.message import MAX_FRAMES, Message
from betrace_kms_envelope.sealer import Sealer
from betrace_kms_envelope.stream import MAX_FRAME_BYTES, Opening, Sealing, TooLarge, header_length

__all__ = [
    "DATA_KEY_BYTES",
    "FRAME_BYTES",
    "KNOWN_MESSAGES",
    "MAX_FRAMES",
    "MAX_FRAME_BYTES",
    "MAX_HEADER_BYTES",
    "MAX_WRAPPED_KEY_BYTES",
    "DoesNotOpen",
    "EncryptedDataKey",
    "KeyMaterial",
    "Message",
    "Opening",
    "Sealer",
    "Sealing",
    "TooLarge",
    "context_bytes",
    "header_length",
]
