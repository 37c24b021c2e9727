"""The daemon's figures in one place: metrics publish them, and the status report shows them."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from betrace_kms_server.audit.trail import AuditTrail
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.cache.key_caches import KeyCaches
from betrace_kms_server.core.histogram import Histogram
from betrace_kms_server.core.lock_state import LockState
from betrace_kms_server.operations.emergency_stop import EmergencyStop
from betrace_kms_server.operations.monitor import KmsMonitor
from betrace_kms_server.operations.pricing import SECONDS_PER_MONTH, monthly_dollars
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.signing_keys.rotation import Rotation

_SAVING = ("encryption", "signing", "branch")
"""Kinds of keys that KMS would be asked for; public keys come from the key store."""
_WINDOW_SECONDS = 60.0
"""Rates are over a minute at least, so that the calls of the start do not count for a month's."""


class CallStats:
    """Calls by name and outcome, and how long they took in seconds."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.failures: Counter[str] = Counter()
        self.latencies: defaultdict[str, Histogram] = defaultdict(Histogram)

    def observe(self, name: str, outcome: str, seconds: float, reason: str = "OK") -> None:
        """Count a call that is over. `reason` says why it failed, where the outcome is a status."""
        self.counts[name, outcome] += 1
        if reason != "OK":
            self.failures[reason] += 1
        self.latencies[name].observe(seconds)

    def by_name(self) -> dict[str, dict[str, int]]:
        """Return name -> outcome -> number of calls."""
        table: dict[str, dict[str, int]] = {}
        for (name, outcome), count in sorted(self.counts.items()):
            table.setdefault(name, {})[outcome] = count
        return table


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that can be counted. Reading it costs something; counting does not."""

    monitor: KmsMonitor
    caches: KeyCaches
    retrievals: Histogram
    rpcs: CallStats
    kms_calls: CallStats
    audit: AuditTrail | None
    rotation: Rotation
    provider: KeyProvider
    stop: EmergencyStop
    in_flight: Callable[[], int]
    """How many calls have no answer yet."""
    pending_shreds: Callable[[], int] = lambda: 0
    """How many tenants wait for their shredding."""
    failing_shreds: Callable[[], int] = lambda: 0
    """What of it failed when it was last tried."""
    clock: Callable[[], float] = time.monotonic
    started_at: float = field(default_factory=time.monotonic)
    left: dict[str, int] = field(default_factory=dict)
    """How many keys of a kind former master keys still wrap, where that was looked up."""

    def hit_rate(self) -> float | None:
        """Return the share of lookups of data and signing keys that a cache answered, or None without any."""
        return _rate(self._hits(), self._lookups())

    def calls_saved(self) -> int:
        """Return how many calls to KMS the caches made unnecessary."""
        return self._hits()

    def seconds_until_degraded(self) -> float | None:
        """Return how long the keys in use last if KMS vanished now, or None if none is in use."""
        left = [seconds for cache in self._saving() if (seconds := cache.warm_seconds()) is not None]
        return min(left) if left else None

    def monthly_dollars(self) -> tuple[float, float]:
        """Return what KMS costs in a month at the rate since the start, with the cache and without."""
        uptime = max(self._uptime(), _WINDOW_SECONDS)
        with_cache = self.kms_calls.counts.total() / uptime
        return monthly_dollars(with_cache), monthly_dollars(with_cache + self.calls_saved() / uptime)

    def status(self, *, store: str, serving: bool) -> dict[str, Any]:
        """Return the report of GetStatus. Members are added with every version, and never change their meaning."""
        state, now = self.monitor.state, self.clock()
        with_cache, without_cache = self.monthly_dollars()
        uptime = max(self._uptime(), _WINDOW_SECONDS)
        return {
            "provider": self.provider.name,
            "version": version("betrace-kms"),
            "uptime_seconds": round(self._uptime(), 1),
            "serving": serving,
            "kms": {
                "usable": state.usable,
                "error": state.problem or None,
                "latency_ms": None if state.latency_ms is None else round(state.latency_ms, 2),
                "checked_seconds_ago": None if state.checked_at is None else round(now - state.checked_at, 1),
                "master_key": self.provider.master_key_arn,
                "region": self.provider.serving_region,
                "breakers": dict(self.provider.breakers),
            },
            "caches": [_cache(cache) for cache in self.caches],
            "hit_rate": self.hit_rate(),
            "seconds_until_degraded": self.seconds_until_degraded(),
            "kms_calls": self.kms_calls.by_name(),
            "rpcs": self.rpcs.by_name(),
            "cost": {
                "requests_per_second": self._lookups() / uptime,
                "hit_rate": self.hit_rate(),
                "kms_calls_per_month": round(self.kms_calls.counts.total() / uptime * SECONDS_PER_MONTH),
                "with_cache_dollars": round(with_cache, 2),
                "without_cache_dollars": round(without_cache, 2),
            },
            "store": {"kind": store},
            "lock": None if self.stop.state is None else _lock(self.stop.state),
            "former_master_keys": {"configured": list(self.provider.decrypt_key_arns[1:]), "left": dict(self.left)},
            "shredding": {"pending": self.pending_shreds(), "failing": self.failing_shreds()},
            "rotation": {"last_run": self.rotation.last_run, "failures": self.rotation.failures},
            "audit": None if self.audit is None else _audit(self.audit),
        }

    def _saving(self) -> Sequence[KeyCache]:
        return [cache for cache in self.caches if cache.kind in _SAVING]

    def _hits(self) -> int:
        return sum(cache.hits for cache in self._saving())

    def _lookups(self) -> int:
        return self._hits() + sum(cache.misses for cache in self._saving())

    def _uptime(self) -> float:
        return self.clock() - self.started_at


def _rate(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _cache(cache: KeyCache) -> Mapping[str, Any]:
    return {
        "key_type": cache.kind,
        "size": len(cache),
        "max_size": cache.max_size,
        "ttl_seconds": cache.ttl,
        "hits": cache.hits,
        "misses": cache.misses,
        "hit_rate": _rate(cache.hits, cache.hits + cache.misses),
        "evictions": cache.evictions,
    }


def _lock(lock: LockState) -> Mapping[str, Any]:
    return {"reason": lock.reason, "since": lock.time_ms / 1000}


def _audit(audit: AuditTrail) -> Mapping[str, Any]:
    return {
        "file": audit.file,
        "required": audit.required,
        "sequence": audit.sequence,
        "head": audit.head,
        "written": audit.written,
        "lost": audit.lost,
        "error": audit.problem,
    }
