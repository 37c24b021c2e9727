"""Traces and metrics of a daemon, sent by OTLP if the OTEL_* variables ask for that.

The variables are those of the OpenTelemetry specification, "SDK environment variables". Without
OTEL_EXPORTER_OTLP_ENDPOINT, its like for one signal, or OTEL_TRACES_EXPORTER=otlp nothing is sent: unlike the
specification's default, a sidecar does not search for a collector that was not named.

Telemetry never stops the daemon: whatever the SDK raises is a warning, and the daemon goes on without that signal.
"""

import re
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog
from opentelemetry.sdk.resources import Resource

from betrace_kms_server.telemetry.figures import Figures
from betrace_kms_server.telemetry.metrics import Metrics
from betrace_kms_server.telemetry.otel_environment import set_aside_unusable
from betrace_kms_server.telemetry.tracing import Tracing, share_of_roots

log = structlog.get_logger()

SHUTDOWN_SECONDS = 1.0
"""How long a collector that does not answer may hold up the stop of the daemon."""
_CLASSES = {
    "traces": ("trace_exporter", "OTLPSpanExporter"),
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
}
_FILES = ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
_HEADER = re.compile(r"\s*[A-Za-z0-9_.-]+\s*=[\x20-\x7e]*")
_SERVICE = {"service.name": "betrace-kms"}


def open_tracing(environ: MutableMapping[str, str]) -> Tracing | None:
    """Return what makes and sends spans, or None if nothing asks for them or they cannot be sent."""
    set_aside_unusable(environ)
    exporter = _exporter("traces", environ)
    if exporter is None:
        return None
    try:
        return Tracing(exporter, _resource(environ), share_of_roots(environ))
    except Exception as cause:  # noqa: BLE001  # whatever the SDK raises
        _warn_not_sent("traces", cause)
        return None


def open_metrics(figures: Figures, environ: MutableMapping[str, str]) -> Metrics:
    """Return what publishes the figures: always to be scraped, and sent if a collector is named and usable."""
    set_aside_unusable(environ)
    try:
        return Metrics(figures, _resource(environ), _exporter("metrics", environ))
    except Exception as cause:  # noqa: BLE001  # whatever the SDK raises
        _warn_not_sent("metrics", cause)
        for name in [name for name in environ if name.startswith("OTEL_")]:
            del environ[name]  # one of them is what the SDK cannot use
        return Metrics(figures, Resource(_SERVICE))


def _exporter(signal: str, environ: Mapping[str, str]) -> Any | None:
    named = environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip()
    endpoint = _of_signal("ENDPOINT", signal, environ)
    if not named:
        named = "otlp" if endpoint else "none"
    if named in ("none", "prometheus"):  # Prometheus scrapes us anyway
        return None
    if named != "otlp":
        log.warning(f"OTEL_{signal.upper()}_EXPORTER is {named!r}, only otlp and none are known: nothing is sent")  # noqa: G004
        return None
    if problem := _problem(signal, endpoint, environ):
        log.warning(f"{problem}: {signal} are not sent")  # noqa: G004
        return None
    transport = "http" if _of_signal("PROTOCOL", signal, environ).startswith("http") else "grpc"
    module, name = _CLASSES[signal]
    try:
        # Late: importing an exporter takes a third of a second.
        return getattr(import_module(f"opentelemetry.exporter.otlp.proto.{transport}.{module}"), name)()
    except Exception as cause:  # noqa: BLE001  # whatever the SDK raises
        _warn_not_sent(signal, cause)
        return None


def _of_signal(suffix: str, signal: str, environ: Mapping[str, str]) -> str:
    names = (f"OTEL_EXPORTER_OTLP_{signal.upper()}_{suffix}", f"OTEL_EXPORTER_OTLP_{suffix}")
    return next((value for name in names if (value := environ.get(name, "").strip())), "")


def _problem(signal: str, endpoint: str, environ: Mapping[str, str]) -> str | None:
    """Return why nothing can be sent, or None. Endpoints and headers may hold a password: they are not shown."""
    if endpoint and not _is_endpoint(endpoint):
        return "OTEL_EXPORTER_OTLP_ENDPOINT is no http://HOST:PORT or https://HOST:PORT"
    for suffix in _FILES:
        file = _of_signal(suffix, signal, environ)
        try:
            if file and not Path(file).read_bytes():
                return f"OTEL_EXPORTER_OTLP_{suffix} {file!r} is empty"
        except (OSError, ValueError) as cause:
            return f"OTEL_EXPORTER_OTLP_{suffix} {file!r} cannot be read ({type(cause).__name__})"
    headers = _of_signal("HEADERS", signal, environ)
    if not all(_HEADER.fullmatch(unquote(part)) for part in headers.split(",") if part.strip()):
        return "OTEL_EXPORTER_OTLP_HEADERS is not NAME=VALUE, separated by commas"
    return None


def _is_endpoint(text: str) -> bool:
    """Return whether a collector can be called by that. gRPC also takes HOST:PORT."""
    try:
        parts = urlsplit(text if "://" in text else f"grpc://{text}")
        usable = parts.scheme in ("http", "https") or (parts.scheme == "grpc" and parts.port is not None)
        host = parts.hostname or ""
        return usable and parts.port != 0 and re.fullmatch(r"[A-Za-z0-9._:-]+", host) is not None and "@" not in text
    except ValueError:
        return False


def _warn_not_sent(signal: str, cause: Exception) -> None:
    # The message of an unknown exception may hold a header.
    log.warning(
        f"The OTEL_* variables cannot be used ({type(cause).__name__}): {signal} are not sent, compare with"  # noqa: G004
        " docs/monitoring.md"
    )


def _resource(environ: Mapping[str, str]) -> Resource:
    """Return what the telemetry is about: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, or service betrace-kms."""
    named = "OTEL_SERVICE_NAME" in environ or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    try:
        return Resource.create({} if named else _SERVICE)
    except Exception:  # noqa: BLE001  # whatever a resource detector raises
        log.warning("OTEL_RESOURCE_ATTRIBUTES or a resource detector cannot be used: the service is betrace-kms")
        return Resource(_SERVICE)


def shut_down(*shutdowns: Callable[[], object]) -> None:
    """Run all at once, and wait for at most SHUTDOWN_SECONDS; what is not done by then is left behind."""
    threads = [threading.Thread(target=shutdown, daemon=True) for shutdown in shutdowns]
    for thread in threads:
        thread.start()
    end = time.monotonic() + SHUTDOWN_SECONDS
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        log.warning("The collector of OTEL_EXPORTER_OTLP_ENDPOINT does not answer: the last telemetry is lost")
