"""The identity of a caller: from its connection or from the credentials of its call, never from its request.

A name is chosen by the operator (a socket's or a token's) or taken from a certificate that the operator's authority
signed. The sorts cannot be confused: a certificate's name has `://` or `=` in it, and a configured name has neither.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import grpc

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
"""A name that an operator may give."""
RESERVED = frozenset({"admin", "daemon"})
"""Names in audit lines: who calls the admin socket, and the daemon's own work."""

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. `name` is empty if the caller is not authenticated."""

    name: str
    how: Literal["socket", "token", "certificate", "none"]
    revision: int = 0
    """Of the set of credentials that it was found in: another one after each reload."""


ANONYMOUS = Caller("", "none")


class Authenticator(Protocol):
    """Finds out who calls on the connections of one server."""

    def identify(self, context: Context) -> Caller:
        """Return the caller. Raises Unauthenticated if credentials are needed, and are missing or wrong."""


class SameCaller:
    """Everybody who reaches the server is one caller: the owner of a unix socket's permissions, or nobody known."""

    def __init__(self, caller: Caller = ANONYMOUS) -> None:
        self._caller = caller

    def identify(self, context: Context) -> Caller:
        """Return the caller."""
        return self._caller
