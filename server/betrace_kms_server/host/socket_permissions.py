"""Who may connect to a unix socket: its mode and its group, and the name that those who may are known by.

connect(2) needs write permission on the socket. Another than its owner gets it by the group alone, never by the mode's
last digit: everybody on the machine would be one caller.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.core.identities import check_identity
from betrace_kms_server.host.groups import group_id
from betrace_kms_server.host.trusted_files import Untrusted, check_folder

_OWNER = 0o600
_MODES = {"600": 0o600, "660": 0o660}


@dataclass(frozen=True, slots=True)
class Permissions:
    """Of a unix socket. `identity` names its callers, or is empty if they are not distinguished from others."""

    identity: str = ""
    mode: int = _OWNER
    group: int | None = None

    def __str__(self) -> str:
        parts = [f";identity={self.identity}"] if self.identity else []
        parts += [f";mode={self.mode:04o}"] if self.mode != _OWNER else []
        parts += [f";group={self.group}"] if self.group is not None else []
        return "".join(parts)

    @property
    def folder_mode(self) -> int:
        """The mode of a folder that is made for the socket."""
        return 0o700 if self.group is None else 0o710


OWNER_ONLY = Permissions()


def parse_permissions(options: Sequence[str]) -> Permissions:
    """Parse `identity=NAME`, `mode=0660` and `group=GID`. Raises ValueError that says what to fix."""
    found: dict[str, str] = {}
    for option in options:
        name, separator, value = option.strip().partition("=")
        if not separator or name not in ("identity", "mode", "group"):
            raise ValueError(f"{option!r} is no option of a unix socket: write ;identity=NAME;mode=0660;group=GID")
        if name in found:
            raise ValueError(f"{name} is given twice for one unix socket: remove one")
        found[name] = value.strip()
    mode = _MODES.get(found.get("mode", "600").removeprefix("0"))
    if mode is None:
        raise ValueError(f"mode {found['mode']} of a unix socket must be 0600 or 0660: others connect by the group")
    if "group" in found and mode == _OWNER:
        raise ValueError("a group of a unix socket needs ;mode=0660: with 0600 it may not connect")
    return Permissions(
        check_identity(found["identity"]) if "identity" in found else "",
        mode,
        group_id(found["group"]) if "group" in found else None,
    )


def make_folder(path: Path, permissions: Permissions) -> None:
    """Make the folder of a socket if it is missing. Raises StartRefused if others could exchange the socket."""
    folder = path.parent
    if not folder.exists():
        try:
            folder.mkdir(mode=0o700, parents=True)
            if permissions.group is not None:
                _give(folder, permissions.group, permissions.folder_mode)
        except OSError as cause:
            raise StartRefused(f"the folder of {path} cannot be made: {cause.strerror}") from cause
    if permissions != OWNER_ONLY:
        try:
            check_folder(folder)
        except Untrusted as cause:
            raise StartRefused(f"cannot listen on {path}: {cause}") from None


@contextmanager
def owner_only() -> Iterator[None]:
    """Let files and sockets that are made in this context be their owner's alone."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def apply_permissions(path: Path, permissions: Permissions) -> None:
    """Give a socket, made in `owner_only`, its group and then its mode. Raises StartRefused."""
    try:
        if permissions.group is not None:
            _give(path, permissions.group, permissions.mode)
        else:
            path.chmod(permissions.mode)
    except PermissionError as cause:
        raise StartRefused(
            f"{path} cannot be given to group {permissions.group}: add the daemon's user to that group, or choose"
            " another one in kms.server.listen"
        ) from cause


def _give(path: Path, group: int, mode: int) -> None:
    os.chown(path, -1, group, follow_symlinks=False)
    path.chmod(mode)
