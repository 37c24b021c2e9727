"""Provider vault against OpenBao's own server: what it refuses, what each refusal says, and how it keeps its token."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from betrace_kms_server.core.errors import (
    AccessDenied,
    BadAnswer,
    CredentialsUnavailable,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
    StartRefused,
    Throttled,
)
from betrace_kms_server.core.key_event import unobserved
from betrace_kms_server.core.keys import KeyMaterial, WrappedKey
from betrace_kms_server.providers.breaker import CircuitBreaker
from betrace_kms_server.providers.vault.client import VaultClient
from betrace_kms_server.providers.vault.errors import TransitKey, unanswered
from betrace_kms_server.providers.vault.opening import open_vault
from betrace_kms_server.providers.vault.provider import UNFIT, VaultProvider
from betrace_kms_server.providers.vault.tokens import Login, Tokens

from tests.authority import Authority
from tests.contract.doubles import FakeClock
from tests.contract.vault_peer import DAEMON, VaultProxy, make_key, token_file, vault_provider, vault_proxy
from tests.openbao_server import OpenBaoServer, openbao_server

CONTEXT = {"tenantId": "acme", "keyType": "encryption"}


@pytest.fixture
async def proxy(bao: OpenBaoServer) -> AsyncIterator[VaultProxy]:
    """Give something between a provider and its server, which answers as a test says."""
    async with vault_proxy(bao) as proxy:
        yield proxy


@pytest.fixture
async def login(bao: OpenBaoServer) -> AsyncIterator[Callable[..., VaultProvider]]:
    """Give a maker of providers that authenticate in some way, over the client that a test gives or a new one."""
    async with AsyncExitStack() as resources:
        opened = await resources.enter_async_context(VaultClient(bao.url))

        def make(how: Login, key: str, client: VaultClient | None = None, clock: Any = None) -> VaultProvider:
            tokens = Tokens(client or opened, how, *([clock] if clock else []))
            resources.push_async_callback(tokens.close)
            return VaultProvider(TransitKey("transit", key), client or opened, tokens)

        yield make


async def round_trip(provider: VaultProvider) -> None:
    """Make a key and unwrap it."""
    made = await provider.generate_data_key(32, CONTEXT)
    assert made.material.raw == (await provider.unwrap(made.wrapped, CONTEXT)).raw


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"type": "aes256-gcm96", "exportable": True}, "is exportable"),
        ({"type": "aes256-gcm96", "derived": True}, "is derived"),
        ({"type": "aes256-gcm96", "derived": True, "convergent_encryption": True}, "is derived"),
        ({"type": "rsa-2048"}, "is of type rsa-2048"),
        ({"type": "ed25519"}, "is of type ed25519"),
    ],
)
async def test_refused_unfit_key(options: dict[str, Any], problem: str, bao: OpenBaoServer, tmp_path: Path) -> None:
    """With such a key nothing could ever be safe: the daemon does not start, and a check says why."""
    key = make_key(bao, **options)
    async with vault_provider(bao, key) as provider:
        with pytest.raises(MasterKeyUnusable, match=problem) as caught:
            await provider.check()
        assert UNFIT == caught.value.state
    how = Login("token", "token", None, token_file(bao, key, tmp_path))
    with pytest.raises(StartRefused, match=f"vault:transit/{key} {problem}.*: make another key of type aes256-gcm96"):
        async with open_vault(
            VaultClient(bao.url),
            how,
            TransitKey("transit", key),
            random_of_vault=False,
            call_seconds=5,
            observe=unobserved,
        ):
            pass


@pytest.mark.parametrize("type_", ["aes128-gcm96", "aes256-gcm96", "chacha20-poly1305"])
async def test_each_aead_type_serves(type_: str, bao: OpenBaoServer) -> None:
    """They bind the context."""
    async with vault_provider(bao, make_key(bao, type=type_)) as provider:
        await provider.check()
        await round_trip(provider)


async def test_a_rotated_key_opens_what_its_versions_wrapped(bao: OpenBaoServer) -> None:
    """Until somebody forbids an old version, which is named."""
    key = make_key(bao)
    async with vault_provider(bao, key) as provider:
        first = await provider.generate_data_key(32, CONTEXT)
        bao.call(f"transit/keys/{key}/rotate", {})
        second = await provider.generate_data_key(32, CONTEXT)
        assert (b"vault:v1:", b"vault:v2:") == (first.wrapped.blob[:9], second.wrapped.blob[:9])
        assert first.material.raw == (await provider.unwrap(first.wrapped, CONTEXT)).raw
        bao.call(f"transit/keys/{key}/config", {"min_decryption_version": 2})
        with pytest.raises(MasterKeyUnusable, match="lower its min_decryption_version"):
            await provider.unwrap(first.wrapped, CONTEXT)
        assert second.material.raw == (await provider.unwrap(second.wrapped, CONTEXT)).raw


async def test_a_deleted_key_withdraws_what_it_wrapped(bao: OpenBaoServer) -> None:
    """A soft deletion is somebody's decision, and can be undone."""
    key = make_key(bao)
    async with vault_provider(bao, key) as provider:
        await provider.check()
        bao.call(f"transit/keys/{key}/config", {"deletion_allowed": True})
        bao.call(f"transit/keys/{key}/soft-delete", {}, method="DELETE")
        with pytest.raises(MasterKeyUnusable, match="restore it with `bao write -f") as caught:
            await provider.check()
        assert caught.value.withdrawn
        bao.call(f"transit/keys/{key}/soft-delete-restore", {})
        await provider.check()


