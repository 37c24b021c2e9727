"""Sets aside OTEL_* variables that the SDK cannot use.

The SDK's constructors raise for some values, its background threads end for others, and its log shows headers, which
may hold a token. Telemetry must not stop the daemon, so what is unusable is removed from the environment before the SDK
reads it, and the SDK's default holds. An empty value counts as unset, as the OpenTelemetry specification has it.
"""

import math
import re
from collections.abc import Callable, MutableMapping
from importlib.metadata import entry_points

import structlog

log = structlog.get_logger()

_DAY_SECONDS = 86_400.0
_DAY_MS = 1000 * _DAY_SECONDS
_MAX_LIMIT = 2**31 - 1
_MAX_QUEUE = 1_000_000
_DEFAULT_QUEUE, _DEFAULT_BATCH = 2048, 512
_SAMPLERS = ("always_on", "always_off", "traceidratio")

Check = Callable[[str], bool]


def _number(low: float, high: float) -> Check:
    def check(value: str) -> bool:
        try:
            number = float(value)
        except ValueError:
            return False
        return value.isascii() and "_" not in value and math.isfinite(number) and low <= number <= high

    return check


def _whole(low: int, high: int) -> Check:
    return lambda value: re.fullmatch(r"[0-9]{1,18}", value, re.ASCII) is not None and low <= int(value) <= high


def _one_of(*values: str) -> Check:
    return lambda value: value.lower() in values


def _are_resource_detectors(value: str) -> bool:
    known = {"*", *(point.name for point in entry_points(group="opentelemetry_resource_detector"))}
    return {name.strip() for name in value.split(",")} <= known


_SIGNAL = r"(?:_TRACES|_METRICS)?"
_CHECKS: tuple[tuple[re.Pattern[str], Check], ...] = tuple(
    (re.compile(pattern), check)
    for pattern, check in (
        (rf"OTEL_EXPORTER_OTLP{_SIGNAL}_TIMEOUT", _number(0.001, _DAY_SECONDS)),
        (rf"OTEL_EXPORTER_OTLP{_SIGNAL}_COMPRESSION", _one_of("gzip", "deflate")),
        (rf"OTEL_EXPORTER_OTLP{_SIGNAL}_PROTOCOL", _one_of("grpc", "http/protobuf")),
        (rf"OTEL_EXPORTER_OTLP{_SIGNAL}_INSECURE", _one_of("true", "false")),
        (r"OTEL_METRIC_EXPORT_(?:INTERVAL|TIMEOUT)", _number(1, _DAY_MS)),
        (r"OTEL_BSP_(?:SCHEDULE_DELAY|EXPORT_TIMEOUT)", _whole(1, int(_DAY_MS))),
        (r"OTEL_BSP_MAX_(?:QUEUE|EXPORT_BATCH)_SIZE", _whole(1, _MAX_QUEUE)),
        (r"OTEL_(?:[A-Z]+_)*(?:COUNT|LENGTH)_LIMIT", _whole(0, _MAX_LIMIT)),
        (r"OTEL_TRACES_SAMPLER", _one_of(*_SAMPLERS, *(f"parentbased_{name}" for name in _SAMPLERS))),
        (r"OTEL_TRACES_SAMPLER_ARG", _number(0, 1)),
        (r"OTEL_METRICS_EXEMPLAR_FILTER", _one_of("always_on", "always_off", "trace_based")),
        (r"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", _one_of("cumulative", "delta", "lowmemory")),
        (
            r"OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
            _one_of("explicit_bucket_histogram", "base2_exponential_bucket_histogram"),
        ),
        (r"OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", _are_resource_detectors),
        (r"OTEL_(?:SDK_DISABLED|PYTHON_SDK_INTERNAL_METRICS_ENABLED)", _one_of("true", "false")),
    )
)


def set_aside_unusable(environ: MutableMapping[str, str]) -> None:
    """Remove each OTEL_* variable that the SDK could not use, with a warning that names it and its value.

    The variables that are checked hold no secret. A second call finds nothing more to warn about.
    """
    for name in sorted(name for name in environ if name.startswith("OTEL_")):
        value = environ[name].strip()
        if not value or (name.endswith("_COMPRESSION") and value.lower() == "none"):
            del environ[name]
            continue
        if any(pattern.fullmatch(name) and not check(value) for pattern, check in _CHECKS):
            del environ[name]
            log.warning(f"{name} is {value!r}, which cannot be used: the default holds")  # noqa: G004
    _fit_batch(environ)
    if environ.pop("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        # The SDK would also leave nothing to scrape: the switch is for what is sent.
        environ["OTEL_TRACES_EXPORTER"] = environ["OTEL_METRICS_EXPORTER"] = "none"


def _fit_batch(environ: MutableMapping[str, str]) -> None:
    """A batch may not be larger than the queue, and the SDK's default of one of them may be the larger."""
    queue = int(environ.get("OTEL_BSP_MAX_QUEUE_SIZE", _DEFAULT_QUEUE))
    batch = int(environ.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", _DEFAULT_BATCH))
    if batch > queue:
        environ["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"] = str(queue)
        log.warning("OTEL_BSP_MAX_EXPORT_BATCH_SIZE is more than OTEL_BSP_MAX_QUEUE_SIZE: batches are as large as that")
