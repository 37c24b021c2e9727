"""Provider azure against the API of Key Vault and Managed HSM: what it refuses, what each refusal says, who wrapped."""

import asyncio
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from hashlib import sha256
from inspect import isclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import azure.core.exceptions
import azure.identity
import pytest
from azure.core.pipeline.transport import AioHttpTransport
from azure.identity.aio import ClientSecretCredential
from azure.keyvault.keys.aio import KeyClient
from azure.keyvault.keys.crypto import EncryptionAlgorithm, KeyWrapAlgorithm, SignatureAlgorithm
from azure.keyvault.keys.crypto.aio import CryptographyClient
from betrace_kms_server import provider_startup
from betrace_kms_server.core.associated_data import associated_data
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
from betrace_kms_server.providers.azure.client import Answer
from betrace_kms_server.providers.azure.credentials import Credential
from betrace_kms_server.providers.azure.errors import unanswered
from betrace_kms_server.providers.azure.inspection import UNFIT
from betrace_kms_server.providers.azure.key_ids import KeyId
from betrace_kms_server.providers.azure.opening import open_azure
from betrace_kms_server.providers.azure.provider import AzureProvider
from betrace_kms_server.providers.azure.wrapped import Sealed, SignedSealed, parse_hsm_sealed, parse_signed_sealed
from betrace_kms_server.providers.breaker import CircuitBreaker
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.contract.azure_peer import azure_provider, hsm_provider
from tests.contract.doubles import FakeClock
from tests.daemon import settings
from tests.keyvault_server import CLIENT, HSM, OAEP, SECRET, TENANT, VAULT, Key, KeyVaultServer, Refused

CONTEXT = {"tenantId": "acme", "keyType": "encryption"}
AAD = associated_data(CONTEXT)
OPENERS = {"vault": azure_provider, "hsm": hsm_provider}
DAY = 86_400


@pytest.fixture
def server(key_vault: KeyVaultServer) -> Iterator[KeyVaultServer]:
    """Give the servers, which answer as they should again after the test."""
    key_vault.requests.clear()
    yield key_vault
    key_vault.fault, key_vault.doctor = lambda path: None, lambda path, body: None
    key_vault.delay = lambda path: 0.0
    key_vault.denied.clear()