@pytest.mark.parametrize(
    "junk", [b"", b"\0" * 40, b"vault:v1:", b"vault:v1:AAAA", b"vault:v9:" + b"A" * 80, b"vault:v1:a b"]
)
async def test_what_vault_never_wrote_does_not_open(junk: bytes, bao: OpenBaoServer) -> None:
    """One text, whatever is wrong with it."""
    async with vault_provider(bao) as provider:
        with pytest.raises(DoesNotOpen):
            await provider.unwrap(WrappedKey(junk, provider.master_key_arn), CONTEXT)


@pytest.mark.parametrize(
    ("mount", "key", "problem"),
    [
        ("nowhere", "any", "denies read on nowhere/keys/any"),
        ("transit", "absent", "Vault has no transit key absent at transit"),
    ],
)
async def test_wrong_names_are_named(mount: str, key: str, problem: str, bao: OpenBaoServer, tmp_path: Path) -> None:
    """A token with the daemon's policy may not even learn that a mount does not exist."""
    async with VaultClient(bao.url) as client:
        tokens = Tokens(client, Login("token", "token", None, token_file(bao, "absent", tmp_path)))
        with pytest.raises((MasterKeyUnusable, AccessDenied), match=problem):
            await VaultProvider(TransitKey(mount, key), client, tokens).check()


async def test_wrong_mount_of_a_token_that_may_everything(bao: OpenBaoServer, tmp_path: Path) -> None:
    """404 is not a missing key here."""
    path = tmp_path / "root"
    path.touch(0o600)
    path.write_text(bao.root_token)
    async with VaultClient(bao.url) as client:
        provider = VaultProvider(
            TransitKey("nowhere", "any"), client, Tokens(client, Login("token", "token", None, path))
        )
        with pytest.raises(MasterKeyUnusable, match=r"no transit engine at nowhere: check vault\.transit\.mount"):
            await provider.check()


@pytest.mark.parametrize(
    ("missing", "call", "capability"),
    [
        ("encrypt", "generate_data_key", "update on transit/encrypt/"),
        ("encrypt", "wrap", "update on transit/encrypt/"),
        ("decrypt", "unwrap", "update on transit/decrypt/"),
        ("keys", "check", "read on transit/keys/"),
    ],
)
async def test_refused_action_names_the_capability(
    missing: str, call: str, capability: str, bao: OpenBaoServer, tmp_path: Path
) -> None:
    """A policy that lacks one of the three: the message has the line to add, and the token is not blamed."""
    key = make_key(bao)
    rules = [
        (f"transit/{part}/{key}", allowed)
        for part, allowed in (("encrypt", "update"), ("decrypt", "update"), ("keys", "read"))
        if part != missing
    ]
    async with vault_provider(bao, key) as good, VaultClient(bao.url) as client:
        made = await good.generate_data_key(32, CONTEXT)
        tokens = Tokens(client, Login("token", "token", None, token_file(bao, key, tmp_path, *rules)))
        provider = VaultProvider(TransitKey("transit", key), client, tokens)
        attempts: dict[str, Callable[[], Any]] = {
            "generate_data_key": lambda: provider.generate_data_key(32, CONTEXT),
            "wrap": lambda: provider.wrap(KeyMaterial(bytes(32)), CONTEXT),
            "unwrap": lambda: provider.unwrap(made.wrapped, CONTEXT),
            "check": provider.check,
        }
        with pytest.raises(AccessDenied, match=f"Vault denies {capability}{key}: allow it"):
            await attempts[call]()
        assert "closed" == provider.breakers["vault"]


