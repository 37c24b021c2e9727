"""A file that appears whole or not at all, readable by its owner only."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_OPEN_FILES = Path("/proc/self/fd")


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file (0600) that takes the place of `path` when all is in it and on the disk.

    It may be the file that is being read. If the block fails nothing is left; nor is anything of a process that was
    killed, where the file system has files without names (O_TMPFILE, open(2)).
    """
    beside = path.parent / f".{path.name[:200]}.{secrets.token_hex(8)}"
    descriptor = _unnamed(path.parent)
    if descriptor is None:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:200]}.", dir=path.parent)
        beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not beside.exists():
                # Given a descriptor, which an absolute path does not need, Python calls linkat, which follows the link.
                os.link(_OPEN_FILES / str(file.fileno()), beside, src_dir_fd=file.fileno(), follow_symlinks=True)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _unnamed(folder: Path) -> int | None:
    if not hasattr(os, "O_TMPFILE") or not _OPEN_FILES.is_dir():
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError:  # this file system has none, or the folder cannot be written, which mkstemp says
        return None
