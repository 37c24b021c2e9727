"""What a payload may be, alone or in a batch."""

from betrace_kms_server.core.errors import InvalidRequest


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
