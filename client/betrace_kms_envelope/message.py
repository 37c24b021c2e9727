"""Reads messages in one go; stream.py does so in pieces. Pure and synchronous; KMS is not known here. See format.py.

Plaintext is released only when the commitment, every tag and the footer have verified. Whatever is wrong, the error is
one: DoesNotOpen.
"""

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

from betrace_kms_envelope.format import (
    COMMITMENT_BYTES,
    COMMITTING,
    COMMITTING_SIGNED,
    DATA_KEY_BYTES,
    FINAL,
    FINAL_FRAME_AAD,
    FRAME_AAD,
    FRAMED,
    IV_BYTES,
    MAX_HEADER_BYTES,
    MESSAGE_ID_BYTES,
    NON_FRAMED,
    PUBLIC_KEY,
    SINGLE_BLOCK_AAD,
    SUITES,
    TAG_BYTES,
    DoesNotOpen,
    EncryptedDataKey,
    body_aad,
    derive,
)

MAX_FRAMES = 65_536
"""Of a message that is read: 4 MiB in frames of 64 bytes."""
_REMEMBERED, _REMEMBERED_BYTES = 256, 4096
_COPIED_BYTES = 4096
"""A copy of fewer bytes is cheaper than a view."""


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
        suite = SUITES.get(data[:3])
        if suite is None:
            raise DoesNotOpen
        reader = _Reader(data, 3)
        message_id = reader.take(MESSAGE_ID_BYTES)
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
        if content_type != (FRAMED if frame_length else NON_FRAMED):
            raise DoesNotOpen
        commitment = reader.take(COMMITMENT_BYTES)
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
        if self.suite == COMMITTING and PUBLIC_KEY in self.context:  # a signature that was taken away
            raise DoesNotOpen
        commitment, key = derive(data_key, self.suite, self.message_id)
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
            yield cipher.decrypt(iv, reader.view(length + TAG_BYTES), body_aad(self.message_id, kind, sequence, length))

    def _block(self, cipher: AESGCM, reader: "_Reader") -> Iterator[bytes]:
        iv, length = reader.take(IV_BYTES), reader.integer(8)
        yield cipher.decrypt(
            iv, reader.view(length + TAG_BYTES), body_aad(self.message_id, SINGLE_BLOCK_AAD, 1, length)
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
            point = b64decode(self.context[PUBLIC_KEY], validate=True)
            return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point)
        except (KeyError, ValueError, Base64Error):
            raise DoesNotOpen from None


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

    def view(self, size: int) -> bytes | memoryview:
        """Take bytes that are only looked at: many are not copied."""
        if size < _COPIED_BYTES:
            return self.take(size)
        start = self.at
        self.at = end = start + size
        if end > len(self.data):
            raise DoesNotOpen
        return memoryview(self.data)[start:end]

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
