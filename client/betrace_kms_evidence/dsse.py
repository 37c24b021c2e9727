"""DSSE v1 signatures with Ed25519.

What is signed is not the payload but its pre-authentication encoding, which binds the payload's type, so that a
signature made for one kind of document never verifies as another kind (https://github.com/secure-systems-lab/dsse,
protocol.md). The signature is Ed25519 (RFC 8032): 64 bytes, deterministic.
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ALGORITHM = "Ed25519"
PAYLOAD_TYPE = "application/vnd.betrace.span.v1+json"
SIGNATURE_BYTES = 64


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's PAE: ``DSSEv1 LEN(type) type LEN(payload) payload``, lengths in decimal bytes."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(key: Ed25519PrivateKey, payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Return the 64-byte Ed25519 signature over the payload's pre-authentication encoding."""
    return key.sign(pre_authentication_encoding(payload_type, payload))


def verify(key: Ed25519PublicKey, signature: bytes, payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bool:
    """Return whether `signature` was made by `key` over exactly this payload and type."""
    try:
        key.verify(signature, pre_authentication_encoding(payload_type, payload))
    except InvalidSignature:
        return False
    return True
