"""What SQLite raises, as one sentence that says what to do next.

Only two result codes mean that the file is damaged (https://www.sqlite.org/rescode.html). Whatever else keeps SQLite
from reading or writing may pass, and a backup in place of an intact file would lose keys.
"""

import errno
import sqlite3
from collections.abc import Mapping

from betrace_kms_server.host.process import descriptor_shortage

_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_NEXT_STEP: Mapping[str, str] = {
    "SQLITE_FULL": "its volume is full: make room on it",
    "SQLITE_BUSY": "another process holds its file: end that process",
    "SQLITE_LOCKED": "another process holds its file: end that process",
    "SQLITE_READONLY": "its file or volume is read-only: make it writable",
    "SQLITE_PERM": "the daemon's user may not access its file: check its owner and mode",
    "SQLITE_NOMEM": "memory is exhausted: raise the memory limit of the daemon",
    "SQLITE_IOERR": "its volume reports an I/O error: check the volume and the kernel's log, and try again before you"
    " restore anything",
    "SQLITE_CANTOPEN": "its file or a file beside it cannot be opened: check that its volume is there and writable",
}
_OPEN_FILES = "the limit of open files is reached: raise it (ulimit -n, or LimitNOFILE of the service)"
_OF_ERRNO: Mapping[int, str] = {
    errno.EMFILE: _OPEN_FILES,
    errno.ENFILE: _OPEN_FILES,
    errno.ENOSPC: _NEXT_STEP["SQLITE_FULL"],
    errno.EDQUOT: _NEXT_STEP["SQLITE_FULL"],
    errno.EROFS: _NEXT_STEP["SQLITE_READONLY"],
    errno.EIO: _NEXT_STEP["SQLITE_IOERR"],
    errno.EACCES: _NEXT_STEP["SQLITE_PERM"],
    errno.EPERM: _NEXT_STEP["SQLITE_PERM"],
}
_OTHERWISE = "check that its volume is there, writable and not full"


def is_damage(cause: BaseException) -> bool:
    """Return whether the file itself is not what SQLite wrote.

    SQLite also calls a page damaged that cannot be read (vdbe.c makes SQLITE_IOERR_CORRUPTFS SQLITE_CORRUPT). Where a
    definition of a table is damaged, the message about it may be no UTF-8: then Python raises that instead.
    """
    return isinstance(cause, UnicodeDecodeError) or _name(cause).startswith(_DAMAGE)


def explained(cause: BaseException) -> str:
    """Return what is wrong and what to do, with SQLite's name of the condition, for a cause that is no damage."""
    name = _name(cause)
    if isinstance(cause, OSError) and cause.errno is not None:
        step = _OF_ERRNO.get(cause.errno, _OTHERWISE)
    elif name.startswith(("SQLITE_CANTOPEN", "SQLITE_IOERR")) and descriptor_shortage():
        step = _OPEN_FILES
    else:
        step = _NEXT_STEP.get("_".join(name.split("_")[:2]), _OTHERWISE)
    return f"({name}) {step}"


def _name(cause: BaseException) -> str:
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorname", type(cause).__name__)
    if isinstance(cause, OSError) and cause.errno is not None:
        return errno.errorcode.get(cause.errno, type(cause).__name__)
    return type(cause).__name__
