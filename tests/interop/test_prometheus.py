"""Prometheus itself: its tools on our rules, and a real server that scrapes a real daemon."""

import asyncio
import contextlib
import http.client
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import yaml  # type: ignore[import-untyped]
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import AsyncKmsClient, InvalidRequest
from betrace_kms_server.app import Daemon
from betrace_kms_server.core.errors import KmsError
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.daemon import running
from tests.interop.tools import ROOT, tool

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

FOLDER = ROOT / "deploy/prometheus"
RULES = FOLDER / "betrace-kms.rules.yaml"
SLO_RULES = FOLDER / "betrace-kms.slo.rules.yaml"
RULES_TESTS = (FOLDER / "betrace-kms.rules.test.yaml", FOLDER / "betrace-kms.hours.test.yaml")
CONFIG = FOLDER / "prometheus.yaml"
DASHBOARD = ROOT / "deploy/grafana/dashboards/kms-operations.json"

SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}
SCRAPED = {"job", "instance", "le"}
"""Labels that come with the scrape or with a bucket."""
FIXED = {"cache", "cause", "key_type", "result", "state"}
"""Labels of which the daemon exports every value from its start."""
RECORDED = re.compile(r"\b[a-z_]+:[a-z0-9_:]+")
OURS = r"\b(?:kms|circuit_breaker)_\w+"
"""A metric of ours."""


def rules() -> Sequence[Any]:
    """Return the rules, of all groups."""
    files = [yaml.safe_load(file.read_text("utf-8")) for file in (RULES, SLO_RULES)]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def alerts() -> Mapping[str, Any]:
    """Return the alerts by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def panels() -> Sequence[Any]:
    """Return the dashboard's panels, rows among them."""
    found: Sequence[Any] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return found


def dashboard_queries() -> Sequence[str]:
    """Return the queries of the panels as Grafana would send them for all jobs and instances."""
    texts = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    for name, value in {"$__rate_interval": "1m", "$__range": "1m", "$job": ".*", "$instance": ".*"}.items():
        texts = [text.replace(name, value) for text in texts]
    return texts


def queries() -> Sequence[str]:
    """Return every query of rules and dashboard, without the names that rules record."""
    return [RECORDED.sub("", text) for text in (*(rule["expr"] for rule in rules()), *dashboard_queries())]


# Their tools on our files


