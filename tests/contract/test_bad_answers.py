"""Answers that a key-management service must not give are refused by every adapter, and nothing is made of them.

A new provider joins by an entry in SERVICES, which says how its service's answers are altered on their way.
"""

import base64
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.errors import BadAnswer, KmsError
from betrace_kms_server.core.keys import KeyMaterial, WrappedKey
from betrace_kms_server.data_keys.keyring import KeyRing
from betrace_kms_server.providers.answers import Answers
from betrace_kms_server.providers.aws.provider import AwsProvider
from betrace_kms_server.providers.gcp.sdk import crc32c
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.signing_keys.seeds import new_key
from betrace_kms_server.telemetry.figures import CallStats
from betrace_kms_server.telemetry.observers import KmsCallObserver

from tests.aws_proxy import aws_proxy
from tests.cloud_kms_server import CloudKmsServer
from tests.contract.azure_peer import hsm_provider
from tests.contract.conftest import PROVIDERS
from tests.contract.gcp_peer import gcp_provider
from tests.contract.pkcs11_peer import AlteredProcesses, pkcs11_provider
from tests.contract.samples import ARN
from tests.contract.vault_peer import vault_provider, vault_proxy
from tests.keyvault_server import KeyVaultServer
from tests.moto_server import REGION, MotoServer
from tests.openbao_server import OpenBaoServer
from tests.softhsm import Token

CONTEXT = {"tenantId": "acme", "keyType": "encryption"}
MISSING = object()
_MADE_BY_THE_SERVICE = ("test_bad_data_key_is_refused", "test_nothing_is_sealed_or_signed_under_a_bad_key")
ANSWERS = Answers("KMS", "kms:", "the proxies on the route")


@dataclass(frozen=True, slots=True)
class Service:
    """A provider, and how its service's answers are altered.

    `alter` replaces a part of each answer, "plaintext", "blob" or "key", by a value; MISSING leaves it out.
    """

    provider: KeyProvider
    alter: Callable[[str, Any], None]
    stats: CallStats = field(default_factory=CallStats)