@pytest.fixture(params=OPENERS)
def opened(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Give what opens a provider of a Key Vault, then of a Managed HSM."""
    return OPENERS[request.param]


async def round_trip(provider: AzureProvider) -> WrappedKey:
    """Make a key and unwrap it."""
    made = await provider.generate_data_key(32, CONTEXT)
    assert made.material.raw == (await provider.unwrap(made.wrapped, CONTEXT)).raw
    return made.wrapped


def key_of(server: KeyVaultServer, provider: AzureProvider) -> Key:
    """Return the master key of a provider."""
    return server._keys[provider.master_key_arn.lower()]


async def test_every_flipped_byte_does_not_open(opened: Callable[..., Any], server: KeyVaultServer) -> None:
    """Versions, lengths, IV, tag, ciphertext and signature are all bound, and so is the length of the whole."""
    async with opened(server) as provider:
        wrapped = await round_trip(provider)
        server.requests.clear()
        for at in range(len(wrapped.blob)):
            flipped = bytearray(wrapped.blob)
            flipped[at] ^= 1
            with pytest.raises(DoesNotOpen):
                await provider.unwrap(replace(wrapped, blob=bytes(flipped)), CONTEXT)
        for size in range(0, len(wrapped.blob), 7):
            with pytest.raises(DoesNotOpen):
                await provider.unwrap(replace(wrapped, blob=wrapped.blob[:size]), CONTEXT)
        assert not any(path.endswith("/unwrapkey") for path in server.requests)


async def test_a_forger_who_may_wrap_and_write_rows_is_found_out(server: KeyVaultServer) -> None:
    """Anybody wraps under a public RSA key; without the sign key that is not taken, and the vault is not asked."""
    async with azure_provider(server) as provider:
        made = await provider.generate_data_key(32, CONTEXT)
        genuine = parse_signed_sealed(made.wrapped.blob)
        own = os.urandom(32)
        numbers = key_of(server, provider).versions[genuine.version].material.public_key()
        sealed = AESGCM(own).encrypt(genuine.sealed.iv, b"a key that the forger knows 1234", AAD)
        forged = replace(
            genuine,
            wrapped=numbers.encrypt(own, OAEP),
            sealed=replace(genuine.sealed, ciphertext=sealed[:-16], tag=sealed[-16:]),
        )
        server.requests.clear()
        with pytest.raises(DoesNotOpen):
            await provider.unwrap(replace(made.wrapped, blob=forged.to_bytes()), CONTEXT)
        with pytest.raises(DoesNotOpen):
            await provider.unwrap(made.wrapped, {**CONTEXT, "tenantId": "evil"})
        assert [] == server.requests


async def test_a_signature_is_good_for_its_two_keys_alone(server: KeyVaultServer) -> None:
    """The same material under another name, or with another sign key, opens nothing."""
    key, sign_key = server.create_key(), server.create_key("EC")
    twin, other = server.create_key(), server.create_key("EC")
    twin.versions = key.versions
    async with azure_provider(server, key, sign_key) as provider:
        made = await provider.generate_data_key(32, CONTEXT)
    async with azure_provider(server, twin, sign_key) as provider:
        with pytest.raises(DoesNotOpen):
            await provider.unwrap(replace(made.wrapped, master_key_arn=twin.id), CONTEXT)
    async with azure_provider(server, key, other) as provider:
        with pytest.raises(DoesNotOpen):
            await provider.unwrap(made.wrapped, CONTEXT)


async def test_an_official_client_opens_by_the_documented_form(server: KeyVaultServer) -> None:
    """What wrapped.py documents is enough: CryptographyClient verifies and unwraps, and opens what the HSM sealed."""
    key, sign_key, hsm_key = server.create_key(), server.create_key("EC"), server.create_key("oct-HSM", vault=HSM)
    async with azure_provider(server, key, sign_key) as provider, hsm_provider(server, hsm_key) as of_hsm:
        made, by_hsm = await provider.generate_data_key(32, CONTEXT), await of_hsm.generate_data_key(32, CONTEXT)
    found, sealed = parse_signed_sealed(made.wrapped.blob), parse_hsm_sealed(by_hsm.wrapped.blob)
    async with server.session() as session:
        options = {"transport": AioHttpTransport(session=session, session_owner=False)}
        credential = ClientSecretCredential(TENANT, CLIENT, SECRET, **options)
        signer = CryptographyClient(f"{sign_key.id}/{found.sign_version}", credential, **options)
        digest = sha256(found.signed_bytes(key.id, sign_key.id, AAD)).digest()
        assert (await signer.verify(SignatureAlgorithm.es256, digest, found.signature)).is_valid
        wrapper = CryptographyClient(f"{key.id}/{found.version}", credential, **options)
        own = (await wrapper.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, found.wrapped)).key
        plain = AESGCM(own).decrypt(found.sealed.iv, found.sealed.ciphertext + found.sealed.tag, AAD)
        hsm = CryptographyClient(f"{hsm_key.id}/{sealed.version}", credential, **options)
        parts = {"iv": sealed.sealed.iv, "authentication_tag": sealed.sealed.tag, "additional_authenticated_data": AAD}
        opened_ = await hsm.decrypt(EncryptionAlgorithm.a256_gcm, sealed.sealed.ciphertext, **parts)
        assert [plain, opened_.plaintext] == [bytes(each.material.raw) for each in (made, by_hsm)]
        described = await KeyClient(VAULT, credential, **options).get_key(key.current_id.split("/")[-2])
        assert key.current_id == described.id


async def test_a_rotated_key_opens_what_it_wrapped(opened: Callable[..., Any], server: KeyVaultServer) -> None:
    """New keys are wrapped by the new version at once; the sign key may rotate as well."""
    async with opened(server) as provider:
        first = await provider.generate_data_key(32, CONTEXT)
        for key in provider._sealing.keys:
            server.rotate(server._keys[key.id.lower()])
        second = await provider.generate_data_key(32, CONTEXT)
        assert first.wrapped.blob[6:22] != second.wrapped.blob[6:22]
        assert key_of(server, provider).current_id.endswith(second.wrapped.blob[6:22].hex())
        for made in (first, second):
            assert made.material.raw == (await provider.unwrap(made.wrapped, CONTEXT)).raw


def test_the_largest_key_fits_into_a_row() -> None:
    """4,096 bytes under an RSA key of 4,096 bits are less than the 6,144 that a store takes."""
    sealed = Sealed(b"i" * 12, b"t" * 16, b"c" * 4096)
    largest = SignedSealed("0" * 32, b"w" * 512, sealed, "1" * 32, b"s" * 64)
    assert (4742, largest) == (len(largest.to_bytes()), parse_signed_sealed(largest.to_bytes()))
    for longer in (replace(largest, signature=b"s" * 65), replace(largest, wrapped=b"w" * 511)):
        with pytest.raises(DoesNotOpen):
            parse_signed_sealed(longer.to_bytes())


@pytest.mark.parametrize(
    ("kty", "options", "sign", "problem"),
    [
        ("EC", {}, False, "is of type EC: make another key of type RSA"),
        ("RSA", {"exportable": True}, False, "is exportable"),
        ("RSA", {}, True, "is of type RSA: make another key of type EC or EC-HSM on the curve P-256"),
        ("EC", {"curve": "P-384"}, True, "is on the curve P-384"),
        ("EC", {"exportable": True}, True, "is exportable: .* azure.key-vault.sign-key-id"),
    ],
)
async def test_refused_unfit_key(
    kty: str, options: dict[str, Any], sign: bool, problem: str, server: KeyVaultServer
) -> None:
    """With such a key nothing could ever be safe: the daemon does not start."""
    unfit = server.create_key(kty, **options)
    with pytest.raises(StartRefused, match=problem):
        async with azure_provider(server, *((None, unfit) if sign else (unfit,))):
            pass


async def test_refused_key_of_an_hsm_that_is_not_symmetric(server: KeyVaultServer) -> None:
    """An RSA key of a Managed HSM binds no context either."""
    with pytest.raises(StartRefused, match="is of type RSA-HSM: make another key of type oct-HSM of 256 bits"):
        async with hsm_provider(server, server.create_key("RSA-HSM", vault=HSM)):
            pass


async def test_a_symmetric_key_of_another_size_is_named_when_it_is_used(server: KeyVaultServer) -> None:
    """The HSM does not say how long a key is."""
    async with hsm_provider(server, server.create_key("oct-HSM", vault=HSM, size=128)) as provider:
        with pytest.raises(MasterKeyUnusable, match=r"refuses to encrypt with .*: check its type, size"):
            await provider.generate_data_key(32, CONTEXT)


@pytest.mark.parametrize(
    ("options", "more", "problem"),
    [
        ({"operations": ("wrapKey",)}, {}, "does not permit unwrapKey: add it with `az keyvault key set-attributes"),
        ({}, {"exp": 1_700_000_000}, "is expired or not yet active"),
        ({}, {"nbf": int(time.time()) + DAY}, "is expired or not yet active"),
    ],
)
async def test_a_key_that_serves_later_is_reported(
    options: dict[str, Any], more: dict[str, Any], problem: str, server: KeyVaultServer
) -> None:
    """The daemon starts and waits for it; nobody decided against what is cached."""
    key = server.create_key(**options)
    key.current.more = more
    async with azure_provider(server, key) as provider:
        with pytest.raises(MasterKeyUnusable, match=problem) as caught:
            await provider.check()
        assert (False, True) == (caught.value.withdrawn, caught.value.state != UNFIT)


async def test_a_disabled_key_withdraws_what_it_wrapped(opened: Callable[..., Any], server: KeyVaultServer) -> None:
    """Key Vault goes on wrapping with it; the provider does not once a check found it, until it is enabled."""
    async with opened(server) as provider:
        wrapped = await round_trip(provider)
        key_of(server, provider).current.enabled = False
        await provider.generate_data_key(32, CONTEXT)
        with pytest.raises(MasterKeyUnusable, match="is disabled") as caught:
            await provider.unwrap(wrapped, CONTEXT)
        assert (True, "Disabled") == (caught.value.withdrawn, caught.value.state)
        with pytest.raises(MasterKeyUnusable, match=r"is disabled.*: enable it with `az keyvault key set-attributes"):
            await provider.check()
        with pytest.raises(MasterKeyUnusable, match="is disabled"):
            await provider.generate_data_key(32, CONTEXT)
        with pytest.raises(MasterKeyUnusable, match="is disabled"):
            await provider.wrap(KeyMaterial(bytes(32)), CONTEXT)
        key_of(server, provider).current.enabled = True
        await provider.check()
        await round_trip(provider)


async def test_a_deleted_key_withdraws_what_it_wrapped(opened: Callable[..., Any], server: KeyVaultServer) -> None:
    """Soft deletion is somebody's decision, and can be undone."""
    async with opened(server) as provider:
        wrapped = await round_trip(provider)
        key_of(server, provider).deleted = True
        for attempt in (provider.check, lambda: provider.unwrap(wrapped, CONTEXT)):
            with pytest.raises(MasterKeyUnusable, match=r"az keyvault key recover --(vault|hsm)-name") as caught:
                await attempt()
            assert caught.value.withdrawn
        key_of(server, provider).deleted = False
        await provider.check()
        assert (await provider.unwrap(wrapped, CONTEXT)).raw


async def test_a_disabled_version_of_the_sign_key_vouches_for_nothing(server: KeyVaultServer) -> None:
    """Somebody may have found it leaked. Other versions go on."""
    sign_key = server.create_key("EC")
    key = server.create_key()
    async with azure_provider(server, key, sign_key) as provider:
        first = await round_trip(provider)
    sign_key.current.enabled = False
    server.rotate(sign_key)
    async with azure_provider(server, key, sign_key) as provider:
        with pytest.raises(
            MasterKeyUnusable, match=f"{sign_key.id} is disabled.* --version {next(iter(sign_key.versions))}"
        ):
            await provider.unwrap(first, CONTEXT)
        await round_trip(provider)


async def test_public_keys_are_read_once(server: KeyVaultServer) -> None:
    """A data key takes two requests, and one to open. The id of each is noted, to join with the vault's log."""
    ids: list[str | None] = []

    @contextmanager
    def observe(action: str, region: str) -> Iterator[Any]:
        yield SimpleNamespace(answered=ids.append)

    async with azure_provider(server, observe=observe) as provider:
        await round_trip(provider)
        server.requests.clear()
        ids.clear()
        await round_trip(provider)
        assert ["wrapkey", "sign", "unwrapkey"] == [path.rpartition("/")[2] for path in server.requests]
        assert 3 == len({each for each in ids if each})


@pytest.mark.parametrize(
    ("kind", "operation", "action", "named"),
    [
        ("vault", "get", "check", "Microsoft.KeyVault/vaults/keys/read"),
        ("vault", "wrapkey", "generate", "Microsoft.KeyVault/vaults/keys/wrap/action"),
        ("vault", "unwrapkey", "unwrap", "Microsoft.KeyVault/vaults/keys/unwrap/action"),
        ("hsm", "encrypt", "generate", "Microsoft.KeyVault/managedHsm/keys/encrypt/action"),
        ("hsm", "decrypt", "unwrap", "Microsoft.KeyVault/managedHsm/keys/decrypt/action"),
        ("sign", "sign", "generate", "Microsoft.KeyVault/vaults/keys/sign/action"),
    ],
)
async def test_refused_action_names_the_data_action(
    kind: str, operation: str, action: str, named: str, server: KeyVaultServer
) -> None:
    """And the key, in the words of role definitions; the service's text, which names the principal, stays inside."""
    async with (hsm_provider if kind == "hsm" else azure_provider)(server) as provider:
        wrapped = await round_trip(provider)
        key = list(provider._sealing.keys)[kind == "sign"]
        server.denied.add((key.id, operation))
        attempts: dict[str, Callable[[], Any]] = {
            "check": provider.check,
            "generate": lambda: provider.generate_data_key(32, CONTEXT),
            "unwrap": lambda: provider.unwrap(wrapped, CONTEXT),
        }
        with pytest.raises(AccessDenied, match=f"Key Vault denies {named} on {key.id}: assign") as caught:
            await attempts[action]()
        assert {"action": named, "master_key": key.id} == caught.value.metadata
        assert "secret-principal" not in str(caught.value)
        assert f"a role with {named} on {key.id}" in str(provider.remedy(caught.value))


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (Refused(400, "BadParameter"), MasterKeyUnusable, "Key Vault refuses to wrap with"),
        (
            Refused(403, "Forbidden", "ForbiddenByFirewall"),
            AccessDenied,
            "the firewall of Key Vault betrace does",
        ),
        (Refused(403, "Forbidden", "ForbiddenByConnection"), AccessDenied, "give it a private endpoint"),
        (Refused(403, "Forbidden", "KeyOperationForbidden"), MasterKeyUnusable, "may not wrap now"),
        (Refused(403, "Forbidden", "AccessDenied"), AccessDenied, "vaults/keys/wrap/action"),
        (Refused(403, "Forbidden"), AccessDenied, "vaults/keys/wrap/action"),
        (Refused(403, text="<html>"), AccessDenied, "vaults/keys/wrap/action"),
        (Refused(404, "KeyNotFound"), MasterKeyUnusable, "Key Vault has no key"),
        (Refused(409, "Conflict", "ObjectIsBeingDeleted"), MasterKeyUnusable, "is being deleted or recovered"),
        (Refused(429, "Throttled"), Throttled, "Key Vault throttles"),
        (Refused(500, "InternalError"), KmsUnreachable, "answers with status 500"),
        (Refused(503, text="busy"), KmsUnreachable, "answers with status 503"),
        (Refused(302, Location="https://evil.vault.azure.net/"), KmsUnreachable, "redirects"),
        (Refused(200, text="<html>hello"), BadAnswer, "is not one of Key Vault"),
        (Refused(200, text="[]"), BadAnswer, "is not one of Key Vault"),
        (Refused(200, text="{}"), BadAnswer, "names another key than the one that was asked"),
    ],
)
async def test_what_key_vault_or_a_proxy_may_answer(
    fault: Any, error: type[KmsError], words: str, server: KeyVaultServer
) -> None:
    """Each has one sentence, with nothing of what was answered, and a remedy."""
    async with azure_provider(server) as provider:
        server.fault = lambda path: fault if path.endswith("wrapkey") else None
        with pytest.raises(error, match=words) as caught:
            await provider.generate_data_key(32, CONTEXT)
        assert "secret-principal" not in str(caught.value)
        assert provider.remedy(caught.value)


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("unwrapkey", "AAAA", "holds no key of 32 bytes"),
        ("unwrapkey", "A" * 43, "holds another key than the one that was wrapped"),
        ("unwrapkey", "not base64!", "holds no key of 32 bytes"),
        ("wrapkey", "AAAA", "holds a wrapped key of 3 bytes"),
        ("sign", "A" * 86, "holds no signature that verifies"),
        ("sign", "AAAA", "holds no signature that verifies"),
    ],
)
async def test_bad_answers_of_a_vault_that_signs(part: str, value: str, words: str, server: KeyVaultServer) -> None:
    """Nothing is made of them."""
    async with azure_provider(server) as provider:

        def doctor(path: str, body: dict[str, Any]) -> None:
            if path.endswith(f"/{part}"):
                body["value"] = value

        server.doctor = doctor
        with pytest.raises(BadAnswer, match=words):
            await round_trip(provider)


