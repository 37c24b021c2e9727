"""What a benchmark found, as JSON lines: one line for the machine, then one for each measurement.

Everything that compares, plots or writes tables reads these lines, whoever measured: this daemon, the empty echo of the
same sizes, or a peer. A measurement says what was done (`Case`), who did it (`side`), and what it cost. Ratios are made
here too, from rounds in which both sides took their turn, so that a machine that slows down slows both.
"""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured: two measurements with equal cases and sides can be compared."""

    row: str
    """The RPC, or another name of what is done: `SignSpan`, `EncryptBatch`, `start`."""
    transport: str = "tcp"
    """tcp or unix; empty where there is no connection."""
    concurrency: int = 16
    """Calls in flight at once, on one connection."""
    payload: int = 0
    """Bytes of one item: plaintext, message, or serialized span."""
    batch: int = 1
    """Items in one call."""
    tenants: int = 1
    """Tenants whose calls take turns."""
    variant: str = ""
    """What differs from a daemon with default settings: `audit`, `audit, token`; empty if nothing does."""


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement of one side. Fields that were not measured are None, and are not written."""

    case: Case
    side: str
    """ours, echo, bao, pyca, aws-encryption-sdk, kms."""
    rounds: int
    server_cpu_us: float | None = None
    """Microseconds of server CPU for each item, all threads: the median of the rounds."""
    quartiles: tuple[float, float] | None = None
    """Lower and upper quartile of the same."""
    ratio: float | None = None
    """Median over the rounds of this side's server CPU divided by that of `ratio_to` in the same round."""
    ratio_quartiles: tuple[float, float] | None = None
    ratio_to: str | None = None
    per_second: float | None = None
    """Items a second: the median of the rounds."""
    p50_ms: float | None = None
    """Milliseconds of a call, from the moment it may be sent to the end of its answer: median over all rounds."""
    p99_ms: float | None = None
    p99_ratio: float | None = None
    """Median over the rounds of this side's p99 divided by that of `ratio_to`."""
    rss_kib: int | None = None
    """Resident memory of the server when the rounds were over."""
    repeated: int | None = None
    """Turns that were dropped and made again because a call in them was refused, if there were any."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """What one side did in each round; the lists of two sides that took turns belong together by index."""

    cpu_us: Sequence[float] = ()
    per_second: Sequence[float] = ()
    p99_ms: Sequence[float] = ()
    latencies_ms: Sequence[float] = ()
    """Of all calls of all rounds."""
    repeated: int = 0
    """Turns that were dropped and made again, because a call in them was refused."""


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the lower and upper quartile; of a single value, that value twice."""
    if len(values) < 2:
        return values[0], values[0]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of all values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1)]


def ratios(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratio of each round."""
    return [one / other for one, other in zip(mine, theirs, strict=True)]


def summary(
    case: Case,
    side: str,
    rounds: Rounds,
    base: Rounds | None = None,
    base_side: str = "echo",
    rss_kib: int | None = None,
) -> Record:
    """Return the record of one side; with `base`, which took its turn in each round too, also the ratios to it."""
    cpu, latencies = rounds.cpu_us, rounds.latencies_ms
    against = ratios(cpu, base.cpu_us) if base and cpu and base.cpu_us else None
    tails = ratios(rounds.p99_ms, base.p99_ms) if base and rounds.p99_ms and base.p99_ms else None
    return Record(
        case=case,
        side=side,
        rounds=max(len(cpu), len(rounds.per_second), len(rounds.p99_ms)),
        server_cpu_us=statistics.median(cpu) if cpu else None,
        quartiles=quartiles(cpu) if cpu else None,
        ratio=statistics.median(against) if against else None,
        ratio_quartiles=quartiles(against) if against else None,
        ratio_to=base_side if against or tails else None,
        per_second=statistics.median(rounds.per_second) if rounds.per_second else None,
        p50_ms=percentile(latencies, 0.5) if latencies else None,
        p99_ms=percentile(latencies, 0.99) if latencies else None,
        p99_ratio=statistics.median(tails) if tails else None,
        rss_kib=rss_kib,
        repeated=rounds.repeated or None,
    )


def machine() -> dict[str, Any]:
    """Describe the machine and the versions that decide about speed, without its name."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "machine": {
            "cpu": cpu,
            "cores": len(_lines_starting("/proc/cpuinfo", "processor")) or None,
            "memory_mib": memory // 1024,
            "kernel": platform.release(),
            "python": platform.python_version(),
            "grpcio": version("grpcio"),
            "protobuf": version("protobuf"),
            "cryptography": version("cryptography"),
            "uvloop": version("uvloop"),
            "libc": " ".join(platform.libc_ver()),
            "commit": _commit(),
            "load_average": round(os.getloadavg()[0], 1),
        }
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _lines_starting(path: str, start: str) -> list[str]:
    return [line for line in _lines(path) if line.startswith(start)]


def _commit() -> str:
    """Return the commit that was measured, with a plus sign if files differ from it; empty without git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def line(record: Record) -> str:
    """Return a record as one line of JSON: the case's fields first, numbers to four significant digits."""
    flat = asdict(record)
    case = flat.pop("case")
    row = {"row": case.pop("row"), "side": flat.pop("side"), **case, **flat}
    return json.dumps({name: _short(value) for name, value in row.items() if value is not None})


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return [_short(each) for each in value] if isinstance(value, (list, tuple)) else value


def write(path: Path, described: dict[str, Any], records: Iterable[Record]) -> None:
    """Write the machine and its records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([json.dumps(described), *(line(record) for record in records)]) + "\n")


def read(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """Return what `write` wrote: the machine, and the records. Raises ValueError for anything else."""
    first, *rest = path.read_text().splitlines() or [""]
    try:
        described = json.loads(first)["machine"]
        return described, [_record(json.loads(each)) for each in rest]
    except (KeyError, TypeError, json.JSONDecodeError) as cause:
        raise ValueError(f"{path} does not hold measurements of bench/records.py: {cause}") from cause


def _record(row: dict[str, Any]) -> Record:
    case = {each.name: row.pop(each.name) for each in fields(Case)}
    for name in ("quartiles", "ratio_quartiles"):
        if name in row:
            lower, upper = row[name]
            row[name] = (lower, upper)
    return Record(case=Case(**case), **row)