async def test_a_token_that_was_revoked_is_replaced_by_the_one_in_the_file(
    bao: OpenBaoServer, tmp_path: Path, login: Callable[..., VaultProvider]
) -> None:
    """The call that meets the end of a token is repeated with the new one; without one, the credentials are named."""
    key = make_key(bao)
    path = token_file(bao, key, tmp_path)
    provider = login(Login("token", "token", None, path), key)
    await round_trip(provider)
    bao.call("auth/token/revoke", {"token": path.read_text()})
    with pytest.raises(CredentialsUnavailable, match="Vault does not accept the daemon's credentials"):
        await provider.generate_data_key(32, CONTEXT)
    (tmp_path / "new").mkdir()
    path.write_text(token_file(bao, key, tmp_path / "new").read_text())
    await round_trip(provider)
    assert 2 == provider.credential_attempts["OK"]
    assert provider.credential_attempts["KMS_CREDENTIALS_UNAVAILABLE"] >= 1


async def test_a_file_that_is_rewritten_is_read_anew(
    bao: OpenBaoServer, tmp_path: Path, login: Callable[..., VaultProvider]
) -> None:
    """As an agent of Vault does, before the former token ends."""
    key = make_key(bao)
    path = token_file(bao, key, tmp_path)
    provider = login(Login("token", "token", None, path), key)
    await round_trip(provider)
    (tmp_path / "new").mkdir()
    path.write_text(token_file(bao, key, tmp_path / "new").read_text())
    await round_trip(provider)
    assert {"OK": 2} == provider.credential_attempts


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        ("", 0o600, "holds no token"),
        ("two tokens", 0o600, "holds no token"),
        ("s.doesnotexist", 0o600, "check the token in"),
        ("s.open", 0o644, "is open to others"),
        (None, 0o600, "cannot be read"),
    ],
)
async def test_refused_token_files(
    content: str | None, mode: int, problem: str, tmp_path: Path, login: Callable[..., VaultProvider]
) -> None:
    """The message has what to fix, and nothing of the token."""
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(CredentialsUnavailable, match=problem) as caught:
        await login(Login("token", "token", None, path), "any").check()
    assert not content or content not in str(caught.value)


async def test_approle_is_renewed_and_logs_in_again(
    bao: OpenBaoServer, tmp_path: Path, login: Callable[..., VaultProvider]
) -> None:
    """A token is renewed when two thirds of its time are over, and obtained anew when it ended."""
    key = make_key(bao)
    methods = bao.call("sys/auth")
    if "approle/" not in methods:
        bao.call("sys/auth/approle", {"type": "approle"})
    bao.policy(f"approle-{key}", (f"transit/encrypt/{key}", "update"), (f"transit/decrypt/{key}", "update"))
    bao.call(f"auth/approle/role/{key}", {"token_policies": [f"approle-{key}"], "token_ttl": "90s"})
    role_id = bao.call(f"auth/approle/role/{key}/role-id")["role_id"]
    secret = tmp_path / "secret-id"
    secret.touch(0o600)
    secret.write_text(bao.call(f"auth/approle/role/{key}/secret-id", {})["secret_id"])
    clock = FakeClock()
    provider = login(Login("approle", "approle", role_id, secret), key, clock=clock)
    first = await provider._tokens.token()
    await round_trip(provider)
    clock.now += 61
    assert first == await provider._tokens.token()
    assert provider._tokens._renewal is not None
    await provider._tokens._renewal
    clock.now += 61  # it was renewed, or it would have ended by now
    assert (first, {"OK": 1}) == (await provider._tokens.token(), provider.credential_attempts)
    await provider._tokens.close()
    clock.now += 600
    await round_trip(provider)
    assert {"OK": 2} == provider.credential_attempts
    bao.call("auth/token/revoke", {"token": await provider._tokens.token()})
    await round_trip(provider)
    secret.write_text("00000000-0000-0000-0000-000000000000")
    bao.call("auth/token/revoke", {"token": await provider._tokens.token()})
    with pytest.raises(CredentialsUnavailable, match="its token is not known, or has ended"):
        await round_trip(provider)


