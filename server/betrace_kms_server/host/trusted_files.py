"""Files that others must not read, change or exchange, checked on what was opened and not on its name.

A folder that others can write lets them exchange any file in it, unless it is sticky, as /tmp is (unlink(2)): then only
the owners of file and folder can.
"""

import os
import stat
from pathlib import Path

_MAX_BYTES = 1024 * 1024


class Untrusted(Exception):
    """A file or folder that is missing or not guarded as it must be; the text says what to fix."""


Signature = tuple[int, ...]
"""Changes whenever a file's content, place, owner or mode does."""


def check_folder(folder: Path) -> None:
    """Raise Untrusted if others than this user and root can exchange the files of a folder."""
    try:
        status = folder.stat()
    except OSError as cause:
        raise Untrusted(f"folder {folder} cannot be read: {cause.strerror}") from cause
    if status.st_uid not in (0, os.geteuid()):
        raise Untrusted(f"folder {folder} belongs to user {status.st_uid}: use one of the daemon's user or of root")
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        raise Untrusted(
            f"folder {folder} can be written by others (mode {stat.S_IMODE(status.st_mode):04o}): run chmod go-w on it,"
            " or use a folder of its own, which the daemon makes if it is missing"
        )


def read_trusted(path: Path, *, readers: int, follow: bool) -> tuple[bytes, Signature]:
    """Return a file's content, at most 1 MiB, and its signature. Raises Untrusted.

    `readers` are the mode bits that may be set beside the owner's. A symbolic link is refused unless `follow`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    except OSError as cause:
        if path.is_symlink() and not follow:
            raise Untrusted(f"{path} is a symbolic link: name the file itself") from cause
        raise Untrusted(f"{path} cannot be read: {cause.strerror}") from cause
    try:
        status = os.fstat(descriptor)
        _check(path, status, readers)
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(_MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > _MAX_BYTES:
        raise Untrusted(f"{path} is larger than 1 MiB: is it the right file?")
    return content, _signature_of(status)


def signature(path: Path, *, follow: bool) -> Signature | None:
    """Return a file's signature, or None if it cannot be had."""
    try:
        return _signature_of(os.stat(path, follow_symlinks=follow))
    except OSError:
        return None


def _signature_of(status: os.stat_result) -> Signature:
    return (
        status.st_dev,
        status.st_ino,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_size,
        status.st_mode,
        status.st_uid,
        status.st_gid,
    )


def _check(path: Path, status: os.stat_result, readers: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Untrusted(f"{path} is no regular file")
    if status.st_uid not in (0, os.geteuid()):
        raise Untrusted(f"{path} belongs to user {status.st_uid}: give it to the daemon's user or to root")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077 & ~readers:
        raise Untrusted(f"{path} is open to others (mode {mode:04o}): run chmod {0o600 | readers:o} on it")
