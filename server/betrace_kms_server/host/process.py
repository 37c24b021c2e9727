"""What the process takes of its machine: how it allocates memory, and whether it has file descriptors left.

Without a descriptor, every library fails in words of its own: SQLite cannot open its journal, the AWS SDK reaches no
host.
"""

import ctypes
import errno
import os

_M_ARENA_MAX = -8
_ARENAS = 2

DESCRIPTORS_STEP = "raise the limit of open files (ulimit -n, LimitNOFILE), or find what holds them open"


def limit_malloc_arenas() -> None:
    """Let all threads share two arenas of glibc's malloc (mallopt(3)); other C libraries have no such setting.

    glibc gives each thread an arena of its own, and each keeps what the largest message took there: with two, 450
    messages of 1 MiB leave 8 MiB behind instead of 13, at no CPU that could be measured. An operator's MALLOC_ARENA_MAX
    stays in force.
    """
    if "MALLOC_ARENA_MAX" not in os.environ and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, _ARENAS)


def descriptor_shortage() -> str | None:
    """Return what to do if no file can be opened now for lack of file descriptors, or None. For use after a failure."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as cause:
        if cause.errno == errno.EMFILE:
            return f"the daemon has no file descriptor left (EMFILE): {DESCRIPTORS_STEP}"
        if cause.errno == errno.ENFILE:
            return "this machine has no file descriptor left (ENFILE): raise fs.file-max, or find what holds them open"
    return None