@pytest.mark.parametrize(
    ("operation", "name", "value", "words"),
    [
        ("encrypt", "iv", "AAAA", "is not one of A256GCM"),
        ("encrypt", "tag", "AAAA", "is not one of A256GCM"),
        ("encrypt", "value", "AAAA", "is not one of A256GCM"),
        ("encrypt", "tag", None, "holds no wrapped key"),
        ("decrypt", "kid", "0" * 32, "names another version than the one that was asked"),
    ],
)
async def test_bad_answers_of_an_hsm(
    operation: str, name: str, value: str | None, words: str, server: KeyVaultServer
) -> None:
    """Nothing is made of them."""
    async with hsm_provider(server) as provider:

        def doctor(path: str, body: dict[str, Any]) -> None:
            if path.endswith(f"/{operation}"):
                body[name] = f"{provider.master_key_arn}/{value}" if name == "kid" else value

        server.doctor = doctor
        with pytest.raises(BadAnswer, match=words):
            await round_trip(provider)


@pytest.mark.parametrize(
    ("jwk", "words"),
    [
        ({"crv": "P-384"}, "no public key on the curve P-256"),
        ({"x": "AAAA"}, "no public key on the curve P-256"),
        ({"x": "A" * 43}, "no public key on the curve P-256"),
        ({"kid": "https://evil.vault.azure.net/keys/sign/" + "0" * 32}, "names another key"),
    ],
)
async def test_bad_public_key_is_refused(jwk: dict[str, str], words: str, server: KeyVaultServer) -> None:
    """A key of another vault, and one that is no point of the curve."""
    async with azure_provider(server) as provider:
        server.doctor = lambda path, body: body["key"].update(jwk) if "key" in body else None
        with pytest.raises(BadAnswer, match=words):
            await provider.generate_data_key(32, CONTEXT)


