"""What the bytes of an input are: JSON in UTF-8, or gzip of it, which is inflated; anything else is refused by name.

Without names a file in another encoding is called damaged JSON, and its owner searches for damage that is not there.
The OpenTelemetry collector's file exporter writes JSON lines; with `compression: zstd` or `format: proto` it writes
messages behind four bytes of length (big-endian), and these have no text form to read.

Memory is bounded: gzip is inflated as it is read, up to a size and a ratio that no traces have.
"""

import gzip
import io
import re
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_INFLATED_BYTES = 1024**3
MAX_RATIO = 500
"""A span repeated without a change packs 230 times; deflate reaches 1,030 times, with bytes that are all the same."""
MIN_INFLATED_BYTES = 16 * 1024 * 1024
"""What is never refused, whatever the ratio."""

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_PEEK_BYTES = 4096
_BUFFER_BYTES = 16 * 1024
_PACKED: Sequence[tuple[re.Pattern[bytes], str, str]] = (
    (re.compile(re.escape(_ZSTD) + rb"|[\x50-\x5f]\x2a\x4d\x18"), "zstd", "zstd -dc"),
    (re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), "bzip2", "bzip2 -dc"),
    (re.compile(rb"\xfd7zXZ\0"), "xz", "xz -dc"),
    (re.compile(rb"\x04\x22\x4d\x18"), "lz4", "lz4 -dc"),
    (re.compile(rb"PK[\x03\x05][\x04\x06]"), "zip", "unzip -p"),
)
_OTHER_UNICODE: Sequence[tuple[re.Pattern[bytes], str, str]] = (
    (re.compile(rb"\xff\xfe\0\0|\0\0\xfe\xff"), "UTF-32", "UTF-32"),
    (re.compile(rb"\xff\xfe|\xfe\xff"), "UTF-16", "UTF-16"),
    (re.compile(rb"(?:[\t\n\r -~]\0\0\0){2}"), "UTF-32", "UTF-32LE"),
    (re.compile(rb"(?:\0\0\0[\t\n\r -~]){2}"), "UTF-32", "UTF-32BE"),
    (re.compile(rb"(?:[\t\n\r -~]\0){2}"), "UTF-16", "UTF-16LE"),
    (re.compile(rb"(?:\0[\t\n\r -~]){2}"), "UTF-16", "UTF-16BE"),
)
"""With a byte order mark, or at least two characters of ASCII without one."""
_REQUEST, _RESOURCE_ITEM = b"\x0a", b"\x0a\x12\x1a"
"""Tags of OTLP's protobuf messages: field 1 of an export request, and fields 1 to 3 of that. All have a length."""


class InvalidInput(ValueError):
    """The input cannot be read as it is. The message says what it is and what to do."""


class DamagedInput(InvalidInput):
    """The input can be read up to here."""


def decoded(source: BinaryIO) -> BinaryIO:
    """Return the text of an input, inflated if it is gzip. Raises InvalidInput for another encoding.

    What follows damaged gzip data is missing: reading ends there, and raises DamagedInput when it is tried again.
    """
    stream = io.BufferedReader(_Source(source), _BUFFER_BYTES)
    if not _head(stream).startswith(_GZIP):
        _refuse_encoded(_head(stream))
        return stream
    inflated: io.BufferedReader[_Source] = io.BufferedReader(_Inflated(stream), _BUFFER_BYTES)
    if _head(inflated).startswith(_GZIP):
        raise InvalidInput("the input was compressed with gzip twice: decompress it with `gzip -dc` first")
    _refuse_encoded(_head(inflated))
    return inflated


def _head(stream: "io.BufferedReader[_Source]") -> bytes:
    return stream.peek(_PEEK_BYTES)[:_PEEK_BYTES]


