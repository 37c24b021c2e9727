"""How often one data key may be used.

AES-GCM under one data key is bounded (NIST SP 800-38D, section 8.3), and so is what one leaked key would open. Counting
and using happen without an await in between, so the bound is exact however many callers there are.
"""

SOFT = 0.9
"""Share of the budget after which the successor is fetched in the background, so that no one waits at the limit."""


class Budget:
    """Counts the uses of one key. `limit` None means that only time ends it."""

    __slots__ = ("_limit", "_soft", "_spent")

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._soft = None if limit is None else int(limit * SOFT)
        self._spent = 0

    def spend(self) -> bool:
        """Take one use. Returns False if there is none left."""
        if self._limit is not None and self._spent >= self._limit:
            return False
        self._spent += 1
        return True

    @property
    def just_ran_low(self) -> bool:
        """True after the one use that reaches the soft limit."""
        return self._spent == self._soft
