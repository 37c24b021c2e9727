"""How provider gcp obtains, keeps and replaces its access token, from servers of tokens on loopback."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from betrace_kms_server.core.errors import CredentialsUnavailable
from betrace_kms_server.providers.gcp import credentials as module
from betrace_kms_server.providers.gcp.client import CloudKms
from betrace_kms_server.providers.gcp.credentials import GoogleCredentials
from betrace_kms_server.providers.gcp.errors import KeyName
from betrace_kms_server.providers.gcp.provider import GcpProvider
from betrace_kms_server.providers.gcp.sdk import api_errors

from tests.authority import Authority
from tests.cloud_kms_server import CloudKmsServer, cloud_kms_server
from tests.google_tokens import TokenServer, token_server

CONTEXT = {"tenantId": "acme", "keyType": "encryption"}


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    """Give a server of tokens."""
    with token_server() as server:
        yield server


@pytest.fixture
async def account(
    tokens: TokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[GoogleCredentials]:
    """Give the credentials of a service account's key file."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tokens.key_file(tmp_path)))
    credentials = GoogleCredentials()
    yield credentials
    await credentials.close()


@pytest.fixture(scope="module")
def secured() -> Iterator[tuple[CloudKmsServer, bytes]]:
    """Give a Cloud KMS with TLS, and the authority of its certificate."""
    authority = Authority()
    pair = authority.issue(host="127.0.0.1")
    with cloud_kms_server(tls=(pair.certificate, pair.key)) as server:
        yield server, authority.pem


@pytest.fixture
async def provider(
    account: GoogleCredentials,
    tokens: TokenServer,
    secured: tuple[CloudKmsServer, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[GcpProvider]:
    """Give a provider over TLS, whose Cloud KMS takes the tokens that were issued."""
    server, ca = secured
    server.tokens = {"none yet"}
    tokens.issued = server.tokens.add
    real: Any = grpc.ssl_channel_credentials
    monkeypatch.setattr(grpc, "ssl_channel_credentials", lambda: real(root_certificates=ca))
    async with AsyncExitStack() as resources:
        client = await resources.enter_async_context(CloudKms(f"https://{server.address}", account))
        yield GcpProvider(KeyName(server.make_key().name), client)


async def test_one_token_for_all_who_ask_at_once(provider: GcpProvider, tokens: TokenServer) -> None:
    """The token travels over TLS, and is obtained once."""
    await asyncio.gather(*(provider.generate_data_key(32, CONTEXT) for _ in range(10)))
    assert ({"OK": 1}, 1) == (provider.credential_attempts, len(tokens.tokens))


async def test_a_token_that_is_revoked_is_replaced(
    provider: GcpProvider, tokens: TokenServer, secured: tuple[CloudKmsServer, bytes]
) -> None:
    """The call that meets it is repeated with a new one; if that is refused too, the credentials are named."""
    server, _ = secured
    await provider.check()
    server.tokens = {"none"}
    tokens.issued = server.tokens.add
    await provider.check()
    assert {"OK": 2} == provider.credential_attempts
    server.tokens, tokens.issued = {"none"}, lambda token: None
    with pytest.raises(CredentialsUnavailable, match="does not accept the daemon's access token"):
        await provider.generate_data_key(32, CONTEXT)
    assert "closed" == provider.breakers["europe-west3"]


async def test_a_token_is_refreshed_before_it_ends(account: GoogleCredentials, tokens: TokenServer) -> None:
    """In the background, while calls go on with the present one; a failure then is no one's error."""
    first = await account.headers()
    found: Any = account._credentials
    found.expiry -= timedelta(minutes=58)
    assert "STALE" == found.token_state.name
    tokens.refusal = (400, {"error": "invalid_grant"})
    assert first == await account.headers()
    assert account._obtaining is not None
    await asyncio.wait([account._obtaining])
    tokens.refusal = None
    assert first == await account.headers()
    await account._obtaining
    assert "FRESH" == found.token_state.name
    assert first != await account.headers()
    assert {"OK": 2, "KMS_CREDENTIALS_UNAVAILABLE": 1} == account.attempts


async def test_a_token_that_ended_is_waited_for(account: GoogleCredentials, tokens: TokenServer) -> None:
    """A daemon that nobody called for an hour has none."""
    first = await account.headers()
    found: Any = account._credentials
    found.expiry -= timedelta(hours=2)
    assert first != await account.headers()
    assert f"Bearer {tokens.tokens[-1]}" == dict(await account.headers())["authorization"]


async def test_a_quota_project_is_named(
    account: GoogleCredentials, tokens: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GOOGLE_CLOUD_QUOTA_PROJECT says, which google-auth reads."""
    monkeypatch.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "billed")
    assert "billed" == dict(await account.headers())["x-goog-user-project"]


async def test_an_account_that_is_disabled(account: GoogleCredentials, tokens: TokenServer) -> None:
    """The next step is the account's, and shows nothing of the answer. When it is enabled, so is the daemon."""
    tokens.refusal = (400, {"error": "invalid_grant", "error_description": "SECRET account disabled"})
    with pytest.raises(CredentialsUnavailable, match="they are refused: check that the service account") as caught:
        await account.headers()
    assert "SECRET" not in caught.value.message
    tokens.refusal = None
    await account.headers()
    assert {"OK": 1, "KMS_CREDENTIALS_UNAVAILABLE": 1} == account.attempts


async def test_a_server_of_tokens_that_hangs(
    account: GoogleCredentials, tokens: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits is answered in time, the event loop goes on, and the token that comes late is used."""
    monkeypatch.setattr(module, "OBTAIN_SECONDS", 0.2)
    tokens.answering.clear()
    waiting = [asyncio.create_task(account.headers()) for _ in range(3)]
    for attempt in waiting:
        with pytest.raises(CredentialsUnavailable, match="no answer: check the route to the metadata server"):
            await attempt
    tokens.answering.set()
    assert account._obtaining is not None
    await account._obtaining
    await account.headers()
    assert 1 == len(tokens.tokens)


async def test_a_hanging_thread_keeps_nobody_from_closing(
    account: GoogleCredentials, tokens: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the daemon does not wait for google-auth."""
    monkeypatch.setattr(module, "OBTAIN_SECONDS", 0.1)
    tokens.answering.clear()
    with pytest.raises(CredentialsUnavailable):
        await account.headers()
    async with asyncio.timeout(1):
        await account.close()
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "google-auth")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "none are found, or they cannot be read"),
        ("{}", "none are found, or they cannot be read"),
        ("no JSON", "none are found, or they cannot be read"),
        ('{"type": "service_account"}', "none are found, or they cannot be read"),
    ],
)
async def test_refused_credential_files(
    content: str | None, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is an error of the daemon's credentials, not of Cloud KMS, and shows nothing of the file."""
    path = tmp_path / "credentials.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    credentials = GoogleCredentials()
    with pytest.raises(CredentialsUnavailable, match=problem):
        await credentials.headers()
    await credentials.close()


def make_refused() -> Callable[[Any], Any]:
    """Return a finder that fails in a way that nothing expects."""

    def find(_request: Any) -> Any:
        raise api_errors.GoogleAPIError("SECRET")

    return find


async def test_what_nothing_expects_is_named() -> None:
    """A defect of google-auth is told apart from refused credentials."""
    credentials = GoogleCredentials(make_refused())
    with pytest.raises(CredentialsUnavailable, match="google-auth fails with GoogleAPIError"):
        await credentials.headers()
    await credentials.close()
