"""The HTTP port: real requests over real sockets, the daemon behind it played by answers."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.host.sockets import is_loopback, parse_host_ports
from betrace_kms_server.operations import validation
from betrace_kms_server.operations.http import build_apps, serving_ops, validation_json
from betrace_kms_server.operations.monitor import KmsState
from betrace_kms_server.operations.validation_run import Test
from structlog.testing import capture_logs

ADMIN = [("GET", "/api/admin/kms/status"), ("POST", "/api/admin/kms/validate")]
Q = [("GET", f"/q/{name}") for name in ("health", "health/live", "health/ready", "metrics")]
PATHS = [("GET", "/"), *Q, *ADMIN]
METRICS = "text/plain; version=0.0.4; charset=utf-8"


def outcome_of(**failures: str) -> validation.Validation:
    """Return an outcome with the tests of the setup guide, some of them failed."""
    latencies = {
        "generate_data_key": 45.2,
        "encrypt": 37.6,
        "decrypt": 42.0,
        "key_retrieval_cache_miss": 95.0,
        "key_retrieval_cache_hit": 2.0,
    }
    tests = [
        Test(name, name not in failures, None if name in failures else latency, failures.get(name, ""))
        for name, latency in latencies.items()
    ]
    return validation.Validation("aws", tests, ["do this"] if failures else [validation.READY], 1.5e9)


@dataclass
class Daemon:
    """What the port asks, and what it gets."""

    state: KmsState = field(default_factory=lambda: KmsState(True, latency_ms=45.4))
    outcome: validation.Validation = field(default_factory=outcome_of)
    defect: Exception | None = None
    asked: int = 0
    held: asyncio.Event | None = None
    production: bool | None = None

    async def readiness(self) -> KmsState:
        """Tell the state of KMS."""
        self.asked += 1
        if self.defect:
            raise self.defect
        return self.state

    async def validate(self, production: bool) -> validation.Validation:
        """Tell the outcome, once it is no longer held back."""
        self.production = production
        if self.held:
            self.held.set()
            await asyncio.Event().wait()
        return self.outcome

    @asynccontextmanager
    async def serving(self, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
        """Serve this daemon on one address."""
        async with self.serving_all(address) as (bound,):
            yield bound

    def serving_all(self, addresses: str) -> AbstractAsyncContextManager[Sequence[str]]:
        """Serve this daemon."""
        apps = build_apps(
            "aws",
            readiness=self.readiness,
            metrics=lambda: (b"up 1\n", METRICS),
            validate=self.validate,
            status=lambda: {"provider": "aws", "cache": {"size": 3}},
        )
        return serving_ops(parse_host_ports(addresses), apps)


Request = Callable[..., AbstractAsyncContextManager[aiohttp.ClientResponse]]


@pytest.fixture
def daemon() -> Daemon:
    """Give a daemon in good order."""
    return Daemon()


@pytest.fixture
async def request_(daemon: Daemon) -> AsyncIterator[Request]:
    """Give what sends a request to the daemon's port."""
    async with daemon.serving() as bound, aiohttp.ClientSession(f"http://{bound}") as session:
        yield session.request


