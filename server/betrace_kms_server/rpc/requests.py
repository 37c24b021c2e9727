"""Reads requests. What cannot be read reaches the handler as `Unread`: gRPC would answer with the exception's text."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from betrace_kms_server.core.errors import InvalidRequest, KmsError
from betrace_kms_server.rpc.wire import check_of


@dataclass(frozen=True, slots=True)
class Unread:
    """Stands for a request that was not parsed."""

    problem: str
    error: type[KmsError] = InvalidRequest


_MALFORMED = Unread("the request is no valid message of this call: check fields and UTF-8 texts")


def reader(deserialize: Callable[[bytes], Any] | None, method: str) -> Callable[[bytes], Any]:
    """Return what checks and parses the requests of a method. It never raises."""
    check = check_of(method)

    def read(wire: bytes) -> Any:
        try:
            if check is not None:
                check(wire)
            return deserialize(wire) if deserialize else wire
        except InvalidRequest as refusal:
            return Unread(refusal.message)
        except Exception:  # noqa: BLE001  # Unreadable, DecodeError, and whatever else a caller's bytes can provoke
            return _MALFORMED

    return read


def unread(wire: bytes) -> Unread:
    """Read nothing, for a request that will be refused and may be large."""
    return _MALFORMED
