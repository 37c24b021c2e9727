"""The daemon's own credentials: obtained apart from calls, bounded, read again, and no reason to leave KMS alone."""

import asyncio
import json
import logging
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.utils import AioContainerMetadataFetcher
from betrace_kms_server.aws.clients import aws_client
from betrace_kms_server.aws.credentials import AwsCredentials
from betrace_kms_server.core.errors import CredentialsUnavailable, StoreUnavailable
from betrace_kms_server.providers.aws.provider import AwsProvider
from betrace_kms_server.providers.aws.region import SdkClients
from betrace_kms_server.stores.dynamodb.client import asking
from botocore.loaders import JSONFileLoader

from tests.aws_sources import Reply, Source, reply, scripted_source
from tests.contract.doubles import FakeClock
from tests.contract.samples import ARN
from tests.moto_server import REGION

CALLS = 12
"""More than a breaker's window."""
METADATA = {"Arn": ARN, "KeyState": "Enabled", "KeyUsage": "ENCRYPT_DECRYPT", "KeySpec": "SYMMETRIC_DEFAULT"}
HTML = "<html>please log in: s3cret</html>"
NAMED = "x-amzn-requestid: 1\r\n"


def described(line: str, head: str, body: bytes) -> Reply:
    """Answer as KMS, with a key that can be used."""
    return reply(json.dumps({"KeyMetadata": METADATA}), headers=NAMED)


@pytest.fixture
async def kms() -> AsyncIterator[Source]:
    """Give a server that answers DescribeKey."""
    async with scripted_source(described) as source:
        yield source


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start without any source of credentials."""
    monkeypatch.setattr(AioContainerMetadataFetcher, "SLEEP_TIME", 0)
    for name in [name for name in os.environ if name.startswith("AWS_") or name.upper().endswith("_PROXY")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@asynccontextmanager
async def provider(kms: Source, **bounds: Any) -> AsyncIterator[AwsProvider]:
    """Give a provider before that KMS, with credentials that are asked for again at once."""
    credentials = AwsCredentials(REGION, **{"pause": 0.0, "seconds": 20.0} | bounds)
    async with AwsProvider(ARN, region=REGION, endpoint=kms.url, client_factory=SdkClients(credentials)) as aws:
        yield aws


async def kinds(aws: AwsProvider, calls: int = CALLS) -> list[str]:
    """Make calls at once, and return the kind of each failure; fails for anything but missing credentials."""
    outcomes = await asyncio.gather(*(aws.generate_data_key(32, {}) for _ in range(calls)), return_exceptions=True)
    assert {CredentialsUnavailable} == set(map(type, outcomes)), outcomes
    assert not any("s3cret" in str(outcome) for outcome in outcomes)
    return [outcome.metadata["kind"] for outcome in outcomes if isinstance(outcome, CredentialsUnavailable)]


def write_keys(path: Path, key_id: str) -> None:
    """Write a credentials file, in place as the Vault agent does."""
    path.write_text(f"[default]\naws_access_key_id = {key_id}\naws_secret_access_key = s3cret\n")


def web_identity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Set what IRSA sets, without a Region."""
    (tmp_path / "token").write_text("s3cret")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/daemon")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))


