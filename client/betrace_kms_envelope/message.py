"""AWS Encryption SDK messages: what Encrypt returns and Decrypt opens. Pure and synchronous; KMS is not known here.

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

Plaintext is released only when the commitment, every tag and the footer have verified. Whatever is wrong, the error is
one: DoesNotOpen.
"""

import os
from base64 import b64decode
from binascii import Error as Base64Error
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.constant_time import bytes_eq
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

MAX_WRAPPED_KEY_BYTES = 6144
"""Largest ciphertext that KMS Decrypt takes (AWS KMS API reference, Decrypt)."""
MAX_HEADER_BYTES = 128 * 1024
"""Largest header that is read. Ten wrapped keys of KMS and the longest context of a caller need half of it."""
MAX_FRAMES = 65_536
"""Of a message that is read: 4 MiB in frames of 64 bytes."""
DATA_KEY_BYTES = 32
FRAME_BYTES = 65_536

_COMMITTING = 0x0478
COMMITTING_SIGNED = 0x0578
_SUITES = {b"\x02\x04\x78": _COMMITTING, b"\x02\x05\x78": COMMITTING_SIGNED}
KNOWN_MESSAGES = tuple(_SUITES)
"""How a message that we can open begins: version and suite, three bytes."""
_COMMIT_INFO = b"COMMITKEY"
_DERIVE_INFO = {suite: suite.to_bytes(2, "big") + b"DERIVEKEY" for suite in _SUITES.values()}
_SHA512 = hashes.SHA512()
_NON_FRAMED, _FRAMED = 1, 2
_MESSAGE_ID_BYTES = _COMMITMENT_BYTES = 32
IV_BYTES = 12
TAG_BYTES = 16
FINAL = 0xFFFFFFFF
_REMEMBERED, _REMEMBERED_BYTES = 256, 4096
_PUBLIC_KEY = "aws-crypto-public-key"
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


