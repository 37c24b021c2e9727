"""What a payload and the length of a data key may be, alone or in a batch."""

from collections.abc import Mapping

from betrace.kms.v1 import key_management_pb2 as pb

from betrace_kms_server.core.errors import InvalidRequest

MAX_DATA_KEY_BYTES = 1024
"""AWS KMS API reference, GenerateDataKey, NumberOfBytes."""
_SPEC_BYTES: Mapping[int, int] = {pb.AES_256: 32, pb.AES_128: 16}


def check_plaintext(plaintext: bytes, limit: int) -> bytes:
    """Return what is to be sealed, or raise InvalidRequest if it has more than `limit` bytes."""
    if len(plaintext) > limit:
        raise InvalidRequest(
            f"plaintext has {len(plaintext)} bytes, the limit is {limit}: raise"
            " kms.server.max-message-bytes, or seal it on your side under a key of GenerateMessageKey"
        )
    return plaintext


def check_message(message: bytes, limit: int) -> bytes:
    """Return what a MAC is to be computed of, or raise InvalidRequest if it has more than `limit` bytes."""
    if len(message) > limit:
        raise InvalidRequest(
            f"message has {len(message)} bytes, the limit is {limit}: raise kms.server.max-message-bytes, or send a"
            " hash of it"
        )
    return message


def check_ciphertext(blob: bytes) -> bytes:
    """Return what is to be opened, or raise InvalidRequest if it is empty."""
    if not blob:
        raise InvalidRequest("ciphertext_blob is empty: send what Encrypt or GenerateDataKey returned")
    return blob


def check_number_of_bytes(asked: pb.GenerateDataKeyRequest | pb.GenerateDataKeysItem) -> int:
    """Return the length of a data key, 1 to 1,024 bytes, or raise InvalidRequest."""
    spec, size = asked.key_spec, asked.number_of_bytes
    if bool(spec) == bool(size):
        raise InvalidRequest("give either key_spec (AES_256 or AES_128) or number_of_bytes (1 to 1,024)")
    if spec and spec not in _SPEC_BYTES:
        raise InvalidRequest("key_spec must be AES_256 or AES_128")
    if size > MAX_DATA_KEY_BYTES:
        raise InvalidRequest(f"number_of_bytes must be 1 to {MAX_DATA_KEY_BYTES}, not {size}")
    return size or _SPEC_BYTES[spec]
