"""Provider gcp against Cloud KMS as it is played on loopback: what it refuses, and what each refusal says."""

import asyncio
import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import grpc
import pytest
from betrace_kms_server.core.errors import (
    AccessDenied,
    BadAnswer,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
    StartRefused,
    Throttled,
)
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.core.key_event import KmsCall, unobserved
from betrace_kms_server.core.keys import KeyMaterial, WrappedKey
from betrace_kms_server.providers.breaker import CircuitBreaker
from betrace_kms_server.providers.gcp.client import CloudKms
from betrace_kms_server.providers.gcp.errors import KeyName
from betrace_kms_server.providers.gcp.opening import open_gcp
from betrace_kms_server.providers.gcp.provider import UNFIT, GcpProvider
from betrace_kms_server.providers.gcp.sdk import (
    DecryptRequest,
    DecryptResponse,
    EncryptRequest,
    EncryptResponse,
    ProtectionLevel,
    crc32c,
)
from google.rpc import error_details_pb2

from tests.cloud_kms_server import CloudKmsServer, PlayedKey, Purpose, Refused, State
from tests.contract.doubles import FakeClock
from tests.contract.gcp_peer import gcp_provider

CONTEXT = {"tenantId": "acme", "keyType": "encryption"}
Code = grpc.StatusCode
PURPOSES: Any = Purpose  # iterable, which its types do not say
LEVELS: Any = ProtectionLevel


async def round_trip(provider: GcpProvider) -> None:
    """Make a key and unwrap it."""
    made = await provider.generate_data_key(32, CONTEXT)
    assert made.material.raw == (await provider.unwrap(made.wrapped, CONTEXT)).raw


def opened(name: str, endpoint: str) -> Any:
    """Open a provider as the daemon does."""
    return open_gcp(
        KeyName(name),
        endpoint=endpoint,
        emulated=True,
        former=(),
        random_of_kms=False,
        call_seconds=2,
        observe=unobserved,
    )


@pytest.mark.parametrize(
    "purpose", [each for each in PURPOSES if each.name not in ("ENCRYPT_DECRYPT", "CRYPTO_KEY_PURPOSE_UNSPECIFIED")]
)
async def test_refused_unfit_key(purpose: Any, cloud_kms: CloudKmsServer) -> None:
    """With a key of another purpose nothing could ever work: the daemon does not start, and a check says why."""
    key = cloud_kms.make_key(purpose=purpose)
    async with gcp_provider(cloud_kms, key) as provider:
        with pytest.raises(MasterKeyUnusable, match=f"has the purpose {purpose.name}: make another") as caught:
            await provider.check()
        assert (UNFIT, False) == (caught.value.state, caught.value.withdrawn)
    with pytest.raises(StartRefused, match=r"--purpose=encryption, and set gcp\.kms\.key-name"):
        async with opened(key.name, cloud_kms.url):
            pass


@pytest.mark.parametrize("level", [each for each in LEVELS if each])
async def test_each_protection_level_serves(level: Any, cloud_kms: CloudKmsServer) -> None:
    """A key of an HSM takes 8 KiB of key and context together, more than the largest that we send."""
    async with gcp_provider(cloud_kms, cloud_kms.make_key(level=level)) as provider:
        await provider.check()
        context = {**CONTEXT, "label": "x" * 4_000}
        made = await provider.generate_data_key(1024, context)
        assert made.material.raw == (await provider.unwrap(made.wrapped, context)).raw


