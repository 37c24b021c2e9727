"""The sockets of this process that callers are connected to, found among its file descriptors.

gRPC hands none of them out, and its own stop cancels calls: whatever arrives between the stop and the moment at which a
client has read the GOAWAY. With the sockets a server can leave its clients in the order of RFC 9113, section 6.8: it
announces the end first, answers what was sent before the client knew, and closes last.
"""

import array
import errno
import fcntl
import os
import socket
import stat
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from betrace_kms_server.host.descriptors import SpareDescriptor, open_descriptors

GOAWAY = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + b"\x7f\xff\xff\xff" + b"\x00\x00\x00\x00"
"""Length 8, type GOAWAY, stream 0; the last stream is 2^31-1: all that were opened are answered; NO_ERROR."""


class Callers:
    """The connections to some addresses of this process, and the sockets that listen there.

    An address is `unix:/path` or host:port with the port that was bound. `ciphered` addresses speak TLS: nothing can be
    announced there, and connections are only closed. Without a `spare` descriptor, none is found while the process may
    open no more files.
    """

    def __init__(
        self, addresses: Sequence[str], ciphered: Sequence[str] = (), spare: SpareDescriptor | None = None
    ) -> None:
        self._names = {_name(address) for address in addresses}
        self._ciphered = {_name(address) for address in ciphered}
        self._spare = spare
        self._empty: set[int] = set()
        self._announced: set[int] = set()

    def stop_listening(self) -> None:
        """Refuse new connections from now on.

        gRPC goes on to own its descriptors. Each stands for an unbound socket then, on which nothing ever happens: gRPC
        would log an error for a listening socket that was shut down.
        """
        for descriptor, listener in self._sockets(_listens):
            with suppress(OSError), socket.socket(listener.family, socket.SOCK_STREAM) as unbound:
                os.dup2(unbound.fileno(), descriptor, inheritable=False)

    def announce_end(self) -> bool:
        """Send GOAWAY to each connection that has no unsent bytes, once. Returns whether every connection has it.

        A frame must not land inside another one that gRPC has written by half. So a connection gets it only if its send
        buffer was empty at the previous call and is empty now: a write that was cut short goes on in between.
        """
        empty = set()
        complete = True
        for connection in self.connected():
            identity = identity_of(connection)
            if identity in self._announced or _name_of(connection) in self._ciphered:
                continue
            if unsent(connection) == 0:
                if identity in self._empty:
                    with suppress(OSError):
                        connection.send(GOAWAY, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                    self._announced.add(identity)
                    continue
                empty.add(identity)
            complete = False
        self._empty = empty
        return complete

    def close(self) -> None:
        """Close every connection for both directions, after what was written. A client gets UNAVAILABLE."""
        for connection in self.connected():
            shut(connection)

    def connected(self) -> Iterator[socket.socket]:
        """Yield a socket of our own for each connection, good until the next one is asked for."""
        for _, connection in self._sockets(_is_connected):
            yield connection

    def _sockets(self, wanted: Callable[[socket.socket], bool]) -> Iterator[tuple[int, socket.socket]]:
        try:
            descriptors = open_descriptors()
        except OSError:  # then gRPC's own stop is all that there is
            return
        for descriptor in descriptors:
            with self._duplicate(descriptor) as found:
                if found is not None and _name_of(found) in self._names and wanted(found):
                    yield descriptor, found

    @contextmanager
    def _duplicate(self, descriptor: int) -> Iterator[socket.socket | None]:
        """Give a socket of our own for a file descriptor, or None if it is no stream socket or is closed by now."""
        with ExitStack() as resources:
            found = None
            with suppress(OSError):
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                    found = self._own(descriptor, resources)
            yield found if found is not None and found.type == socket.SOCK_STREAM else None

    def _own(self, descriptor: int, resources: ExitStack) -> socket.socket:
        try:
            return resources.enter_context(socket.socket(fileno=os.dup(descriptor)))
        except OSError as cause:
            if cause.errno != errno.EMFILE or self._spare is None:
                raise
        found = socket.socket(fileno=resources.enter_context(self._spare.duplicate(descriptor)))
        resources.callback(found.detach)
        return found


def _name(address: str) -> str | int:
    return address.removeprefix("unix:") if address.startswith("unix:") else int(address.rpartition(":")[2])


def _name_of(found: socket.socket) -> str | int | None:
    """Return the path or port that a socket of ours is bound to."""
    try:
        name = found.getsockname()
    except OSError:
        return None
    if found.family == socket.AF_UNIX:
        return name if isinstance(name, str) else None
    return int(name[1]) if found.family in (socket.AF_INET, socket.AF_INET6) else None


def _listens(found: socket.socket) -> bool:
    return found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0


def _is_connected(found: socket.socket) -> bool:
    try:
        found.getpeername()
    except OSError:
        return False
    return True


def identity_of(found: socket.socket) -> int:
    """Return what no other socket has as long as this one is open, whatever its descriptor is."""
    return os.fstat(found.fileno()).st_ino


def unsent(found: socket.socket) -> int | None:
    """Return how many bytes the other end has not received yet (for a unix socket: read), or None if unknown."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(found.fileno(), termios.TIOCOUTQ, count)
    except OSError:
        return None
    return count[0]


def shut(found: socket.socket) -> None:
    """Close a connection for both directions, as the other end could."""
    with suppress(OSError):  # the other end was faster
        found.shutdown(socket.SHUT_RDWR)
