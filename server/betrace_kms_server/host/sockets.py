"""Where the daemon listens: loopback addresses and unix sockets, and no one else's.

Without TLS calls are in the clear, so an address that other machines reach is refused. Two
daemons must not share one: a TCP port is not reused (grpc would, by SO_REUSEPORT), and a unix socket on which somebody
answers is left alone (grpc would unlink it).
"""

import errno
import ipaddress
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.host.socket_permissions import OWNER_ONLY, Permissions, make_folder, parse_permissions

_SOCKET_PATH_BYTES = 107
"""Longest path that sockaddr_un takes on Linux (unix(7)), its final zero byte aside."""


_HOST_PORT = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[^\[\]:]+)):(?P<port>[0-9]{1,5})", re.ASCII)
_MAX_PORT = 65_535
_BACKLOG = 128
_NOT_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
"""An address that a name has, and this machine has not."""


@dataclass(frozen=True, slots=True)
class Address:
    """A host and port, or the path of a unix socket. `text` is how gRPC writes it."""

    text: str
    socket_path: Path | None = None
    permissions: Permissions = OWNER_ONLY
    """Of the unix socket."""
    loopback: bool = True
    """Only this machine reaches it."""

    def __str__(self) -> str:
        return f"{self.text}{self.permissions}"


def parse_addresses(value: object) -> tuple[Address, ...]:
    """Parse addresses that are separated by commas. Raises ValueError that says what to fix."""
    addresses = tuple(_parse(part.strip()) for part in str(value).split(",") if part.strip())
    if not addresses:
        raise ValueError("give at least one address, such as 127.0.0.1:50051 or unix:/run/betrace-kms/kms.sock")
    return addresses


def parse_host_ports(value: object) -> tuple[Address, ...]:
    """Parse TCP addresses that are separated by commas, which other machines may reach. Raises ValueError.

    An IPv4 address may be in brackets: whoever writes `[$(POD_IP)]:9464` does not know its family.
    """
    addresses = tuple(_host_port(part.strip()) for part in str(value).split(",") if part.strip())
    if not addresses:
        raise ValueError("give at least one address, such as 127.0.0.1:9464")
    return addresses


def _host_port(text: str) -> Address:
    parts = _HOST_PORT.fullmatch(text)
    if parts is None or int(parts["port"]) > _MAX_PORT:
        raise ValueError(f"{text!r} is no address: write host:port or [::1]:port")
    host = parts["ipv6"] or parts["name"]
    return Address(text, loopback=host == "localhost" or is_loopback(host))


def is_loopback(text: str) -> bool:
    """Return whether a text is an IP address that only this machine reaches, ::ffff:127.0.0.1 among them."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback  # [::] shows its IPv4 peers as ::ffff:127.0.0.1


def _parse(text: str) -> Address:
    if text.startswith("unix:"):
        path, *options = text.removeprefix("unix:").removeprefix("//").split(";")
        if not path or len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
            raise ValueError(f"a unix socket needs a path of 1 to {_SOCKET_PATH_BYTES} bytes")
        return Address(f"unix:{path}", Path(path), parse_permissions(options))
    parts = _HOST_PORT.fullmatch(text)
    if parts is None or int(parts["port"]) > _MAX_PORT:
        raise ValueError(f"{text!r} is no address: write host:port, [::1]:port or unix:/path")
    return Address(text, loopback=_is_loopback(parts["name"] or "", parts["ipv6"]))


def refuse_exposed(addresses: Sequence[Address]) -> None:
    """Raise ValueError if other machines reach one of the addresses."""
    for address in addresses:
        if not address.loopback:
            raise ValueError(
                f"{address.text!r} can be reached from other machines, and callers are not authenticated: use"
                " 127.0.0.1, [::1] or unix:/path, or mutual TLS (kms.server.tls.cert-file, .key-file, .client-ca-file)"
            )


def _is_loopback(name: str, ipv6: str | None) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.IPv6Address(ipv6).is_loopback if ipv6 else ipaddress.IPv4Address(name).is_loopback
    except ValueError:
        return False


def admin_socket(data_dir: Path) -> Address:
    """Return the address of the admin service. Raises StartRefused if its path would be too long for a socket."""
    path = data_dir / "admin.sock"
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        raise StartRefused(
            f"{path} is too long for a unix socket ({_SOCKET_PATH_BYTES} bytes): choose a shorter kms.data-dir"
        )
    return Address(f"unix:{path}", path)


@contextmanager
def claimed(address: Address) -> Iterator[None]:
    """Hold a unix socket's path for this process while it lives; make sure that a TCP port is free.

    Raises StartRefused if another daemon has it. Removes a socket that no one answers on, and nothing else.
    """
    path = address.socket_path
    if path is None:
        _refuse_taken(address)
        yield
        return
    make_folder(path, address.permissions)
    with exclusive(path.with_name(path.name + ".lock"), f"another daemon holds {path}"):
        if path.is_socket():
            if _answers(path):
                raise StartRefused(f"something answers on {path}: stop it, or choose another kms.server.listen")
            path.unlink()
        elif path.exists():
            raise StartRefused(f"{path} exists and is no socket: choose another kms.server.listen")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def exclusive(lock_file: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file. Raises StartRefused with `refusal` if another process holds it."""
    lock = FileLock(lock_file, mode=0o600)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise StartRefused(f"{refusal}: stop it first") from None
    except OSError as cause:
        raise StartRefused(f"{lock_file} cannot be locked: {cause.strerror}") from cause
    try:
        yield
    finally:
        lock.release()


def listen_on(address: Address) -> list[socket.socket]:
    """Return sockets that listen on a TCP address, all on one port. Raises OSError.

    `[::]` takes IPv4 as well, as operators expect of it. A name such as localhost stands for all its addresses that
    this machine has: where IPv6 is off, /etc/hosts often names ::1 nevertheless.
    """
    host, _, text = address.text.rpartition(":")
    port, bound = int(text), list[socket.socket]()
    missing: OSError | None = None
    try:
        for family, kind, _, _, name in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
            try:
                bound.append(_bound(family, kind, (name[0], port, *name[2:])))
            except OSError as cause:
                if cause.errno not in _NOT_HERE:
                    raise
                missing = cause
            else:
                port = bound[-1].getsockname()[1]
        if missing is not None and not bound:
            raise missing
    except OSError:
        for listener in bound:
            listener.close()
        raise
    return bound


def _bound(family: int, kind: int, name: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(name)
        listener.setblocking(False)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _refuse_taken(address: Address) -> None:
    """Try to listen first: gRPC would say why it cannot only in a log of its own."""
    try:
        for listener in listen_on(address):
            listener.close()
    except OSError as cause:
        raise StartRefused(
            f"cannot listen on {address} ({cause.strerror}): stop what holds it, or choose another kms.server.listen"
        ) from cause


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True