@asynccontextmanager
async def _aws(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    moto: MotoServer = request.getfixturevalue("moto")
    stats = CallStats()
    names = {"plaintext": "Plaintext", "blob": "CiphertextBlob", "key": "KeyId"}
    with aws_proxy(moto.url) as proxy:

        def alter(part: str, value: Any) -> None:
            def doctor(action: str, answer: dict[str, Any]) -> None:
                name = names[part]
                if name not in answer:
                    return
                del answer[name]
                if value is not MISSING:
                    answer[name] = base64.b64encode(value).decode() if isinstance(value, bytes) else value

            proxy.doctor = doctor

        observe = KmsCallObserver(stats, None)
        async with AwsProvider(moto.create_key(), region=REGION, endpoint=proxy.url, observe=observe) as provider:
            yield Service(provider, alter, stats)


@asynccontextmanager
async def _azure(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    """A Managed HSM; data keys are made here, so only what unwraps has a plaintext to alter."""
    server: KeyVaultServer = request.getfixturevalue("key_vault")
    stats = CallStats()
    names = {"plaintext": ("decrypt", "value"), "blob": ("encrypt", "value"), "key": ("", "kid")}

    def alter(part: str, value: Any) -> None:
        if part == "plaintext" and request.node.originalname in _MADE_BY_THE_SERVICE:
            pytest.skip("data keys are made here")
        operation, name = names[part]

        def doctor(path: str, body: dict[str, Any]) -> None:
            if name in body and path.endswith(operation):
                del body[name]
                if value is not MISSING:
                    body[name] = base64.urlsafe_b64encode(value).decode().rstrip("=") if part != "key" else value

        server.doctor = doctor

    try:
        async with hsm_provider(server, observe=KmsCallObserver(stats, None)) as provider:
            stats.counts.clear()
            yield Service(provider, alter, stats)
    finally:
        server.doctor = lambda path, body: None


@asynccontextmanager
async def _vault(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    """OpenBao, which also makes the data keys, so that there is an answer to alter."""
    bao: OpenBaoServer = request.getfixturevalue("bao")
    stats = CallStats()
    names = {"plaintext": ("plaintext", "random_bytes"), "blob": ("ciphertext",)}
    async with vault_proxy(bao) as proxy:

        def alter(part: str, value: Any) -> None:
            if part not in names:
                pytest.skip("no answer of Vault names the key")

            def doctor(data: dict[str, Any]) -> None:
                for name in set(names[part]) & set(data):
                    del data[name]
                    if value is not MISSING:
                        encoded = base64.b64encode(value).decode()
                        data[name] = f"vault:v1:{encoded}"[:8193] if name == "ciphertext" else encoded

            proxy.doctor = doctor

        observe = KmsCallObserver(stats, None)
        async with vault_provider(bao, url=proxy.url, observe=observe, random_of_vault=True) as provider:
            yield Service(provider, alter, stats)


@asynccontextmanager
async def _pkcs11(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    """SoftHSM, which also makes the data keys, so that there is an answer to alter."""
    token: Token = request.getfixturevalue("hsm_token")
    key, _ = request.getfixturevalue("hsm_keys")
    stats = CallStats()
    altered: dict[str, str | None] = {}

    def alter(part: str, value: Any) -> None:
        if part == "key":
            pytest.skip("no answer of an HSM names the key")
        altered[part] = None if value is MISSING else base64.b64encode(value).decode()

    class Altered(AlteredProcesses):
        parts = altered

    observe = KmsCallObserver(stats, None)
    async with pkcs11_provider(token, key, processes=Altered, observe=observe, random_of_token=True) as provider:
        yield Service(provider, alter, stats)


@asynccontextmanager
async def _gcp(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    """Cloud KMS, which also makes the data keys; what is altered has the checksum that fits."""
    server: CloudKmsServer = request.getfixturevalue("cloud_kms")
    stats = CallStats()
    names = {"plaintext": ("plaintext", "data"), "blob": ("ciphertext",), "key": ("name",)}
    key = server.make_key()

    def alter(part: str, value: Any) -> None:
        if part == "key" and "unwrapped" in request.node.name:
            pytest.skip("an answer to Decrypt does not name the key")

        def answer(method: str, message: Any) -> None:
            for name in names[part]:
                if name not in type(message).meta.fields or method == "GetCryptoKey":
                    continue
                setattr(message, name, (b"" if part != "key" else "") if value is MISSING else value)
                if part != "key":
                    setattr(message, f"{name}_crc32c", crc32c(getattr(message, name)))

        key.answer = answer

    async with gcp_provider(server, key, observe=KmsCallObserver(stats, None), random_of_kms=True) as provider:
        yield Service(provider, alter, stats)


SERVICES: Mapping[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Service]]] = {
    "aws": _aws,
    "azure": _azure,
    "vault": _vault,
    "pkcs11": _pkcs11,
    "gcp": _gcp,
}


@pytest.fixture(params=SERVICES)
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    """Give every provider that asks a service, in turn."""
    async with SERVICES[request.param](request) as service:
        yield service


def test_every_provider_with_a_service_is_held_to_it() -> None:
    """Provider local asks no service; all others are here."""
    assert set(PROVIDERS) - {"local"} == set(SERVICES)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *(pytest.param("plaintext", bytes(size), id=f"{size} bytes") for size in (0, 3, 31, 33, 64)),
        pytest.param("plaintext", MISSING, id="no plaintext"),
        pytest.param("blob", b"", id="empty blob"),
        pytest.param("blob", MISSING, id="no blob"),
        pytest.param("blob", bytes(6145), id="blob too long"),
        pytest.param("key", ARN, id="another key"),
        pytest.param("key", "", id="empty key id"),
        pytest.param("key", MISSING, id="no key id"),
    ],
)
async def test_bad_data_key_is_refused(service: Service, part: str, value: Any) -> None:
    """A data key of another length, without its wrapped half, or of another master key is neither used nor retried."""
    service.alter(part, value)
    with pytest.raises(BadAnswer, match=r"[: ]GenerateDataKey on .*: it was not used; check") as caught:
        await service.provider.generate_data_key(32, CONTEXT)
    assert (1, None) == (service.stats.counts["GenerateDataKey", "KMS_BAD_ANSWER"], caught.value.retry_after)
    assert 0 == service.stats.counts["GenerateDataKey", "OK"]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        pytest.param("blob", b"", id="empty blob"),
        pytest.param("blob", MISSING, id="no blob"),
        pytest.param("blob", bytes(6145), id="blob too long"),
        pytest.param("key", ARN, id="another key"),
        pytest.param("key", MISSING, id="no key id"),
    ],
)
async def test_bad_wrapped_key_is_refused(service: Service, part: str, value: Any) -> None:
    """A key that is there already would be lost with a wrapped half that is not one."""
    service.alter(part, value)
    with pytest.raises(BadAnswer, match=r"[: ]Encrypt on "):
        await service.provider.wrap(KeyMaterial(bytes(32)), CONTEXT)
    assert Counter({("Encrypt", "KMS_BAD_ANSWER"): 1}) == service.stats.counts


