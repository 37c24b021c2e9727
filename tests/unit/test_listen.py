"""Addresses: loopback and unix sockets only, and never one that another daemon has."""

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.host.sockets import (
    Address,
    claimed,
    exclusive,
    listen_on,
    parse_addresses,
    parse_host_ports,
    refuse_exposed,
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a folder whose path is short enough for a socket's."""
    with tempfile.TemporaryDirectory(prefix="kms") as path:
        yield Path(path)


def unix(path: Path) -> Address:
    (address,) = parse_addresses(f"unix:{path}")
    return address


def leave_stale_socket(path: Path) -> None:
    """Leave the socket of a process that died."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1:50051", "127.0.0.1:0", "127.255.255.254:65535", "[::1]:50051", "localhost:50051"],
)
def test_loopback_is_taken(text: str) -> None:
    """Addresses that only this machine, or this pod, reaches are taken as they are."""
    assert (Address(text),) == parse_addresses(text)
    assert text == str(*parse_addresses(text))


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0:50051",
        "10.0.0.1:50051",
        "128.0.0.1:50051",
        "169.254.169.254:80",
        "[::]:50051",
        "[::2]:50051",
        "[fe80::1]:50051",
        "[::ffff:10.0.0.1]:50051",
        "kms.example.com:50051",
        "localhost.example.com:50051",
        "*:50051",
    ],
)
def test_what_others_reach_is_refused(text: str) -> None:
    """Without TLS calls are in the clear and callers are not authenticated, so no other machine may reach us."""
    with pytest.raises(ValueError, match="can be reached from other machines, and callers are not authenticated"):
        refuse_exposed(parse_addresses(text))


@pytest.mark.parametrize(
    "text",
    [
        "50051",
        "127.0.0.1",
        ":50051",
        "127.0.0.1:",
        "127.0.0.1:http",
        "127.0.0.1:-1",
        "127.0.0.1:65536",
        "127.0.0.1:1_000",
        "127.0.0.1:٣",
        "/run/kms.sock",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """A text without host or port is refused, and the message shows how to write it."""
    with pytest.raises(ValueError, match=r"is no address: write host:port, \[::1\]:port or unix:/path"):
        parse_addresses(text)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("unix:/run/kms.sock", "/run/kms.sock"),
        ("unix:///run/kms.sock", "/run/kms.sock"),
        ("unix:kms.sock", "kms.sock"),
        ("unix:/run/a b:c", "/run/a b:c"),
    ],
)
def test_unix_sockets(text: str, path: str) -> None:
    """A unix socket is written in either way that gRPC knows, and told in one."""
    assert (Address(f"unix:{path}", Path(path)),) == parse_addresses(text)


def test_the_length_of_a_socket_path() -> None:
    """A path has room for 107 bytes in the kernel's address, counted in bytes and not in characters."""
    longest = "/" + "x" * 106
    assert Path(longest) == unix(Path(longest)).socket_path
    for too_long in (longest + "x", "/" + "é" * 53 + "x", ""):
        with pytest.raises(ValueError, match="a unix socket needs a path of 1 to 107 bytes"):
            parse_addresses(f"unix:{too_long}")


def test_several_addresses() -> None:
    """Addresses are separated by commas, in their order; one is needed at least."""
    assert ["[::1]:1", "unix:/a", "127.0.0.1:2"] == [
        address.text for address in parse_addresses(" [::1]:1, unix:/a,,127.0.0.1:2 ,")
    ]
    for none in ("", " , "):
        with pytest.raises(ValueError, match="give at least one address"):
            parse_addresses(none)


def test_one_bad_address_refuses_all() -> None:
    """A list is not taken in part."""
    with pytest.raises(ValueError, match="can be reached"):
        refuse_exposed(parse_addresses("127.0.0.1:1,0.0.0.0:1"))


def test_a_free_path_is_claimed(folder: Path) -> None:
    """Claiming makes the folder for its owner alone, leaves the path free to bind, and takes the socket away after."""
    path = folder / "run" / "kms.sock"
    with claimed(unix(path)):
        assert 0o700 == stat.S_IMODE(path.parent.stat().st_mode)
        assert not path.exists()
        leave_stale_socket(path)
    assert not path.exists()


def test_the_socket_goes_when_the_daemon_fails(folder: Path) -> None:
    """An error while the daemon runs leaves no socket, and the path can be claimed again."""
    path = folder / "kms.sock"

    def fail() -> None:
        with claimed(unix(path)):
            leave_stale_socket(path)
            raise RuntimeError("defect")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="defect"):
            fail()
        assert not path.exists()


