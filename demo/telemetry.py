"""Steps with other people's tools: Prometheus with our rules, and an OpenTelemetry collector. Each may be missing."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import yaml  # type: ignore[import-untyped]
from betrace.kms.v1.key_management_pb2 import SignSpanRequest
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from betrace.kms.v1.span_pb2 import ComplianceSpan

from demo.stage import ROOT, Skipped, Stage, StepFailed, check

_COLLECTORS = ("otelcol", "otelcol-contrib", "otelcorecol")
_SECONDS = 30.0


def scrape(stage: Stage) -> None:
    """Let a Prometheus scrape the daemon, with the rules of deploy/prometheus."""
    program = _found("prometheus", hint="make prometheus unpacks Debian's")
    address = f"127.0.0.1:{_free_port()}"
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yaml").read_text("utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(ROOT / "deploy/prometheus" / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [stage.daemon.ops_address]
    (stage.folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    arguments = ("--config.file=prometheus.yaml", "--storage.tsdb.path=tsdb", f"--web.listen-address={address}")
    stage.resources.enter_context(_process([program, *arguments], stage.folder, {}, "prometheus.log"))
    stage.say(f"Prometheus runs at http://{address}/")
    query = urllib.parse.quote("kms_up == 1 and on (instance) count_over_time(kms_up[1m]) >= 3")
    _until(lambda: _ask(address, f"query?query={query}")["result"], "Prometheus has no sample of kms_up")
    rules = [rule for group in _ask(address, "rules")["groups"] for rule in group["rules"]]
    broken = [rule["name"] for rule in rules if rule["health"] == "err"]
    check(rules and not broken, f"rules that cannot be evaluated: {broken}")
    firing = [rule["name"] for rule in rules if rule.get("state") == "firing"]
    stage.say(f"kms_up is 1; {len(rules)} rules evaluate, firing: {', '.join(firing) or 'none'}")


def collect(stage: Stage) -> None:
    """Send the trace of a call to an OpenTelemetry collector, by OTLP."""
    program = _found(*_COLLECTORS, hint="put one on the PATH")
    endpoint = f"127.0.0.1:{_free_port()}"
    config = {
        "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": endpoint}}}},
        "exporters": {"debug": {"verbosity": "detailed"}},
        "service": {
            "telemetry": {"metrics": {"level": "none"}},
            "pipelines": {name: {"receivers": ["otlp"], "exporters": ["debug"]} for name in ("traces", "metrics")},
        },
    }
    (stage.folder / "collector.yaml").write_text(yaml.safe_dump(config))
    log = stage.folder / "collector.log"
    with _process([program, "--config=collector.yaml"], stage.folder, {}, log.name):
        _until(lambda: _listens(endpoint), "the collector does not listen")
        trace_id = os.urandom(16)
        with stage.daemon_in("traced", OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{endpoint}") as daemon:
            _sign(daemon.address, trace_id)
            daemon.process.terminate()
            daemon.process.wait(timeout=30)
        _until(lambda: trace_id.hex() in log.read_text(), "the trace did not arrive")
        stage.say(f"trace {trace_id.hex()} arrived at {Path(program).name}")
        check("kms_rpc_requests" in log.read_text(), "no metrics arrived")


def _sign(address: str, trace_id: bytes) -> None:
    """Make a call in a trace that is sampled."""
    parent = f"00-{trace_id.hex()}-{os.urandom(8).hex()}-01"
    span = ComplianceSpan(trace_id=trace_id, span_id=os.urandom(8), name="user.login")
    with grpc.insecure_channel(address) as channel:
        stub = KeyManagementServiceStub(channel)
        stub.SignSpan(SignSpanRequest(tenant_id="acme", span=span), timeout=20, metadata=(("traceparent", parent),))


def _found(*names: str, hint: str) -> str:
    path = os.pathsep.join((str(ROOT / ".tools"), os.environ.get("PATH", os.defpath)))
    for name in names:
        if program := shutil.which(name, path=path):
            return program
    raise Skipped(f"{' or '.join(names)} is not here: {hint}")


@contextmanager
def _process(command: Sequence[str], folder: Path, environ: Mapping[str, str], log: str) -> Iterator[None]:
    """Run a program in the folder of the tour until the context is left."""
    with (folder / log).open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env={**os.environ, **environ}, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    """Return a port that was free a moment ago: these programs cannot say which one they took."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _ask(address: str, path: str) -> Any:
    """Return the data of a call to the interface of Prometheus."""
    with urllib.request.urlopen(f"http://{address}/api/v1/{path}", timeout=20) as answer:
        return json.load(answer)["data"]


def _until(condition: Callable[[], object], problem: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            if condition():
                return
        except (OSError, urllib.error.URLError):
            pass  # it starts up
        if time.monotonic() > deadline:
            raise StepFailed(f"{problem} after {_SECONDS:.0f} s")
        time.sleep(0.2)
