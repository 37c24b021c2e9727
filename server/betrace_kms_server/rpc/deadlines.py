"""How long a caller waits, and why a call ended that has no answer."""

from typing import Any

import grpc

_ROUNDING = 0.01
"""gRPC rounds a timeout up on the wire, by this share at most: so much earlier than ours is the caller's deadline."""


class Deadline:
    """The deadline of one call, as it was when the call arrived."""

    __slots__ = ("_context", "_seconds")

    def __init__(self, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        self._context = context
        self._seconds: float | None = context.time_remaining()

    @property
    def was_over(self) -> bool:
        """Whether the call's time was over when it arrived: it waited in gRPC, or for the event loop."""
        return self._seconds is not None and self._seconds <= 0

    def status(self) -> str:
        """Return the status of a call that ends now because no one waits for its answer any more."""
        if self._seconds is None:
            return "CANCELLED"
        left: float = self._context.time_remaining() or 0.0
        return "DEADLINE_EXCEEDED" if left <= self._seconds * _ROUNDING else "CANCELLED"
