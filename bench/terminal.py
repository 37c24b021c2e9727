"""The table on the terminal: one line for each measurement, as it is made."""

from collections.abc import Mapping
from typing import Any

from bench.records import Record

HEAD = (
    f"{'row':20}{'':6}{'in fl.':>7}{'bytes':>9}{'batch':>6}{'tenants':>8}  {'variant':13}{'side':>6}"
    f"{'CPU us':>10}{'quartiles':>16}{'ratio':>7}{'quartiles':>12}{'a second':>10}{'p50 ms':>9}{'p99 ms':>9}{'MiB':>6}"
)


def described(machine: Mapping[str, Any]) -> str:
    """Return the machine in one line."""
    return ", ".join(f"{name} {value}" for name, value in machine.items())


def row(record: Record) -> str:
    """Return the line of a measurement. CPU, ratio and rate are those of an item."""
    case = record.case
    notes = f"  repeated {record.repeated}" if record.repeated else ""
    if record.p99_ratio and not record.ratio:
        notes += f"  p99 ratio {record.p99_ratio:.2f}"
    return (
        f"{case.row:20}{case.transport:6}{case.concurrency:7}{case.payload:9}{case.batch:6}{case.tenants:8}"
        f"  {case.variant:13}{record.side:>6}{number(record.server_cpu_us):>10}{spread(record.quartiles):>16}"
        f"{number(record.ratio, 2):>7}{spread(record.ratio_quartiles, 2):>12}{number(record.per_second, 0):>10}"
        f"{number(record.p50_ms, 2):>9}{number(record.p99_ms, 2):>9}"
        f"{number(record.rss_kib and record.rss_kib / 1024, 0):>6}{notes}"
    )


def number(value: float | None, digits: int = 1) -> str:
    """Return a number, or nothing for what was not measured."""
    return "" if value is None else f"{value:.{digits}f}"


def spread(values: tuple[float, float] | None, digits: int = 1) -> str:
    """Return a pair of quartiles."""
    return "" if values is None else f"{values[0]:.{digits}f}-{values[1]:.{digits}f}"