class _Source(io.RawIOBase):
    """Reads another stream, several times for a short pipe, and not again after its end."""

    def __init__(self, source: BinaryIO) -> None:
        self.given = 0
        self._source = source
        self._ended = False

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._source.fileno()

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view, filled = memoryview(buffer).cast("B"), 0
        while not self._ended and filled < min(len(view), _PEEK_BYTES):
            data = self._read(len(view) - filled)
            view[filled : filled + len(data)] = data
            filled += len(data)
            self._ended = not data
        self.given += filled
        return filled

    def _read(self, size: int) -> bytes:
        return self._source.read1(size)  # type: ignore[attr-defined, no-any-return] # every buffered stream has it


class _Inflated(_Source):
    """Inflates gzip of one member or several."""

    def __init__(self, packed: "io.BufferedReader[_Source]") -> None:
        super().__init__(packed)
        self._packed = packed.raw
        self._members = gzip.GzipFile(fileobj=packed, mode="rb")
        self._damage: DamagedInput | None = None
        self._end_was_given = False

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")  # the size of the file says nothing about that of its text

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        filled = super().readinto(buffer)
        if not filled and self._damage is not None:
            if self._end_was_given:
                raise self._damage
            self._end_was_given = True  # first an end, so that a reader keeps the line that it has begun
        return filled

    def _read(self, size: int) -> bytes:
        try:
            data = self._members.read1(size)
        except EOFError:
            return self._damaged("the gzip data is cut off here")
        except gzip.BadGzipFile:
            return self._damaged("the gzip data is damaged here, or something else follows it")
        except zlib.error:
            return self._damaged("the gzip data is damaged here")
        limit = min(MAX_INFLATED_BYTES, max(MIN_INFLATED_BYTES, MAX_RATIO * self._packed.given))
        if self.given > limit:
            raise InvalidInput(
                f"the gzip data inflates to more than {limit // 1024**2} MiB:"
                " if that is no surprise, decompress it with `gzip -dc` first"
            )
        return data

    def _damaged(self, what: str) -> bytes:
        self._damage = DamagedInput(f"{what}: get the file again from where it was written")
        return b""


def _refuse_encoded(head: bytes) -> None:
    for magic, name, command in _PACKED:
        if magic.match(head):
            raise InvalidInput(f"the input is compressed with {name}: decompress it with `{command}` first")
    length = int.from_bytes(head[:4], "big")
    if head[4:].startswith(_ZSTD):
        raise InvalidInput(
            "the input is zstd behind length prefixes, as the OpenTelemetry collector's file exporter compresses each"
            " message: set `format: json` and no `compression` there"
        )
    if _is_otlp(head, None) or _is_otlp(head[4:], length):
        raise InvalidInput(
            "the input is OTLP in protobuf's binary form: set `format: json` in the collector's file exporter"
        )
    for pattern, name, charset in _OTHER_UNICODE:
        if pattern.match(head):
            raise InvalidInput(f"the input is {name}, and JSON is UTF-8: convert it with `iconv -f {charset} -t UTF-8`")


def _is_otlp(head: bytes, size: int | None) -> bool:
    """Return whether these are the first bytes of an export request, of `size` bytes if that is known.

    Its first byte is that of a newline, so a text that begins with blank lines must not pass: no text has the control
    characters that are protobuf's tags and lengths.
    """
    if not head.startswith(_REQUEST) or not re.search(rb"[\x01-\x08\x0b\x0c\x0e-\x1f]", head):
        return False
    length, at = _varint(head, 1)
    end = at + length
    if not length or (size is not None and end > size):
        return False
    while at < min(end, len(head)):
        if head[at] not in _RESOURCE_ITEM:
            return False
        length, at = _varint(head, at + 1)
        at += length
    return at == end or end > at >= len(head)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and where what follows it begins; a number that is cut off has the bits that are there."""
    number = 0
    for shift in range(0, 64, 7):
        byte = data[at : at + 1]
        if not byte:
            break
        at += 1
        number |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            break
    return number, at