async def test_kubernetes_logs_in_with_the_service_accounts_token(
    bao: OpenBaoServer, tmp_path: Path, login: Callable[..., VaultProvider]
) -> None:
    """OpenBao asks the API server about the token, whose part a server of the test plays."""
    key = make_key(bao)
    review = {"authenticated": True, "user": {"username": "system:serviceaccount:betrace:backend", "uid": "1"}}

    async def reviewed(request: web.Request) -> web.Response:
        asked = (await request.json())["spec"]["token"]
        status = review if asked == jwt else {"authenticated": False, "error": "unknown"}
        return web.json_response({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status})

    app = web.Application()
    app.router.add_post("/apis/authentication.k8s.io/v1/tokenreviews", reviewed)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    jwt = service_account_token()
    path = tmp_path / "jwt"
    path.write_text(jwt)
    path.chmod(0o644)
    try:
        await asyncio.to_thread(_configure_kubernetes, bao, key, f"http://127.0.0.1:{runner.addresses[0][1]}")
        provider = login(Login("kubernetes", f"kubernetes-{key}", "daemon", path), key)
        await round_trip(provider)
        refused = login(Login("kubernetes", f"kubernetes-{key}", "another", path), key)
        with pytest.raises(CredentialsUnavailable, match=f"check the role another of auth/kubernetes-{key}"):
            await refused.generate_data_key(32, CONTEXT)
    finally:
        await runner.cleanup()


def service_account_token() -> str:
    """Return a token of the form that Kubernetes gives; who reviews it vouches for it."""
    claims = {"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:betrace:backend"}
    claims |= {f"kubernetes.io/serviceaccount/{name}": value for name, value in _ACCOUNT.items()}
    parts = ({"alg": "RS256", "typ": "JWT"}, claims)
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join((*encoded, "c2lnbmF0dXJl"))


_ACCOUNT = {"namespace": "betrace", "service-account.name": "backend", "service-account.uid": "1", "secret.name": "s"}


def _configure_kubernetes(bao: OpenBaoServer, key: str, host: str) -> None:
    mount = f"kubernetes-{key}"
    bao.call(f"sys/auth/{mount}", {"type": "kubernetes"})
    bao.call(
        f"auth/{mount}/config",
        {
            "kubernetes_host": host,
            "kubernetes_ca_cert": Authority().pem.decode(),
            "token_reviewer_jwt": service_account_token(),
        },
    )
    bao.policy(mount, (f"transit/encrypt/{key}", "update"), (f"transit/decrypt/{key}", "update"))
    names = {"bound_service_account_names": "backend", "bound_service_account_namespaces": "betrace"}
    bao.call(f"auth/{mount}/role/daemon", {**names, "token_policies": [mount], "token_ttl": "1h"})


