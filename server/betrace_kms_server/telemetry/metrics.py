"""Metrics by OpenTelemetry's SDK: scraped in the Prometheus text format, and pushed by OTLP if OTEL_* variables say so.

Whatever is hot bumps plain integers, and the instruments here read them when somebody collects. OpenTelemetry has no
histogram that is observed that way, so the readers are handed finished histograms beside what the instruments gave.
No label holds a tenant id.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from betrace_kms_server.core.histogram import Histogram
from betrace_kms_server.operations.monitor import UNKNOWN
from betrace_kms_server.telemetry.figures import Figures

_STATES = {"closed": 0, "open": 1, "half_open": 2}
_KEY_STATES = (
    *("Enabled", "Disabled", "PendingDeletion", "PendingImport", "PendingReplicaDeletion", "Unavailable"),
    *("NotFound", UNKNOWN),
)
"""States of a master key that have a series each; any other is shown as unknown."""
Labelled = Iterable[tuple[Mapping[str, str], float]]


class _Histograms:
    """The histograms of a daemon, as the SDK's data."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._start = time.time_ns()

    def added_to(self, data: MetricsData) -> MetricsData:
        """Return the data with the histograms in its first scope."""
        resource, *resources = data.resource_metrics
        scope, *scopes = resource.scope_metrics
        scope = replace(scope, metrics=[*scope.metrics, *self._metrics()])
        return replace(data, resource_metrics=[replace(resource, scope_metrics=[scope, *scopes]), *resources])

    def _metrics(self) -> Iterable[Metric]:
        figures = self._figures
        yield self._metric(
            "kms_retrieve_signing_key", "Time to get a key that signs, from the cache or not.", {"": figures.retrievals}
        )
        yield self._metric("kms_rpc_duration", "Time to answer a gRPC call.", figures.rpcs.latencies, label="method")
        yield self._metric(
            "kms_call_duration",
            "Time of a call to KMS, its retries included.",
            figures.kms_calls.latencies,
            "operation",
        )

    def _metric(self, name: str, text: str, histograms: Mapping[str, Histogram], label: str = "") -> Metric:
        points = [
            HistogramDataPoint(
                attributes={label: value} if label else {},
                start_time_unix_nano=self._start,
                time_unix_nano=time.time_ns(),
                count=sum(counts := list(histogram.counts)),
                sum=histogram.sum,
                bucket_counts=counts,
                explicit_bounds=histogram.bounds,
                min=None,  # type: ignore[arg-type]  # optional in OTLP, and not known here
                max=None,  # type: ignore[arg-type]
            )
            for value, histogram in list(histograms.items())
        ]
        return Metric(name, text, "s", HistogramData(points, AggregationTemporality.CUMULATIVE))


class _ScrapedReader(PrometheusMetricReader):
    def __init__(self, histograms: _Histograms, registry: CollectorRegistry) -> None:
        self._histograms = histograms
        super().__init__(disable_target_info=True, scope_info_enabled=False, registry=registry)

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        super()._receive_metrics(self._histograms.added_to(metrics_data), timeout_millis, **kwargs)


class _PushingReader(PeriodicExportingMetricReader):
    def __init__(self, histograms: _Histograms, exporter: MetricExporter) -> None:
        self._histograms = histograms
        super().__init__(exporter)

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        super()._receive_metrics(self._histograms.added_to(metrics_data), timeout_millis, **kwargs)


