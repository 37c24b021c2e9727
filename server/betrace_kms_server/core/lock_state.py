"""The emergency stop as the key store keeps it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LockState:
    """An emergency stop that is in force."""

    reason: str
    """What the operator wrote; for operators, never for callers."""
    time_ms: int
    """When it was set, in milliseconds since the Unix epoch."""
