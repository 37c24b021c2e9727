"""What is wrong between the daemon and AWS is named: certificates, proxies, CA files, open files, and foreign answers.

And whatever the AWS SDK and what it stands on may raise comes out as an error of ours.
"""

import asyncio
import errno
import importlib
import inspect
import logging
import os
import pkgutil
import resource
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiobotocore
import aiohttp
import botocore
import pytest
from betrace_kms_server.aws.clients import aws_client
from betrace_kms_server.aws.credentials import AwsCredentials
from betrace_kms_server.core.call_slots import MAX_WAITING
from betrace_kms_server.core.errors import (
    CredentialsUnavailable,
    KmsError,
    KmsUnreachable,
    Overloaded,
    StoreUnavailable,
)
from betrace_kms_server.operations.monitor import KmsMonitor
from betrace_kms_server.providers.aws.provider import AwsProvider, KmsApi
from betrace_kms_server.providers.aws.region import CALLS_AT_ONCE, CALLS_OF_TENANT
from betrace_kms_server.stores.dynamodb.store import DynamoStore
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.aws_sources import reply, scripted_source
from tests.contract.samples import ARN, stored_key
from tests.contract.stub_kms import ACTIONS, Clients, provider, stubbed
from tests.moto_server import REGION

HTML = "<html>s3cret</html>"
METADATA = {"Arn": ARN, "KeyState": "Enabled", "KeyUsage": "ENCRYPT_DECRYPT", "KeySpec": "SYMMETRIC_DEFAULT"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give credentials, and nothing else."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.upper().endswith("_PROXY")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


async def failure(endpoint: str | None, *, calls: int = 1) -> tuple[KmsError, str]:
    """Return what a call to KMS comes to, and the state of the breaker after so many."""
    async with AwsProvider(ARN, region=REGION, endpoint=endpoint) as aws:
        for _ in range(calls):
            with pytest.raises(KmsError) as raised:
                await aws.check()
        assert "s3cret" not in f"{raised.value} {raised.value.metadata}"
        return raised.value, aws.breakers[REGION]


def certificate(folder: Path, host: str, *, days: int = 1) -> ssl.SSLContext:
    """Return the context of a server with a certificate that it signed itself; `folder` gets it as ca.pem."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=10))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(host), x509.IPAddress(ip_address("127.0.0.2"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return context


@asynccontextmanager
async def tls_server(context: ssl.SSLContext | None) -> AsyncIterator[str]:
    """Run a server that speaks TLS, or with no context one that does not, and give its port."""

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-not-tls\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield str(server.sockets[0].getsockname()[1])
    finally:
        server.close()


@pytest.mark.parametrize(
    ("host", "days", "trusted", "words"),
    [
        ("localhost", 1, False, "is not trusted: put the CA"),
        ("localhost", -1, True, "is expired or not yet valid: check this machine's clock"),
        ("kms.example", 1, True, "is for another host: check the endpoint"),
    ],
)
async def test_certificate_is_named_with_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, days: int, trusted: bool, words: str
) -> None:
    """An operator reads why the certificate is not taken, and what to do about it."""
    context = certificate(tmp_path, host, days=days)
    if trusted:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    async with tls_server(context) as port:
        error, _ = await failure(f"https://localhost:{port}")
    assert ("tls", True) == (error.metadata.get("kind"), words in error.message)


@asynccontextmanager
async def tunnel() -> AsyncIterator[str]:
    """Run a proxy that lets everything through, and give its address."""
    copies = set[asyncio.Task[None]]()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(65536):
                writer.write(piece)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        host, port = head.split()[1].decode().split(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        copies.update(map(asyncio.create_task, (copy(reader, far_writer), copy(far_reader, writer))))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await asyncio.wait(copies, timeout=5.0)


async def test_certificate_is_checked_behind_a_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A tunnel ends at AWS and nowhere else: a certificate that is not trusted is refused there, too."""
    async with tls_server(certificate(tmp_path, "localhost")) as port, tunnel() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        error, _ = await failure(f"https://localhost:{port}")
    assert ("tls", True) == (error.metadata.get("kind"), "is not trusted" in error.message)


async def test_certificate_of_sts_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What gives credentials is checked like KMS: its host name, and that it is trusted."""
    (tmp_path / "token").write_text("s3cret")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/daemon")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    context = certificate(tmp_path, "sts.example")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    async with tls_server(context) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"https://localhost:{port}")
        with pytest.raises(CredentialsUnavailable, match="is for another host"):
            await AwsCredentials(REGION).ready()


async def test_server_that_speaks_no_tls_is_named() -> None:
    """A plain port behind https is a failing handshake."""
    async with tls_server(None) as port:
        error, _ = await failure(f"https://localhost:{port}")
    assert ("tls", True) == (error.metadata.get("kind"), "the TLS handshake with KMS" in error.message)


@pytest.mark.parametrize("content", [None, "", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
async def test_ca_file_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    """An AWS_CA_BUNDLE that is missing or no PEM is named as such; KMS was not asked, and its breaker stays closed."""
    if content is not None:
        (tmp_path / "bundle").write_text(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "bundle"))
    error, breaker = await failure("https://localhost:1", calls=3)
    assert ("ca_bundle", True, "closed") == (error.metadata.get("kind"), "AWS_CA_BUNDLE" in error.message, breaker)


@pytest.mark.parametrize(
    ("status", "words"), [(407, "asks for a user and a password"), (403, "refuses the connection (HTTP status 403)")]
)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_proxy_that_refuses_is_named(
    monkeypatch: pytest.MonkeyPatch, status: int, words: str, scheme: str
) -> None:
    """So is a proxy that wants a password or does not let the host through, by either way of asking it."""
    async with scripted_source(lambda *_: reply(HTML, status=status, kind="text/html")) as proxy:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", proxy.url.replace("//", "//user:s3cret@"))
        error, _ = await failure(f"{scheme}://kms.example")
    if (scheme, status) == ("http", 403):  # a page as any other: nothing tells that a proxy sent it
        assert "not_aws" == error.metadata.get("kind")
    else:
        assert ("proxy", True) == (error.metadata.get("kind"), words in error.message)


@pytest.mark.parametrize("url", ["http://user:s3cret@127.0.0.1:1", "s3cret", "socks5://user:s3cret@127.0.0.1:1"])
async def test_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """So is one that does not answer, or is no HTTP proxy, without the password in its address."""
    monkeypatch.setenv("HTTPS_PROXY", url)
    error, _ = await failure("https://kms.example")
    assert ("proxy", True) == (error.metadata.get("kind"), "HTTPS_PROXY" in error.message)


@pytest.mark.parametrize("url", ["s3cret", "http://", "://s3cret", "ftp://[s3cret", "http://host:port"])
async def test_endpoint_that_is_no_url_is_named(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """So is an AWS_ENDPOINT_URL that is none; KMS was not asked, and its breaker stays closed."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    error, breaker = await failure(None, calls=11)
    assert (KmsUnreachable, "closed") == (type(error), breaker)
    assert "AWS_ENDPOINT_URL" in error.message


@contextmanager
def no_file_descriptors() -> Iterator[None]:
    """Let this process open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_exhausted_file_descriptors_are_named() -> None:
    """Without a descriptor for a connection the limit of open files is named, and the breaker stays closed."""
    async with AwsProvider(ARN, region=REGION, endpoint="http://127.0.0.1:1") as aws:
        with suppress(KmsError):
            await aws.check()
        with no_file_descriptors(), pytest.raises(KmsUnreachable, match="raise the limit of open files") as raised:
            await aws.check()
    assert "open_files" == raised.value.metadata["kind"]


@pytest.mark.parametrize("status", [200, 302, 400, 403, 404, 407])
async def test_page_in_the_place_of_kms_is_no_answer_of_kms(status: int) -> None:
    """HTML is neither a denial nor a defect, whatever its status, for KMS and for DynamoDB."""
    async with scripted_source(lambda *_: reply(HTML, status=status, kind="text/html")) as portal:
        error, _ = await failure(portal.url)
        assert {407: "proxy"}.get(status, "not_aws") == error.metadata.get("kind")
        async with aws_client("dynamodb", REGION, portal.url, AwsCredentials(REGION)) as client:
            for action in STORE_ACTIONS.values():
                with pytest.raises(StoreUnavailable):
                    await action(DynamoStore(client, "table", "arn"))


@pytest.mark.parametrize("body", ["{}", '{"Item": {}}', "[]", "null"])
async def test_json_that_is_not_from_dynamodb_never_means_that_a_tenant_has_no_key(body: str) -> None:
    """An empty answer of something else than DynamoDB would make a new key for a tenant that has one."""
    async with (
        scripted_source(lambda *_: reply(body)) as portal,
        aws_client("dynamodb", REGION, portal.url, AwsCredentials(REGION)) as client,
    ):
        for name in ("active", "generation", "get"):
            with pytest.raises(StoreUnavailable, match="is not AWS"):
                await STORE_ACTIONS[name](DynamoStore(client, "table", "arn"))


# Whatever is raised


STORE_ACTIONS: Mapping[str, Any] = {
    "create": lambda store: store.create(stored_key()),
    "active": lambda store: store.active("acme"),
    "get": lambda store: store.get("acme", "0" * 32),
    "all": lambda store: store.all("acme"),
    "generation": lambda store: store.generation("acme"),
    "raise_generation": lambda store: store.raise_generation("acme"),
    "rotate": lambda store: store.rotate(stored_key(), stored_key()),
    "replace": lambda store: store.replace(stored_key(), stored_key()),
    "add": lambda store: store.add(stored_key()),
    "wrapped_by": lambda store: store.wrapped_by(),
    "check": lambda store: store.check(),
}


def exported() -> list[type[Exception]]:
    """Return every class of exceptions that botocore, aiobotocore and aiohttp define, and those of the language."""
    found: set[Any] = {
        *(ValueError, RuntimeError, KeyError, TypeError, AttributeError, UnicodeDecodeError, RecursionError, EOFError),
        *(AssertionError, NotImplementedError, StopIteration, StopAsyncIteration, MemoryError),
        *(ssl.SSLError, ssl.SSLCertVerificationError, OSError, *OSError.__subclasses__(), TimeoutError),
    }
    for package in (botocore, aiobotocore, aiohttp):
        for module in pkgutil.iter_modules(package.__path__):
            if module.name in ("pytest_plugin", "test_utils", "worker", "__main__") or module.ispkg:
                continue
            with suppress(ImportError):  # of optional extras
                loaded = importlib.import_module(f"{package.__name__}.{module.name}")
                found |= {
                    kind for _, kind in inspect.getmembers(loaded, inspect.isclass) if issubclass(kind, Exception)
                }
    found.discard(Exception)
    return sorted(found, key=str)


def instance(kind: type[Exception]) -> Exception:
    """Make an exception of a class whose constructor nobody knows."""
    for arguments in ((), ("s3cret",), ("s3cret", "s3cret"), ("s3cret", [ValueError()]), (OSError(), "s3cret")):
        with suppress(Exception):
            return kind(*arguments)
    return kind.__new__(kind, "s3cret")


EVERY_KIND = [*map(instance, exported()), OSError(errno.EMFILE, "files"), OSError(errno.ENOSPC, "full")]


def test_list_of_exceptions_is_long() -> None:
    """The classes are found by introspection: an empty list would prove nothing."""
    assert len(EVERY_KIND) > 150


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("where", ["call", "opening"])
async def test_whatever_is_raised_at_a_call_to_kms_is_translated(action: str, where: str) -> None:
    """No exception of a library reaches a caller, neither from a call nor from making the client for it."""
    raised: list[Exception] = []

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        raise raised[0]

    @asynccontextmanager
    async def open_client(region: str, endpoint: str | None) -> AsyncIterator[KmsApi]:
        raise raised[0]
        yield

    wrong = {}
    for cause in EVERY_KIND:
        if where == "opening" and isinstance(cause, (StopIteration, StopAsyncIteration)):
            continue  # no coroutine can raise it
        raised[:] = [cause]
        async with provider(stubbed(answer) if where == "call" else Clients(open_client)) as aws:
            try:
                await ACTIONS[action](aws)
            except KmsError as error:
                if "s3cret" in f"{error} {error.metadata}":
                    wrong[type(cause).__name__] = f"shows {error}"
            except Exception as error:  # noqa: BLE001
                wrong[type(cause).__name__] = repr(type(error))
    assert {} == wrong


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("action", STORE_ACTIONS)
async def test_whatever_is_raised_at_a_call_to_dynamodb_is_translated(action: str) -> None:
    """Nor from the key store."""

    class Client:
        def __init__(self, cause: Exception) -> None:
            self._cause = cause

        def __getattr__(self, name: str) -> Any:
            async def call(**_: Any) -> Any:
                raise self._cause

            return call

    wrong = {}
    for cause in EVERY_KIND:
        store: Any = DynamoStore(Client(cause), "table", "arn")  # type: ignore[arg-type]
        try:
            await STORE_ACTIONS[action](store)
        except KmsError as error:
            if "s3cret" in f"{error} {error.metadata}":
                wrong[type(cause).__name__] = f"shows {error}"
        except Exception as error:  # noqa: BLE001
            wrong[type(cause).__name__] = repr(type(error))
    assert {} == wrong


@pytest.mark.filterwarnings("ignore")
async def test_whatever_a_source_of_credentials_raises_is_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor from what gives the credentials."""
    wrong = {}
    for cause in EVERY_KIND:
        credentials = AwsCredentials(REGION, pause=0.0)

        async def load(cause: Exception = cause) -> Any:
            raise cause

        monkeypatch.setattr(credentials._chain, "load", load)
        try:
            await credentials.ready()
        except KmsError as error:
            if "s3cret" in f"{error} {error.metadata}":
                wrong[type(cause).__name__] = f"shows {error}"
        except Exception as error:  # noqa: BLE001
            wrong[type(cause).__name__] = repr(type(error))
    assert {} == wrong


async def test_defect_of_the_sdk_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A failure without a name has one traceback in the log, however often the master key is checked."""

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        raise ValueError("s3cret")

    async with provider(stubbed(answer)) as aws:
        monitor = KmsMonitor(aws, lambda state: None)
        with caplog.at_level(logging.INFO):
            for _ in range(5):
                await monitor.fresh(0.0)
    assert 1 == len([record for record in caplog.records if record.exc_info])


# Our own queue


async def test_burst_is_no_outage_of_kms() -> None:
    """4,000 cold tenants wait for 16 calls at a time much longer than a call may take, and all of them are served."""
    pool = asyncio.Semaphore(CALLS_AT_ONCE)

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        async with pool:
            await asyncio.sleep(0.02)  # the latency of KMS
            return {"KeyId": ARN, "Plaintext": bytes(32), "CiphertextBlob": b"x" * 100}

    async with provider(stubbed(answer), call_seconds=0.6) as aws:
        calls = (aws.generate_data_key(32, {"tenantId": str(number)}) for number in range(4000))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [] == [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert {REGION: "closed"} == aws.breakers


async def test_full_queue_sheds_load_and_lets_health_checks_pass() -> None:
    """Calls beyond the queue are refused at once, the breaker stays closed, and the master key is still checked."""
    may_answer = asyncio.Event()

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        if action == "DescribeKey":
            return {"KeyMetadata": METADATA}
        await may_answer.wait()
        return {"KeyId": ARN, "Plaintext": bytes(32), "CiphertextBlob": b"x"}

    async with provider(stubbed(answer), call_seconds=60.0) as aws:
        fitting = [asyncio.create_task(aws.generate_data_key(32, {})) for _ in range(CALLS_OF_TENANT + MAX_WAITING)]
        refused = await asyncio.gather(*(aws.generate_data_key(32, {}) for _ in range(10)), return_exceptions=True)
        await aws.check()
        may_answer.set()
        await asyncio.gather(*fitting)
        assert ([Overloaded] * 10, {REGION: "closed"}) == ([type(outcome) for outcome in refused], aws.breakers)