@asynccontextmanager
async def connection(bound: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a bare connection."""
    host, _, port = bound.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def test_ready_is_the_document_of_the_setup_guide(request_: Request) -> None:
    """With KMS in order, readiness answers 200 with provider, latency and status."""
    async with request_("GET", "/q/health/ready") as response:
        assert (200, "application/json") == (response.status, response.content_type)
        assert {
            "status": "UP",
            "checks": [
                {
                    "name": "kms",
                    "status": "UP",
                    "data": {"provider": "aws", "latency_ms": 45, "status": "operational"},
                }
            ],
        } == await response.json()


@pytest.mark.parametrize("path", ["/q/health", "/q/health/ready"])
async def test_unusable_kms_is_down_with_its_help(daemon: Daemon, request_: Request, path: str) -> None:
    """With KMS out of order the answer is 503, says why, and points to a heading that is there."""
    daemon.state = KmsState(False, "the key is Disabled: enable it", "MASTER_KEY_UNUSABLE", 12.0, 1.0)
    async with request_("GET", path) as response:
        assert 503 == response.status
        answer = await response.json()
    data = {
        "provider": "aws",
        "error": "the key is Disabled: enable it",
        "help": "docs/troubleshooting.md#master_key_unusable",
    }
    assert ("DOWN", {"name": "kms", "status": "DOWN", "data": data}) == (answer["status"], answer["checks"][-1])
    assert "### MASTER_KEY_UNUSABLE" in (Path(__file__).parents[2] / "docs/troubleshooting.md").read_text("utf-8")


async def test_live_never_asks_kms(daemon: Daemon, request_: Request) -> None:
    """Liveness is about the process: it is UP while KMS is not, and does not even look."""
    daemon.state = KmsState(False, "no answer", "KMS_UNREACHABLE")
    async with request_("GET", "/q/health/live") as response:
        assert (200, "UP") == (response.status, (await response.json())["status"])
    assert 0 == daemon.asked


async def test_health_has_both_checks(request_: Request) -> None:
    """The summary has the process and KMS."""
    async with request_("GET", "/q/health") as response:
        answer = await response.json()
    assert (200, ["process", "kms"]) == (response.status, [check["name"] for check in answer["checks"]])


async def test_metrics_are_passed_on(request_: Request) -> None:
    """Metrics are what the registry says, under its content type."""
    async with request_("GET", "/q/metrics") as response:
        assert (200, METRICS, b"up 1\n") == (response.status, response.headers["Content-Type"], await response.read())


async def test_validation_is_the_document_of_the_setup_guide(request_: Request) -> None:
    """What passed is shown with its latency, in whole milliseconds."""
    async with request_("POST", "/api/admin/kms/validate") as response:
        assert 200 == response.status
        assert {
            "provider": "aws",
            "overall": "PASS",
            "tests": {
                "generate_data_key": "PASS (45ms)",
                "encrypt": "PASS (38ms)",
                "decrypt": "PASS (42ms)",
                "key_retrieval_cache_miss": "PASS (95ms)",
                "key_retrieval_cache_hit": "PASS (2ms)",
            },
            "latency_ms": {
                "generate_data_key": 45,
                "encrypt": 38,
                "decrypt": 42,
                "cache_miss": 95,
                "cache_hit": 2,
            },
            "recommendations": ["✅ KMS configuration is valid and ready for production"],
        } == await response.json()


async def test_failed_validation_is_an_answer_as_well(daemon: Daemon, request_: Request) -> None:
    """A test that failed shows its sentence and no latency; the status is 200, so that curl prints it."""
    daemon.outcome = outcome_of(encrypt="KMS denies kms:Encrypt on the key")
    async with request_("POST", "/api/admin/kms/validate") as response:
        answer = await response.json()
    assert (200, "FAIL", ["do this"]) == (response.status, answer["overall"], answer["recommendations"])
    assert "FAIL: KMS denies kms:Encrypt on the key" == answer["tests"]["encrypt"]
    assert "encrypt" not in answer["latency_ms"]


@pytest.mark.parametrize(
    ("query", "production"), [("", False), ("?production=false", False), ("?production=true", True)]
)
async def test_validation_may_be_for_production(
    daemon: Daemon, request_: Request, query: str, production: bool
) -> None:
    """Whoever asks says what for."""
    async with request_("POST", f"/api/admin/kms/validate{query}") as response:
        assert (200, production) == (response.status, daemon.production)


async def test_status_is_given_as_it_is(request_: Request) -> None:
    """The status is what the daemon says of itself."""
    async with request_("GET", "/api/admin/kms/status") as response:
        assert (200, {"provider": "aws", "cache": {"size": 3}}) == (response.status, await response.json())


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9464", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:9464"])
async def test_admin_answers_by_the_names_of_this_machine(request_: Request, host: str) -> None:
    """A port that was forwarded by kubectl or ssh has any number."""
    async with request_("GET", "/api/admin/kms/status", headers={"Host": host}) as response:
        assert 200 == response.status


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "10.0.0.7"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"x-forwarded-host": "localhost"},
        {"X-Forwarded-Anything": ""},
        {"Forwarded": "for=127.0.0.1"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [*ADMIN, ("GET", "/api/admin/unknown")])
async def test_admin_refuses_browsers_and_proxies(
    request_: Request, method: str, path: str, headers: dict[str, str]
) -> None:
    """A request that a page in a browser or a proxy made is refused, with what to do instead."""
    async with request_(method, path, headers=headers) as response:
        assert (403, ["error"]) == (response.status, list(await response.json()))


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:9464", "localhost.evil.example", "127.0.0.1.evil.example", ""),
        "127.0.0.1:9464@evil.example",
    ],
)
@pytest.mark.parametrize(("method", "path"), [*ADMIN, ("GET", "/q/health"), ("GET", "/q/metrics"), ("GET", "/unknown")])
async def test_name_of_another_server_is_misdirected(request_: Request, method: str, path: str, host: str) -> None:
    """A page whose name was rebound to this machine reads nothing; what a proxy claims does not help it."""
    headers = {"Host": host, "X-Forwarded-Host": "localhost", "Forwarded": "host=localhost"}
    async with request_(method, path, headers=headers) as response:
        assert (421, ["error"]) == (response.status, list(await response.json()))


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        ("", b"400"),
        ("Host: localhost\r\nHost: evil.example\r\n", b"40"),
        ("Host: localhost\r\n", b"200"),
    ],
)
async def test_admin_wants_one_host(daemon: Daemon, hosts: str, status: bytes) -> None:
    """A request without a Host header, or with two, does not pass."""
    async with daemon.serving() as bound, connection(bound) as (reader, writer):
        version = "1.1" if hosts else "1.0"
        status = status if hosts else b"403"
        writer.write(f"GET /api/admin/kms/status HTTP/{version}\r\n{hosts}Connection: close\r\n\r\n".encode())
        assert (await reader.read()).split()[1].startswith(status)


async def test_the_page_may_ask_for_the_status(request_: Request) -> None:
    """A browser says that the page at `/` asks its own origin: that is the page of this daemon and no other."""
    async with request_("GET", "/") as response:
        assert (200, "text/html") == (response.status, response.content_type)
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    async with request_("GET", "/api/admin/kms/status", headers={"Sec-Fetch-Site": "same-origin"}) as response:
        assert 200 == response.status


async def test_the_page_may_be_linked_to(request_: Request) -> None:
    """A page elsewhere may lead there: the document holds nothing of the daemon."""
    async with request_("GET", "/", headers={"Sec-Fetch-Site": "cross-site"}) as response:
        assert 200 == response.status


@pytest.mark.parametrize("headers", [{"Host": "10.0.0.7"}, {"X-Forwarded-For": "127.0.0.1"}, {"Via": "1.1 proxy"}])
async def test_the_page_refuses_proxies(request_: Request, headers: dict[str, str]) -> None:
    """It is for this machine alone, as the status that it would ask for."""
    async with request_("GET", "/", headers=headers) as response:
        assert (403, ["error"]) == (response.status, list(await response.json()))


def other_address() -> str | None:
    """Return an address of this machine that is not loopback, as far as there is one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737); a datagram socket sends nothing here
        except OSError:
            return None
        host: str = probe.getsockname()[0]
        return None if host.startswith("127.") else host


