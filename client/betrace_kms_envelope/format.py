"""The format of AWS Encryption SDK messages: what Encrypt returns and Decrypt opens.

Written is message format 2.0 with algorithm suite 0x0478 and a framed body; read are suites 0x0478 and 0x0578, framed
and non-framed. Section names below are those of the AWS Encryption SDK specification (client-apis, data-format,
framework) and of the developer guide's "Message format reference". Integers are big-endian.

Header (data-format/message-header, "Header Body Version 2.0")::

    1   version                 02
    2   algorithm suite id      04 78  AES-256-GCM, HKDF-SHA512, key commitment
                                05 78  the same, and an ECDSA P-384 signature in the footer
    32  message id              random; the salt of the key derivation
    2   context length          0 when there is no pair, then nothing follows
          2 count, then for each pair, sorted by the UTF-8 bytes of its name:
          2 length, name, 2 length, value
    2   count of encrypted data keys, at least 1; for each:
          2 length, provider id ("aws-kms"), 2 length, provider info (key ARN), 2 length, ciphertext
    1   content type            01 non-framed, 02 framed
    4   frame length            0 when non-framed
    32  commitment key          "Algorithm Suite Data"
    16  authentication tag      AES-GCM of nothing, IV all zero, all of the above as AAD

Framed body (data-format/message-body, "Framed Data"), one entry for each frame, numbered from 1::

    4   FF FF FF FF             only before the final frame
    4   sequence number
    12  IV                      the sequence number, padded on the left with zeros
    4   content length          only in the final frame; at most the frame length
    n   encrypted content       as long as the frame length, but for the final frame
    16  authentication tag

Non-framed body ("Non-Framed Data"): 12 IV, 8 content length, encrypted content, 16 authentication tag.

AAD of the body (data-format/message-body-aad): message id, a text that names the kind of content, 4 sequence number,
8 content length.

Keys (framework/algorithm-suites, "Algorithm Suites Encryption Key Derivation Settings" and "Commit Key"), from the data
key by HKDF-SHA512 with the message id as salt: the commitment key with info "COMMITKEY", the encryption key with info
suite id + "DERIVEKEY", 32 bytes each. A derived key serves one message, so counting IVs never repeat under it.

Footer of 0x0578 (data-format/message-footer): 2 length, ECDSA signature (DER) with SHA-384 over header and body; its
public key is the pair "aws-crypto-public-key" of the context, a compressed point in base64.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MAX_WRAPPED_KEY_BYTES = 6144
"""Largest ciphertext that KMS Decrypt takes (AWS KMS API reference, Decrypt)."""
MAX_HEADER_BYTES = 128 * 1024
"""Largest header that is read. Ten wrapped keys of KMS and the longest context of a caller need half of it."""
DATA_KEY_BYTES = 32
FRAME_BYTES = 65_536

COMMITTING = 0x0478
COMMITTING_SIGNED = 0x0578
SUITES = {b"\x02\x04\x78": COMMITTING, b"\x02\x05\x78": COMMITTING_SIGNED}
KNOWN_MESSAGES = tuple(SUITES)
"""How a message that we can open begins: version and suite, three bytes."""
_COMMIT_BLOCK = b"COMMITKEY\x01"
_DERIVE_BLOCK = {suite: suite.to_bytes(2, "big") + b"DERIVEKEY\x01" for suite in SUITES.values()}
_SHA512 = hashes.SHA512()
NON_FRAMED, FRAMED = 1, 2
MESSAGE_ID_BYTES = COMMITMENT_BYTES = 32
IV_BYTES = 12
TAG_BYTES = 16
FINAL = 0xFFFFFFFF
PUBLIC_KEY = "aws-crypto-public-key"
FRAME_AAD, FINAL_FRAME_AAD, SINGLE_BLOCK_AAD = (
    b"AWSKMSEncryptionClient Frame",
    b"AWSKMSEncryptionClient Final Frame",
    b"AWSKMSEncryptionClient Single Block",
)


class DoesNotOpen(Exception):
    """The bytes are no message that we can open, or not one of this data key. Which of these is not told."""

    def __init__(self) -> None:
        super().__init__("the message does not open: it was altered or cut, or belongs to another key or context")


@dataclass(frozen=True, slots=True)
class EncryptedDataKey:
    """A message's data key, wrapped by one provider's master key."""

    provider_id: str
    provider_info: str
    ciphertext: bytes = field(repr=False)


def context_bytes(context: Mapping[str, str]) -> bytes:
    """Return an encryption context in the form of the header, without its length: empty if there is no pair."""
    if not context:
        return b""
    pairs = sorted((name.encode(), value.encode()) for name, value in context.items())
    return len(pairs).to_bytes(2, "big") + b"".join(chunk(name) + chunk(value) for name, value in pairs)


def chunk(data: bytes) -> bytes:
    """Return data after its length."""
    return len(data).to_bytes(2, "big") + data


def body_aad(message_id: bytes, kind: bytes, sequence: int, length: int) -> bytes:
    """Return the additional authenticated data of a frame, or of a body without frames."""
    return b"".join((message_id, kind, sequence.to_bytes(4, "big"), length.to_bytes(8, "big")))


def derive(data_key: bytes | bytearray, suite: int, message_id: bytes) -> tuple[bytes, bytes]:
    """Return the commitment key and the encryption key of one message, 32 bytes each.

    Each is the beginning of the first block of HKDF-Expand (RFC 5869, section 2.3), HMAC(PRK, info 01). One HMAC key
    serves both, which takes three quarters of the time of two expansions.
    """
    commitment = HMAC(HKDF.extract(_SHA512, message_id, data_key), _SHA512)
    encryption = commitment.copy()
    commitment.update(_COMMIT_BLOCK)
    encryption.update(_DERIVE_BLOCK[suite])
    return commitment.finalize()[:COMMITMENT_BYTES], encryption.finalize()[:DATA_KEY_BYTES]