async def test_silent_sts_is_no_silent_kms(kms: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Calls that wait for STS share one attempt, end by its own bound, and the breaker learns nothing."""
    web_identity(monkeypatch, tmp_path)
    async with scripted_source(lambda *_: None) as sts, provider(kms, seconds=0.3) as aws:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        assert ["timeout"] * CALLS == await kinds(aws)
        assert ({REGION: "closed"}, [], {"timeout": 1}) == (aws.breakers, kms.requests, aws.credential_attempts)


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("Throttling", 400, "throttled"),
        ("AccessDenied", 403, "refused"),
        ("ExpiredTokenException", 400, "refused"),
        ("InvalidIdentityToken", 400, "refused"),
        ("InternalFailure", 500, "refused"),
    ],
)
async def test_refusals_of_sts_are_about_credentials(
    kms: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, status: int, expected: str
) -> None:
    """Whatever STS answers, KMS is not asked and its breaker stays closed."""
    web_identity(monkeypatch, tmp_path)
    body = f"<ErrorResponse><Error><Code>{code}</Code><Message>s3cret</Message></Error></ErrorResponse>"
    async with scripted_source(lambda *_: reply(body, status=status, kind="text/xml")) as sts, provider(kms) as aws:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        assert [expected] * CALLS == await kinds(aws)
        assert ({REGION: "closed"}, []) == (aws.breakers, kms.requests)


async def test_attempts_share_what_the_sdk_reads(kms: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A role that stays refused is asked for again and again, and only the first time reads the SDK's model of STS."""
    web_identity(monkeypatch, tmp_path)
    read = list[str]()
    load_file = JSONFileLoader.load_file

    def noted(self: JSONFileLoader, path: str) -> Any:
        read.append(path)
        return load_file(self, path)

    monkeypatch.setattr(JSONFileLoader, "load_file", noted)
    async with scripted_source(lambda *_: reply("", status=403)) as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        credentials = AwsCredentials(REGION, pause=0.0)
        for _ in range(3):
            with pytest.raises(CredentialsUnavailable):
                await credentials.ready()
        assert 3 <= len(sts.requests)
    assert [path for path in read if path.endswith("/service-2")]
    assert len(set(read)) == len(read)


LATER = (datetime.now(UTC) + timedelta(hours=6)).isoformat()
BEFORE = (datetime.now(UTC) - timedelta(hours=6)).isoformat()
WHOLE = {"AccessKeyId": "AKIDCONTAINER", "SecretAccessKey": "s3cret", "Token": "t0ken", "Expiration": LATER}


@pytest.mark.parametrize(
    "answer",
    [
        reply(json.dumps(WHOLE | {"SecretAccessKey": None})),
        reply(json.dumps(WHOLE | {"SecretAccessKey": ""})),
        reply(json.dumps(WHOLE | {"SecretAccessKey": 7})),
        reply(json.dumps(WHOLE | {"SecretAccessKey": "s3cret\nwith: a line"})),
        reply(json.dumps({name: value for name, value in WHOLE.items() if name != "Expiration"})),
        reply(json.dumps({name: value for name, value in WHOLE.items() if name != "AccessKeyId"})),
        reply(json.dumps(WHOLE | {"Expiration": "soon"})),
        reply(json.dumps(WHOLE | {"Expiration": None})),
        reply(json.dumps(WHOLE | {"Expiration": BEFORE})),
        reply("[]"),
        reply("{}"),
        reply("null"),
        reply(""),
        reply('{"AccessKeyId": "AKID'),
        *(reply(HTML, status=status, kind="text/html") for status in (200, 302, 404, 407, 500)),
        reply(HTML, status=302, kind="text/html", headers="location: http://[bad\r\n"),
        b"not http at all\r\n\r\n",
        b"",
    ],
    ids=map(str, range(100)),  # the answers hold times, and each worker must name its tests alike
)
async def test_half_an_answer_is_named_as_such(kms: Source, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    """What a container agent answers in the place of credentials is no defect of ours, and no outage of KMS."""
    async with scripted_source(lambda *_: answer) as agent, provider(kms) as aws:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.url}/role")
        await kinds(aws)
        assert ({REGION: "closed"}, []) == (aws.breakers, kms.requests)


@pytest.mark.parametrize(
    "script",
    [
        "print()",
        "print('{')",
        "print('[]')",
        "print('null')",
        f"print({HTML!r})",
        "import sys; sys.stdout.buffer.write(bytes(range(256)))",
        """print('{"Version": 1, "AccessKeyId": "AKID"}')""",
        """print('{"Version": 1, "AccessKeyId": "AKID", "SecretAccessKey": null}')""",
        """print('{"Version": 1, "AccessKeyId": "AKID", "SecretAccessKey": "x", "Expiration": "soon"}')""",
        """print('{"Version": 1, "AccessKeyId": "AKID", "SecretAccessKey": "x", "Expiration": "2001-01-01T00:00Z"}')""",
        """print('{"Version": 2}')""",
        "raise SystemExit(1)",
        "while True: print('x' * 1000)",
        "import sys\nwhile True: print('x' * 1000, file=sys.stderr)",
    ],
)
async def test_output_that_is_no_credentials_is_named_as_such(kms: Source, tmp_path: Path, script: str) -> None:
    """Whatever a credential_process prints, however much, becomes our error."""
    (tmp_path / "process.py").write_text(script)
    command = f"{shlex.quote(sys.executable)} -S {tmp_path / 'process.py'}"
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {command}\n")
    async with provider(kms) as aws:
        await kinds(aws, calls=2)
        assert ({REGION: "closed"}, []) == (aws.breakers, kms.requests)


async def test_process_that_hangs_is_killed_with_what_it_started(kms: Source, tmp_path: Path) -> None:
    """After the bound neither the process nor its children run, and the process leaves no zombie."""
    pids = tmp_path / "pids"
    script = tmp_path / "hang.sh"
    script.write_text(f"sleep 1000 &\necho $$ $! > {pids}\nwait\n")
    (tmp_path / "config").write_text(f"[default]\ncredential_process = sh {script}\n")
    async with provider(kms, seconds=1.0) as aws:
        assert ["timeout"] * CALLS == await kinds(aws)
    leader, child = pids.read_text().split()
    assert (None, True) == (state_of(leader), await ended(child))


async def test_process_that_left_its_pipe_to_a_child_is_given_up(kms: Source, tmp_path: Path) -> None:
    """A child that keeps the output open after its parent has gone is killed, too."""
    pids = tmp_path / "pids"
    script = tmp_path / "fork.sh"
    script.write_text(f"sleep 1000 &\necho $! > {pids}\n")
    (tmp_path / "config").write_text(f"[default]\ncredential_process = sh {script}\n")
    async with provider(kms, seconds=1.0) as aws:
        assert ["timeout"] * 2 == await kinds(aws, calls=2)
    assert await ended(pids.read_text().strip())


def state_of(pid: str) -> str | None:
    """Return the state of a process, Z for a zombie, or None if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return None


async def ended(pid: str) -> bool:
    """Wait until a killed process is gone; a zombie of another parent is that parent's to reap."""
    async with asyncio.timeout(5.0):
        while state_of(pid) not in (None, "Z"):  # noqa: ASYNC110  # of a process there is no event
            await asyncio.sleep(0.01)
    return True


async def test_process_of_a_source_profile_is_killed_as_well(kms: Source, tmp_path: Path) -> None:
    """So is a process that gives the credentials with which a role is assumed."""
    pids = tmp_path / "pids"
    script = tmp_path / "hang.sh"
    script.write_text(f"echo $$ > {pids}\nexec sleep 1000\n")
    (tmp_path / "config").write_text(
        "[default]\nrole_arn = arn:aws:iam::123456789012:role/daemon\nsource_profile = base\n"
        f"[profile base]\ncredential_process = sh {script}\n"
    )
    async with provider(kms, seconds=1.0) as aws:
        assert ["timeout"] * 2 == await kinds(aws, calls=2)
    assert None is state_of(pids.read_text().strip())


@pytest.mark.parametrize("rename", [False, True], ids=["in place", "renamed over"])
async def test_rewritten_file_is_read_again(kms: Source, tmp_path: Path, clock: FakeClock, rename: bool) -> None:
    """A credentials file that was rewritten serves without a restart, once the pause between two checks is over."""
    write_keys(tmp_path / "credentials", "AKIDFIRST")
    async with provider(kms, pause=2.0, clock=clock) as aws:
        await aws.check()
        if rename:
            write_keys(tmp_path / "new", "AKIDSECOND")
            (tmp_path / "new").replace(tmp_path / "credentials")
        else:
            write_keys(tmp_path / "credentials", "AKIDSECOND")
        clock.now += 2.0
        await aws.check()
    assert ["AKIDFIRST", "AKIDSECOND"] == kms.access_keys


@pytest.mark.parametrize("code", ["UnrecognizedClientException", "ExpiredTokenException", "InvalidSignatureException"])
async def test_refused_credentials_are_read_again_within_the_call(kms: Source, tmp_path: Path, code: str) -> None:
    """When AWS refuses what is held and the file has others, no call fails, however recently the file was read."""

    def refuse_first(line: str, head: str, body: bytes) -> Reply:
        if "AKIDFIRST" in head and len(kms.requests) > 1:
            return reply(json.dumps({"__type": code, "message": "s3cret"}), status=400, headers=NAMED)
        return described(line, head, body)

    kms.answer = refuse_first
    write_keys(tmp_path / "credentials", "AKIDFIRST")
    async with provider(kms, pause=1000.0) as aws:
        await aws.check()
        write_keys(tmp_path / "credentials", "AKIDSECOND")
        await asyncio.gather(*(aws.check() for _ in range(CALLS)))
        assert {"OK": 2} == aws.credential_attempts
        assert "closed" == aws.breakers[REGION]
    assert "AKIDSECOND" == kms.access_keys[-1]


async def test_refusal_during_an_attempt_is_followed_by_another(kms: Source, tmp_path: Path) -> None:
    """What an attempt has read before AWS refused it says nothing: the sources are asked again within the call."""
    key, gate, reading, script = (tmp_path / name for name in ("key", "gate", "reading", "process.sh"))
    script.write_text(
        f"key=$(cat {key}); touch {reading}; while [ ! -e {gate} ]; do sleep 0.01; done\n"
        """echo '{"Version": 1, "AccessKeyId": "'$key'", "SecretAccessKey": "s3cret"}'\n"""
    )
    key.write_text("AKIDFIRST")
    gate.touch()
    (tmp_path / "config").write_text(f"[default]\ncredential_process = sh {script}\n")
    credentials = AwsCredentials(REGION, pause=0.0)
    await credentials.ready()
    reading.unlink()
    gate.unlink()
    (tmp_path / "config").write_text(f"[default]\ncredential_process = sh {script} again\n")
    caller = asyncio.create_task(credentials.ready())
    async with asyncio.timeout(20):
        while not reading.exists():  # noqa: ASYNC110  # of a process there is no event
            await asyncio.sleep(0.01)
    key.write_text("AKIDSECOND")
    credentials.refused(credentials.generation)
    gate.touch()
    assert await credentials.replaced()
    await caller
    assert "AKIDSECOND" == (await credentials.get_frozen_credentials()).access_key


@pytest.mark.parametrize("content", ["", "[default]\naws_access_key_id = AKIDHALF\n", "[default", None])
async def test_file_that_is_unreadable_for_a_moment_costs_nothing(
    kms: Source, tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """While a file is empty, cut or gone, what is held serves on; it is logged once, and the next content is read."""
    path = tmp_path / "credentials"
    write_keys(path, "AKIDFIRST")
    async with provider(kms) as aws:
        await aws.check()
        path.unlink() if content is None else path.write_text(content)
        with caplog.at_level(logging.INFO, "betrace_kms_server.aws.credentials"):
            for _ in range(5):
                await aws.check()
        assert 1 == len([record for record in caplog.records if record.levelno == logging.WARNING])
        write_keys(path, "AKIDSECOND")
        await aws.check()
    assert [*["AKIDFIRST"] * 6, "AKIDSECOND"] == kms.access_keys


async def test_empty_file_does_not_make_the_daemon_the_machine(
    kms: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role that stands behind the file in the chain does not step in while the file is rewritten."""
    write_keys(tmp_path / "credentials", "AKIDFIRST")
    async with scripted_source(lambda *_: reply(json.dumps(WHOLE))) as agent, provider(kms) as aws:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.url}/role")
        await aws.check()
        (tmp_path / "credentials").write_text("")
        await aws.check()
    assert ["AKIDFIRST"] * 2 == kms.access_keys


async def test_config_file_that_gets_a_role_is_read_again(
    kms: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is the config file: another credential_process takes effect."""

    def process(key_id: str) -> None:
        script = tmp_path / f"{key_id}.sh"
        found = json.dumps({"Version": 1, "AccessKeyId": key_id, "SecretAccessKey": "s3cret"})
        script.write_text(f"echo '{found}'\n")
        (tmp_path / "config").write_text(f"[default]\ncredential_process = sh {script}\n")

    process("AKIDFIRST")
    async with provider(kms) as aws:
        await aws.check()
        process("AKIDSECOND")
        await aws.check()
    assert ["AKIDFIRST", "AKIDSECOND"] == kms.access_keys


async def test_credentials_that_are_valid_serve_while_their_renewal_fails(
    kms: Source, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A source that hangs or fails costs no call anything until what is held expires; then it is named."""
    now = datetime.now(UTC)
    soon = (now + timedelta(minutes=5)).isoformat()  # botocore insists on a renewal from ten minutes before
    answers: list[Reply] = [reply(json.dumps(WHOLE | {"Expiration": soon}))] * 2
    time = [now]
    async with (
        scripted_source(lambda *_: answers.pop() if answers else reply(HTML, kind="text/html")) as agent,
        provider(kms, now=lambda: time[0]) as aws,
    ):
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.url}/role")
        with caplog.at_level(logging.INFO, "betrace_kms_server.aws.credentials"):
            for _ in range(5):
                await aws.check()
        time[0] = now + timedelta(minutes=6)
        await kinds(aws)
        assert "closed" == aws.breakers[REGION]
    assert 5 == len(kms.requests)
    assert 1 >= len([record for record in caplog.records if record.name.startswith("betrace")])


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1"])
@pytest.mark.parametrize("legacy", [False, True])
async def test_sts_is_asked_in_the_region_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, region: str, legacy: bool
) -> None:
    """With IRSA and no AWS_REGION no request leaves for the global endpoint of STS, not even in legacy mode."""
    web_identity(monkeypatch, tmp_path)
    if legacy:
        monkeypatch.setenv("AWS_STS_REGIONAL_ENDPOINTS", "legacy")
    async with scripted_source(lambda *_: reply("", status=403)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(CredentialsUnavailable, match="proxy"):
            await AwsCredentials(region).ready()
    assert {f"CONNECT sts.{region}.amazonaws.com:443 HTTP/1.1"} == set(proxy.requests)


async def test_bad_endpoint_of_sts_is_named(kms: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An AWS_ENDPOINT_URL that is no URL breaks the daemon's credentials, and says so."""
    web_identity(monkeypatch, tmp_path)
    async with provider(kms) as aws:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "not a url")
        with pytest.raises(CredentialsUnavailable, match="AWS_ENDPOINT_URL"):
            await aws.check()


async def test_store_waits_for_credentials_apart_from_its_calls(
    kms: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A key store without credentials says that, and DynamoDB is not asked."""
    web_identity(monkeypatch, tmp_path)
    async with scripted_source(lambda *_: None) as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        async with aws_client("dynamodb", REGION, kms.url, AwsCredentials(REGION, seconds=0.2)) as client:
            with pytest.raises(StoreUnavailable, match=r"credentials did not arrive within 0\.2 s"):
                async with asking(client, "GetItem", "table"):
                    await client.get_item(TableName="table", Key={})
    assert [] == kms.requests


async def test_who_leaves_does_not_end_the_attempt_of_others(kms: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that is cancelled while it waits for credentials is cancelled, and the others go on."""
    async with scripted_source(lambda *_: reply(json.dumps(WHOLE))) as agent, provider(kms) as aws:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.url}/role")
        leaving, staying = (asyncio.create_task(aws.check()) for _ in range(2))
        await agent.asked.wait()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await staying
        assert {"OK": 1} == aws.credential_attempts


def test_repr_shows_no_secret() -> None:
    """Nothing of what is held can get into a log by its repr."""
    credentials: Callable[..., Any] = AwsCredentials
    assert "secret" not in repr(credentials(REGION)).lower()