@pytest.mark.parametrize(
    "command",
    [
        ("check", "rules", RULES, SLO_RULES),
        *(("test", "rules", file) for file in RULES_TESTS),
        ("check", "config", CONFIG),
    ],
    ids=["check rules", "test rules", "test rules of hours", "check config"],
)
def test_promtool_accepts(command: Sequence[str]) -> None:
    """The rules are well-formed and do what their tests say, and the example is a configuration."""
    done = subprocess.run([tool("promtool"), *command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    """Each is PromQL, once Grafana has put its variables in."""
    recorded = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(dashboard_queries())]
    file = tmp_path / "dashboard.yaml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": recorded}]}))
    assert "$" not in file.read_text()
    done = subprocess.run(
        [tool("promtool"), "check", "rules", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_what_to_do() -> None:
    """Severity, summary, description, and a section of its own in the runbooks, which have no others."""
    text = (ROOT / "docs/runbooks.md").read_text("utf-8")
    assert list(alerts()) != []
    assert set(alerts()) == set(re.findall(r"^## (.*)$", text, re.MULTILINE))
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert {"summary", "description", "runbook_url"} == set(rule["annotations"])
        assert f"${{RUNBOOKS}}/runbooks.md#{name.lower()}" == rule["annotations"]["runbook_url"]


def test_the_documented_substitution_makes_runbook_urls_absolute(tmp_path: Path) -> None:
    """The command of docs/monitoring.md leaves no placeholder, and rules that promtool accepts."""
    text = (ROOT / "docs/monitoring.md").read_text("utf-8")
    (command,) = re.findall(r"^sed -i .*RUNBOOKS.*$", text, re.MULTILINE)
    shutil.copytree(FOLDER, tmp_path / "deploy/prometheus")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, timeout=60, check=True)
    copies = [tmp_path / "deploy/prometheus" / file.name for file in (RULES, SLO_RULES)]
    urls = [url for copy in copies for url in re.findall(r"runbook_url: (.*)", copy.read_text("utf-8"))]
    assert {f"https://docs.example/betrace-kms/runbooks.md#{name.lower()}" for name in alerts()} == set(urls)
    done = subprocess.run([tool("promtool"), "check", "rules", *copies], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_reason_counts_as_a_failure_or_does_not() -> None:
    """docs/slo.md decides on each error that there is, and the rules follow it."""
    text = (ROOT / "docs/slo.md").read_text("utf-8")
    ((counts, others),) = re.findall(r"^\| (`AUDIT_UNAVAILABLE`.*) \| (`BUDGET_EXCEEDED`.*) \|$", text, re.MULTILINE)
    failures, decisions = (set(re.findall(r"`([A-Z_]+)`", cell)) for cell in (counts, others))
    ours = (kind for kind in KmsError.__subclasses__() if kind.__module__ == KmsError.__module__)
    reasons = {error.reason for error in ours}
    assert reasons | {"INTERNAL", "DEADLINE_EXCEEDED", "CANCELLED"} == failures | decisions
    matchers_ = {
        found for rule in rules() for found in re.findall(r'kms_rpc_failures_total\{\s*reason=~"([^"]*)"', rule["expr"])
    }
    (matcher,) = matchers_
    assert failures == {reason for reason in failures | decisions if re.fullmatch(matcher, reason)}


@pytest.mark.parametrize("name", ["kms_rpc_failures", "kms_rpc_slow"])
def test_windows_of_burn_rates_are_of_one_ratio(name: str) -> None:
    """What is recorded differs by its window alone, and every window of an alert is recorded."""
    recorded = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
    ratios = {record: text for record, text in recorded.items() if record.startswith(f"job:{name}:ratio_rate")}
    texts = {text.replace(f"[{record.rpartition('rate')[2]}]", "[WINDOW]") for record, text in ratios.items()}
    used = {found for rule in alerts().values() for found in re.findall(rf"job:{name}:ratio_\w+", rule["expr"])}
    assert (1, set(ratios)) == (len(texts), used)


def test_every_alert_is_tested_and_documented() -> None:
    """Each fires in a test of promtool, and has its row and severity in docs/monitoring.md."""
    tests = "".join(file.read_text("utf-8") for file in RULES_TESTS)
    rows = re.findall(
        r"^\| `(KMS\w+)` \|.*\| (\w+) \|$", (ROOT / "docs/monitoring.md").read_text("utf-8"), re.MULTILINE
    )
    assert {name: rule["labels"]["severity"] for name, rule in alerts().items()} == dict(rows)
    assert [] == [name for name in alerts() if f"name: {name} fires" not in tests]


def test_dashboard_can_be_imported_anywhere() -> None:
    """Every panel, query and variable asks the data source that the viewer chooses; panel ids are unique."""
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert (dashboard["id"], variables["datasource"]["query"]) == (None, "prometheus")
    asking = [panel for panel in panels() if panel["type"] != "row"]
    asking += [target for panel in asking for target in panel["targets"]]
    asking += [variables[name] for name in ("job", "instance")]
    assert [{"type": "prometheus", "uid": "${datasource}"}] * len(asking) == [each["datasource"] for each in asking]
    assert len(panels()) == len({panel["id"] for panel in panels()})


# A daemon's own metrics


def get(address: str, path: str) -> bytes:
    """Return the body of a GET that must succeed."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=20)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    assert answer.status == 200, body
    return body


@asynccontextmanager
async def used_daemon(folder: Path, moto: "MotoServer", key: str) -> AsyncIterator[tuple[Daemon, AsyncKmsClient]]:
    """Run a daemon on moto, and let some calls succeed, some fail, and one KMS call fail."""
    values = {
        "betrace_kms_provider": "aws",
        "aws_kms_master_key_id": key,
        "aws_kms_region": "us-east-1",
        "aws_kms_endpoint": moto.url,
        "kms_store_allow_ephemeral": "true",
        "kms_ops_listen": "127.0.0.1:0",
        "kms_audit_file": str(folder / "audit.jsonl"),
    }
    async with running(folder / "data", **values) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        for _ in range(2):
            await client.encrypt("acme", b"payload")
            await client.sign_span("acme", SPAN)
        with pytest.raises(InvalidRequest):
            await client.encrypt("!", b"payload")
        data_key = await client.generate_data_key("acme", fresh=True)
        with pytest.raises(InvalidRequest):
            await client.decrypt("other", data_key.ciphertext_blob)
        yield daemon, client


@pytest.fixture
async def exposition(tmp_path: Path, moto: "MotoServer", kms_key: str) -> str:
    """What a daemon that was used exports."""
    async with used_daemon(tmp_path, moto, kms_key) as (daemon, _):
        return (await asyncio.to_thread(get, daemon.ops_address, "/q/metrics")).decode()


@pytest.fixture
def families(exposition: str) -> Mapping[str, Metric]:
    """Our metrics by their names in documents: with _total, without the suffixes of a histogram."""
    ours = [family for family in text_string_to_metric_families(exposition) if re.match(OURS, family.name)]
    return {family.name + ("_total" if family.type == "counter" else ""): family for family in ours}


def labels_of(family: Metric) -> Mapping[str, set[str]]:
    """Return the labels of a metric, and the values that each has."""
    found: dict[str, set[str]] = {}
    for sample in family.samples:
        for label, value in sample.labels.items():
            found.setdefault(label, set()).add(value)
    return found


def matchers(text: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield (metric, label, operator, value) of each label matcher in a query."""
    for metric, inside in re.findall(rf"({OURS})\{{([^}}]*)\}}", text):
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', inside):
            yield metric, label, operator, value


def test_promtool_finds_no_fault_with_the_metrics(exposition: str) -> None:
    """The linter has nothing to say about names, help and types."""
    done = subprocess.run(
        [tool("promtool"), "check", "metrics"],
        input=exposition,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stdout + done.stderr)


def test_every_query_asks_for_what_a_daemon_exports(families: Mapping[str, Metric]) -> None:
    """Names, labels and, where all are exported from the start, values that rules and dashboard use are there."""
    by_series = {sample.name: family for family in families.values() for sample in family.samples}
    for text in queries():
        names = set(re.findall(OURS, text))
        assert set() == names - set(by_series), text
        labels = {label for name in names for label in labels_of(by_series[name])}
        grouped = {label for found in re.findall(r"\b(?:by|on) \(([^)]*)\)", text) for label in found.split(", ")}
        assert set() == grouped - labels - SCRAPED, text
        for metric, label, operator, value in matchers(text):
            assert label in {*labels_of(by_series[metric]), *SCRAPED}, text
            if label in FIXED and operator in ("=", "=~"):
                assert set() == set(value.split("|")) - labels_of(by_series[metric])[label], text


def test_dashboard_variables_come_from_a_metric(families: Mapping[str, Metric]) -> None:
    """Job and instance are listed by a metric that every daemon has."""
    variables = json.loads(DASHBOARD.read_text("utf-8"))["templating"]["list"][1:]
    named = [re.findall(r"kms_\w+", variable["query"]["query"]) for variable in variables]
    assert [["kms_up"], ["kms_up"]] == named
    assert "kms_up" in families


def test_the_table_of_metrics_is_what_a_daemon_exports(families: Mapping[str, Metric]) -> None:
    """docs/monitoring.md has each metric with its type and labels, in order, and no other."""
    text = (ROOT / "docs/monitoring.md").read_text("utf-8")
    rows = re.findall(rf"^\| `({OURS})` \| (\w+) \|(.*?)\| .* \|$", text, re.MULTILINE)
    documented = [(name, kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows]
    exported = [(name, family.type, set(labels_of(family)) - {"le"}) for name, family in sorted(families.items())]
    assert exported == documented


def test_every_metric_has_a_value_that_was_provoked(families: Mapping[str, Metric]) -> None:
    """What is tested above is not empty: series of every metric, and under the names of its type."""
    assert [] == [name for name, family in families.items() if not family.samples]
    for name, family in families.items():
        stem = name.removesuffix("_total") if family.type == "counter" else name
        assert {stem + suffix for suffix in SUFFIXES[family.type]} == {sample.name for sample in family.samples}


# A real Prometheus


class Server:
    """A Prometheus that runs: answers queries by promtool, and by its HTTP interface."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def value(self, query: str) -> float | None:
        """Return the value of a query's only sample, as `promtool query instant` prints it; None without a sample."""
        command = [tool("promtool"), "query", "instant", f"http://{self.address}", query]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.split("\n")[:-1]
        if lines in ([], [""]):
            return None
        (line,) = lines
        return float(line.rpartition("=> ")[2].split(" @[")[0])

    async def ask(self, path: str) -> Any:
        """Return the data of a call to the HTTP interface."""
        answer = json.loads(await asyncio.to_thread(get, self.address, path))
        assert answer["status"] == "success"
        return answer["data"]

    async def until(self, condition: str, seconds: float = 40.0) -> None:
        """Wait until a query has a sample."""
        deadline = time.monotonic() + seconds
        while await self.value(condition) is None:
            assert time.monotonic() < deadline, f"{condition} did not come true"
            await asyncio.sleep(0.2)  # nothing tells a client of Prometheus that a scrape is over


def free_port() -> int:
    """Return a port that was free a moment ago: Prometheus cannot say which one it took."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[Server]:
    """Run a Prometheus with our example configuration, but for one target, and with a scrape every second."""
    config = yaml.safe_load(CONFIG.read_text("utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    file, log = folder / "prometheus.yaml", folder / "prometheus.log"
    file.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        tool("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={address}",
    ]  # fmt: skip
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 30
        while not await asyncio.to_thread(is_ready, address):
            assert process.returncode is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            await asyncio.sleep(0.1)
        yield Server(address)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def is_ready(address: str) -> bool:
    """Tell whether a Prometheus answers queries by now."""
    try:
        get(address, "/-/ready")
    except (OSError, AssertionError):
        return False
    return True


async def test_prometheus_finds_the_hit_rate_that_the_daemon_reports(
    tmp_path: Path, moto: "MotoServer", kms_key: str
) -> None:
    """Scraped under load and once more after it, the counters give the very figure of the status report.

    On the way: every rule evaluates without an error, and every panel of the dashboard has data.
    """
    async with (
        used_daemon(tmp_path, moto, kms_key) as (daemon, client),
        prometheus(tmp_path, daemon.ops_address) as server,
    ):
        enough = asyncio.Event()

        async def load() -> None:
            number = 0
            while not enough.is_set():
                number += 1
                await asyncio.gather(*(client.sign_span(f"tenant-{number // 20}", SPAN) for _ in range(4)))
                await client.encrypt("acme", b"payload")

        loading = asyncio.create_task(load())
        await server.until("count_over_time(kms_up[1m]) >= 4 and rate(kms_retrieve_signing_key_total[1m]) > 0")
        enough.set()
        await loading
        stopped_at = time.time()
        await server.until(f"timestamp(kms_up) > {stopped_at}")

        status = json.loads(await asyncio.to_thread(get, daemon.ops_address, "/api/admin/kms/status"))
        (signing,) = [cache for cache in status["caches"] if cache["key_type"] == "signing"]
        hits, misses = (f'sum(kms_cache_{name}_total{{key_type="signing"}})' for name in ("hit", "miss"))
        assert (signing["hits"], signing["misses"]) == (await server.value(hits), await server.value(misses))
        assert await server.value(f"{hits} / ({hits} + {misses})") == pytest.approx(
            signing["hit_rate"], rel=0, abs=1e-9
        )
        assert 0 < signing["hit_rate"] < 1

        evaluated = [rule for group in (await server.ask("/api/v1/rules"))["groups"] for rule in group["rules"]]
        assert len(rules()) == len(evaluated)
        assert [] == [(rule["name"], rule["lastError"]) for rule in evaluated if rule["health"] != "ok"]
        empty = [
            text
            for text in dashboard_queries()
            if not (await server.ask(f"/api/v1/query?query={quote(text)}"))["result"]
        ]
        assert [] == empty