@dataclass(slots=True)  # not frozen: that would make each of its nine fields several times dearer to set
class Message:
    """A message whose header has been read but not verified: `open` does that, with the data key."""

    context: Mapping[str, str]
    """The whole encryption context, the server's own and the format's own pairs included."""
    encrypted_data_keys: Sequence[EncryptedDataKey]
    fields: bytes = field(repr=False)
    """Context and encrypted data keys as they stand in the header: alike in all messages of one data key."""
    suite: int
    message_id: bytes
    frame_length: int
    """Bytes of content in a frame; 0 when the body is not framed."""
    commitment: bytes
    _data: bytes = field(repr=False)
    _body_at: int

    @classmethod
    def parse(cls, data: bytes, *, max_encrypted_data_keys: int = 10, like: "Message | None" = None) -> "Message":
        """Read the header of a message. Raises DoesNotOpen unless it is one that we can open.

        It is quicker if the message has the fields of `like`, which was read with the same bounds.
        """
        suite = _SUITES.get(data[:3])
        if suite is None:
            raise DoesNotOpen
        reader = _Reader(data, 3)
        message_id = reader.take(_MESSAGE_ID_BYTES)
        start = reader.at
        if like is not None and data.startswith(like.fields, start):  # their lengths are in them: no others begin so
            fields, context, keys = like.fields, like.context, like.encrypted_data_keys
            reader.at = start + len(fields)
        else:
            reader.skip()
            count = reader.integer(2)
            if not 1 <= count <= max_encrypted_data_keys:
                raise DoesNotOpen
            for _ in range(3 * count):
                reader.skip()
            if reader.at > MAX_HEADER_BYTES:
                raise DoesNotOpen
            fields = data[start : reader.at]
            context, keys = _fields_of(fields)
        content_type, frame_length = reader.integer(1), reader.integer(4)
        if content_type != (_FRAMED if frame_length else _NON_FRAMED):
            raise DoesNotOpen
        commitment = reader.take(_COMMITMENT_BYTES)
        return cls(context, keys, fields, suite, message_id, frame_length, commitment, data, reader.at)

    @property
    def header(self) -> bytes:
        """The first bytes of the message, up to the end of the header's authentication tag."""
        return self._data[: self._body_at + TAG_BYTES]

    def is_under(self, data_key: bytes | bytearray) -> bool:
        """Return whether this is the message's data key: its commitment and the header's tag verify under it."""
        try:
            self.begin(data_key)
        except DoesNotOpen:
            return False
        return True

    def begin(self, data_key: bytes | bytearray) -> AESGCM:
        """Return what opens the body. Raises DoesNotOpen unless commitment and header's tag verify under the key."""
        if len(data_key) != DATA_KEY_BYTES:
            raise DoesNotOpen
        if self.suite == _COMMITTING and _PUBLIC_KEY in self.context:  # a signature that was taken away
            raise DoesNotOpen
        commitment, key = _derive(data_key, self.suite, self.message_id)
        if not bytes_eq(commitment, self.commitment):
            raise DoesNotOpen
        cipher = AESGCM(key)
        tag = self._data[self._body_at : self._body_at + TAG_BYTES]
        try:
            cipher.decrypt(bytes(IV_BYTES), tag, self._data[: self._body_at])
        except (InvalidTag, ValueError):  # ValueError: shorter than a tag
            raise DoesNotOpen from None
        return cipher

    def open(self, data_key: bytes | bytearray) -> bytes:
        """Return the plaintext. Raises DoesNotOpen unless the commitment, every tag and the footer verify."""
        return b"".join(self.frames(data_key))

    def frames(self, data_key: bytes | bytearray) -> Iterator[bytes]:
        """Yield the plaintext in parts, of which none may be used before the last: see `open`."""
        cipher = self.begin(data_key)
        reader = _Reader(self._data, self._body_at + TAG_BYTES)
        try:
            yield from self._frames(cipher, reader) if self.frame_length else self._block(cipher, reader)
        except InvalidTag:
            raise DoesNotOpen from None
        if self.suite == COMMITTING_SIGNED:
            self._verify_footer(reader)
        if reader.at != len(self._data):
            raise DoesNotOpen
        _remember(self)

    def _frames(self, cipher: AESGCM, reader: "_Reader") -> Iterator[bytes]:
        sequence, final = 0, False
        while not final:
            sequence += 1
            number = reader.integer(4)
            if final := number == FINAL:
                number = reader.integer(4)
            if number != sequence or sequence > MAX_FRAMES:
                raise DoesNotOpen
            iv = reader.take(IV_BYTES)
            length = reader.integer(4) if final else self.frame_length
            if length > self.frame_length:
                raise DoesNotOpen
            kind = FINAL_FRAME_AAD if final else FRAME_AAD
            yield cipher.decrypt(iv, reader.take(length + TAG_BYTES), body_aad(self.message_id, kind, sequence, length))

    def _block(self, cipher: AESGCM, reader: "_Reader") -> Iterator[bytes]:
        iv, length = reader.take(IV_BYTES), reader.integer(8)
        yield cipher.decrypt(
            iv, reader.take(length + TAG_BYTES), body_aad(self.message_id, SINGLE_BLOCK_AAD, 1, length)
        )

    def _verify_footer(self, reader: "_Reader") -> None:
        signed = self._data[: reader.at]
        signature = reader.chunk()
        try:
            self.public_key().verify(signature, signed, ec.ECDSA(hashes.SHA384()))
        except InvalidSignature:
            raise DoesNotOpen from None

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return the key that signed the message. Raises DoesNotOpen if the context has none."""
        try:
            point = b64decode(self.context[_PUBLIC_KEY], validate=True)
            return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point)
        except (KeyError, ValueError, Base64Error):
            raise DoesNotOpen from None


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
                _chunk(context_bytes(context)),
                (1).to_bytes(2, "big"),
                *map(_chunk, wrapped),
                bytes((_FRAMED,)),
                FRAME_BYTES.to_bytes(4, "big"),
            )
        )

    def seal(self, plaintext: bytes, data_key: bytes | bytearray) -> bytes:
        """Return a message with this plaintext. `data_key` is the 32 bytes that the encrypted data key wraps."""
        header, message_id, cipher = self.begin(data_key)
        parts = [header]
        frames = max(1, -(-len(plaintext) // FRAME_BYTES))
        for sequence in range(1, frames + 1):
            content = plaintext[(sequence - 1) * FRAME_BYTES : sequence * FRAME_BYTES]
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
        message_id = os.urandom(_MESSAGE_ID_BYTES)
        commitment, key = _derive(data_key, _COMMITTING, message_id)
        cipher = AESGCM(key)
        header = b"".join((b"\x02\x04\x78", message_id, self._fields, commitment))
        return header + cipher.encrypt(bytes(IV_BYTES), b"", header), message_id, cipher


class _Reader:
    """Reads a buffer from front to back, and raises DoesNotOpen rather than read past its end."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    def take(self, size: int) -> bytes:
        start = self.at
        self.at = end = start + size
        if end > len(self.data):
            raise DoesNotOpen
        return self.data[start:end]

    def skip(self) -> None:
        """Pass over a chunk; what follows it is read, so running past the end is noticed there."""
        self.at += 2 + int.from_bytes(self.data[self.at : self.at + 2], "big")

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def chunk(self) -> bytes:
        return self.take(self.integer(2))

    def text(self) -> str:
        try:
            return self.chunk().decode()
        except UnicodeDecodeError:
            raise DoesNotOpen from None


