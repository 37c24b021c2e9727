"""Messages of any size, sealed and opened piece by piece: memory holds a frame and the piece that was given.

`Sealing` and `Opening` do no I/O, so threads and event loops use the same ones. See format.py.
"""

from collections.abc import Callable
from struct import pack_into

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from betrace_kms_envelope.format import (
    COMMITTING_SIGNED,
    FINAL,
    FINAL_FRAME_AAD,
    FRAME_AAD,
    FRAME_BYTES,
    IV_BYTES,
    KNOWN_MESSAGES,
    MAX_HEADER_BYTES,
    SINGLE_BLOCK_AAD,
    TAG_BYTES,
    DoesNotOpen,
    body_aad,
)
from betrace_kms_envelope.message import Message
from betrace_kms_envelope.sealer import Sealer

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Largest frame, or body without frames, that is opened: a frame is held until its tag has verified."""
_MAX_FRAMES = FINAL - 1
_FRAME_HEADER_BYTES = 4 + IV_BYTES
_SEALED_FRAME_BYTES = _FRAME_HEADER_BYTES + FRAME_BYTES + TAG_BYTES
_LENGTH_AT, _LONG_LENGTH_AT = 4 + _FRAME_HEADER_BYTES, IV_BYTES
_FOOTER_BYTES = 2


class Sealing:
    """Seals one message: `update` as often as there is content, then `finalize` once. What they return is the message.

    The memory that `update` returns is used again by the next call.
    """

    def __init__(self, sealer: Sealer, data_key: bytes | bytearray) -> None:
        header, self._message_id, self._cipher = sealer.begin(data_key)
        self.header = header
        """The message's first bytes, its authentication tag included."""
        self._sequence = 0
        self._aad = bytearray(body_aad(self._message_id, FRAME_AAD, 0, FRAME_BYTES))
        self._held = bytearray()  # a full frame waits here too: it may be the last
        self._out = bytearray()

    def update(self, content: bytes | bytearray | memoryview) -> memoryview:
        """Return the frames that this content completes. Raises ValueError past 2^32 - 2 frames of 64 KiB."""
        missing = FRAME_BYTES - len(self._held)
        if len(content) <= missing:
            self._held += content
            return memoryview(b"")
        view = memoryview(content)
        self._held += view[:missing]
        rest = view[missing:]
        whole = (len(rest) - 1) // FRAME_BYTES
        needed = (1 + whole) * _SEALED_FRAME_BYTES
        if len(self._out) < needed:
            self._out = bytearray(needed)
        out = memoryview(self._out)
        self._frame(memoryview(self._held), out)
        for number in range(whole):
            start = number * FRAME_BYTES
            self._frame(rest[start : start + FRAME_BYTES], out[(number + 1) * _SEALED_FRAME_BYTES :])
        self._hold(rest[whole * FRAME_BYTES :])
        return out[:needed]

    def finalize(self) -> bytes:
        """Return the last frame, and wipe what was held."""
        sequence = self._next()
        iv, length = sequence.to_bytes(IV_BYTES, "big"), len(self._held)
        sealed = self._cipher.encrypt(iv, self._held, body_aad(self._message_id, FINAL_FRAME_AAD, sequence, length))
        self._hold(b"")
        return b"".join((FINAL.to_bytes(4, "big"), sequence.to_bytes(4, "big"), iv, length.to_bytes(4, "big"), sealed))

    def _frame(self, content: memoryview, out: memoryview) -> None:
        sequence = self._next()
        pack_into(">I8xI", out, 0, sequence, sequence)
        pack_into(">I", self._aad, len(self._aad) - 12, sequence)
        sealed = out[_FRAME_HEADER_BYTES:_SEALED_FRAME_BYTES]
        self._cipher.encrypt_into(out[4:_FRAME_HEADER_BYTES], content, self._aad, sealed)

    def _next(self) -> int:
        if self._sequence == _MAX_FRAMES:
            raise ValueError("the content is longer than a message can be (256 TiB): divide it")
        self._sequence += 1
        return self._sequence

    def _hold(self, content: bytes | memoryview) -> None:
        """Let `content` take the place of what was held, in whose memory no plaintext remains."""
        self._held[:] = bytes(len(self._held))
        self._held = bytearray(content)


def header_length(start: bytes | bytearray) -> int | None:
    """Return how many bytes a message's header has, its tag included, or None if that takes more of its start.

    Raises DoesNotOpen for what is no message that we can open.
    """
    if not any(start[:3] == known[: len(start)] for known in KNOWN_MESSAGES):
        raise DoesNotOpen
    at = 3 + 32
    if (at := _skipped(start, at, 1)) + 2 > len(start):
        return None
    keys = int.from_bytes(start[at : at + 2], "big")
    at = _skipped(start, at + 2, 3 * keys)
    if at > MAX_HEADER_BYTES:
        raise DoesNotOpen
    at += 1 + 4 + 32 + TAG_BYTES
    return at if at <= len(start) else None


