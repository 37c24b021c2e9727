"""The form of a wrapped key: ``bth1``, 12 bytes IV, ciphertext with its tag of 16 bytes. Rows and messages hold it.

A token that makes the IVs and did not write one leaves the zeros that were there: they are no IV, because the next key
would be encrypted under the same.
"""

_MAGIC = b"bth1"
_IV_BYTES, _TAG_BYTES = 12, 16


def joined(iv: bytes | None, ciphertext: bytes | None, plaintext_bytes: int) -> bytes | None:
    """Return a wrapped key of what a token answered for a plaintext of that length, or None if that makes none."""
    if iv is None or len(iv) != _IV_BYTES or not any(iv):
        return None
    if ciphertext is None or len(ciphertext) != plaintext_bytes + _TAG_BYTES:
        return None
    return _MAGIC + iv + ciphertext


def parts(blob: bytes) -> tuple[bytes, bytes] | None:
    """Return the IV and the ciphertext of a wrapped key, or None if it is none."""
    body = blob.removeprefix(_MAGIC)
    if len(body) == len(blob) or len(body) <= _IV_BYTES + _TAG_BYTES:
        return None
    return body[:_IV_BYTES], body[_IV_BYTES:]
