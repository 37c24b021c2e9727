"""Checks at start that no one else can read or replace what the daemon stands on. Changes no mode and no owner.

Root is trusted: it reads everything anyway. A volume that root gave to one of the process's groups is trusted as well:
a folder of that group, as Kubernetes makes it of an fsGroup (2770, 2775, or 2777 for an emptyDir; files become 0660).
Which containers see such a volume is decided by its mounts, not by modes.
"""

import os
import stat
from pathlib import Path

from betrace_kms_server.core.errors import StartRefused

_OTHERS = 0o077
_ROOT = 0


def check_folder(folder: Path) -> None:
    """Raise StartRefused for a folder, or a link to one, in which other users than this and root can do anything."""
    _check_owner(folder, folder.lstat())
    state = folder.stat()
    _check_owner(folder, state)
    open_to = state.st_mode & _OTHERS
    if _is_group_volume(state):
        open_to = 0 if state.st_uid == _ROOT and state.st_mode & stat.S_ISGID else state.st_mode & 0o007
    if open_to:
        raise StartRefused(f"{folder} is open to others ({_mode(state)}): run chmod 700 on it")


def check_file(file: Path, *, may_be_link: bool = False) -> None:
    """Raise StartRefused for a file that other users than this and root can read, write or replace by a link.

    What is not there, and what is no regular file, such as a pipe, passes.
    """
    try:
        link, state = file.lstat(), file.stat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(link.st_mode) and not may_be_link:
        raise StartRefused(f"{file} is a symbolic link: put the file itself there")
    if not stat.S_ISREG(state.st_mode):
        return
    _check_owner(file, link)
    _check_owner(file, state)
    folder = file.resolve().parent.stat()
    shared = _is_group_volume(folder) and folder.st_gid == state.st_gid
    if state.st_mode & (0o007 if shared else _OTHERS):
        raise StartRefused(f"{file} is open to others ({_mode(state)}): run chmod 600 on it")


def _check_owner(path: Path, state: os.stat_result) -> None:
    if state.st_uid not in (os.geteuid(), _ROOT):
        raise StartRefused(
            f"{path} belongs to another user (uid {state.st_uid}): run chown {os.geteuid()} on it, or choose another"
            " path"
        )


def _is_group_volume(state: os.stat_result) -> bool:
    """Return whether a folder was given to one of this process's groups: by its setgid bit, or by root."""
    given = bool(state.st_mode & stat.S_ISGID) or state.st_uid == _ROOT != os.geteuid()
    return given and state.st_gid in {os.getegid(), *os.getgroups()}


def _mode(state: os.stat_result) -> str:
    return f"mode {stat.S_IMODE(state.st_mode):04o}"
