"""Makes a file whole or not at all: never over one that is there, where no one could make it again, or in its place."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_create(path: Path) -> Iterator[Path]:
    """Give a new file (0600) beside `path` to fill; on leaving it becomes `path`, durably, unless that exists by then.

    Raises OSError as the file system does; then `path` is as it was.
    """
    with _durable(path) as temporary:
        yield temporary
        _sync(temporary)
        with suppress(FileExistsError):  # another daemon was faster: its file is the one
            os.link(temporary, path)


@contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """Give a new file (0600) beside `path` to fill; on leaving it replaces `path`, durably.

    Raises OSError as the file system does; then `path` is as it was.
    """
    with _durable(path) as temporary:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)


@contextmanager
def _durable(path: Path) -> Iterator[Path]:
    """Give a file beside `path`, which is removed on leaving if it is still there, and sync the folder."""
    descriptor, name = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
