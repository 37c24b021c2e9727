"""Bounds the connections of callers: how many there are, and how long one may leave an answer unread.

gRPC has no limit for either. Its sockets are shut down here, which is for gRPC as if the caller had hung up.
"""

import resource
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass

import structlog

from betrace_kms_server.host.connections import Callers, identity_of, shut, unsent
from betrace_kms_server.host.descriptors import open_descriptors

log = structlog.get_logger()

STALLED_SECONDS = 10.0
"""How long a connection may stand still while an answer waits for it."""
LEAST_BYTES = 160 * 1024
"""What it must take in that time over TCP: 16 KiB a second."""
SPARE_DESCRIPTORS = 64
"""For files, the key store, KMS, operators and connections that are just coming in."""
_CALL_BYTES = 256
"""What a connection has sent at least that has made a call: without one, a gRPC client sends about 100 bytes."""
_LAST_DATA_RECEIVED_AT, _BYTES_ACKED_AT, _BYTES_RECEIVED_AT = 52, 120, 128
"""Offsets in tcp_info (linux/tcp.h): u32 in milliseconds, and two u64."""
_TCP_INFO_BYTES = 192


@dataclass(slots=True)
class _Mark:
    """How far a connection was, and when."""

    count: int
    at: float


class ConnectionBounds:
    """Ends connections of `callers` that are too many, or that stand still."""

    def __init__(self, callers: Callers, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._callers = callers
        self._most = min(most, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS)
        self._clock = clock
        self._marks: dict[int, _Mark] = {}

    def end_surplus(self) -> int:
        """End connections past the limit. Returns how many.

        Of the peer that has most, one that never called ends first, as others may wait for their next call; then the
        one that is silent longest. A peer is a process at a unix socket, and an address by TCP.
        """
        if _descriptors() <= self._most:  # cheaper than to count connections
            return 0
        found = [(_peer(each), _silence(each), identity_of(each)) for each in self._callers.connected()]
        surplus = len(found) - self._most
        if surplus <= 0:
            return 0
        of_peer = Counter(peer for peer, _, _ in found)
        found.sort(key=lambda each: (of_peer[each[0]], each[1]), reverse=True)
        self._end({identity for _, _, identity in found[:surplus]})
        log.warning(
            "There are more connections than kms.server.max-connections allows, or than the limit of open"
            " files does: those that never called, or were silent longest, were closed",
            closed=surplus,
            limit=self._most,
        )
        return surplus

    def end_stalled(self, peers: Set[str]) -> int:
        """End connections that stood still for `STALLED_SECONDS`, of peers that answers wait for. Returns how many.

        Peers are named as gRPC does. It does not tell connections to unix sockets apart: there it is those that have
        unread bytes. To be called a few times a second.
        """
        marks, stalled, now = dict[int, _Mark](), set[int](), self._clock()
        for connection in self._callers.connected() if peers else ():
            count = _count(connection, peers)
            if count is None:
                continue
            identity = identity_of(connection)
            mark = self._marks.get(identity)
            if mark is None or _has_moved(connection, mark.count, count):
                mark = _Mark(count, now)
            elif now - mark.at > STALLED_SECONDS:
                stalled.add(identity)
            marks[identity] = mark
        self._marks = marks
        if stalled:
            self._end(stalled)
            log.warning("Connections were closed: their callers do not read answers", closed=len(stalled))
        return len(stalled)

    def _end(self, identities: Set[int]) -> None:
        for connection in self._callers.connected():
            if identity_of(connection) in identities:
                shut(connection)


def _descriptors() -> int:
    return len(open_descriptors())


def _count(connection: socket.socket, peers: Set[str]) -> int | None:
    """Return what changes while a connection takes bytes, or None if no answer waits for it."""
    if connection.family == socket.AF_UNIX:
        is_waited_for = any(peer.startswith("unix:") for peer in peers)
        return (unsent(connection) if is_waited_for else None) or None
    host, port, *_ = connection.getpeername()
    address = host.removeprefix("::ffff:")
    if not any(peer.endswith(f":{port}") and address in peer for peer in peers):
        return None
    return _tcp_info(connection, "=Q", _BYTES_ACKED_AT)


def _has_moved(connection: socket.socket, before: int, now: int) -> bool:
    return now != before if connection.family == socket.AF_UNIX else now - before >= LEAST_BYTES


def _silence(connection: socket.socket) -> tuple[bool, int]:
    """Return whether a connection never made a call, and for how many milliseconds nothing came.

    That is known of TCP only.
    """
    if connection.family == socket.AF_UNIX:
        return False, 0
    sent = _tcp_info(connection, "=Q", _BYTES_RECEIVED_AT)
    return sent is not None and sent < _CALL_BYTES, _tcp_info(connection, "=I", _LAST_DATA_RECEIVED_AT) or 0


def _peer(connection: socket.socket) -> str:
    if connection.family != socket.AF_UNIX:
        return str(connection.getpeername()[0])
    pid = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4) if sys.platform == "linux" else b""
    return f"process {pid.hex()}"


def _tcp_info(connection: socket.socket, form: str, offset: int) -> int | None:
    if sys.platform != "linux":
        return None
    found = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    if len(found) < offset + struct.calcsize(form):
        return None
    return int(struct.unpack_from(form, found, offset)[0])
