"""How often one data key may be used.

AES-GCM under one data key is bounded (NIST SP 800-38D, section 8.3), and so is what one leaked key would open. Counting
and using happen without an await in between, so the bound is exact however many callers there are.
"""

SOFT = 0.9
"""Share of the budget after which the successor is fetched in the background, so that no one waits at the limit."""


class Budget:
    """Counts the uses of one key. `limit` None means that only time ends it."""

    __slots__ = ("_limit", "_soft", "_spent", "just_ran_low")

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._soft = None if limit is None else int(limit * SOFT)
        self._spent = 0
        self.just_ran_low = False
        """True after the uses that reached the soft limit."""

    def spend(self, uses: int = 1) -> int:
        """Take so many uses, or what is left of them. Returns how many were taken."""
        before, limit, soft = self._spent, self._limit, self._soft
        if limit is not None:
            uses = min(uses, limit - before)
        self._spent = after = before + uses
        self.just_ran_low = soft is not None and before < soft <= after
        return uses