@pytest.mark.parametrize(
    ("status", "error", "headers", "seconds"),
    [
        (429, Throttled, {"Retry-After": "17"}, 17.0),
        (429, Throttled, {"Retry-After": "100000"}, 2.0),
        (429, Throttled, {"Retry-After": "3600"}, 60.0),
        (429, Throttled, {"Retry-After": "Fri, 27 Nov 2026 18:00:00 GMT"}, 2.0),
        (429, Throttled, {}, 2.0),
        (503, KmsUnreachable, {"Retry-After": "17"}, 1.0),
    ],
)
async def test_a_vault_that_asks_to_wait_is_answered_at_once(
    status: int, error: type[KmsError], headers: dict[str, str], seconds: float, server: KeyVaultServer
) -> None:
    """The SDK would wait for as long as Retry-After says, and hold its place in the queue."""
    async with azure_provider(server) as provider:
        server.fault = lambda path: Refused(status, "Throttled", **headers)
        server.requests.clear()
        with pytest.raises(error, match=r"Key Vault (throttles|answers with status 503)") as caught:
            await provider.generate_data_key(32, CONTEXT)
        assert (seconds, 1) == (caught.value.retry_after, len(server.requests))


async def test_a_redirect_leads_the_token_nowhere(server: KeyVaultServer) -> None:
    """Not even where the SDK would follow one."""
    async with azure_provider(server) as provider:
        there = f"{provider.master_key_arn}/elsewhere"
        server.fault = lambda path: None if path.endswith("elsewhere") else Refused(302, Location=there)
        server.requests.clear()
        with pytest.raises(KmsUnreachable, match="redirects to another address, which is not followed"):
            await provider.check()
        assert 1 == len(server.requests)