@pytest.mark.parametrize(
    ("part", "value"),
    [
        pytest.param("plaintext", b"", id="empty"),
        pytest.param("plaintext", MISSING, id="no plaintext"),
        pytest.param("plaintext", bytes(4097), id="too long"),
        pytest.param("key", ARN, id="another key"),
        pytest.param("key", MISSING, id="no key id"),
    ],
)
async def test_bad_unwrapped_key_is_refused(service: Service, part: str, value: Any) -> None:
    """What another master key unwrapped, and what is no key, is not used."""
    made = await service.provider.generate_data_key(32, CONTEXT)
    service.alter(part, value)
    with pytest.raises(BadAnswer, match=r"[: ]Decrypt on "):
        await service.provider.unwrap(made.wrapped, CONTEXT)
    assert 1 == service.stats.counts["Decrypt", "KMS_BAD_ANSWER"]


@pytest.mark.parametrize("size", [0, 3, 33])
async def test_nothing_is_sealed_or_signed_under_a_bad_key(
    service: Service, new_cache: Callable[..., KeyCache], size: int
) -> None:
    """Encrypt, GenerateDataKey, a fresh one too, and a new signing key are refused, and nothing stays in the cache."""
    cache = new_cache()
    ring = KeyRing(service.provider, cache)
    service.alter("plaintext", bytes(size))
    for attempt in (
        lambda: ring.seal("acme", b"payload", {}),
        lambda: ring.data_key("acme", 32, {}),
        lambda: ring.data_key("acme", 32, {}, fresh=True),
        lambda: new_key(service.provider, "acme", 0),
    ):
        with pytest.raises(BadAnswer):
            await attempt()
    assert 0 == len(cache)


@pytest.mark.parametrize("size", [3, 31, 33])
async def test_a_message_is_not_opened_with_a_key_of_another_length(
    service: Service, new_cache: Callable[..., KeyCache], size: int
) -> None:
    """Suite 0x0478 has keys of 32 bytes; the text is that of every ciphertext that does not open."""
    sealed = await KeyRing(service.provider, new_cache()).seal("acme", b"payload", {})
    service.alter("plaintext", bytes(size))
    with pytest.raises(KmsError) as caught:
        await KeyRing(service.provider, new_cache()).open("acme", sealed.ciphertext, {})
    assert "CIPHERTEXT_DOES_NOT_OPEN" == caught.value.reason


MRK = "arn:aws:kms:us-east-1:123456789012:key/mrk-1234abcd12ab34cd56ef1234567890ab"


@pytest.mark.parametrize(
    ("asked", "answered", "taken"),
    [
        (ARN, ARN, True),
        (MRK, MRK.replace("us-east-1", "eu-west-1"), True),
        (MRK, MRK.replace("123456789012", "999999999999"), False),
        (ARN, ARN.replace("us-east-1", "eu-west-1"), False),
        (ARN, ARN.rpartition("/")[2], False),
        ("alias/betrace", ARN, True),
        ("alias/betrace", "alias/betrace", True),
        ("alias/betrace", "elsewhere", False),
        (ARN.rpartition("/")[2], ARN, True),
        (ARN.rpartition("/")[2], MRK, False),
        (ARN, None, False),
        (ARN, 7, False),
    ],
)
def test_master_key_is_the_one_asked_or_its_replica(asked: str, answered: object, taken: bool) -> None:
    """A replica has the same key; an alias and a bare id, of emulators only, stand for an ARN."""
    try:
        named: object = ANSWERS.master_key("Encrypt", asked, answered)
    except BadAnswer:
        named = None
    assert (answered if taken else None) == named


@pytest.mark.parametrize("value", ["text", 32, None, [1]], ids=repr)
def test_what_is_not_bytes_is_no_key(value: object) -> None:
    """A part of another type is refused, and the text shows nothing of it."""
    with pytest.raises(BadAnswer, match="holds no key: ") as caught:
        ANSWERS.data_key(ARN, 32, plaintext=value, blob=b"blob", key_id=ARN)
    assert "text" not in caught.value.message


async def test_wrapped_key_of_the_largest_size_is_taken() -> None:
    """The bounds are those of the API, and what lies on them is good."""
    assert WrappedKey(bytes(6144), ARN) == ANSWERS.wrapped_key(ARN, blob=bytes(6144), key_id=ARN)