async def test_a_rotated_key_opens_what_its_versions_wrapped(cloud_kms: CloudKmsServer) -> None:
    """Until somebody disables an old version, which is named with the command that enables it."""
    key = cloud_kms.make_key()
    async with gcp_provider(cloud_kms, key) as provider:
        first = await provider.generate_data_key(32, CONTEXT)
        key.rotate()
        second = await provider.generate_data_key(32, CONTEXT)
        assert key.name == first.wrapped.master_key_arn == second.wrapped.master_key_arn
        assert first.material.raw == (await provider.unwrap(first.wrapped, CONTEXT)).raw
        key.states[0] = State.DISABLED
        with pytest.raises(MasterKeyUnusable, match=r"version 1 of .* is DISABLED: enable it with") as caught:
            await provider.unwrap(first.wrapped, CONTEXT)
        short = key.name.rpartition("/")[2]
        command = f"gcloud kms keys versions enable 1 --key={short} --keyring=betrace --location=europe-west3"
        assert f"`{command} --project=betrace-test`" in caught.value.message
        assert second.material.raw == (await provider.unwrap(second.wrapped, CONTEXT)).raw
        await provider.check()


@pytest.mark.parametrize(
    ("state", "withdrawn", "step"),
    [
        (State.DISABLED, True, "enable it with `gcloud kms keys versions enable 1 "),
        (State.DESTROY_SCHEDULED, True, "restore it with `gcloud kms keys versions restore 1 .*, then `gcloud"),
        (State.DESTROYED, True, "what it wrapped is lost"),
        (State.PENDING_GENERATION, False, "wait until Cloud KMS has made it"),
        (State.PENDING_IMPORT, False, "wait until its import is over"),
        (State.IMPORT_FAILED, False, "make another version"),
        (State.GENERATION_FAILED, False, "make another version"),
        (State.PENDING_EXTERNAL_DESTRUCTION, False, "make another version"),
    ],
)
async def test_a_primary_version_that_is_not_enabled(
    state: State, withdrawn: bool, step: str, cloud_kms: CloudKmsServer
) -> None:
    """A check and a call say alike what to do; what somebody did is a withdrawal, an outage is none."""
    key = cloud_kms.make_key(states=[state])
    async with gcp_provider(cloud_kms, key) as provider:
        with pytest.raises(MasterKeyUnusable, match=f"version 1 of {key.name} is {state.name}: {step}") as caught:
            await provider.check()
        assert (state.name, withdrawn) == (caught.value.state, caught.value.withdrawn)
        with pytest.raises(MasterKeyUnusable, match=f"version 1 of {key.name} is ") as asked:
            await provider.generate_data_key(32, CONTEXT)
        assert withdrawn == asked.value.withdrawn
        remedy = provider.remedy(caught.value)
        assert remedy is not None
        assert remedy in caught.value.message
        assert "closed" == provider.breakers["europe-west3"]


async def test_a_key_without_a_primary_version(cloud_kms: CloudKmsServer) -> None:
    """As a key is whose first version is still to be imported."""
    async with gcp_provider(cloud_kms, cloud_kms.make_key(primary=0)) as provider:
        with pytest.raises(MasterKeyUnusable, match="has no primary version: run `gcloud kms keys set-primary-version"):
            await provider.check()


@pytest.mark.parametrize("junk", [b"", b"\0" * 40, b"\x0a\x24" + b"A" * 80, b"x" * 6145])
async def test_what_cloud_kms_never_wrote_does_not_open(junk: bytes, cloud_kms: CloudKmsServer) -> None:
    """One text, whatever is wrong with it; what was cut short too."""
    async with gcp_provider(cloud_kms) as provider:
        made = await provider.generate_data_key(32, CONTEXT)
        for blob in (junk, made.wrapped.blob[:-1], made.wrapped.blob[:40]):
            with pytest.raises(DoesNotOpen):
                await provider.unwrap(WrappedKey(blob, provider.master_key_arn), CONTEXT)


async def test_wrong_names_are_named(cloud_kms: CloudKmsServer) -> None:
    """A key that is not there, and one of a project of which the account may not even know that."""
    absent = PlayedKey("projects/betrace-test/locations/europe-west3/keyRings/betrace/cryptoKeys/absent")
    async with gcp_provider(cloud_kms, absent) as provider:
        with pytest.raises(MasterKeyUnusable, match=r"has no key .*/absent: check gcp\.kms\.key-name"):
            await provider.check()
    foreign = PlayedKey("projects/elsewhere/locations/global/keyRings/r/cryptoKeys/k")
    async with gcp_provider(cloud_kms, foreign) as provider:
        with pytest.raises(AccessDenied, match=r"denies cloudkms\.cryptoKeys\.get on projects/elsewhere/.*no such"):
            await provider.check()


