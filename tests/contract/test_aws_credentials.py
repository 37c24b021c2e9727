"""The daemon's own AWS credentials: slow, broken, expired, rewritten sources, and what they mean for KMS's breaker."""

import asyncio
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_server.aws import credentials
from betrace_kms_server.aws.credentials import DaemonCredentials
from betrace_kms_server.core.errors import BadAnswer, CredentialsUnavailable, KmsUnreachable
from betrace_kms_server.providers.aws.provider import AwsProvider

from tests.moto_server import REGION, MotoServer

Handler = Callable[[BaseHTTPRequestHandler], None]


class Source:
    """An HTTP server that gives credentials as a container's agent does; `answer` is replaced by tests."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Handler = lambda request: give(request, good())
        source = self

        class Requests(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                source.asked.append(self.path)
                source.answer(self)

            def do_CONNECT(self) -> None:
                source.asked.append(self.path)
                source.answer(self)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def good(minutes: float = 60.0, **changes: Any) -> dict[str, Any]:
    """Return what a source answers, with members changed, or left out if None."""
    expiry = (datetime.now(UTC) + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")
    answer = {"AccessKeyId": "AKIDGOOD", "SecretAccessKey": "secret", "Token": "token", "Expiration": expiry, **changes}
    return {name: value for name, value in answer.items() if value is not None}


def give(request: BaseHTTPRequestHandler, body: Any, status: int = 200, kind: str = "application/json") -> None:
    """Answer a request."""
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    request.send_response(status)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


def slowly(released: threading.Event) -> Handler:
    """Answer when the event is set."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        released.wait(5)
        give(request, good())

    return answer


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Leave no source of credentials but files that a test writes into a home of its own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / ".aws").mkdir()
    return tmp_path


