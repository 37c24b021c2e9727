"""The file descriptors of this process, also when it may open no more of them.

Who opens connections until there is no descriptor left must not keep the daemon from closing those connections: listing
a folder and duplicating a socket take a descriptor each. So two are held ready from the start on. One is the place for
a duplicate; the other is what stands there the rest of the time.
"""

import errno
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

DESCRIPTORS = "/dev/fd"


class SpareDescriptor:
    """A place for one duplicate, to be used when no other descriptor is left. Close it at the end."""

    def __init__(self) -> None:
        self._idle = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._place = os.dup(self._idle)

    def __enter__(self) -> "SpareDescriptor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._place)
        os.close(self._idle)

    @contextmanager
    def duplicate(self, descriptor: int) -> Iterator[int]:
        """Give a duplicate of a descriptor, which must not be closed. One at a time. Raises OSError if it is closed."""
        os.dup2(descriptor, self._place, inheritable=False)
        try:
            yield self._place
        finally:
            os.dup2(self._idle, self._place, inheritable=False)


def open_descriptors() -> Sequence[int]:
    """Return the descriptors that are open. If no more may be opened, these are all below the limit.

    Some of them may be closed by the time that they are used. Raises OSError if the folder cannot be read.
    """
    try:
        return [int(name) for name in os.listdir(DESCRIPTORS)]
    except OSError as cause:
        if cause.errno != errno.EMFILE:
            raise
        return range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
