"""Checks whether a folder dies with the pod. Wrapped signing keys must not: they cannot be made again."""

import re
from pathlib import Path

_EPHEMERAL_TYPES = {"tmpfs", "ramfs", "overlay", "aufs"}
_EMPTY_DIR = "kubernetes.io~empty-dir"
_MOUNTS = Path("/proc/self/mountinfo")


_ESCAPE = re.compile(r"\\([0-7]{3})")


def _unescaped(escape: re.Match[str]) -> str:
    """Return the character that the kernel wrote as octal digits: a blank, tab, newline or backslash."""
    return chr(int(escape[1], 8))


def ephemeral_kind(folder: Path, mounts: Path = _MOUNTS) -> str | None:
    """Return what makes a folder ephemeral ("tmpfs", "overlay", "emptyDir" ..), or None if nothing is known to.

    Reads the kernel's mount table (proc_pid_mountinfo(5)); where there is none, nothing is known.
    """
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    target, best, kind = folder.resolve(), -1, None
    for line in lines:
        fields, _, rest = line.partition(" - ")
        root, mount_point = (_ESCAPE.sub(_unescaped, text) for text in fields.split(" ")[3:5])
        if target.is_relative_to(mount_point) and len(mount_point) >= best:
            filesystem = rest.split()[0]
            best = len(mount_point)
            kind = "emptyDir" if _EMPTY_DIR in root else filesystem if filesystem in _EPHEMERAL_TYPES else None
    return kind