async def statuses_of(url: str, **headers: str) -> dict[str, int]:
    """Return how each path answers."""
    statuses = {}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        for method, path in PATHS:
            async with session.request(method, path) as response:
                statuses[path] = response.status
    return statuses


EXPOSED = {path: 200 if path.startswith("/q/") else 404 for _, path in PATHS}
"""What other machines see."""


async def test_other_machines_see_health_and_metrics_alone(daemon: Daemon) -> None:
    """At an address that others reach there is nothing else, whatever the Host says."""
    host = other_address()
    if host is None:
        pytest.skip("this machine has no address but loopback")
    async with daemon.serving(f"{host}:0") as bound:
        by_address, by_name = (
            await statuses_of(f"http://{bound}"),
            await statuses_of(f"http://{bound}", Host="localhost"),
        )
    assert (EXPOSED, EXPOSED) == (by_address, by_name)


@pytest.mark.parametrize(
    ("address", "host"),
    [("0.0.0.0:0", "127.0.0.1"), ("[0.0.0.0]:0", "127.0.0.1"), ("[::]:0", "127.0.0.1"), ("[::]:0", "[::1]")],
)
async def test_every_address_is_one_that_others_reach(daemon: Daemon, address: str, host: str) -> None:
    """Through a wildcard this machine sees what others see: what is answered does not depend on who asks."""
    async with daemon.serving(address) as bound:
        assert EXPOSED == await statuses_of(f"http://{host}:{bound.rpartition(':')[2]}")


async def test_each_address_serves_what_it_is_for(daemon: Daemon) -> None:
    """One daemon has everything on loopback, and health and metrics where others reach it."""
    async with daemon.serving_all("127.0.0.1:0, localhost:0, 0.0.0.0:0") as (first, second, exposed):
        everything = {path: 200 for path in EXPOSED}
        assert [everything, everything] == [await statuses_of(f"http://{bound}") for bound in (first, second)]
        assert EXPOSED == await statuses_of(f"http://127.0.0.1:{exposed.rpartition(':')[2]}")


async def test_who_asks_an_exposed_address_for_more_is_told_what_is_there(daemon: Daemon) -> None:
    """The answer does not name paths that are on loopback alone."""
    async with daemon.serving("0.0.0.0:0") as bound, aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{bound.rpartition(':')[2]}/api/admin/kms/status") as response:
            assert {"error": "nothing is here: see /q/health and /q/metrics"} == await response.json()


