"""What hostile callers send, over connections of their own: each attack is `attack(address, scale)`.

At `scale` 1 it is what the limits were made for; tests send less. An attack ends when the daemon has had enough of it,
at the latest after its share of frames; those that hold something hold it for `hold` seconds.
"""

import os
import resource
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from itertools import cycle
from threading import Thread
from unittest import mock

from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1 import span_pb2
from betrace_kms_client import KmsClient
from betrace_kms_envelope import MAX_FRAMES, EncryptedDataKey, Sealer
from betrace_kms_envelope import sealer as sealing

from tests.raw_grpc import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    RESET,
    SETTINGS,
    Connection,
    dial,
    frame,
    framed,
    headers_of,
    literal,
)

SERVICE = "/betrace.kms.v1.KeyManagementService/"
ENCRYPT = f"{SERVICE}Encrypt"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
LARGEST = 4 * 1024 * 1024
HOLD_SECONDS = 12.0
_CONNECTIONS = 8
_BATCH = 200

Attack = Callable[[str, float], None]


def at_once(*threads: Callable[[], None]) -> None:
    """Do things at the same time. Connections that the daemon ends are what it is about."""

    def quiet(work: Callable[[], None]) -> None:
        with suppress(OSError):
            work()

    running = [Thread(target=quiet, args=(work,)) for work in threads]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def flood(address: str, frames: Iterator[bytes], seconds: float = 20.0) -> None:
    """Send frames until the daemon hangs up, and read what it says meanwhile."""
    with suppress(OSError), Connection(address, seconds=seconds) as connection:
        for each in frames:
            connection.send(each)
            connection.socket.setblocking(False)
            with suppress(BlockingIOError):
                while connection.socket.recv(65_536):
                    pass
            connection.socket.settimeout(seconds)


