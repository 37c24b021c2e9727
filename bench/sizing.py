"""What a million signed spans a second would take: the table `million` of docs/performance.md, from measured CPU.

A microsecond of CPU for each span is one core at a million spans a second. What KMS and DynamoDB are asked follows from
the daemon's defaults, for tenants whose spans come to every pod: a signing key is unwrapped again at 75 % of its hour,
and a tenant's generation is read each minute.
"""

from collections.abc import Mapping, Sequence
from math import ceil

from betrace_kms_server.cache.key_cache import REFRESH_AT
from betrace_kms_server.operations.pricing import CALL_DOLLARS, SECONDS_PER_MONTH

from bench.records import Record

TENANTS = 10_000
USED = 0.7
"""Share of a core that a pod may use: the rest is for bursts and for pods that are away."""
_WAYS = {
    "SignSpan": "`SignSpan`, one span a call",
    "SignSpans": "`SignSpans` of 100",
    "SignSpans, proofs": "the same, proofs",
}
_KEY_SECONDS, _GENERATION_SECONDS = REFRESH_AT * 3600, 60
_READ_DOLLARS = 0.125 / 1e6
"""A read request unit of DynamoDB on demand, us-east-1 (https://aws.amazon.com/dynamodb/pricing/on-demand/)."""
HEAD = (
    "way",
    "CPU of a span, us",
    "cores",
    "pods",
    "KMS calls a second",
    "dollars a month",
    "DynamoDB reads a second",
    "dollars a month",
)


def rows(base: Mapping[str, Record]) -> Sequence[Sequence[str]]:
    """Return a row for each way to sign, by the records of their base points."""
    found = []
    for row, way in _WAYS.items():
        cpu = base[row].server_cpu_us if row in base else None
        if cpu is None:
            continue
        pods = ceil(cpu / USED)
        calls, reads = (pods * TENANTS / seconds for seconds in (_KEY_SECONDS, _GENERATION_SECONDS))
        dollars = [rate * price * SECONDS_PER_MONTH for rate, price in ((calls, CALL_DOLLARS), (reads, _READ_DOLLARS))]
        figures = (f"{cpu:.1f}", f"{cpu:.0f}", f"{pods:,}", f"{calls:,.0f}", f"{dollars[0]:,.0f}", f"{reads:,.0f}")
        found.append([way, *figures, f"{dollars[1]:,.0f}"])
    return found