async def test_a_bad_status_is_tried_three_times(server: KeyVaultServer) -> None:
    """And no more, within the time of one call."""
    async with azure_provider(server) as provider:
        left = [Refused(503, "ServiceUnavailable"), Refused(503, "ServiceUnavailable")]
        server.fault = lambda path: left.pop() if left and path.endswith("wrapkey") else None
        await round_trip(provider)
        server.fault = lambda path: Refused(503, "ServiceUnavailable")
        server.requests.clear()
        with pytest.raises(KmsUnreachable):
            await provider.check()
        assert 3 == len(server.requests)


async def test_an_outage_opens_the_breaker_and_a_check_still_asks(server: KeyVaultServer) -> None:
    """Half open, three trials close it again. A second request that fails is a failure of the whole."""
    clock = FakeClock()
    async with azure_provider(server, breaker=CircuitBreaker("azure", clock=clock)) as provider:
        server.fault = lambda path: Refused(501, "NotImplemented") if path.endswith("sign") else None
        for _ in range(10):
            with pytest.raises(KmsUnreachable):
                await provider.generate_data_key(32, CONTEXT)
        assert {"azure": "open"} == provider.breakers
        server.fault = lambda path: None
        with pytest.raises(KmsUnreachable, match="left alone"):
            await provider.generate_data_key(32, CONTEXT)
        await provider.check()
        clock.now += 6
        for _ in range(3):
            await provider.generate_data_key(32, CONTEXT)
        assert {"azure": "closed"} == provider.breakers


