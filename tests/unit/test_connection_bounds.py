"""Which connections are ended, on real sockets: those past the limit, and those that stand still."""

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest
from betrace_kms_server.host import connection_bounds
from betrace_kms_server.host.connection_bounds import STALLED_SECONDS, ConnectionBounds
from betrace_kms_server.host.connections import Callers
from betrace_kms_server.host.descriptors import SpareDescriptor, open_descriptors


class Listening:
    """A listener and its connections: the server's ends and the callers'."""

    def __init__(self, family: int, address: object, resources: ExitStack) -> None:
        self._resources = resources
        self._listener = resources.enter_context(closing(socket.socket(family)))
        self._listener.bind(address)  # type: ignore[arg-type]
        self._listener.listen(100)
        name = self._listener.getsockname()
        address = f"unix:{name}" if family == socket.AF_UNIX else f"127.0.0.1:{name[1]}"
        self.callers = Callers([address], spare=resources.enter_context(SpareDescriptor()))

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a new connection, the server's first."""
        caller = self._resources.enter_context(closing(socket.socket(self._listener.family)))
        caller.connect(self._listener.getsockname())
        server, _ = self._listener.accept()
        return self._resources.enter_context(closing(server)), caller


@pytest.fixture(params=["tcp", "unix"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listening]:
    """Give a listener of each family."""
    with ExitStack() as resources:
        if request.param == "tcp":
            yield Listening(socket.AF_INET, ("127.0.0.1", 0), resources)
        else:
            yield Listening(socket.AF_UNIX, str(tmp_path / "kms.sock"), resources)


def is_open(caller: socket.socket) -> bool:
    """Return whether the server has not ended a connection."""
    caller.setblocking(False)
    try:
        return caller.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Take all descriptors that this process may open."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + 3, limits[1]))
    try:
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_connections_past_the_limit_end_although_no_descriptor_is_left(listening: Listening) -> None:
    """Who took all descriptors does not keep the daemon from closing connections; no duplicate stays behind."""
    bounds = ConnectionBounds(listening.callers, 10)
    connections = [listening.connect() for _ in range(13)]
    with no_descriptor_left():
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(0)
        assert 3 == bounds.end_surplus()
    assert 10 == sum(is_open(caller) for _, caller in connections)
    for server, _ in connections:
        server.close()
    assert 0 == sum(is_open(caller) for _, caller in connections)


def test_connections_past_the_limit_end(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three too many are closed, and then no more."""
    monkeypatch.setattr(connection_bounds, "_descriptors", lambda: 1_000)
    bounds = ConnectionBounds(listening.callers, 10)
    connections = [listening.connect() for _ in range(13)]
    assert 3 == bounds.end_surplus()
    assert 10 == sum(is_open(caller) for _, caller in connections)
    for server, caller in connections:
        if not is_open(caller):
            server.close()
    assert 0 == bounds.end_surplus()


@pytest.mark.parametrize("listening", ["tcp"], indirect=True)
def test_connections_that_never_called_end_first(listening: Listening) -> None:
    """Whoever opens many at once was heard later than those who wait for their next call."""
    bounds = ConnectionBounds(listening.callers, 10)
    connections = [listening.connect() for _ in range(13)]
    for sent, (server, caller) in zip([300] * 10 + [33] * 3, connections, strict=True):
        caller.sendall(bytes(sent))
        assert sent == len(server.recv(sent, socket.MSG_WAITALL | socket.MSG_PEEK))
    assert 3 == bounds.end_surplus()
    assert [True] * 10 + [False] * 3 == [is_open(caller) for _, caller in connections]


def test_an_unread_connection_ends_and_a_slow_one_does_not(listening: Listening) -> None:
    """One that takes 320 KiB every few seconds goes on for as long as it likes."""
    now = 100.0
    bounds = ConnectionBounds(listening.callers, 100, clock=lambda: now)
    slow, unread, idle = listening.connect(), listening.connect(), listening.connect()
    peers = {_peer(caller) for _, caller in (slow, unread)}
    for _ in range(6):
        for server, _ in (slow, unread):
            server.setblocking(False)
            while _sent(server):
                pass
        bounds.end_stalled(peers)
        taken = 0
        while taken < 320 * 1024 and (part := _received(slow[1])):
            taken += len(part)
        bounds.end_stalled(peers)
        now += STALLED_SECONDS / 4
    bounds.end_stalled(peers)
    assert (True, False, True) == (is_open(slow[1]), _is_alive(unread[0]), is_open(idle[1]))


def _peer(caller: socket.socket) -> str:
    return "unix:" if caller.family == socket.AF_UNIX else f"ipv4:127.0.0.1:{caller.getsockname()[1]}"


def _sent(server: socket.socket) -> bool:
    try:
        return server.send(bytes(65_536)) > 0
    except (BlockingIOError, BrokenPipeError):
        return False


def _received(caller: socket.socket) -> bytes:
    caller.setblocking(False)
    try:
        return caller.recv(65_536)
    except BlockingIOError:
        return b""


def _is_alive(server: socket.socket) -> bool:
    try:
        server.send(b"x", socket.MSG_NOSIGNAL)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True
