"""Shares: which tenant gives way when a cache is full, so that one with many contexts does not evict all others.

A tenant with more than a quarter of a cache is heavy, of which there are three at most, so each step takes constant
time. While a heavy tenant is there, its own least recently used keys go first. A hit costs nothing here: what was used
since its turn came is found out when it is to be evicted, and gets another turn.
"""

from collections.abc import Callable, Hashable, Iterable
from itertools import islice
from typing import Any

Key = tuple[Any, ...]
_TENANT = 2

HEAVY_PARTS = 4
"""A tenant is heavy with more than one of so many equal parts of a cache."""
_CONSIDERED = 64
"""How many keys are considered for one that is to be evicted."""


class Shares:
    """The keys of each tenant in a cache of `max_size`."""

    def __init__(self, max_size: int) -> None:
        self._heavy_from = max(2, max_size // HEAVY_PARTS + 1)
        self._tenants: dict[Hashable, dict[Key, float]] = {}
        self._heavy: set[Hashable] = set()

    def add(self, key: Key, now: float) -> None:
        """Note that a key came into the cache, or was replaced."""
        keys = self._tenants.setdefault(key[_TENANT], {})
        keys.pop(key, None)
        keys[key] = now
        if len(keys) >= self._heavy_from:
            self._heavy.add(key[_TENANT])

    def remove(self, key: Key) -> None:
        """Note that a key left the cache."""
        keys = self._tenants[key[_TENANT]]
        del keys[key]
        if len(keys) < self._heavy_from:
            self._heavy.discard(key[_TENANT])
        if not keys:
            del self._tenants[key[_TENANT]]

    def victim(self, by_use: Iterable[Key], used_at: Callable[[Key], float]) -> Key:
        """Return the key to evict, given all keys, the least recently used first, and when each was used last."""
        oldest = next(iter(by_use))
        if not self._heavy or len(self._tenants) == 1:
            return oldest
        tenant = max(self._heavy, key=lambda heavy: len(self._tenants[heavy]))
        found = next((key for key in islice(by_use, _CONSIDERED) if key[_TENANT] == tenant), None)
        if found is not None:
            return found
        keys = self._tenants[tenant]
        for _ in range(_CONSIDERED):
            key = next(iter(keys))
            if used_at(key) <= keys[key]:
                return key
            del keys[key]
            keys[key] = used_at(key)
        return next(iter(keys))