async def test_a_vault_that_hangs_is_given_up_in_time(server: KeyVaultServer) -> None:
    """And the loop is free meanwhile."""
    async with azure_provider(server, call_seconds=1.0) as provider:
        server.delay = lambda path: 10.0 if path.endswith("wrapkey") else 0.0
        began = time.monotonic()
        with pytest.raises(KmsUnreachable, match="no answer from Key Vault: check azure"):
            await provider.generate_data_key(32, CONTEXT)
        assert time.monotonic() - began < 4
    await asyncio.sleep(0.05)  # for the end of the TLS connection


@pytest.mark.parametrize("proxied", [False, True])
@pytest.mark.parametrize(
    ("vault", "trusts"),
    [
        pytest.param("https://never-seen.vault.azure.net", False, id="another authority"),
        pytest.param("https://betrace.vault.azure.cn", True, id="another name"),
    ],
)
async def test_a_certificate_that_is_not_the_vaults(
    vault: str, trusts: bool, proxied: bool, server: KeyVaultServer
) -> None:
    """Its authority and its name are checked, behind a proxy too."""
    proxies = {"https": server.proxy_url} if proxied else {}
    async with server.session(trusts=trusts) as session:
        transport = AioHttpTransport(session=session, session_owner=False)
        credential = ClientSecretCredential(TENANT, CLIENT, SECRET, transport=transport)
        key, sign_key = KeyId(f"{vault}/keys/betrace"), KeyId(f"{vault}/keys/sign")
        async with open_azure(key, sign_key, credential=credential, transport=transport, proxies=proxies) as provider:
            with pytest.raises(KmsUnreachable, match="TLS with Key Vault fails") as caught:
                await provider.check()
            assert {"kind": "tls"} == caught.value.metadata
    await asyncio.sleep(0.05)  # for the end of the connections