def test_a_stale_socket_is_removed(folder: Path) -> None:
    """A socket on which nobody answers is what a killed daemon left: it does not hinder the next one."""
    path = folder / "kms.sock"
    leave_stale_socket(path)
    assert path.is_socket()
    with claimed(unix(path)):
        assert not path.exists()


def test_a_live_socket_is_refused(folder: Path) -> None:
    """A socket on which somebody answers is left alone, even if its owner knows nothing of our lock."""
    path = folder / "kms.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(StartRefused, match=r"^something answers on .*/kms\.sock: stop it, or choose another"):
            with claimed(unix(path)):
                pytest.fail("it was claimed")
        assert path.is_socket()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_socket_of_another_kind_is_refused(folder: Path) -> None:
    """Whether a datagram socket is alive cannot be told by connecting a stream, so it is left alone."""
    path = folder / "kms.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        with pytest.raises(StartRefused, match=r"^something answers on"), claimed(unix(path)):
            pytest.fail("it was claimed")
        assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_socket_is_left_alone(folder: Path, kind: str) -> None:
    """A file or folder in the place of the socket is somebody's: it stays, and the daemon does not start."""
    path = folder / "kms.sock"
    if kind == "file":
        path.write_text("precious")
    else:
        path.mkdir()
    with pytest.raises(StartRefused, match="exists and is no socket: choose another"), claimed(unix(path)):
        pytest.fail("it was claimed")
    assert "precious" == path.read_text() if kind == "file" else path.is_dir()


def test_a_path_is_claimed_once(folder: Path) -> None:
    """While one daemon holds a path no other gets it, though its socket does not answer yet; after that one does."""
    path = folder / "kms.sock"
    with claimed(unix(path)):
        leave_stale_socket(path)
        with pytest.raises(StartRefused, match=r"^another daemon holds .*/kms\.sock: stop it first$"):
            with claimed(unix(path)):
                pytest.fail("it was claimed twice")
        assert path.is_socket()
    with claimed(unix(path)):
        assert not path.exists()


def test_paths_are_claimed_apart(folder: Path) -> None:
    """Two daemons with sockets of their own may share a folder."""
    with claimed(unix(folder / "a.sock")), claimed(unix(folder / "b.sock")):
        leave_stale_socket(folder / "a.sock")
    assert not (folder / "a.sock").exists()


def test_a_folder_that_cannot_be_made_is_refused(folder: Path) -> None:
    """A path below a file is told as a reason not to start, not as a defect."""
    (folder / "file").write_text("x")
    with pytest.raises(StartRefused, match="file"), claimed(unix(folder / "file" / "kms.sock")):
        pytest.fail("it was claimed")