@pytest.mark.parametrize(
    ("permission", "call", "role"),
    [
        ("cloudkms.cryptoKeyVersions.useToEncrypt", "generate_data_key", "cryptoKeyEncrypterDecrypter"),
        ("cloudkms.cryptoKeyVersions.useToEncrypt", "wrap", "cryptoKeyEncrypterDecrypter"),
        ("cloudkms.cryptoKeyVersions.useToDecrypt", "unwrap", "cryptoKeyEncrypterDecrypter"),
        ("cloudkms.cryptoKeys.get", "check", "roles/cloudkms.viewer"),
        ("cloudkms.locations.generateRandomBytes", "random", "a custom role with cloudkms.locations"),
    ],
)
async def test_refused_action_names_the_permission(
    permission: str, call: str, role: str, cloud_kms: CloudKmsServer
) -> None:
    """The next step is the command that grants it. A denial does not open the breaker."""
    key = cloud_kms.make_key()
    async with (
        gcp_provider(cloud_kms, key) as provider,
        gcp_provider(cloud_kms, key, random_of_kms=True) as with_random,
    ):
        made = await provider.generate_data_key(32, CONTEXT)
        key.granted.remove(permission)
        attempts: dict[str, Callable[[], Any]] = {
            "generate_data_key": lambda: provider.generate_data_key(32, CONTEXT),
            "wrap": lambda: provider.wrap(KeyMaterial(bytes(32)), CONTEXT),
            "unwrap": lambda: provider.unwrap(made.wrapped, CONTEXT),
            "check": provider.check,
            "random": lambda: with_random.generate_data_key(32, CONTEXT),
        }
        for _ in range(11):
            with pytest.raises(
                AccessDenied, match=f"Cloud KMS denies {permission} on projects/betrace-test/"
            ) as caught:
                await attempts[call]()
        assert role in (provider.remedy(caught.value) or "")
        assert "closed" == provider.breakers["europe-west3"] == with_random.breakers["europe-west3"]


def _spoilt(name: str, value: Any) -> Callable[[str, Any], None]:
    def answer(_method: str, message: Any) -> None:
        if name in type(message).meta.fields:
            setattr(message, name, value)

    return answer


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("verified_plaintext_crc32c", False, "GenerateDataKey on .* does not say that the checksums"),
        ("verified_additional_authenticated_data_crc32c", False, "GenerateDataKey on .* does not say that the"),
        ("ciphertext_crc32c", 7, "GenerateDataKey on .* does not match its checksum"),
        ("ciphertext_crc32c", None, "GenerateDataKey on .* does not match its checksum"),
        ("ciphertext", b"damaged", "GenerateDataKey on .* does not match its checksum"),
        ("data", bytes(32), "GenerateRandom on .* does not match its checksum"),
        ("data_crc32c", None, "GenerateRandom on .* does not match its checksum"),
        ("plaintext", bytes(32), "Decrypt on .* does not match its checksum"),
        ("plaintext_crc32c", None, "Decrypt on .* does not match its checksum"),
    ],
)
async def test_damaged_answers_are_refused(field: str, value: Any, words: str, cloud_kms: CloudKmsServer) -> None:
    """Each part that matters has a checksum, and one that is missing is no better than one that is wrong."""
    key = cloud_kms.make_key()
    async with gcp_provider(cloud_kms, key, random_of_kms=True) as provider:
        made = await provider.generate_data_key(32, CONTEXT)
        key.answer = _spoilt(field, value)

        async def both() -> None:
            await provider.generate_data_key(32, CONTEXT)
            await provider.unwrap(made.wrapped, CONTEXT)

        with pytest.raises(BadAnswer, match=words):
            await both()


