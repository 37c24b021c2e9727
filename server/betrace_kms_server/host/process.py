"""What this process may still do: whether it has file descriptors left.

Without one, every library fails in words of its own: SQLite cannot open its journal, the AWS SDK reaches no host.
"""

import errno
import os

DESCRIPTORS_STEP = "raise the limit of open files (ulimit -n, LimitNOFILE), or find what holds them open"


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
