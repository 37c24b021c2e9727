"""gRPC byte by byte, with what no client library sends (RFC 9113, RFC 7541)."""

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
_ACK = 1
_INITIAL_WINDOW_SIZE = 4
_FRAME_BYTES = 16_384
_LARGEST_WINDOW = 2**31 - 1

Fields = Sequence[tuple[bytes, bytes]]


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers_of(method: str, metadata: Fields = ()) -> bytes:
    """Return the header block of a call, neither indexed nor compressed."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", method.encode()),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *metadata,
    ]
    return b"".join(literal(*field) for field in fields)


def literal(name: bytes, value: bytes) -> bytes:
    """Return a header field, neither indexed nor compressed."""
    return b"\x00" + b"".join(_length(len(text)) + text for text in (name, value))


def framed(message: bytes, *, compressed: bool = False) -> bytes:
    """Return a message with gRPC's prefix."""
    return bytes([compressed]) + struct.pack(">I", len(message)) + message


def _length(number: int) -> bytes:
    if number < 127:
        return bytes([number])
    encoded, rest = [127], number - 127
    while rest >= 128:
        encoded.append(rest % 128 + 128)
        rest //= 128
    return bytes([*encoded, rest])


class Connection:
    """A connection that keeps to flow control where it sends bodies, and reads only then.

    With `open_windows` the server may send whatever it has; otherwise 64 KiB.
    """

    def __init__(self, address: str, *, open_windows: bool = False, seconds: float = 20.0) -> None:
        self.socket = dial(address, seconds)
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW) if open_windows else b""
        self.send(PREFACE, frame(SETTINGS, 0, 0, settings))
        if open_windows:
            self.send(frame(WINDOW, 0, 0, struct.pack(">I", _LARGEST_WINDOW - 65_535)))
        self.ended = False
        self._window = self._initial = 65_535
        self._windows: dict[int, int] = {}
        self._unparsed = b""

    def __enter__(self) -> "Connection":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        """Send frames as they are."""
        self.socket.sendall(b"".join(frames))

    def call(self, stream: int, method: str, body: bytes, *, finish: bool = True, metadata: Fields = ()) -> bool:
        """Send a call. Returns whether all of it went out: a server may not want the rest."""
        self.send(frame(HEADERS, END_HEADERS, stream, headers_of(method, metadata)))
        self._windows[stream] = self._initial
        at = 0
        while at < len(body):
            size = min(self._window, self._windows.get(stream, 0), _FRAME_BYTES, len(body) - at)
            if size <= 0:
                if not self.receive() or stream not in self._windows:
                    return False
                continue
            last = finish and at + size == len(body)
            self.send(frame(DATA, END_STREAM if last else 0, stream, body[at : at + size]))
            at += size
            self._window -= size
            self._windows[stream] -= size
        return True

    @property
    def open_streams(self) -> int:
        """How many calls have no end yet, as far as has been read."""
        return len(self._windows)

    @property
    def window_of_new_streams(self) -> int:
        """How many bytes the server lets a stream send at first, by the latest of its settings that was read."""
        return self._initial

    def receive(self) -> bool:
        """Read some frames, and keep windows by them. Returns whether the connection goes on."""
        try:
            part = self.socket.recv(65_536)
        except OSError:
            part = b""
        self.ended = self.ended or not part
        self._unparsed += part
        for kind, flags, stream, payload in self._frames():
            if kind == WINDOW:
                more = int.from_bytes(payload, "big")
                if stream in self._windows:
                    self._windows[stream] += more
                elif stream == 0:
                    self._window += more
            elif kind == RESET or (kind in (DATA, HEADERS) and flags & END_STREAM):
                self._windows.pop(stream, None)
            elif kind == SETTINGS and not flags & _ACK:
                self._settle(payload)
            elif kind == PING and not flags & _ACK:
                self._pinged(payload)
            elif kind == GOAWAY:
                self.ended = True
        return not self.ended

    def _pinged(self, payload: bytes) -> None:
        self.send(frame(PING, _ACK, 0, payload))

    def _settle(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            name, value = struct.unpack_from(">HI", payload, at)
            if name == _INITIAL_WINDOW_SIZE:
                for stream in self._windows:
                    self._windows[stream] += value - self._initial
                self._initial = value
        self.send(frame(SETTINGS, _ACK, 0, b""))

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        while len(self._unparsed) >= 9:
            end = 9 + int.from_bytes(self._unparsed[:3], "big")
            if len(self._unparsed) < end:
                return
            taken, self._unparsed = self._unparsed[:end], self._unparsed[end:]
            yield taken[3], taken[4], int.from_bytes(taken[5:9], "big"), taken[9:]


def dial(address: str, seconds: float) -> socket.socket:
    """Connect to unix:/path or host:port."""
    if not address.startswith("unix:"):
        host, _, port = address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=seconds)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(seconds)
    connection.connect(address.removeprefix("unix:"))
    return connection


def call(address: str, method: str, message: bytes, metadata: Fields) -> bytes:
    """Make a call and return everything that came back, until the stream or the connection ends."""
    received = b""
    with Connection(address, seconds=10) as connection, suppress(ConnectionResetError):
        connection.send(
            frame(HEADERS, END_HEADERS, 1, headers_of(method, metadata)), frame(DATA, END_STREAM, 1, framed(message))
        )
        while not _ended(received) and (part := connection.socket.recv(65_536)):
            received += part
    return received


def _ended(received: bytes) -> bool:
    """Return whether a frame ends stream 1, by END_STREAM or RST_STREAM, or the connection, by GOAWAY."""
    at = 0
    while at + 9 <= len(received):
        length = int.from_bytes(received[at : at + 3], "big")
        kind, flags = received[at + 3], received[at + 4]
        stream = int.from_bytes(received[at + 5 : at + 9], "big")
        if kind == GOAWAY or (stream == 1 and (kind == RESET or (kind in (DATA, HEADERS) and flags & END_STREAM))):
            return True
        at += 9 + length
    return False


class RawConnection:
    """A connection whose calls are sent whole and never read: what it leaves behind is the server's to clear away."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=20)
        self._socket.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))
        self._stream = -1

    def begin(self, method: str, *, timeout: str = "") -> None:
        """Send the headers of the next call; `timeout` is as in the gRPC protocol, e.g. "300m"."""
        self._stream += 2
        fields = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", method.encode()),
            (b":authority", b"localhost"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            *([(b"grpc-timeout", timeout.encode())] if timeout else []),
        ]
        self._socket.sendall(frame(HEADERS, END_HEADERS, self._stream, b"".join(literal(*each) for each in fields)))

    def send(self, message: bytes, *, end: bool = True) -> None:
        """Send the message of the call that was begun last, of less than 64 KiB; `end` ends its requests."""
        body = b"\x00" + struct.pack(">I", len(message)) + message
        parts = [body[at : at + 16_384] for at in range(0, len(body), 16_384)]
        for part in parts:
            flags = END_STREAM if end and part is parts[-1] else 0
            self._socket.sendall(frame(DATA, flags, self._stream, part))

    def reset_calls(self) -> None:
        """Cancel all calls (RFC 9113, section 6.4, with the error code CANCEL)."""
        resets = [frame(3, 0, stream, struct.pack(">I", 8)) for stream in range(1, self._stream + 1, 2)]
        self._socket.sendall(b"".join(resets))

    def received(self) -> bytes:
        """Return what has come so far, some of it at least."""
        return self._socket.recv(2**20)

    def reset(self) -> None:
        """Break the connection, as a host does whose process was killed with data unread."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()