async def test_a_description_of_another_key_is_refused(cloud_kms: CloudKmsServer) -> None:
    """Its state would say nothing of ours."""
    key = cloud_kms.make_key()
    key.answer = _spoilt("name", cloud_kms.make_key().name)
    async with gcp_provider(cloud_kms, key) as provider:
        with pytest.raises(BadAnswer, match=r"DescribeKey on .* is not the one that was asked"):
            await provider.check()


async def test_requests_are_marked(cloud_kms: CloudKmsServer) -> None:
    """Each has a reason of its own, which is the request id of the audit trail, and no part of a key or tenant."""
    key, noted = cloud_kms.make_key(), []

    class Noted(AbstractContextManager[KmsCall]):
        def answered(self, request_id: str | None) -> None:
            noted.append(request_id)

        def __exit__(self, *_: object) -> None: ...

    async with gcp_provider(cloud_kms, key, observe=lambda action, region: Noted()) as provider:
        await round_trip(provider)
    assert noted == [metadata["x-goog-request-reason"] for _, metadata in key.calls]
    assert 2 == len(set(noted))
    assert not any("authorization" in metadata for _, metadata in key.calls)


def _info(reason: str) -> Any:
    return error_details_pb2.ErrorInfo(reason=reason, domain="googleapis.com")


@pytest.mark.parametrize(
    ("code", "text", "details", "error", "words"),
    [
        (Code.UNAVAILABLE, "The service is currently unavailable.", (), KmsUnreachable, "no answer from Cloud KMS"),
        (Code.INTERNAL, "Internal error encountered.", (), KmsUnreachable, "no answer from Cloud KMS"),
        (Code.UNKNOWN, "", (), KmsUnreachable, "no answer from Cloud KMS"),
        (Code.ABORTED, "", (), KmsUnreachable, "no answer from Cloud KMS"),
        (Code.UNIMPLEMENTED, "Method not found!", (), KmsUnreachable, "what answers is not Cloud KMS"),
        (Code.OUT_OF_RANGE, "", (), KmsUnreachable, "what answers is not Cloud KMS"),
        (
            Code.RESOURCE_EXHAUSTED,
            "Quota exceeded",
            (),
            Throttled,
            "quotas of cryptographic requests of project betrace",
        ),
        (Code.INVALID_ARGUMENT, "did not match in plaintext_crc32c", (), KmsUnreachable, "reached Cloud KMS damaged"),
        (Code.INVALID_ARGUMENT, "something else", (), MasterKeyUnusable, "must be ENCRYPT_DECRYPT"),
        (Code.FAILED_PRECONDITION, "no words", (), MasterKeyUnusable, "is not enabled: make another version"),
        (Code.NOT_FOUND, "not found", (), MasterKeyUnusable, "has no key"),
        (Code.PERMISSION_DENIED, "off", (_info("SERVICE_DISABLED"),), AccessDenied, "enable cloudkms.googleapis.com"),
        (Code.PERMISSION_DENIED, "x", (_info("BILLING_DISABLED"),), AccessDenied, "link betrace-test to a billing"),
        (
            Code.PERMISSION_DENIED,
            "x",
            (_info("ACCESS_TOKEN_SCOPE_INSUFFICIENT"),),
            AccessDenied,
            "scope cloud-platform",
        ),
        (Code.PERMISSION_DENIED, "x", (_info("USER_PROJECT_DENIED"),), AccessDenied, "GOOGLE_CLOUD_QUOTA_PROJECT"),
        (Code.PERMISSION_DENIED, "vpcServiceControlsUniqueIdentifier: x", (), AccessDenied, "VPC Service Controls"),
    ],
    ids=lambda value: value.name if isinstance(value, Code) else None,
)
async def test_what_cloud_kms_may_answer(
    code: Code, text: str, details: tuple[Any, ...], error: type[KmsError], words: str, cloud_kms: CloudKmsServer
) -> None:
    """Each has its error and its next step, and shows nothing of the answer."""
    key = cloud_kms.make_key()

    def fail(method: str) -> None:
        raise Refused(code, f"SECRET {text}", *details)

    key.fail = fail
    async with gcp_provider(cloud_kms, key) as provider:
        with pytest.raises(error, match=words) as caught:
            await provider.generate_data_key(32, CONTEXT)
        assert provider.remedy(caught.value)
    assert "SECRET" not in caught.value.message


