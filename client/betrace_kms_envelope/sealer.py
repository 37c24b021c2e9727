"""Writes messages in one go. See format.py."""

import os
from collections.abc import Mapping

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from betrace_kms_envelope.format import (
    COMMITTING,
    FINAL_FRAME_AAD,
    FRAME_AAD,
    FRAME_BYTES,
    FRAMED,
    IV_BYTES,
    MESSAGE_ID_BYTES,
    EncryptedDataKey,
    body_aad,
    chunk,
    context_bytes,
    derive,
)


class Sealer:
    """Seals messages under one data key: what the header says of key and context is serialised once."""

    __slots__ = ("_fields",)

    def __init__(self, encrypted_data_key: EncryptedDataKey, context: Mapping[str, str]) -> None:
        wrapped = (
            encrypted_data_key.provider_id.encode(),
            encrypted_data_key.provider_info.encode(),
            encrypted_data_key.ciphertext,
        )
        self._fields = b"".join(
            (
                chunk(context_bytes(context)),
                (1).to_bytes(2, "big"),
                *map(chunk, wrapped),
                bytes((FRAMED,)),
                FRAME_BYTES.to_bytes(4, "big"),
            )
        )

    def seal(self, plaintext: bytes, data_key: bytes | bytearray) -> bytes:
        """Return a message with this plaintext. `data_key` is the 32 bytes that the encrypted data key wraps."""
        header, message_id, cipher = self.begin(data_key)
        parts = [header]
        frames = max(1, -(-len(plaintext) // FRAME_BYTES))
        contents = plaintext if frames == 1 else memoryview(plaintext)  # whose slices are no copies
        for sequence in range(1, frames + 1):
            content = contents[(sequence - 1) * FRAME_BYTES : sequence * FRAME_BYTES]
            number, iv = sequence.to_bytes(4, "big"), sequence.to_bytes(IV_BYTES, "big")
            if sequence < frames:
                parts += (number, iv)
                kind = FRAME_AAD
            else:
                parts += (b"\xff\xff\xff\xff", number, iv, len(content).to_bytes(4, "big"))
                kind = FINAL_FRAME_AAD
            parts.append(cipher.encrypt(iv, content, body_aad(message_id, kind, sequence, len(content))))
        return b"".join(parts)

    def begin(self, data_key: bytes | bytearray) -> tuple[bytes, bytes, AESGCM]:
        """Return a new message's header with its tag, its id, and what seals its body."""
        message_id = os.urandom(MESSAGE_ID_BYTES)
        commitment, key = derive(data_key, COMMITTING, message_id)
        cipher = AESGCM(key)
        header = b"".join((b"\x02\x04\x78", message_id, self._fields, commitment))
        return header + cipher.encrypt(bytes(IV_BYTES), b"", header), message_id, cipher
