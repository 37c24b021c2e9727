"""`betrace-kms serve` without the counters of calls, which have no switch: the baseline of bench/telemetry.py."""

from typing import Any

from betrace_kms_client.cli import main
from betrace_kms_server.core.histogram import Histogram
from betrace_kms_server.telemetry.observers import CallObserver


def _nothing(*_args: Any, **_kwargs: Any) -> None: ...


if __name__ == "__main__":
    CallObserver.admit = _nothing  # type: ignore[method-assign]
    CallObserver.end = _nothing  # type: ignore[method-assign]
    Histogram.observe = _nothing  # type: ignore[method-assign]
    main()