def _read_fields(fields: bytes) -> tuple[Mapping[str, str], Sequence[EncryptedDataKey]]:
    reader = _Reader(fields)
    context = MappingProxyType(_read_context(reader))
    count = reader.integer(2)
    # Provider info is bytes: an ARN for KMS, but a random IV for a raw AES key.
    keys = [
        EncryptedDataKey(reader.text(), reader.chunk().decode(errors="replace"), reader.chunk()) for _ in range(count)
    ]
    return context, tuple(keys)


_remembered: OrderedDict[bytes, tuple[Mapping[str, str], Sequence[EncryptedDataKey]]] = OrderedDict()
"""Fields of messages that opened: those of one data key repeat them, and nothing in them is secret."""


def _fields_of(raw: bytes) -> tuple[Mapping[str, str], Sequence[EncryptedDataKey]]:
    found = _remembered.get(raw)
    if found is None:
        return _read_fields(raw)
    _remembered.move_to_end(raw)
    return found


def _remember(message: Message) -> None:
    """Keep the fields of a message that opened: what did not verify must not stay, nor push out what did."""
    if len(message.fields) <= _REMEMBERED_BYTES and message.fields not in _remembered:
        _remembered[message.fields] = message.context, message.encrypted_data_keys
        if len(_remembered) > _REMEMBERED:
            _remembered.popitem(last=False)


def _read_context(reader: _Reader) -> dict[str, str]:
    length = reader.integer(2)
    if length == 0:
        return {}
    end = reader.at + length
    count = reader.integer(2)
    pairs = [(reader.text(), reader.text()) for _ in range(count)]
    context = dict(pairs)
    if count == 0 or reader.at != end or len(context) != count:
        raise DoesNotOpen
    return context


def context_bytes(context: Mapping[str, str]) -> bytes:
    """Return an encryption context in the form of the header, without its length: empty if there is no pair."""
    if not context:
        return b""
    pairs = sorted((name.encode(), value.encode()) for name, value in context.items())
    return len(pairs).to_bytes(2, "big") + b"".join(_chunk(name) + _chunk(value) for name, value in pairs)


def _chunk(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def body_aad(message_id: bytes, kind: bytes, sequence: int, length: int) -> bytes:
    """Return the additional authenticated data of a frame, or of a body without frames."""
    return b"".join((message_id, kind, sequence.to_bytes(4, "big"), length.to_bytes(8, "big")))


def _derive(data_key: bytes | bytearray, suite: int, message_id: bytes) -> tuple[bytes, bytes]:
    """Return the commitment key and the encryption key of one message, 32 bytes each."""
    extracted = HKDF.extract(_SHA512, message_id, data_key)
    commitment = HKDFExpand(_SHA512, 32, _COMMIT_INFO).derive(extracted)
    return commitment, HKDFExpand(_SHA512, 32, _DERIVE_INFO[suite]).derive(extracted)