class Metrics:
    """Publishes figures: scraped by `text`, and pushed to `exporter` if there is one."""

    def __init__(self, figures: Figures, resource: Resource, exporter: MetricExporter | None = None) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        histograms = _Histograms(figures)
        readers: list[MetricReader] = [_ScrapedReader(histograms, self._registry)]
        if exporter is not None:
            readers.append(_PushingReader(histograms, exporter))
        self._provider = MeterProvider(metric_readers=readers, resource=resource, shutdown_on_exit=False)
        self._describe(figures)

    def text(self) -> tuple[bytes, str]:
        """Return all metrics in the Prometheus text format 0.0.4, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def shutdown(self) -> None:
        """Push what is left, and stop. May take as long as the exporter does."""
        self._provider.shutdown()

    def _describe(self, figures: Figures) -> None:
        meter = self._provider.get_meter("betrace-kms")

        def callback(read: Callable[[], Labelled]) -> list[Callable[[CallbackOptions], Iterable[Observation]]]:
            return [lambda _options: [Observation(value, labels) for labels, value in read()]]

        def counter(name: str, text: str, read: Callable[[], Labelled]) -> None:
            meter.create_observable_counter(name, callback(read), description=text)

        def gauge(name: str, text: str, read: Callable[[], Labelled]) -> None:
            meter.create_observable_gauge(name, callback(read), description=text)

        def by_cache(read: Callable[[Any], float]) -> Callable[[], Labelled]:
            return lambda: [({"key_type": cache.kind}, read(cache)) for cache in figures.caches]

        counter("kms_cache_hit", "Lookups that the key cache answered.", by_cache(lambda cache: cache.hits))
        counter("kms_cache_miss", "Lookups that had to wait for a load.", by_cache(lambda cache: cache.misses))
        gauge("kms_cache_entries", "Keys in the cache.", by_cache(len))
        gauge("kms_cache_max_entries", "Keys that the cache may hold.", by_cache(lambda cache: cache.max_size))
        counter(
            "kms_cache_evictions",
            "Keys that left the cache, by cause.",
            lambda: [
                ({"key_type": cache.kind, "cause": cause}, count)
                for cache in figures.caches
                for cause, count in cache.evictions.items()
            ],
        )
        counter(
            "kms_retrieve_signing_key",
            "Times that a key that signs was asked for.",
            lambda: [({}, figures.retrievals.count)],
        )
        gauge("kms_rpc_in_flight", "gRPC calls that have no answer yet.", lambda: [({}, figures.in_flight())])
        counter(
            "kms_rpc_requests",
            "gRPC calls, by method and status.",
            lambda: _rows(figures.rpcs.counts, "method", "status"),
        )
        counter(
            "kms_rpc_failures",
            "gRPC calls that failed, by reason.",
            lambda: [({"reason": reason}, count) for reason, count in sorted(figures.rpcs.failures.items())],
        )
        counter(
            "kms_calls",
            "Calls to KMS, by action and outcome: OK, or the reason of the error.",
            lambda: _rows(figures.kms_calls.counts, "operation", "outcome"),
        )
        counter(
            "kms_errors",
            "Calls to KMS that failed, by action and reason.",
            lambda: [
                (labels, count)
                for labels, count in _rows(figures.kms_calls.counts, "operation", "reason")
                if labels["reason"] != "OK"
            ],
        )
        counter("kms_calls_saved", "Calls to KMS that the cache saved.", lambda: [({}, figures.calls_saved())])
        gauge(
            "kms_up",
            "1 if the last check of the master key was good.",
            lambda: [({}, int(figures.monitor.state.usable))],
        )
        gauge(
            "kms_master_key_state",
            "1 for the state of the master key at its last check, 0 for the others.",
            lambda: _key_state(figures.monitor.state.key_state),
        )
        gauge(
            "kms_locked",
            "1 while an emergency stop is in force.",
            lambda: [({}, int(figures.stop.state is not None))],
        )
        gauge(
            "kms_shreddings_pending",
            "Tenants that wait for their shredding, or are being shredded.",
            lambda: [({}, figures.pending_shreds())],
        )
        gauge(
            "kms_shreddings_failing",
            "Shreddings that failed when they were last tried.",
            lambda: [({}, figures.failing_shreds())],
        )
        gauge(
            "kms_seconds_until_degraded",
            "How long the keys in use last if KMS vanished now.",
            lambda: [] if (left := figures.seconds_until_degraded()) is None else [({}, left)],
        )
        gauge(
            "kms_estimated_monthly_cost_dollars",
            "What KMS costs in a month at the rate since the start, at the prices of us-east-1.",
            lambda: [
                ({"cache": cache}, dollars)
                for cache, dollars in zip(("with", "without"), figures.monthly_dollars(), strict=True)
            ],
        )
        gauge(
            "circuit_breaker_state",
            "The circuit breaker of a region of KMS: 0 closed, 1 open, 2 half open.",
            lambda: [
                ({"name": f"kms-{region}"}, _STATES[state]) for region, state in figures.provider.breakers.items()
            ],
        )
        counter(
            "kms_budget_refusals",
            "Calls to KMS that were not made because a budget was used up, the tenant's or the daemon's.",
            lambda: [
                ({"budget": scope}, count) for scope, count in getattr(figures.provider, "budget_refusals", {}).items()
            ],
        )
        counter(
            "kms_credential_attempts",
            "Attempts to obtain the daemon's own AWS credentials, by how they ended.",
            lambda: [({"outcome": outcome}, count) for outcome, count in figures.provider.credential_attempts.items()],
        )
        gauge(
            "kms_serving_region",
            "1 for the region of KMS that answered last.",
            lambda: [
                ({"region": region}, int(region == figures.provider.serving_region))
                for region in figures.provider.breakers
            ],
        )
        rotation = figures.rotation
        counter("kms_rotation_failures", "Signing keys that could not be rotated.", lambda: [({}, rotation.failures)])
        gauge(
            "kms_last_rotation_timestamp_seconds",
            "When the last run of the rotation without a failure was over.",
            lambda: [] if rotation.last_run is None else [({}, rotation.last_run)],
        )
        if (audit := figures.audit) is not None:
            counter(
                "kms_audit_lines",
                "Lines of the audit trail, by what became of them.",
                lambda: [({"result": "written"}, audit.written), ({"result": "lost"}, audit.lost)],
            )
            gauge("kms_audit_failing", "1 if the audit trail cannot be written.", lambda: [({}, int(audit.failing))])


def _rows(counts: Mapping[tuple[str, str], int], *labels: str) -> Labelled:
    return [(dict(zip(labels, names, strict=True)), count) for names, count in list(counts.items())]


def _key_state(now: str) -> Labelled:
    shown = now if now in _KEY_STATES else UNKNOWN
    return [({"state": state}, int(state == shown)) for state in _KEY_STATES]