def _skipped(data: bytes | bytearray, at: int, chunks: int) -> int:
    """Return where `chunks` chunks that begin `at` end, or some place behind the end of the data."""
    for _ in range(chunks):
        if at + 2 > len(data):
            return len(data) + 1
        at += 2 + int.from_bytes(data[at : at + 2], "big")
    return at


class Opening:
    """Opens one message: `update` as often as there is more of it, then `finalize` once.

    What `update` returns has verified, but the message may yet turn out to be cut or, with a footer, not signed: only
    after `finalize` is it the whole and true content.
    """

    def __init__(self, header: bytes, data_key: bytes | bytearray, *, max_encrypted_data_keys: int = 10) -> None:
        """Take a header of `header_length` bytes. Raises DoesNotOpen unless the data key is the message's."""
        message = Message.parse(header, max_encrypted_data_keys=max_encrypted_data_keys)
        self._message = message
        self._cipher = message.begin(data_key)
        self._held = bytearray()
        self._sequence = 0
        self._ended = False
        self._signed = hashes.Hash(hashes.SHA384()) if message.suite == COMMITTING_SIGNED else None
        if self._signed:
            self._signed.update(header)
        self._next: Callable[[memoryview], tuple[int, bytes] | None] = (
            self._frame if message.frame_length else self._block
        )

    def update(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return the content of the frames that this data completes.

        Raises DoesNotOpen for one that was altered, and TooLarge for one of more than `MAX_FRAME_BYTES`.
        """
        self._held += data
        contents = []
        with memoryview(self._held) as view:
            at = 0
            while not self._ended and (found := self._next(view[at:])) is not None:
                size, content = found
                if self._signed:
                    self._signed.update(view[at : at + size])
                at += size
                contents.append(content)
        del self._held[:at]
        if self._ended and len(self._held) > (_FOOTER_BYTES + 0xFFFF if self._signed else 0):
            raise DoesNotOpen
        return b"".join(contents)

    def finalize(self) -> None:
        """Raise DoesNotOpen unless the message ended here, and its footer verifies if it has one."""
        if not self._ended:
            raise DoesNotOpen
        footer = bytes(self._held)
        if self._signed is None:
            return
        length = int.from_bytes(footer[:_FOOTER_BYTES], "big")
        if len(footer) != _FOOTER_BYTES + length:
            raise DoesNotOpen
        try:
            self._message.public_key().verify(
                footer[_FOOTER_BYTES:], self._signed.finalize(), ec.ECDSA(utils.Prehashed(hashes.SHA384()))
            )
        except InvalidSignature:
            raise DoesNotOpen from None

    def _frame(self, view: memoryview) -> tuple[int, bytes] | None:
        """Return how long the next frame is, and its content; None if there is not all of it."""
        if len(view) < _LENGTH_AT + 4:  # every message ends with a final frame, which is longer than this
            return None
        final = int.from_bytes(view[:4], "big") == FINAL
        start = 4 if final else 0
        sequence = int.from_bytes(view[start : start + 4], "big")
        if sequence != self._sequence + 1:
            raise DoesNotOpen
        at = start + _FRAME_HEADER_BYTES
        length = self._message.frame_length
        if final:
            length, at = int.from_bytes(view[at : at + 4], "big"), at + 4
            if length > self._message.frame_length:
                raise DoesNotOpen
        if length > MAX_FRAME_BYTES:
            raise TooLarge
        end = at + length + TAG_BYTES
        if len(view) < end:
            return None
        kind = FINAL_FRAME_AAD if final else FRAME_AAD
        iv = view[start + 4 : start + _FRAME_HEADER_BYTES]
        content = self._decrypt(iv, view[at:end], kind, sequence, length)
        self._sequence, self._ended = sequence, final
        return end, content

    def _block(self, view: memoryview) -> tuple[int, bytes] | None:
        at = _LONG_LENGTH_AT + 8
        if len(view) < at:
            return None
        length = int.from_bytes(view[_LONG_LENGTH_AT:at], "big")
        if length > MAX_FRAME_BYTES:
            raise TooLarge
        end = at + length + TAG_BYTES
        if len(view) < end:
            return None
        content = self._decrypt(view[:IV_BYTES], view[at:end], SINGLE_BLOCK_AAD, 1, length)
        self._ended = True
        return end, content

    def _decrypt(self, iv: memoryview, sealed: memoryview, kind: bytes, sequence: int, length: int) -> bytes:
        try:
            return self._cipher.decrypt(iv, sealed, body_aad(self._message.message_id, kind, sequence, length))
        except InvalidTag:
            raise DoesNotOpen from None


class TooLarge(Exception):
    """A frame, or a body without frames, does not fit in memory."""

    def __init__(self) -> None:
        super().__init__(
            f"the message has frames of more than {MAX_FRAME_BYTES // 1024**2} MiB: open it with an AWS Encryption SDK"
        )