async def test_an_address_that_cannot_be_bound_refuses_the_start(daemon: Daemon) -> None:
    """Of several, one that this machine does not have is enough; the others are closed again."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        first = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(
        StartRefused, match=r"^cannot listen on 192\.0\.2\.1:9464 \(.+\): .* choose another kms\.ops\.listen"
    ):
        async with daemon.serving_all(f"{first},192.0.2.1:9464"):
            pytest.fail("it was served")
    async with daemon.serving(first) as bound:
        assert first == bound


async def test_loopback_of_ipv6_is_this_machine(daemon: Daemon) -> None:
    """The port may be on [::1], and its peers are of this machine as well."""
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    async with daemon.serving("[::1]:0") as bound, aiohttp.ClientSession(f"http://{bound}") as session:
        async with session.get("/api/admin/kms/status") as response:
            assert 200 == response.status


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/index.html", 404),
        ("POST", "/", 405),
        ("GET", "/q/health/started/no", 404),
        ("GET", "/api/admin/unknown", 404),
        ("POST", "/q/health", 405),
        ("DELETE", "/q/metrics", 405),
        ("GET", "/api/admin/kms/validate", 405),
        ("PUT", "/api/admin/kms/status", 405),
    ],
)
async def test_wrong_path_or_method_is_told_in_json(request_: Request, method: str, path: str, status: int) -> None:
    """Who asks for what is not there gets JSON that says where to look."""
    async with request_(method, path) as response:
        answer = await response.json()
        assert (status, ["error"]) == (response.status, list(answer))
        assert answer["error"].startswith({404: "nothing is here: see /q/health", 405: "use "}[status])
        assert (status == 405) is ("Allow" in response.headers)


async def test_defect_does_not_show_itself(daemon: Daemon, request_: Request) -> None:
    """A defect is logged once, and the answer says nothing about it."""
    daemon.defect = RuntimeError("secret detail")
    with capture_logs() as logs:
        async with request_("GET", "/q/health/ready") as response:
            assert (500, {"error": "internal error"}) == (response.status, await response.json())
    assert [("error", "/q/health/ready", daemon.defect)] == [
        (entry["log_level"], entry["path"], entry["exc_info"]) for entry in logs
    ]


@pytest.mark.parametrize(("method", "path"), [*PATHS, ("GET", "/unknown"), ("POST", "/q/health")])
async def test_nothing_tells_versions(request_: Request, method: str, path: str) -> None:
    """No answer names the software behind it."""
    async with request_(method, path) as response:
        assert "Server" not in response.headers


async def test_body_is_ignored(request_: Request) -> None:
    """A body changes nothing, however large it is."""
    async with request_("POST", "/api/admin/kms/validate", data=bytes(100_000)) as response:
        assert (200, "PASS") == (response.status, (await response.json())["overall"])


async def test_taken_port_is_refused_with_what_to_do(daemon: Daemon) -> None:
    """Where another process listens, the daemon does not start, and names the setting."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        with pytest.raises(StartRefused) as refused:
            async with daemon.serving(address):
                pass
    assert (
        f"cannot listen on {address} (Address already in use): stop what holds it, or choose another kms.ops.listen"
        == str(refused.value)
    )


async def test_stop_does_not_wait_for_idle_connections(daemon: Daemon) -> None:
    """Connections that are kept alive, were never used, or stopped in the middle are closed with the port."""
    async with asyncio.timeout(30):
        async with daemon.serving() as bound:
            host, _, port = bound.rpartition(":")
            streams = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
            (used, to_used), _, (halfway, to_halfway) = streams
            to_used.write(b"GET /q/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await used.readuntil(b"\r\n\r\n")
            to_halfway.write(b"POST /api/admin/kms/validate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
            await halfway.readuntil(b"\r\n\r\n")
        for reader, writer in streams:
            await reader.read()
            writer.close()
            await writer.wait_closed()


async def test_stop_does_not_wait_for_a_call_that_hangs(daemon: Daemon) -> None:
    """A call that does not end is cut off with the port."""
    daemon.held = asyncio.Event()
    async with asyncio.timeout(30):
        async with daemon.serving() as bound:
            host, _, port = bound.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"POST /api/admin/kms/validate HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await daemon.held.wait()
        assert b"" == await reader.read()
        writer.close()
        await writer.wait_closed()


async def test_rubbish_is_answered_and_not_logged(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    """What is no HTTP gets 400, and does not fill the log with tracebacks."""
    async with daemon.serving() as bound, connection(bound) as (reader, writer):
        writer.write(b"GET /q/health HTTP/1.1\r\nHost localhost\r\n\r\n")
        answer = await reader.read()
    assert (b"400", []) == (answer.split()[1], [record for record in caplog.records if record.exc_info])


def test_document_is_of_plain_values() -> None:
    """The outcome that is shown holds nothing that only Python reads."""
    shown = validation_json(outcome_of())
    assert shown == json.loads(json.dumps(shown))


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("pod.example", False),
    ],
)
def test_which_peers_are_this_machine(text: str, loopback: bool) -> None:
    """An address that another machine has stays foreign when it is mapped."""
    assert loopback is is_loopback(text)