async def test_refused_credentials(server: KeyVaultServer) -> None:
    """What Entra ID says goes to the log alone."""
    async with azure_provider(server, secret="wrong") as provider:
        with pytest.raises(CredentialsUnavailable, match="gets no token for Key Vault: check") as caught:
            await provider.check()
        assert "AADSTS" not in str(caught.value)
        assert provider.credential_attempts["KMS_CREDENTIALS_UNAVAILABLE"] >= 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("AZURE_TOKEN_CREDENTIALS", "some"), ("AZURE_AUTHORITY_HOST", "http://login.example.com")],
)
async def test_refused_variables(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the SDK raises for them is no traceback at start."""
    monkeypatch.setenv(name, value)
    with pytest.raises(StartRefused, match=name):
        async with open_azure(KeyId(f"{VAULT}/keys/betrace"), KeyId(f"{VAULT}/keys/sign")):
            pass


async def test_a_token_that_the_vault_does_not_take(server: KeyVaultServer) -> None:
    """A vault of another tenant. One token serves all calls before."""
    async with azure_provider(server) as provider:
        await round_trip(provider)
        assert {"OK": 1} == provider.credential_attempts
        server.fault = lambda path: Refused(401, "Unauthorized", "AKV10032")
        with pytest.raises(CredentialsUnavailable, match=r"does not accept the daemon's token.* the vault betrace"):
            await provider.check()


class SlowCredential:
    """A credential whose token comes when a test says so."""

    def __init__(self) -> None:
        self.come = asyncio.Event()
        self.asked = 0
        self.error: Exception | None = None

    async def get_token_info(self, *scopes: str, options: Any = None) -> Any:
        """Wait."""
        self.asked += 1
        await self.come.wait()
        if self.error is not None:
            raise self.error
        return object()

    async def close(self) -> None:
        """Close nothing."""


async def test_a_slow_token_is_obtained_once_and_not_lost() -> None:
    """Who waits too long gets an error of credentials; the attempt goes on, for those who ask next."""
    slow = SlowCredential()
    credential = Credential(slow, wait_seconds=0.05)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(CredentialsUnavailable, match="it takes long"):
            await credential.get_token_info("scope")
    credential._wait_seconds = 10.0
    waiting = asyncio.create_task(credential.get_token_info("scope"))
    await asyncio.sleep(0)
    slow.come.set()
    await waiting
    assert (1, {"OK": 1}) == (slow.asked, credential.attempts)
    slow.come.clear()
    task = asyncio.create_task(credential.get_token_info("scope"))
    await asyncio.sleep(0)
    await credential.close()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_attempt_that_no_one_waits_for_fails_quietly() -> None:
    """It is counted, and asyncio has nothing to complain about."""
    problems: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
    slow = SlowCredential()
    credential = Credential(slow, wait_seconds=0.01)  # type: ignore[arg-type]
    with pytest.raises(CredentialsUnavailable, match="it takes long"):
        await credential.get_token_info("scope")
    slow.error = OSError("gone")
    slow.come.set()
    await asyncio.sleep(0.05)
    gc.collect()
    await credential.close()
    assert ([], {"KMS_CREDENTIALS_UNAVAILABLE": 1}) == (problems, credential.attempts)


@pytest.mark.parametrize(
    ("kid", "version"),
    [
        (f"{VAULT}/keys/Betrace/{'0' * 32}", "0" * 32),
        (f"{VAULT}/keys/betrace/{'0' * 31}", None),
        (f"{VAULT}/keys/betrace/{'G' * 32}", None),
        (f"{VAULT}/keys/betrace", None),
        (f"{VAULT}/keys/betrace/{'0' * 32}/more", None),
        (f"{VAULT}/keys/other/{'0' * 32}", None),
        (f"https://evil.vault.azure.net/keys/betrace/{'0' * 32}", None),
        (None, None),
    ],
)
def test_only_a_version_of_the_key_is_taken(kid: object, version: str | None) -> None:
    """Key Vault answers with the case in which a key was made."""
    assert version == KeyId(f"{VAULT}/keys/betrace").version_of(kid)


@pytest.mark.parametrize(("value", "raw"), [("AAE", b"\0\1"), ("AAE=", None), ("A!AE", None), ("AAF", None), (7, None)])
def test_only_base64url_as_the_api_has_it_is_read(value: object, raw: bytes | None) -> None:
    """Without padding, and in the one form that there is."""
    assert raw == Answer(200, {"value": value}).raw("value")


def exceptions() -> Iterator[type[Exception]]:
    """Yield every exception that the SDK's two packages export."""
    for module in (azure.core.exceptions, azure.identity):
        yield from (each for each in vars(module).values() if isclass(each) and issubclass(each, Exception))


_KINDS: dict[str, type[KmsError]] = {
    "ClientAuthenticationError": CredentialsUnavailable,
    "CredentialUnavailableError": CredentialsUnavailable,
    "AuthenticationRequiredError": CredentialsUnavailable,
}
_OURS_TO_FIX = {"SerializationError", "DeserializationError"}


@pytest.mark.parametrize("kind", sorted(set(exceptions()), key=str))
def test_every_exception_of_the_sdk_is_ours(kind: type[Exception]) -> None:
    """None leaks, whatever the SDK raises, and its text goes nowhere."""
    cause = kind.__new__(kind)
    Exception.__init__(cause, "secret-principal")
    cause.inner_exception = None  # type: ignore[attr-defined]
    error = unanswered(cause)
    assert _KINDS.get(kind.__name__, KmsUnreachable) is type(error)
    assert (kind.__name__ in _OURS_TO_FIX) == (error.metadata.get("kind") == "sdk")
    assert "secret-principal" not in str(error)
    assert ": " in str(error)


@pytest.mark.parametrize("cause", [TimeoutError(), OSError("refused"), ValueError("a challenge of another domain")])
def test_other_exceptions_are_ours(cause: Exception) -> None:
    """Those of asyncio, of sockets, and what the SDK raises for a challenge that is not Key Vault's."""
    assert isinstance(unanswered(cause), KmsUnreachable)


async def test_production_check_finds_what_may_be_lost(server: KeyVaultServer) -> None:
    """A vault without purge protection, and keys that expire soon."""
    key, sign_key = server.create_key(recovery="Recoverable+Purgeable"), server.create_key("EC")
    async with azure_provider(server, key, sign_key) as provider:
        sign_key.current.more = {"exp": int(time.time()) + 3 * DAY + 60}
        found = {each.name: each.problem for each in await provider.inspect()}
        assert "turn on the purge protection of betrace" in found["azure_key"]
        assert "expires in 3 days: rotate it" in found["azure_sign_key"]
    async with hsm_provider(server) as of_hsm:
        assert [("azure_key", "")] == [(each.name, each.problem) for each in await of_hsm.inspect()]


async def test_without_the_extra_the_start_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The SDK is no dependency of the server."""
    for name in [name for name in sys.modules if name.startswith("betrace_kms_server.providers.azure")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "azure.core.exceptions", None)
    values = {
        "betrace_kms_provider": "azure",
        "azure_key_vault_key_id": f"{VAULT}/keys/betrace",
        "azure_key_vault_sign_key_id": f"{VAULT}/keys/sign",
    }
    start = provider_startup._Start(settings(tmp_path, **values), [], unobserved, AsyncExitStack())
    with pytest.raises(StartRefused, match=r"azure.* is missing: install betrace-kms\[server,azure\]"):
        await provider_startup._open_azure(start)