def streams(count: int, *parts: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield what begins `count` streams, some of them at a time; `parts` make the frames of one."""
    for first in range(0, count, _BATCH):
        yield b"".join(part(2 * number + 1) for number in range(first, min(first + _BATCH, count)) for part in parts)


def beginning(method: str) -> Callable[[int], bytes]:
    """Return what begins a stream of a method."""
    block = headers_of(method)
    return lambda stream: frame(HEADERS, END_HEADERS, stream, block)


def reset(stream: int) -> bytes:
    """Return what ends a stream with CANCEL."""
    return frame(RESET, 0, stream, struct.pack(">I", 8))


def body(message: bytes) -> Callable[[int], bytes]:
    """Return what sends a small request."""
    return lambda stream: frame(DATA, END_STREAM, stream, framed(message))


def _again(address: str, count: int, *parts: Callable[[int], bytes]) -> None:
    """Begin streams on a connection, and on another one whenever the daemon ends it."""
    left = count
    while left > 0:
        began = streams(left, *parts)
        taken = 0

        def counted(began: Iterator[bytes] = began) -> Iterator[bytes]:
            nonlocal taken
            for each in began:
                taken += _BATCH
                yield each

        flood(address, counted())
        left -= max(taken, _BATCH)


def _on_all(address: str, count: int, *parts: Callable[[int], bytes]) -> None:
    at_once(*[partial(_again, address, count // _CONNECTIONS, *parts)] * _CONNECTIONS)


def rapid_reset(address: str, scale: float) -> None:
    """Begin 400,000 calls and reset each at once."""
    _on_all(address, int(400_000 * scale), beginning(ENCRYPT), reset)


def cancelled_calls(address: str, scale: float) -> None:
    """Send 100,000 whole calls and cancel each at once."""
    request = pb.EncryptRequest(tenant_id="warm", plaintext=b"x").SerializeToString()
    _on_all(address, int(100_000 * scale), beginning(ENCRYPT), body(request), reset)


def half_sent(address: str, scale: float) -> None:
    """Begin 100,000 calls and never send a request."""
    _on_all(address, int(100_000 * scale), beginning(ENCRYPT))


def half_sent_large(address: str, scale: float) -> None:
    """Send 800 requests of 4 MiB but for the last byte."""
    request = framed(pb.EncryptRequest(tenant_id="warm", plaintext=bytes(LARGEST)).SerializeToString())[:-1]

    def send() -> None:
        with Connection(address, open_windows=True, seconds=10) as connection:
            for number in range(int(100 * scale)):
                connection.call(2 * number + 1, ENCRYPT, request, finish=False)
            _hold(scale)

    at_once(*[send] * _CONNECTIONS)


def compressed(address: str, scale: float) -> None:
    """Send 1 MB that would be 1,000 MB, to our service and to the health service."""
    zeros = bytes(1_000_000)

    def bomb(coder: "zlib._Compress") -> bytes:
        return b"".join(coder.compress(zeros) for _ in range(1_000)) + coder.flush()

    bombs = {b"gzip": bomb(zlib.compressobj(wbits=31)), b"deflate": bomb(zlib.compressobj())}

    def send(method: str, coding: bytes) -> None:
        with Connection(address, seconds=3) as connection:
            sent = framed(bombs[coding], compressed=True)
            for number in range(4):
                connection.call(2 * number + 1, method, sent, metadata=[(b"grpc-encoding", coding)])
            while connection.receive():
                pass

    at_once(*(partial(send, method, coding) for method in (ENCRYPT, CHECK) for coding in bombs))


def unread(address: str, scale: float, *, open_windows: bool) -> None:
    """Ask for 400 answers of 4 MiB, and read none: four on each of 100 connections, or one on each of 400.

    A call that is sent reads until it is out. So an answer before it stays unread only if there is no window for it.
    One that has a window stays in the daemon because the socket takes little.
    """
    request = framed(pb.EncryptRequest(tenant_id="warm", plaintext=bytes(LARGEST)).SerializeToString())
    calls = (1,) if open_windows else (1, 3, 5, 7)
    with ExitStack() as held:
        for _ in range(int(400 * scale) // len(calls)):
            connection = held.enter_context(Connection(address, open_windows=open_windows, seconds=5))
            if open_windows:
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with suppress(OSError):
                for stream in calls:
                    connection.call(stream, ENCRYPT, request)
        _hold(scale)


def watches(address: str, scale: float) -> None:
    """Open 20,000 Watches on 200 connections."""
    with ExitStack() as held, suppress(OSError):
        for _ in range(int(200 * scale)):
            connection = held.enter_context(Connection(address))
            connection.send(*streams(100, beginning(WATCH), body(b"")))
        _hold(scale)


def idle(address: str, scale: float) -> None:
    """Open 2,000 connections that say nothing, or no more than their preface. One more is served meanwhile."""
    _many_files()
    with ExitStack() as held:
        for number in range(int(2_000 * scale)):
            with suppress(OSError):
                if number % 2:
                    held.enter_context(dial(address, 5))
                else:
                    held.enter_context(Connection(address, seconds=5))
        with KmsClient(address, timeout=60) as client:
            client.encrypt("warm", b"x")
        _hold(scale)


def malformed(address: str, scale: float) -> None:
    """Send what is no HTTP/2, or breaks its rules, on 2,000 connections."""
    block = headers_of(ENCRYPT)
    good = PREFACE + frame(SETTINGS, 0, 0, b"")
    wrong = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(512),
        os.urandom(4_096),
        PREFACE[:-1] + b"X",
        good + b"\xff\xff\xff" + os.urandom(60_000),  # a frame of 16 MiB
        good + frame(HEADERS, END_HEADERS, 0, block),
        good + frame(HEADERS, END_HEADERS, 2, block),
        good + frame(HEADERS, END_HEADERS | 8, 1, b"\xff" + block),  # more padding than frame
        good + frame(HEADERS, END_HEADERS, 1, os.urandom(4_096)),
        good + frame(HEADERS, END_HEADERS, 1, b"\xff" * 64),  # an index without end
        good + frame(SETTINGS, 0, 0, b"12345"),
        good + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**32 - 1)),
        good + frame(DATA, 0, 77, b"nobody began this"),
        good + frame(CONTINUATION, END_HEADERS, 1, block),
        good + frame(8, 0, 0, struct.pack(">I", 2**31 - 1)) * 3,
        good + frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, b"\x00\xff\xff\xff\xff"),
        good + frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, b"\x07\x00\x00\x00\x01x"),
        good + frame(5, 4, 1, block),  # PUSH_PROMISE
        good + b"".join(frame(kind, 255, 1, os.urandom(64)) for kind in range(16)),
    ]
    for _, each in zip(range(int(2_000 * scale)), cycle(wrong), strict=False):
        with suppress(OSError), dial(address, 5) as connection:
            connection.sendall(each)


def continuations(address: str, scale: float) -> None:
    """Begin headers that go on for 64 MB, on 8 connections."""
    part = literal(b"x-long", b"x" * 16_000)

    def frames() -> Iterator[bytes]:
        yield frame(HEADERS, 0, 1, headers_of(ENCRYPT))
        for _ in range(int(4_000 * scale)):
            yield frame(CONTINUATION, 0, 1, part)

    at_once(*[lambda: flood(address, frames())] * _CONNECTIONS)


def control_frames(address: str, scale: float) -> None:
    """Send 800,000 SETTINGS and as many PINGs, and read no answer."""
    settings, ping = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535)), frame(PING, 0, 0, b"01234567")

    def send(each: bytes) -> None:
        with Connection(address, seconds=5) as connection:
            for _ in range(int(1_000 * scale)):
                connection.send(each * 200)
            _hold(scale)

    at_once(*[partial(send, each) for each in (settings, ping)] * (_CONNECTIONS // 2))


def slow_drip(address: str, scale: float) -> None:
    """Send headers a byte at a time on 200 connections."""
    block = headers_of(ENCRYPT)
    with ExitStack() as held:
        dripping = [held.enter_context(Connection(address)) for _ in range(int(200 * scale))]
        for connection in dripping:
            connection.send(frame(HEADERS, 0, 1, block[:1]))
        for byte in block[1 : int(HOLD_SECONDS * scale / 0.1)]:
            for connection in dripping:
                with suppress(OSError):
                    connection.send(frame(CONTINUATION, 0, 1, bytes([byte])))
            time.sleep(0.1)


def metadata(address: str, scale: float) -> None:
    """Send calls with 15 KB, 100 KB and 10 MB of metadata, in one value and in many."""

    def send(fields: list[tuple[bytes, bytes]]) -> None:
        block = headers_of(CHECK, fields)
        parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
        for _ in range(int(20 * scale)):
            with suppress(OSError), Connection(address, seconds=5) as connection:
                for stream in range(1, 20, 2):
                    for number, part in enumerate(parts):
                        kind, last = (CONTINUATION if number else HEADERS), number == len(parts) - 1
                        connection.send(frame(kind, END_HEADERS if last else 0, stream, part))
                    connection.send(frame(DATA, END_STREAM, stream, framed(b"")))
                connection.receive()

    many = [(b"x-%d" % number, b"y" * 20) for number in range(4_000)]
    sizes = (15_000, 100_000, 10_000_000)
    at_once(*(partial(send, [(b"x-long", b"y" * size)]) for size in sizes), partial(send, many))


def small_frames(address: str, scale: float) -> None:
    """Send a request in 400,000 frames of a byte, with as many empty ones, on 8 connections."""
    one, none = frame(DATA, 0, 1, b"\x00"), frame(DATA, 0, 1, b"")

    def frames() -> Iterator[bytes]:
        yield frame(HEADERS, END_HEADERS, 1, headers_of(ENCRYPT)) + frame(DATA, 0, 1, b"\x00\x00\x3f\xff\xff")
        for _ in range(int(50_000 * scale) // _BATCH):
            yield (one + none) * _BATCH

    at_once(*[lambda: flood(address, frames())] * _CONNECTIONS)


def bombs(address: str) -> Mapping[str, tuple[str, bytes]]:
    """Return requests that are dear for their size: what they are, the method, and the message."""
    span = span_pb2.ComplianceSpan(trace_id=bytes(16), span_id=bytes(8), name="n", framework="soc2")
    value = span_pb2.AttributeValue(bool_value=True)
    numbers = [span_pb2.AttributeValue(double_value=1.5)] * 180_000

    def attributes(count: int) -> span_pb2.ComplianceSpan:
        return with_attributes({str(number): value for number in range(count)})

    def with_attributes(attributes: Mapping[str, span_pb2.AttributeValue]) -> span_pb2.ComplianceSpan:
        made = span_pb2.ComplianceSpan(attributes=attributes)
        made.MergeFrom(span)
        return made

    def sign(made: span_pb2.ComplianceSpan) -> tuple[str, bytes]:
        return f"{SERVICE}SignSpan", pb.SignSpanRequest(tenant_id="warm", span=made).SerializeToString()

    def encrypt(**fields: object) -> tuple[str, bytes]:
        request = pb.EncryptRequest(tenant_id="warm", **fields)  # type: ignore[arg-type]
        return ENCRYPT, request.SerializeToString()

    listed = span_pb2.AttributeValue(array_value=span_pb2.ArrayValue(values=numbers))
    named = span_pb2.KeyValueList(values=[span_pb2.KeyValue(key="k", value=numbers[0])] * 180_000)
    wide = pb.SignSpansRequest(tenant_id="warm", spans=[attributes(8_000)] * 25)
    return {
        "250,000 attributes": sign(attributes(250_000)),
        "25 x 8,000 attributes": (f"{SERVICE}SignSpans", wide.SerializeToString()),
        "array of 180,000 doubles": sign(with_attributes({"a": listed})),
        "kvlist of 180,000 doubles": sign(with_attributes({"a": span_pb2.AttributeValue(kvlist_value=named)})),
        "300,000 pairs": encrypt(encryption_context={str(number): "" for number in range(300_000)}),
        "4 MB name": sign(span_pb2.ComplianceSpan(trace_id=bytes(16), span_id=bytes(8), name="n" * 4_000_000)),
        "4 MiB seal": encrypt(plaintext=bytes(LARGEST)),
        "65,536 frames": (f"{SERVICE}Decrypt", _frames_of_a_byte(address, MAX_FRAMES)),
        "127,089 frames": (f"{SERVICE}Decrypt", _frames_of_a_byte(address, 127_089)),
    }


def _frames_of_a_byte(address: str, count: int) -> bytes:
    """Return a Decrypt of a message that opens, but for their number."""
    with KmsClient(address) as client:
        key = client.generate_data_key("warm")
    context = {"tenantId": "warm", "keyType": "encryption"}
    wrapped = EncryptedDataKey("betrace-local", key.key_id, key.ciphertext_blob)
    with mock.patch.object(sealing, "FRAME_BYTES", 1):
        message = Sealer(wrapped, context).seal(bytes(count), key.plaintext)
    return pb.DecryptRequest(tenant_id="warm", ciphertext_blob=message).SerializeToString()


def dear_requests(address: str, scale: float) -> None:
    """Send each of `bombs` 20 times on each of two connections."""

    def send(method: str, message: bytes) -> None:
        with Connection(address, open_windows=True) as connection:
            for number in range(max(1, int(20 * scale))):
                connection.call(2 * number + 1, method, framed(message))

    for method, message in bombs(address).values():
        at_once(*[partial(send, method, message)] * 2)


def _hold(scale: float) -> None:
    time.sleep(HOLD_SECONDS * min(1.0, scale))


def _many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


ATTACKS: Mapping[str, Attack] = {
    "rapid reset": rapid_reset,
    "half-sent calls": half_sent,
    "half-sent calls of 4 MiB": half_sent_large,
    "compressed bombs": compressed,
    "unread answers": partial(unread, open_windows=True),
    "unread answers, closed windows": partial(unread, open_windows=False),
    "Watches": watches,
    "idle connections": idle,
    "malformed HTTP/2": malformed,
    "CONTINUATION": continuations,
    "SETTINGS and PING": control_frames,
    "slow drip": slow_drip,
    "metadata": metadata,
    "frames of a byte": small_frames,
    "dear requests": dear_requests,
    "cancelled calls": cancelled_calls,
}
