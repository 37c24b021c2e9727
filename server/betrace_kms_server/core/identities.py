"""Names that an operator gives to callers: those of sockets and of tokens.

The name of a certificate has `://` or `=` in it, so that none is like a name from here.
"""

import re

RESERVED = frozenset({"admin", "daemon"})
"""Names in audit lines: who calls the admin socket, and the daemon's own work."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)


def check_identity(name: str) -> str:
    """Return the name of a caller. Raises ValueError that says what to fix."""
    if _NAME.fullmatch(name) is None:
        raise ValueError("an identity has 1 to 63 of A-Za-z0-9._- and begins with a letter or digit")
    if name.lower() in RESERVED:
        raise ValueError(f"identity {name} is the daemon's own: choose another name")
    return name
