"""Groups of the operating system, by number or name."""

import grp
import re

_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_MAX_ID = 2**32 - 2
"""(gid_t)-1 means "leave it" to chown(2)."""


def group_id(text: str) -> int:
    """Return the number of a group. Raises ValueError that says what to fix."""
    if _NUMBER.fullmatch(text):
        if int(text) > _MAX_ID:
            raise ValueError(f"group {text} is no group number: give 0 to {_MAX_ID}")
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        raise ValueError(f"there is no group {text!r} on this machine: give its number, or make it") from None
