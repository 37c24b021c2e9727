"""What the process takes of its machine and shows to it: memory, file descriptors, core dumps, privileges.

Without a descriptor, every library fails in words of its own: SQLite cannot open its journal, the AWS SDK reaches no
host.
"""

import ctypes
import errno
import os
import resource
from contextlib import suppress

from betrace_kms_server.core.errors import StartRefused

_MALLOC = (  # malloc.h: M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    ("MALLOC_ARENA_MAX", -8, 2),
    ("MALLOC_MMAP_THRESHOLD_", -3, 8 * 1024 * 1024),
    ("MALLOC_TRIM_THRESHOLD_", -1, 32 * 1024 * 1024),
)
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38

DESCRIPTORS_STEP = "raise the limit of open files (ulimit -n, LimitNOFILE), or find what holds them open"
ROOT = "the daemon runs as root, and needs no privilege: run it as a user of its own (runAsNonRoot, User=)"


def harden() -> None:
    """Keep the process's memory and files from others, before any key is there.

    No core dump; neither /proc/PID/mem nor a debugger for processes of the same user (PR_SET_DUMPABLE 0); no privilege
    by an executable (PR_SET_NO_NEW_PRIVS); what it makes is for its own user (umask 077). Raises StartRefused where the
    kernel refuses.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    set_dumpable(False)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def raise_open_files() -> None:
    """Let the process have as many open files as it may have without privileges."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS refuses more than its own limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def set_dumpable(dumpable: bool) -> None:
    """Let processes of the same user read this one's memory, or do not. Core dumps stay off."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable))


def runs_as_root() -> bool:
    """Return whether the process has the rights of root."""
    return os.geteuid() == 0


def _prctl(option: int, value: int) -> None:
    """Call prctl(2) where there is one: Linux."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl") and libc.prctl(option, value, 0, 0, 0):
        raise StartRefused(f"prctl({option}, {value}) failed: {os.strerror(ctypes.get_errno())}")


def tune_malloc() -> None:
    """Let glibc's malloc keep for the next large message what the last one took (mallopt(3)).

    By default it gives large blocks back to the kernel, which then has to zero them again page by page: an Encrypt of
    1 MiB took three times as long, with 1,340 page faults. So an arena keeps up to 32 MiB at its end, which is what a
    call of 4 MiB takes; and all threads share two arenas, because each keeps its own. A variable of the environment
    that sets one of these stays in force. Other C libraries have no such settings.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or "GLIBC_TUNABLES" in os.environ:
        return
    for variable, option, value in _MALLOC:
        if variable not in os.environ:
            libc.mallopt(option, value)


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
