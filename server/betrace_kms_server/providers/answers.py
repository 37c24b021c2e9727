"""Checks of what a key-management service answers, before anything of it is used.

An emulator that ignores the length it was asked for, or a proxy that answers in the place of KMS, must not make keys:
a message sealed under an empty key opens for everybody. Every adapter passes each answer through here.
"""

from collections.abc import Callable
from typing import Any

from betrace_kms_server.core.errors import BadAnswer
from betrace_kms_server.core.keys import DataKey, KeyMaterial, WrappedKey

MAX_BLOB_BYTES = 6144
"""Longest CiphertextBlob (AWS KMS API reference, Decrypt)."""
MAX_KEY_BYTES = 4096
"""Longest plaintext that Encrypt takes (AWS KMS API reference, Encrypt)."""

SameKey = Callable[[str], bool]
"""Whether a key's name in an answer means the key that was asked."""


def data_key(
    action: str, plaintext: Any, blob: Any, key_id: Any, *, number_of_bytes: int, same_key: SameKey
) -> DataKey:
    """Return a new data key of exactly `number_of_bytes`. Raises BadAnswer."""
    material = _material(action, plaintext)
    if len(material) != number_of_bytes:
        raise _bad(action, f"a key of {len(material)} bytes where {number_of_bytes} were asked for")
    return DataKey(material, wrapped(action, blob, key_id, same_key=same_key))


def wrapped(action: str, blob: Any, key_id: Any, *, same_key: SameKey) -> WrappedKey:
    """Return a wrapped key of 1 to 6,144 bytes under the key that was asked. Raises BadAnswer."""
    if not isinstance(blob, bytes) or not 1 <= len(blob) <= MAX_BLOB_BYTES:
        raise _bad(action, f"a wrapped key that is not 1 to {MAX_BLOB_BYTES} bytes long")
    return WrappedKey(blob, _key_id(action, key_id, same_key))


def unwrapped(action: str, plaintext: Any, key_id: Any, *, same_key: SameKey) -> KeyMaterial:
    """Return a key of 1 to 4,096 bytes that the key that was asked unwrapped. Raises BadAnswer."""
    material = _material(action, plaintext)
    if not 1 <= len(material) <= MAX_KEY_BYTES:
        raise _bad(action, f"a key of {len(material)} bytes")
    _key_id(action, key_id, same_key)
    return material


def _material(action: str, plaintext: Any) -> KeyMaterial:
    if not isinstance(plaintext, (bytes, bytearray)):
        raise _bad(action, "no key")
    return KeyMaterial(plaintext)


def _key_id(action: str, key_id: Any, same_key: SameKey) -> str:
    if not isinstance(key_id, str) or not same_key(key_id):
        raise _bad(action, "the name of another master key than the one that was asked")
    return key_id


def _bad(action: str, what: str) -> BadAnswer:
    return BadAnswer(
        f"KMS answered {action} with {what}, so nothing of the answer was used: check what answers there, and"
        " aws.kms.endpoint if it is set",
        metadata={"action": action},
    )