async def test_throttling_slows_the_queue_down(cloud_kms: CloudKmsServer) -> None:
    """Calls are paced from then on, and the breaker stays closed."""
    key = cloud_kms.make_key()

    def fail(method: str) -> None:
        raise Refused(Code.RESOURCE_EXHAUSTED, "Quota exceeded")

    key.fail = fail
    async with gcp_provider(cloud_kms, key) as provider:
        assert 0 == provider._slots._pace.delay()
        with pytest.raises(Throttled):
            await provider.generate_data_key(32, CONTEXT)
        assert provider._slots._pace.delay() > 0
        assert "closed" == provider.breakers["europe-west3"]


async def test_a_server_that_is_restarted_is_asked_again(cloud_kms: CloudKmsServer) -> None:
    """UNAVAILABLE is retried for a second."""
    key, failures = cloud_kms.make_key(), [Code.UNAVAILABLE, Code.UNAVAILABLE]

    def fail(method: str) -> None:
        if failures:
            raise Refused(failures.pop(), "")

    key.fail = fail
    async with gcp_provider(cloud_kms, key) as provider:
        await round_trip(provider)
    assert ["Encrypt", "Encrypt", "Encrypt", "Decrypt"] == [method for method, _ in key.calls]


async def test_an_outage_opens_the_breaker_and_a_check_still_asks(cloud_kms: CloudKmsServer) -> None:
    """Ten calls fail, the next are not made; when Cloud KMS is back, so are the keys."""
    key, clock = cloud_kms.make_key(), FakeClock()

    def fail(method: str) -> None:
        if method != "GetCryptoKey":
            raise Refused(Code.INTERNAL, "")

    key.fail = fail
    async with gcp_provider(cloud_kms, key, breaker=CircuitBreaker("europe-west3", clock=clock)) as provider:
        for _ in range(10):
            with pytest.raises(KmsUnreachable, match="no answer from Cloud KMS"):
                await provider.generate_data_key(32, CONTEXT)
        with pytest.raises(KmsUnreachable, match="left alone for a few seconds"):
            await provider.generate_data_key(32, CONTEXT)
        assert (10, "open") == (len(key.calls), provider.breakers["europe-west3"])
        await provider.check()
        key.fail = lambda method: None
        clock.now += 6
        await round_trip(provider)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"])
async def test_what_does_not_speak_grpc_is_given_up_in_time(answer: bytes) -> None:
    """A server that hangs, and one of another protocol. Others go on meanwhile."""

    serving, writers = [], []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        writers.append(writer)
        if answer:
            await reader.read(1)
            writer.write(answer)
        await reader.read(-1)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    name = "projects/betrace-test/locations/global/keyRings/r/cryptoKeys/k"
    async with CloudKms(endpoint, None) as client:
        provider = GcpProvider(KeyName(name), client, call_seconds=0.5)
        async with asyncio.timeout(3):
            with pytest.raises(KmsUnreachable, match="no answer from Cloud KMS"):
                await provider.generate_data_key(32, CONTEXT)
    server.close()
    for writer in writers:  # gRPC goes on for its 20 seconds with a connection that it began
        writer.close()
    await asyncio.gather(*filter(None, serving), *(writer.wait_closed() for writer in writers))


