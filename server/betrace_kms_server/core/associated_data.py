"""An encryption context as associated data, for services and ciphers that bind bytes and not pairs."""

from betrace_kms_server.core.tenancy import Context


def associated_data(context: Context) -> bytes:
    """Return the bytes of a context: its pairs sorted, each name and value after its length (4 bytes, big endian)."""
    parts = [part.encode() for pair in sorted(context.items()) for part in pair]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
