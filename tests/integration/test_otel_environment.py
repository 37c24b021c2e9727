"""Odd OTEL_* values before the real SDK: the daemon starts, can be scraped, stops in time, and says what it ignored."""

import os
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from betrace_kms_server.core.histogram import Histogram
from betrace_kms_server.telemetry import export
from betrace_kms_server.telemetry.figures import CallStats

from tests.collector import Collector, collecting
from tests.daemon import running, spawned

SECRET = "s3cret-token"
NUMBERS = ("", " ", "0", "-1", "many", "10s", "1.5", "1_0", "nan", "inf", "1e400", "99999999999999999999", "٥")  # noqa: RUF001
LIMITS = [
    *(f"OTEL_{of}ATTRIBUTE_{what}_LIMIT" for of in ("", "SPAN_") for what in ("COUNT", "VALUE_LENGTH")),
    *(f"OTEL_SPAN_{what}_COUNT_LIMIT" for what in ("EVENT", "LINK")),
    *(f"OTEL_{what}_ATTRIBUTE_COUNT_LIMIT" for what in ("EVENT", "LINK")),
]
ODD: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        [
            *(f"OTEL_EXPORTER_OTLP{signal}_TIMEOUT" for signal in ("", "_TRACES", "_METRICS")),
            *(f"OTEL_BSP_{what}" for what in ("SCHEDULE_DELAY", "EXPORT_TIMEOUT")),
            *(f"OTEL_BSP_MAX_{what}_SIZE" for what in ("QUEUE", "EXPORT_BATCH")),
            *(f"OTEL_METRIC_EXPORT_{what}" for what in ("INTERVAL", "TIMEOUT")),
            *LIMITS,
        ],
        NUMBERS,
    ),
    **dict.fromkeys(
        [f"OTEL_EXPORTER_OTLP{signal}_COMPRESSION" for signal in ("", "_TRACES", "_METRICS")],
        ("", "none", "NONE", "brotli", "deflate", " gzip ", "true"),
    ),
    **dict.fromkeys(
        [f"OTEL_EXPORTER_OTLP{signal}_PROTOCOL" for signal in ("", "_TRACES")],
        ("", "http/json", "http", "GRPC", "thrift"),
    ),
    **dict.fromkeys(
        [
            f"OTEL_EXPORTER_OTLP{signal}_{what}"
            for signal in ("", "_TRACES")
            for what in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
        ],
        ("", "/no/such/file", "/etc", "/dev/null", "a" * 5000),
    ),
    **dict.fromkeys(
        [f"OTEL_EXPORTER_OTLP{signal}_ENDPOINT" for signal in ("", "_TRACES", "_METRICS")],
        (
            "",
            "garbage",
            "http://",
            "://",
            "http://[::1",
            "http://a:99999",
            "http://a:0",
            "http://a:x",
            "ftp://x",
            "/",
            "http://a b",
            f"http://user:{SECRET}@127.0.0.1:1",
            "unix:///tmp/x",
            "http://é.x:1",
            "127.0.0.1",
        ),
    ),
    **dict.fromkeys(
        [f"OTEL_EXPORTER_OTLP{signal}_HEADERS" for signal in ("", "_METRICS")],
        (
            SECRET,
            f"={SECRET}",
            f"A B={SECRET}",
            f"é={SECRET}",
            f"a={SECRET}é",
            f"a={SECRET}%0A",
            f"a=b,{SECRET}",
            ",,",
            f"Authorization=Bearer {SECRET}",
            f"a=%ZZ{SECRET}",
        ),
    ),
    "OTEL_TRACES_SAMPLER": ("", "bogus", "ALWAYS_ON", "parentbased", "traceidratio"),
    "OTEL_TRACES_SAMPLER_ARG": ("", "2", "-1", "nan", "half"),
    "OTEL_PROPAGATORS": ("", "bogus", "none", ",", "tracecontext,bogus"),
    "OTEL_RESOURCE_ATTRIBUTES": ("", "a", "a=b=c", "=", "=,", ",,", "a=%ZZ", "service.name=", "é=1"),
    "OTEL_SERVICE_NAME": ("", " ", "é"),
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": ("bogus", ",", "otel,bogus", "*"),
    "OTEL_SDK_DISABLED": ("", "true", "TRUE", " true ", "1", "yes"),
    "OTEL_TRACES_EXPORTER": ("", "none", "console", "otlp,console", "bogus"),
    "OTEL_METRICS_EXPORTER": ("", "none", "console", "prometheus", "bogus"),
    "OTEL_METRICS_EXEMPLAR_FILTER": ("", "bogus", "ALWAYS_ON"),
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": ("", "bogus", "DELTA"),
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": ("", "bogus"),
    "OTEL_EXPORTER_OTLP_INSECURE": ("", "maybe", "1"),
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": ("", "maybe", "true"),
    "OTEL_PYTHON_ID_GENERATOR": ("bogus",),
    "OTEL_PYTHON_TRACER_PROVIDER": ("bogus",),
    "OTEL_PYTHON_METER_PROVIDER": ("bogus",),
    "OTEL_PYTHON_EXPORTER_OTLP_GRPC_CREDENTIAL_PROVIDER": ("", "bogus"),
    "OTEL_PYTHON_EXPORTER_OTLP_GRPC_TRACES_CREDENTIAL_PROVIDER": ("bogus",),
    "OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES": ("bogus", ","),
    "OTEL_CONFIG_FILE": ("/no/such/file",),
    "OTEL_LOG_LEVEL": ("bogus",),
}
OVER_HTTP = [
    (name, value)
    for name, values in ODD.items()
    if re.fullmatch(r"OTEL_EXPORTER_OTLP_(TIMEOUT|COMPRESSION|CERTIFICATE|CLIENT_KEY|ENDPOINT|HEADERS)", name)
    for value in values
]
CASES = [(name, value) for name, values in ODD.items() for value in values]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """A collector for all cases."""
    with collecting() as collector:
        yield collector


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No OTEL_* variable of the machine, and the environment as it was afterwards."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("OTEL_")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def figures() -> Any:
    """Figures of a daemon that has done nothing."""
    return SimpleNamespace(
        monitor=SimpleNamespace(state=SimpleNamespace(usable=True)),
        caches=(),
        retrievals=Histogram(),
        rpcs=CallStats(),
        kms_calls=CallStats(),
        audit=None,
        rotation=SimpleNamespace(failures=0, last_run=None),
        provider=SimpleNamespace(breakers={}, serving_region=None),
        calls_saved=lambda: 0,
        seconds_until_degraded=lambda: None,
        monthly_dollars=lambda: (0.0, 0.0),
    )