async def test_tls_certificate_authenticates(tmp_path: Path) -> None:
    """The server's certificate is verified, and the client's is what the daemon is known by."""
    authority = Authority()
    certificate, private = authority.issue(host="127.0.0.1").write(tmp_path / "server")
    mine = authority.issue("betrace-kms").write(tmp_path / "client")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem)
    other = tmp_path / "other.pem"
    other.write_bytes(Authority("another").pem)
    with openbao_server(tmp_path / "server-data", tls=(certificate, private, ca)) as bao:
        key = make_key(bao)
        bao.policy("daemon", (f"transit/encrypt/{key}", "update"), (f"transit/decrypt/{key}", "update"))
        bao.call("sys/auth/cert", {"type": "cert"})
        bao.call("auth/cert/certs/daemon", {"certificate": authority.pem.decode(), "token_policies": ["daemon"]})
        async with VaultClient(bao.url, ca_file=ca, certificate=mine) as client:
            tokens = Tokens(client, Login("cert", "cert", "daemon"))
            await round_trip(VaultProvider(TransitKey("transit", key), client, tokens))
        async with VaultClient(bao.url, ca_file=other, certificate=mine) as client:
            tokens = Tokens(client, Login("cert", "cert", "daemon"))
            with pytest.raises(KmsUnreachable, match=r"TLS with Vault fails: check vault\.ca-file"):
                await VaultProvider(TransitKey("transit", key), client, tokens).check()
        bao.call("sys/seal", {})
        async with VaultClient(bao.url, ca_file=ca, certificate=mine) as client:
            tokens = Tokens(client, Login("cert", "cert", "daemon"))
            with pytest.raises(KmsUnreachable):
                await VaultProvider(TransitKey("transit", key), client, tokens).check()


async def test_certificates_that_cannot_be_used_refuse_the_start(tmp_path: Path) -> None:
    """A missing file, and one that holds no PEM."""
    (tmp_path / "junk.pem").write_text("junk")
    for ca in (tmp_path / "absent.pem", tmp_path / "junk.pem"):
        client = VaultClient("https://127.0.0.1:1", ca_file=ca)
        with pytest.raises(StartRefused, match=r"vault\.ca-file"):
            async with open_vault(
                client,
                Login("token", "token", None, tmp_path / "token"),
                TransitKey("transit", "any"),
                random_of_vault=False,
                call_seconds=1,
                observe=unobserved,
            ):
                pass


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (503, '{"errors":["Vault is sealed"]}', KmsUnreachable, "Vault is sealed: unseal it"),
        (503, "<html>busy</html>", KmsUnreachable, "answers with status 503"),
        (500, '{"errors":["internal error"]}', KmsUnreachable, "answers with status 500"),
        (502, "", KmsUnreachable, "answers with status 502"),
        (412, '{"errors":[]}', KmsUnreachable, "answers with status 412"),
        (429, '{"errors":["rate limit"]}', Throttled, "Vault throttles"),
        (307, "", KmsUnreachable, "redirects to another address"),
        (404, '{"errors":["no handler for route"]}', MasterKeyUnusable, "has no transit engine at transit"),
        (400, '{"errors":["encryption key not found"]}', MasterKeyUnusable, "Vault has no transit key"),
        (200, "<html>hello</html>", BadAnswer, "is not one of Vault"),
        (200, "[]", BadAnswer, "is not one of Vault"),
        (200, '{"data":[]}', BadAnswer, "holds no wrapped key"),
        (200, '{"data":{"ciphertext":7}}', BadAnswer, "holds no wrapped key"),
        (200, '{"data":{"ciphertext":"elsewhere:v1:AAAA"}}', BadAnswer, "holds no wrapped key"),
        (200, '{"data":{"ciphertext":"vault:v1:' + "A" * 70_000 + '"}}', BadAnswer, "is not one of Vault"),
    ],
    ids=lambda value: str(value)[:24] if not isinstance(value, type) else value.__name__,
)
async def test_what_vault_or_a_proxy_may_answer(
    status: int, body: str, error: type[KmsError], words: str, bao: OpenBaoServer, proxy: VaultProxy
) -> None:
    """Each has its error and its next step, and shows nothing of the answer."""

    def reply(path: str) -> web.Response | None:
        if not path.startswith("transit/encrypt"):
            return None
        return web.Response(
            status=status, text=body, headers={"Location": "http://127.0.0.1:1/"} if status == 307 else {}
        )

    proxy.reply = reply
    async with vault_provider(bao, url=proxy.url) as provider:
        with pytest.raises(error, match=words) as caught:
            await provider.generate_data_key(32, CONTEXT)
    assert "html" not in caught.value.message
    assert 1 == sum(path.startswith("transit/encrypt") for path in proxy.requests)


