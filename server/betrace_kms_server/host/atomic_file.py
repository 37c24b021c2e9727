"""Makes a file whole or not at all, and never over one that is there: for files that no one could make again."""

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
    descriptor, name = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        with suppress(FileExistsError):  # another daemon was faster: its file is the one
            os.link(temporary, path)
    finally:
        temporary.unlink()
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