async def test_no_request_waits_for_the_garbage_collector(cloud_kms: CloudKmsServer) -> None:
    """They hold plaintext keys. What a call leaves behind goes with it, whether it succeeds or fails."""
    key = cloud_kms.make_key()
    async with gcp_provider(cloud_kms, key) as provider:
        made = await provider.generate_data_key(32, CONTEXT)
        gc.collect()
        gc.disable()
        try:
            await round_trip(provider)
            with pytest.raises(DoesNotOpen):
                await provider.unwrap(made.wrapped, {"tenantId": "evil"})
            key.granted.clear()
            with pytest.raises(AccessDenied):
                await provider.generate_data_key(32, CONTEXT)
            messages = (EncryptRequest, EncryptResponse, DecryptRequest, DecryptResponse)
            left = [each for each in gc.get_objects() if isinstance(each, messages)]
        finally:
            gc.enable()
    assert [] == left


async def test_nobody_there() -> None:
    """A daemon starts without Cloud KMS, and says that it does not answer."""
    async with opened("projects/betrace-test/locations/global/keyRings/r/cryptoKeys/k", "http://127.0.0.1:1") as away:
        with pytest.raises(KmsUnreachable, match=r"no answer from Cloud KMS: check the route"):
            await away.check()


async def test_former_keys_unwrap_and_wrap_nothing(cloud_kms: CloudKmsServer) -> None:
    """Of another project, location or key ring: the name of the key says where to ask."""
    former, today = cloud_kms.make_key(), cloud_kms.make_key()
    async with (
        gcp_provider(cloud_kms, former) as before,
        gcp_provider(cloud_kms, today, former=[former.name]) as provider,
    ):
        old = await before.generate_data_key(32, CONTEXT)
        assert (False, former.name) == (provider.is_current(former.name), provider.unwrapping_key_for(former.name))
        assert old.material.raw == (await provider.unwrap(old.wrapped, CONTEXT)).raw
        assert today.name == (await provider.wrap(old.material, CONTEXT)).master_key_arn
        former.states[0] = State.DISABLED
        await provider.check()
        with pytest.raises(MasterKeyUnusable, match=f"version 1 of {former.name} is DISABLED"):
            await provider.check(former.name)


async def test_a_key_that_is_ready_for_production(cloud_kms: CloudKmsServer) -> None:
    """Who may more than wrap and unwrap is named, and so is a key that is gone in a day."""
    key = cloud_kms.make_key()
    async with gcp_provider(cloud_kms, key) as provider:
        assert [Finding("gcp_policy"), Finding("gcp_key")] == await provider.inspect()
        key.granted |= {"cloudkms.cryptoKeyVersions.destroy"}
        key.wait = timedelta(hours=24)
        policy, of_key = await provider.inspect()
        assert "may cloudkms.cryptoKeyVersions.destroy on" in policy.problem
        assert "is destroyed 24 hours after somebody asks" in of_key.problem
        key.granted -= {"cloudkms.cryptoKeyVersions.useToDecrypt"}
        policy, _ = await provider.inspect()
        assert "may not cloudkms.cryptoKeyVersions.useToDecrypt on" in policy.problem


async def test_a_closed_client_is_no_outage(cloud_kms: CloudKmsServer) -> None:
    """What nothing has a name for is our own defect: it is named, and does not open the breaker."""
    key = cloud_kms.make_key()
    provider = GcpProvider(KeyName(key.name), CloudKms(cloud_kms.url, None))
    for _ in range(11):
        with pytest.raises(KmsUnreachable, match="fails with RuntimeError") as caught:
            await provider.generate_data_key(32, CONTEXT)
    assert ("sdk", "closed") == (caught.value.metadata["kind"], provider.breakers["europe-west3"])


def test_checksums_are_those_of_the_standard() -> None:
    """CRC32C of the check value of its catalogue, and of RFC 3720, appendix B.4."""
    assert (0xE3069283, 0x8A9136AA) == (crc32c(b"123456789"), crc32c(bytes(32)))
