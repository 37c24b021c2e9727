"""Token buckets: how often something may be done, on average and at once; and one of them for each tenant."""

from collections import OrderedDict
from collections.abc import Callable

MAX_TENANTS = 10_000
"""Buckets that are kept. The least recently used go first: one that was not used for a while is full again."""


class TokenBucket:
    """Fills at `per_second`, up to `burst` tokens. `clock` is monotonic, in seconds."""

    __slots__ = ("_at", "_burst", "_clock", "_per_second", "_tokens")

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float]) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._tokens, self._at = burst, clock()

    def delay(self, tokens: int = 1) -> float:
        """Return in how many seconds so many tokens may be taken. For more than `burst`, the bucket must be full."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        return max(0.0, (min(tokens, self._burst) - self._tokens) / self._per_second)

    def take(self, tokens: int = 1) -> None:
        """Take tokens, on credit if there are not enough: whoever comes next waits for those too."""
        self._tokens -= tokens


class TenantBuckets:
    """A bucket for each tenant, at most `MAX_TENANTS` of them."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float]) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, tenant: str) -> TokenBucket:
        """Return the tenant's bucket, a full one if there is none."""
        bucket = self._buckets.get(tenant)
        if bucket is None:
            bucket = self._buckets[tenant] = TokenBucket(self._per_second, self._burst, self._clock)
            if len(self._buckets) > MAX_TENANTS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(tenant)
        return bucket
