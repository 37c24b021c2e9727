"""Which OTLP exporters the OTEL_* variables ask for (OpenTelemetry specification, "SDK environment variables").

Without OTEL_EXPORTER_OTLP_ENDPOINT, its like for one signal, or OTEL_TRACES_EXPORTER=otlp nothing is sent: unlike the
specification's default, a sidecar does not look for a collector that nobody named.
"""

import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import structlog
from opentelemetry.sdk.resources import Resource

log = structlog.get_logger()

SHUTDOWN_SECONDS = 2.0
"""How long a collector that does not answer may hold up the stop of the daemon."""
_CLASSES = {
    "traces": ("trace_exporter", "OTLPSpanExporter"),
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
}


def exporter(signal: str, environ: Mapping[str, str]) -> Any | None:
    """Return the exporter of a signal, "traces" or "metrics", or None if nobody asks for one."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    named = environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip()
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    if not named:
        named = "otlp" if any(environ.get(name, "").strip() for name in endpoints) else "none"
    if named in ("none", "prometheus"):  # Prometheus scrapes us anyway
        return None
    if named != "otlp":
        log.warning(f"OTEL_{signal.upper()}_EXPORTER is {named!r}, only otlp and none are known: nothing is sent")  # noqa: G004
        return None
    protocol = environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL") or environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL"
    )
    transport = "http" if (protocol or "grpc").startswith("http") else "grpc"
    module, name = _CLASSES[signal]
    # Late: importing an exporter takes a third of a second.
    return getattr(import_module(f"opentelemetry.exporter.otlp.proto.{transport}.{module}"), name)()


def resource(environ: Mapping[str, str]) -> Resource:
    """Return what the telemetry is about: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, or service betrace-kms."""
    named = "OTEL_SERVICE_NAME" in environ or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return Resource.create({} if named else {"service.name": "betrace-kms"})


def shut_down(*shutdowns: Callable[[], object]) -> None:
    """Run all at once, and wait for at most SHUTDOWN_SECONDS; what is not done by then is left behind."""
    threads = [threading.Thread(target=shutdown, daemon=True) for shutdown in shutdowns]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SHUTDOWN_SECONDS / len(threads))
    if any(thread.is_alive() for thread in threads):
        log.warning("The collector of OTEL_EXPORTER_OTLP_ENDPOINT does not answer: the last telemetry is lost")