async def test_an_outage_opens_the_breaker_and_a_check_still_asks(bao: OpenBaoServer, proxy: VaultProxy) -> None:
    """Ten calls fail, the next are not made; when Vault is back, so are the keys."""
    proxy.reply = lambda path: web.Response(status=500) if path.startswith("transit/") else None
    clock = FakeClock()
    async with vault_provider(bao, url=proxy.url, breaker=CircuitBreaker("vault", clock=clock)) as provider:
        for _ in range(10):
            with pytest.raises(KmsUnreachable, match="status 500"):
                await provider.generate_data_key(32, CONTEXT)
        asked = len(proxy.requests)
        with pytest.raises(KmsUnreachable, match="left alone for a few seconds"):
            await provider.generate_data_key(32, CONTEXT)
        assert (asked, "open") == (len(proxy.requests), provider.breakers["vault"])
        proxy.reply = lambda path: None
        await provider.check()
        clock.now += 6
        await round_trip(provider)


async def test_a_server_that_hangs_is_given_up_in_time(bao: OpenBaoServer, proxy: VaultProxy) -> None:
    """The bound is the call's, and others go on meanwhile."""
    async with vault_provider(bao, url=proxy.url, call_seconds=0.2) as provider:
        await provider.check()

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        async with VaultClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as away:
            provider._client = away
            with pytest.raises(KmsUnreachable, match="no answer from Vault"):
                await provider.generate_data_key(32, CONTEXT)
        server.close()


async def test_nobody_there(tmp_path: Path) -> None:
    """A daemon starts without Vault, and says that it does not answer."""
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text("s.token")
    async with open_vault(
        VaultClient("http://127.0.0.1:1"),
        Login("token", "token", None, path),
        TransitKey("transit", "any"),
        random_of_vault=False,
        call_seconds=1,
        observe=unobserved,
    ) as provider:
        with pytest.raises(KmsUnreachable, match=r"no answer from Vault: check vault\.address"):
            await provider.check()


def test_every_exception_of_the_http_client_is_ours() -> None:
    """Whatever aiohttp exports becomes one of our errors, in one sentence that does not repeat it."""
    kinds = [kind for kind in vars(aiohttp).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert 20 < len(kinds)
    for kind in [*kinds, OSError, TimeoutError, ValueError, RuntimeError]:
        without_init: Any = kind.__new__
        error = unanswered(without_init(kind))
        assert isinstance(error, KmsUnreachable), kind
        assert error.message


async def test_data_keys_of_vaults_generator(bao: OpenBaoServer, proxy: VaultProxy) -> None:
    """With vault.transit.random=transit they come from there."""
    async with vault_provider(bao, url=proxy.url, random_of_vault=True) as provider:
        await round_trip(provider)
    assert "transit/random/32" in proxy.requests


@pytest.mark.parametrize(
    ("rules", "config", "found"),
    [
        ((), {}, ("", "")),
        ((("transit/*", "update"),), {}, ("may update on transit/keys/", "")),
        ((("sys/policies/*", "update"),), {}, ("may update on sys/policies/acl/another", "")),
        ((), {"deletion_allowed": True}, ("", "may be deleted: set deletion_allowed=false")),
        ((), {"allow_plaintext_backup": True}, ("", "can be backed up in plaintext: make another key")),
    ],
)
async def test_production_check_finds_what_the_token_may_too_much(
    rules: tuple[tuple[str, str], ...],
    config: dict[str, Any],
    found: tuple[str, str],
    bao: OpenBaoServer,
    tmp_path: Path,
    login: Callable[..., VaultProvider],
) -> None:
    """The policy of the documents passes; what it has more is named, and so is a key that can go or get out."""
    key = make_key(bao)
    if config:
        bao.call(f"transit/keys/{key}/config", config)
    needed = [(f"transit/{path.format(key=key)}", allowed) for path, allowed in DAEMON]
    provider = login(Login("token", "token", None, token_file(bao, key, tmp_path, *needed, *rules)), key)
    findings = await provider.inspect()
    assert ["vault_policy", "vault_key"] == [finding.name for finding in findings]
    for finding, problem in zip(findings, found, strict=True):
        assert problem in finding.problem
        assert bool(problem) == bool(finding.problem)