def started_and_stopped() -> None:
    """Set telemetry up as the daemon does, make a span, scrape, and stop."""
    tracing = export.open_tracing(os.environ)
    metrics = export.open_metrics(figures(), os.environ)
    if tracing is not None:
        span = tracing.begin_call("service", "method", {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"})
        if span is not None:
            span.set_attribute("name", "value")
            span.end()
        export.shut_down(tracing.shutdown)
    assert b"kms_up 1.0" in metrics.text()[0]
    export.shut_down(metrics.shutdown)


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize(
    ("name", "value", "protocol"),
    [
        *((*case, None) for case in CASES),
        *((*case, "grpc") for case in CASES),
        *((*case, "http/protobuf") for case in OVER_HTTP),
    ],
)
def test_telemetry_never_raises(
    name: str,
    value: str,
    protocol: str | None,
    collector: Collector,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever a variable says, by gRPC, HTTP or without a collector: metrics are there, and no header is logged."""
    monkeypatch.setattr(export, "SHUTDOWN_SECONDS", 0.2)
    died: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    if protocol is not None:
        os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    os.environ[name] = value
    started_and_stopped()
    assert [] == died
    captured = capsys.readouterr()
    assert SECRET not in captured.out + captured.err + caplog.text


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli", True),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", True),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0", True),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "many", True),
        ("OTEL_TRACES_SAMPLER", "bogus", True),
        ("OTEL_SDK_DISABLED", "yes", True),
        ("OTEL_EXPORTER_OTLP_HEADERS", SECRET, False),
    ],
)
def test_a_warning_names_the_variable(name: str, value: str, shown: bool, collector: Collector) -> None:
    """One warning for a variable, with its value unless that may hold a secret."""
    os.environ |= {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url, name: value}
    with structlog.testing.capture_logs() as logs:
        started_and_stopped()
    [warning] = [line["event"] for line in logs if name in line["event"]]
    assert shown is (value in warning)


def test_a_value_that_is_set_aside_does_not_stop_the_others(collector: Collector) -> None:
    """Spans arrive with the default in place of what cannot be used."""
    before = len(collector.spans)
    os.environ |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "10s",
        "OTEL_BSP_MAX_QUEUE_SIZE": "100",
        "OTEL_ATTRIBUTE_COUNT_LIMIT": "-1",
        "OTEL_TRACES_SAMPLER": "bogus",
    }
    started_and_stopped()
    assert before + 1 == len(collector.spans)


@pytest.mark.parametrize("switch", ["true", "TRUE", " true "])
def test_disabled_means_that_nothing_is_sent(switch: str, collector: Collector) -> None:
    """OTEL_SDK_DISABLED stops what is sent; the metrics can still be scraped."""
    before = collector.wire
    os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SDK_DISABLED": switch}
    started_and_stopped()
    assert before == collector.wire


async def test_a_daemon_serves_when_the_sdk_fails_in_an_unknown_way(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An SDK that raises for a reason that is not known here costs the signal, not the daemon."""

    def fails(*_: object, **__: object) -> None:
        raise LookupError(SECRET)

    monkeypatch.setattr("opentelemetry.sdk.metrics.export.PeriodicExportingMetricReader.__init__", fails)
    monkeypatch.setattr("opentelemetry.sdk.trace.export.BatchSpanProcessor.__init__", fails)
    monkeypatch.setattr("opentelemetry.sdk.resources.Resource.create", fails)
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
    with structlog.testing.capture_logs() as logs, warnings.catch_warnings():
        async with running(tmp_path):
            pass
    events = " ".join(line["event"] for line in logs)
    assert "(LookupError): traces are not sent" in events
    assert "(LookupError): metrics are not sent" in events
    assert SECRET not in events


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_real_daemon_with_many_odd_values(tmp_path: Path, protocol: str) -> None:
    """From process start on, import of the SDK included; the log names each variable once and no header."""
    odd = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_COMPRESSION": "brotli",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "10s",
        "OTEL_EXPORTER_OTLP_METRICS_HEADERS": f"A B={SECRET}",
        "OTEL_METRIC_EXPORT_INTERVAL": "0",
        "OTEL_BSP_SCHEDULE_DELAY": "-1",
        "OTEL_SPAN_LINK_COUNT_LIMIT": "many",
        "OTEL_METRICS_EXEMPLAR_FILTER": "bogus",
        "OTEL_TRACES_SAMPLER": "bogus",
        "OTEL_PROPAGATORS": "bogus",
        "OTEL_RESOURCE_ATTRIBUTES": "=,a",
        "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "bogus",
    }
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", environ=odd) as daemon:
        daemon.wait_for("serving")
        daemon.process.terminate()
        assert 0 == daemon.process.wait(timeout=30)
    for name in ("COMPRESSION", "TIMEOUT"):
        assert 1 == daemon.log.count(f"OTEL_EXPORTER_OTLP_{name} is")
    assert "OTEL_EXPORTER_OTLP_HEADERS is not NAME=VALUE, separated by commas: metrics are not sent" in daemon.log
    assert "Traceback" not in daemon.log
    assert SECRET not in daemon.log