def test_a_free_port_is_claimed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port needs no lock and no file; it stays free for the server to bind."""
    monkeypatch.chdir(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with claimed(Address(f"127.0.0.1:{port}")), socket.socket() as server:
        server.bind(("127.0.0.1", port))
    assert [] == os.listdir(folder)


@pytest.mark.parametrize("reuse", [False, True])
def test_a_taken_port_is_refused(reuse: bool) -> None:
    """A port on which somebody listens is refused, also if he would let others share it."""
    with socket.socket() as server:
        if reuse:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = Address(f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(StartRefused, match=rf"^cannot listen on {address} \(.+\): stop what holds it"):
            with claimed(address):
                pytest.fail("it was claimed")


def test_a_lock_is_exclusive(folder: Path) -> None:
    """A lock is held by one at a time, is told in the words of its holder, and is free again afterwards."""
    with exclusive(folder / "lock", "the store is in use"):
        assert 0o600 == stat.S_IMODE((folder / "lock").stat().st_mode)
        with pytest.raises(StartRefused, match=r"^the store is in use: stop it first$"):
            with exclusive(folder / "lock", "the store is in use"):
                pytest.fail("it was locked twice")
    with ExitStack() as held:
        held.enter_context(exclusive(folder / "lock", "x"))
        held.enter_context(exclusive(folder / "another lock", "x"))


def test_a_lock_goes_with_an_error() -> None:
    """A daemon that fails gives its lock back."""
    with tempfile.TemporaryDirectory() as path:
        lock = Path(path, "lock")
        with pytest.raises(RuntimeError, match="defect"), exclusive(lock, "x"):
            raise RuntimeError("defect")
        with exclusive(lock, "x"):
            assert Path(path).is_dir()


def test_a_lock_that_cannot_be_made_is_refused(folder: Path) -> None:
    """A lock file below a file is told as a reason not to start."""
    (folder / "file").write_text("x")
    with pytest.raises(StartRefused, match=r"/file/lock cannot be locked: "):
        with exclusive(folder / "file" / "lock", "x"):
            pytest.fail("it was locked")


@pytest.mark.parametrize(
    "text",
    ["::1:50051", "[127.0.0.1:50051", "]127.0.0.1[:1", "[localhost]:1", "[::1%lo]:1", "127.0.0.1:65536", "127.0.0.1:"],
)
def test_what_no_server_can_bind_is_refused(text: str) -> None:
    """IPv6 has brackets, and nothing else has; a port is a number up to 65,535."""
    with pytest.raises(ValueError, match=r"is no address|can be reached from other machines"):
        parse_addresses(text)


def reach(host: str, port: int) -> bool:
    """Tell whether a TCP connection can be made."""
    try:
        socket.create_connection((host, port), 5).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "ipv4", "ipv6"),
    [
        ("[::]:0", True, True),
        ("0.0.0.0:0", True, False),
        ("127.0.0.1:0", True, False),
        ("[::1]:0", False, True),
        ("[::ffff:127.0.0.1]:0", True, False),
    ],
)
def test_what_an_address_takes(text: str, ipv4: bool, ipv6: bool) -> None:
    """[::] takes both families, as operators expect; the others what they say."""
    (address,) = parse_host_ports(text)
    (listener,) = listen_on(address)
    with listener:
        port = listener.getsockname()[1]
        assert (ipv4, ipv6) == (reach("127.0.0.1", port), reach("::1", port))


def resolve(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Let every name have these IPv6 and IPv4 addresses."""
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda _host, port, **_: [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (host, port, 0, 0))
            if ":" in host
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))
            for host in hosts
        ],
    )


def test_a_name_with_two_addresses_has_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Port 0 is drawn once: whoever is given the port reaches the daemon by either address."""
    resolve(monkeypatch, "::1", "127.0.0.1")
    listeners = listen_on(Address("localhost:0"))
    ports = {listener.getsockname()[1] for listener in listeners}
    for listener in listeners:
        listener.close()
    assert (2, 1) == (len(listeners), len(ports))


def test_an_address_that_this_machine_lacks_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """/etc/hosts names ::1 also where IPv6 is off; without any address of its own, the start is refused."""
    resolve(monkeypatch, "2001:db8::1", "127.0.0.1")
    with claimed(Address("localhost:0")):
        (listener,) = listen_on(Address("localhost:0"))
        listener.close()
    resolve(monkeypatch, "2001:db8::1")
    with pytest.raises(StartRefused, match="cannot listen on localhost:0"), claimed(Address("localhost:0")):
        pass


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1:9464", [True]),
        ("127.0.0.1:9464, 10.0.0.7:9464", [True, False]),
        ("[::1]:9464,[fd00::7]:9464,localhost:0,", [True, False, True]),
        ("[127.0.0.1]:9464,[10.0.0.7]:9464", [True, False]),
        ("0.0.0.0:9464,[::]:9464,pod.example:9464", [False, False, False]),
    ],
)
def test_operators_addresses_are_loopback_or_not(text: str, loopback: list[bool]) -> None:
    """Several are separated by commas, and each serves what it is for; brackets suit both families."""
    assert loopback == [address.loopback for address in parse_host_ports(text)]


@pytest.mark.parametrize(
    "text", ["", ",", "127.0.0.1:9464,:9464", "127.0.0.1:9464,[]:9464", "10.0.0.7", "fd00::7:9464"]
)
def test_operators_addresses_that_are_none_are_refused(text: str) -> None:
    """A variable that was not set leaves no address behind, and is told."""
    with pytest.raises(ValueError, match=r"is no address: write host:port|give at least one address"):
        parse_host_ports(text)
