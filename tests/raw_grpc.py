"""One gRPC call byte by byte, with metadata that no client library sends (RFC 9113, RFC 7541)."""

import socket
import struct
from collections.abc import Sequence

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4
_ACK = 1


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """Return a header field, neither indexed nor compressed."""
    return b"\x00" + b"".join(_length(len(text)) + text for text in (name, value))


def _length(number: int) -> bytes:
    if number < 127:
        return bytes([number])
    encoded, rest = [127], number - 127
    while rest >= 128:
        encoded.append(rest % 128 + 128)
        rest //= 128
    return bytes([*encoded, rest])


def call(address: str, method: str, message: bytes, metadata: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Make a call at host:port and return everything that came back, until the stream or the connection ends."""
    host, _, port = address.rpartition(":")
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", method.encode()),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *metadata,
    ]
    headers = b"".join(_literal(*field) for field in fields)
    body = b"\x00" + struct.pack(">I", len(message)) + message
    received = b""
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, b"")
            + _frame(_HEADERS, _END_HEADERS, 1, headers)
            + _frame(_DATA, _END_STREAM, 1, body)
        )
        while not _ended(received):
            try:
                part = connection.recv(65536)
            except ConnectionResetError:
                break
            if not part:
                break
            received += part
    return received


def _ended(received: bytes) -> bool:
    """Return whether a frame ends stream 1, by END_STREAM or RST_STREAM, or the connection, by GOAWAY."""
    at = 0
    while at + 9 <= len(received):
        length = int.from_bytes(received[at : at + 3], "big")
        kind, flags = received[at + 3], received[at + 4]
        stream = int.from_bytes(received[at + 5 : at + 9], "big")
        if kind == 7 or (stream == 1 and (kind == 3 or (kind in (_DATA, _HEADERS) and flags & _END_STREAM))):
            return True
        at += 9 + length
    return False


class RawConnection:
    """A connection whose calls are sent whole and never read: what it leaves behind is the server's to clear away."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=20)
        self._socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b""))
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
        self._socket.sendall(_frame(_HEADERS, _END_HEADERS, self._stream, b"".join(_literal(*each) for each in fields)))

    def send(self, message: bytes, *, end: bool = True) -> None:
        """Send the message of the call that was begun last, of less than 64 KiB; `end` ends its requests."""
        body = b"\x00" + struct.pack(">I", len(message)) + message
        parts = [body[at : at + 16_384] for at in range(0, len(body), 16_384)]
        for part in parts:
            flags = _END_STREAM if end and part is parts[-1] else 0
            self._socket.sendall(_frame(_DATA, flags, self._stream, part))

    def reset_calls(self) -> None:
        """Cancel all calls (RFC 9113, section 6.4, with the error code CANCEL)."""
        resets = [_frame(3, 0, stream, struct.pack(">I", 8)) for stream in range(1, self._stream + 1, 2)]
        self._socket.sendall(b"".join(resets))

    def received(self) -> bytes:
        """Return what has come so far, some of it at least."""
        return self._socket.recv(2**20)

    def reset(self) -> None:
        """Break the connection, as a host does whose process was killed with data unread."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()