@pytest.fixture
def source(no_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """Give a server that the SDK asks for credentials."""
    running = Source()
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{running.url}/credentials")
    yield running
    running.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let credentials be obtained within a moment, and tried again at once."""
    monkeypatch.setattr(credentials, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(
        credentials.DaemonCredentials.__init__,
        "__kwdefaults__",
        {
            **(DaemonCredentials.__init__.__kwdefaults__ or {}),
            "seconds": 0.2,
        },
    )


def write_shared(home: Path, access_key: str, text: str = "") -> None:
    """Rewrite the shared credentials file in place, as a template of a Vault agent is."""
    content = text or f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = secret\n"
    (home / ".aws/credentials").write_text(content)


@pytest.mark.usefixtures("quick")
async def test_slow_source_is_not_an_unreachable_kms(source: Source, moto: MotoServer, kms_key: str) -> None:
    """KMS was not asked, so its circuit stays closed, however many calls wait for credentials in vain."""
    released = threading.Event()
    source.answer = slowly(released)
    before = moto.calls.total()
    async with AwsProvider(kms_key, region=REGION, endpoint=moto.url) as aws:
        for _ in range(3):
            outcomes = await asyncio.gather(*(aws.generate_data_key(32, {}) for _ in range(10)), return_exceptions=True)
            assert {CredentialsUnavailable} == set(map(type, outcomes))
            assert "STS, instance metadata or credential_process" in str(outcomes[0])
        assert (before, {REGION: "closed"}) == (moto.calls.total(), aws.breakers)
        released.set()
        source.answer = lambda request: give(request, good())
        await aws.generate_data_key(32, {})


BROKEN: dict[str, Handler] = {
    "half an answer": lambda request: give(request, good(SecretAccessKey=None)),
    "an empty secret": lambda request: give(request, good(SecretAccessKey="")),
    "no expiry": lambda request: give(request, good(Expiration="soon")),
    "expired": lambda request: give(request, good(minutes=-5)),
    "HTML": lambda request: give(request, "<html>log in</html>", 200, "text/html"),
    "not found": lambda request: give(request, "<html>no</html>", 404, "text/html"),
    "broken": lambda request: give(request, "{", 500),
    "throttled": lambda request: give(request, {"message": "slow down"}, 429),
    "a list": lambda request: give(request, []),
    "nothing": lambda request: request.connection.close(),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("what", BROKEN)
async def test_broken_source_is_about_credentials(what: str, source: Source, moto: MotoServer, kms_key: str) -> None:
    """Whatever a source gives that is no credentials has their error, and never the one of a defect."""
    source.answer = BROKEN[what]
    async with AwsProvider(kms_key, region=REGION, endpoint=moto.url) as aws:
        for _ in range(12):
            with pytest.raises(CredentialsUnavailable):
                await aws.check()
        assert {REGION: "closed"} == aws.breakers
        source.answer = lambda request: give(request, good())
        await aws.check()


async def test_one_refresh_for_all_who_need_it(source: Source) -> None:
    """A hundred calls at once ask the source once."""
    shared = DaemonCredentials(REGION)
    await asyncio.gather(*(shared.ready() for _ in range(100)))
    assert ["/credentials"] == source.asked
    assert "AKIDGOOD" == (await shared.get_frozen_credentials()).access_key


async def test_nobody_waits_while_the_old_ones_are_good(source: Source) -> None:
    """Credentials that expire soon are refreshed in the background: botocore's advisory time is 15 minutes."""
    source.answer = lambda request: give(request, good(minutes=12))
    shared = DaemonCredentials(REGION)
    await shared.ready()
    hanging = threading.Event()
    source.answer = slowly(hanging)
    await asyncio.wait_for(shared.ready(), 1.0)
    await asyncio.wait_for(shared.ready(), 1.0)
    hanging.set()
    await shared.close()


async def test_shared_file_that_is_rewritten_is_read_again(
    no_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new key in the file is used without a restart, and half a file leaves the old key in use."""
    monkeypatch.setattr(credentials, "RETRY_SECONDS", 0.0)
    write_shared(no_environment, "AKIDFIRST")
    shared = DaemonCredentials(REGION)

    async def used_in_the_end(access_key: str) -> str:
        for _ in range(200):
            await shared.ready()
            if (found := (await shared.get_frozen_credentials()).access_key) == access_key:
                return str(found)
            await asyncio.sleep(0.01)
        return str(found)

    assert "AKIDFIRST" == await used_in_the_end("AKIDFIRST")
    write_shared(no_environment, "", "[default]\naws_access_key_id = AKIDHALF\n")
    for _ in range(10):
        await shared.ready()
        await asyncio.sleep(0)
    assert "AKIDFIRST" == (await shared.get_frozen_credentials()).access_key
    write_shared(no_environment, "AKIDSECOND")
    assert "AKIDSECOND" == await used_in_the_end("AKIDSECOND")
    await shared.close()


async def test_refused_credentials_are_obtained_anew(source: Source) -> None:
    """After AWS refused them, whether they expired or not, the source is asked again; but not for every call."""
    now = 100.0
    shared = DaemonCredentials(REGION, clock=lambda: now)
    await shared.ready()
    shared.refused()
    await shared.ready()
    assert 1 == len(source.asked)
    now += credentials.REFUSED_SECONDS
    shared.refused()
    await shared.ready()
    assert 2 == len(source.asked)


def runs(pid: int) -> bool:
    """Whether a process is there and is not only waiting for its parent to reap it."""
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and " Z " not in state.read_text()


async def test_hanging_credential_process_is_killed(no_environment: Path, tmp_path: Path) -> None:
    """The process and what it started are gone, and reaped, when its time is over."""
    script, pids = tmp_path / "process.sh", tmp_path / "pids"
    script.write_text(f"#!/bin/sh\nsleep 600 &\necho $$ $! > {pids}\nwait\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (no_environment / ".aws/config").write_text(f"[default]\ncredential_process = {script}\n")
    shared = DaemonCredentials(REGION, seconds=1.0)
    with pytest.raises(TimeoutError):
        await shared.ready()
    child, grandchild = map(int, pids.read_text().split())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert not runs(grandchild)


async def test_web_identity_asks_sts_of_the_region(
    no_environment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """IRSA without AWS_REGION goes to STS of the key's Region, through a proxy that shows where the call goes."""
    proxy = Source()
    proxy.answer = lambda request: give(request, "", 407)
    (tmp_path / "token").write_text("token")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/daemon")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    try:
        with pytest.raises(Exception):  # noqa: B017, PT011  # whatever the SDK makes of a proxy that refuses
            await DaemonCredentials("eu-west-1", seconds=3.0).ready()
    finally:
        proxy.close()
    assert {"sts.eu-west-1.amazonaws.com:443"} == set(proxy.asked)


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://x", "http://127.0.0.1:99999"])
async def test_endpoint_that_is_no_url_says_so(moto: MotoServer, kms_key: str, monkeypatch: Any, url: str) -> None:
    """A bad AWS_ENDPOINT_URL is named, and is no internal error."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    async with AwsProvider(kms_key, region=REGION) as aws:
        with pytest.raises(KmsUnreachable, match=r"AWS_ENDPOINT_URL|no answer from KMS"):
            await aws.check()


@pytest.mark.parametrize("status", [200, 302, 404, 407])
async def test_html_in_the_place_of_kms_says_so(moto: MotoServer, kms_key: str, status: int) -> None:
    """A login page or a proxy that answers is no KMS, and no internal error."""
    page = Source()
    page.answer = lambda request: give(request, "<html>log in</html>", status, "text/html")
    try:
        async with AwsProvider(kms_key, region=REGION, endpoint=page.url) as aws:
            for call in (aws.check, lambda: aws.generate_data_key(32, {})):
                with pytest.raises((KmsUnreachable, BadAnswer), match=r"is not AWS KMS|check what answers there"):
                    await call()
    finally:
        page.close()
