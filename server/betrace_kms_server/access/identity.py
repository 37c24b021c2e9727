"""The identity of a caller: from its connection or from the credentials of its call, never from its request.

A name is chosen by the operator, for a socket or a token (core/identities.py), or is that of a certificate which the
operator's authority signed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import grpc

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. `name` is empty if the caller is not authenticated."""

    name: str
    how: Literal["socket", "token", "certificate", "none"]
    revision: int = 0
    """Of the set of credentials that it was found in: another one after each reload."""


ANONYMOUS = Caller("", "none")


class Recognised:
    """A caller that was identified before, and `handlers` of calls that were made ready for it, by the call's name.

    Belongs to one server, as its handlers do.
    """

    __slots__ = ("caller", "handlers")

    def __init__(self, caller: Caller | None) -> None:
        self.caller = caller
        self.handlers: dict[str, Any] = {}


class Authenticator(Protocol):
    """Finds out who calls on the connections of one server."""

    @property
    def by_connection(self) -> bool:
        """Whether `identify` may find a caller that was not recognised. If not, its request is not even parsed."""

    def recognised(self, metadata: Iterable[Any]) -> Recognised | None:
        """Return a caller that the call's metadata, or nothing but the server itself, is enough to identify.

        None means that `identify` decides. This is for every call, so it must be fast.
        """

    def identify(self, context: Context) -> Caller:
        """Return a caller that was not recognised. Raises Unauthenticated if its credentials are missing or wrong."""


class SameCaller:
    """Everybody who reaches the server is one caller: the owner of a unix socket's permissions, or unknown."""

    by_connection = False

    def __init__(self, caller: Caller = ANONYMOUS) -> None:
        self._recognised = Recognised(caller)
        self._caller = caller

    def recognised(self, metadata: Iterable[Any]) -> Recognised | None:
        """Return the caller."""
        return self._recognised

    def identify(self, context: Context) -> Caller:
        """Return the caller."""
        return self._caller
