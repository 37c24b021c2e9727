"""The official AWS Encryption SDK for Python opens what we seal, and we open what it seals."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aws_cryptographic_material_providers.mpl.models import (  # type: ignore[import-untyped]
    AesWrappingAlg,
    CreateMultiKeyringInput,
    CreateRawAesKeyringInput,
)
from aws_encryption_sdk import (  # type: ignore[import-untyped]
    DiscoveryAwsKmsMasterKeyProvider,
)
from aws_encryption_sdk.key_providers.kms import (  # type: ignore[import-untyped]
    MRKAwareStrictAwsKmsMasterKeyProvider,
)
from betrace_kms_client import AsyncKmsClient
from betrace_kms_envelope import Message, Opening, Sealer, Sealing, header_length
from betrace_kms_server.core.errors import DoesNotOpen

from tests.daemon import running
from tests.interop.sdk import (
    CONTEXTS,
    MIB,
    REGION,
    SIZES,
    SUITES,
    TENANT,
    WAYS,
    Combination,
    Sdk,
    Way,
    differing,
    key_ring,
    keyring,
    material_providers,
    sdk,
    sealed_context,
    unsigned,
    whole_context,
)

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

SEALED_HERE = [
    *(Combination(size, context) for size in SIZES if size < MIB for context in CONTEXTS),
    Combination(MIB, CONTEXTS[-1]),
]
SEALED_THERE = [
    *(
        Combination(size, context, frame_length)
        for size in SIZES
        if size < MIB
        for frame_length, contexts in (
            (0, CONTEXTS),
            (128, CONTEXTS[-1:]),  # the SDK writes no frame lengths but multiples of 128
            (4096, CONTEXTS),
            (65_536, CONTEXTS[-1:]),
            (MIB, CONTEXTS[-1:]),
        )
        for context in contexts
    ),
    *(Combination(MIB, CONTEXTS[-1], frame_length) for frame_length in (0, 4096, 65_536, MIB)),
]
THROUGH_A_DAEMON = [
    *(Combination(size, context, frame_length=4096) for size in (0, 17, 4096, 65_537) for context in CONTEXTS),
    Combination(MIB, {}, frame_length=0),
]


@pytest.fixture(autouse=True)
def endpoint(moto: "MotoServer", monkeypatch: pytest.MonkeyPatch) -> str:
    """The KMS endpoint, which the official SDK finds in the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", moto.url)
    return moto.url


def test_there_are_more_than_500_combinations() -> None:
    """What the tests below try, both ways, by every way of reaching KMS."""
    sealed_here = len(SEALED_HERE) * len(WAYS)
    sealed_there = len(SEALED_THERE) * len(WAYS) * len(SUITES)
    through_a_daemon = len(THROUGH_A_DAEMON) * len(WAYS) * (1 + len(SUITES))
    assert (68, 412, 78) == (sealed_here, sealed_there, through_a_daemon)
    assert sealed_here + sealed_there + through_a_daemon > 500


@pytest.mark.parametrize("way", WAYS)
async def test_the_sdk_opens_what_we_seal(endpoint: str, kms_key: str, way: Way) -> None:
    """It needs nothing but the KMS key, and reads the whole context in the header."""
    theirs = sdk(way, kms_key)
    async with key_ring(endpoint, kms_key) as ours:

        async def reopened(combination: Combination) -> bytes:
            sealed = await ours.seal(TENANT, combination.plaintext, combination.context)
            plaintext, context = theirs.open(sealed.ciphertext)
            assert combination.sealed_context == context
            return plaintext

        assert [] == await differing(SEALED_HERE, reopened)


@pytest.mark.parametrize("suite", SUITES, ids=hex)
@pytest.mark.parametrize("way", WAYS)
async def test_we_open_what_the_sdk_seals(endpoint: str, kms_key: str, way: Way, suite: int) -> None:
    """Framed or not, signed or not, with the context that names tenant and use."""
    theirs = sdk(way, kms_key)
    async with key_ring(endpoint, kms_key) as ours:

        async def reopened(combination: Combination) -> bytes:
            message = theirs.seal(
                combination.plaintext,
                combination.whole_context,
                suite=suite,
                frame_length=combination.frame_length,
            )
            header = Message.parse(message)
            assert (suite, combination.frame_length) == (header.suite, header.frame_length)
            opened = await ours.open(TENANT, message, combination.context)
            assert kms_key == opened.master_key_arn
            return opened.plaintext

        assert [] == await differing(SEALED_THERE, reopened)


@pytest.mark.parametrize("way", WAYS)
async def test_the_sdk_opens_what_a_caller_seals(endpoint: str, kms_key: str, way: Way) -> None:
    """Under a key for messages, in pieces."""
    theirs = sdk(way, kms_key)
    async with key_ring(endpoint, kms_key) as ours:

        async def reopened(combination: Combination) -> bytes:
            key = await ours.message_key(TENANT, combination.context)
            sealing = Sealing(Sealer(key.encrypted, key.context), key.material.raw)
            message = sealing.header + bytes(sealing.update(combination.plaintext)) + sealing.finalize()
            plaintext, context = theirs.open(message)
            assert combination.whole_context == context
            return plaintext

        assert [] == await differing(SEALED_HERE, reopened)


@pytest.mark.parametrize("suite", SUITES, ids=hex)
@pytest.mark.parametrize("way", WAYS)
async def test_a_caller_opens_what_the_sdk_seals(endpoint: str, kms_key: str, way: Way, suite: int) -> None:
    """Under the key that the daemon returns for the header, in pieces."""
    theirs = sdk(way, kms_key)
    async with key_ring(endpoint, kms_key) as ours:

        async def reopened(combination: Combination) -> bytes:
            message = theirs.seal(
                combination.plaintext,
                combination.whole_context,
                suite=suite,
                frame_length=combination.frame_length,
            )
            length = header_length(message)
            assert length is not None
            key = await ours.opening_key(TENANT, Message.parse(message[:length]), combination.context)
            assert kms_key == key.master_key_arn
            opening = Opening(message[:length], key.material.raw)
            plaintext = opening.update(message[length:])
            opening.finalize()
            return plaintext

        assert [] == await differing(SEALED_THERE, reopened)


@pytest.mark.parametrize("way", WAYS)
async def test_the_sdk_and_a_daemon_open_each_others_messages(
    tmp_path: Path, endpoint: str, kms_key: str, way: Way
) -> None:
    """Over the wire as in the core: Encrypt then the SDK, the SDK then Decrypt."""
    theirs = sdk(way, kms_key)
    settings = {
        "betrace_kms_provider": "aws",
        "aws_kms_master_key_id": kms_key,
        "aws_kms_region": REGION,
        "aws_kms_endpoint": endpoint,
        "kms_store_allow_ephemeral": "true",
    }
    async with running(tmp_path, **settings) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:

        async def sealed_by_the_daemon(combination: Combination) -> bytes:
            sealed = await client.encrypt(TENANT, combination.plaintext, combination.context)
            plaintext, context = theirs.open(sealed.ciphertext_blob)
            assert (kms_key, combination.sealed_context) == (sealed.key_id, context)
            return plaintext

        assert [] == await differing(THROUGH_A_DAEMON, sealed_by_the_daemon)
        for suite in SUITES:

            async def sealed_by_the_sdk(combination: Combination, suite: int = suite) -> bytes:
                message = theirs.seal(
                    combination.plaintext,
                    combination.whole_context,
                    suite=suite,
                    frame_length=combination.frame_length,
                )
                return (await client.decrypt(TENANT, message, combination.context)).plaintext

            assert [] == await differing(THROUGH_A_DAEMON, sealed_by_the_sdk)


@pytest.mark.parametrize("suite", SUITES, ids=hex)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", [0, 1])
async def test_a_message_for_two_kms_keys_opens_with_ours(
    endpoint: str, moto: "MotoServer", kms_key: str, way: Way, suite: int, place: int
) -> None:
    """Wherever our key stands among the encrypted data keys, and KMS is asked once, for our key."""
    arns = [moto.create_key()]
    arns.insert(place, kms_key)
    message = sdk(way, *arns).seal(b"payload", whole_context({}), suite=suite)
    assert sorted(arns) == sorted(key.provider_info for key in Message.parse(message).encrypted_data_keys)
    before = moto.calls["Decrypt"]
    async with key_ring(endpoint, kms_key) as ours:
        opened = await ours.open(TENANT, message, {})
    assert (b"payload", kms_key, 1) == (opened.plaintext, opened.master_key_arn, moto.calls["Decrypt"] - before)


@pytest.mark.parametrize("suite", SUITES, ids=hex)
async def test_a_message_for_our_key_and_a_raw_aes_key_opens(endpoint: str, kms_key: str, suite: int) -> None:
    """Provider info is bytes: raw AES puts an IV there (framework/raw-aes-keyring, "Key Provider Information")."""
    library = material_providers()
    escrow = library.create_raw_aes_keyring(
        CreateRawAesKeyringInput(
            key_namespace="escrow",
            key_name="safe",
            wrapping_key=bytes(32),
            wrapping_alg=AesWrappingAlg.ALG_AES256_GCM_IV12_TAG16,
        )
    )
    both = CreateMultiKeyringInput(generator=keyring(kms_key), child_keyrings=[escrow])
    message = Sdk(keyring=library.create_multi_keyring(both)).seal(b"payload", whole_context({}), suite=suite)
    async with key_ring(endpoint, kms_key) as ours:
        assert b"payload" == (await ours.open(TENANT, message, {})).plaintext


@pytest.mark.parametrize("way", WAYS)
async def test_a_message_for_other_kms_keys_is_refused_without_asking_kms(
    endpoint: str, moto: "MotoServer", kms_key: str, way: Way
) -> None:
    """A message cannot send the daemon's credentials to a key that its operator did not name."""
    message = sdk(way, moto.create_key(), moto.create_key()).seal(b"payload", whole_context({}))
    before = moto.calls["Decrypt"]
    async with key_ring(endpoint, kms_key) as ours:
        with pytest.raises(DoesNotOpen):
            await ours.open(TENANT, message, {})
    assert 0 == moto.calls["Decrypt"] - before


@pytest.mark.parametrize("way", WAYS)
async def test_a_message_that_is_not_the_tenants_is_refused(endpoint: str, kms_key: str, way: Way) -> None:
    """Sealed under our KMS key, but for nobody, another tenant, another use, or with other pairs than the caller's."""
    theirs = sdk(way, kms_key)
    contexts = [
        {},
        {"tenantId": TENANT},
        whole_context({}) | {"tenantId": "rival"},
        whole_context({}) | {"keyType": "signing"},
        whole_context({"field": "email"}),
    ]
    async with key_ring(endpoint, kms_key) as ours:
        for context in contexts:
            message = theirs.seal(b"payload", context)
            assert context == theirs.open(message)[1]
            with pytest.raises(DoesNotOpen):
                await ours.open(TENANT, message, {})


async def test_discovery_opens_what_we_seal(endpoint: str, kms_key: str) -> None:
    """The header names the KMS key, so a reader who is told no key id finds it."""
    theirs = Sdk(key_provider=DiscoveryAwsKmsMasterKeyProvider())
    async with key_ring(endpoint, kms_key) as ours:
        sealed = await ours.seal(TENANT, b"payload", CONTEXTS[-1])
    plaintext, context = theirs.open(sealed.ciphertext)
    assert (b"payload", sealed_context(CONTEXTS[-1])) == (plaintext, unsigned(context))


async def test_replicas_of_a_multi_region_key_open_each_others_messages(endpoint: str, moto: "MotoServer") -> None:
    """What was sealed with the key of one region opens with its replica in another, both ways."""
    primary = moto.create_key(multi_region=True)
    replica = str(moto.kms().replicate_key(primary, "eu-west-1").arn)
    theirs = Sdk(key_provider=MRKAwareStrictAwsKmsMasterKeyProvider(key_ids=[replica]))
    async with key_ring(endpoint, primary) as ours:
        message = theirs.seal(b"payload", whole_context({}))
        opened = await ours.open(TENANT, message, {})
        sealed = await ours.seal(TENANT, b"payload", {})
    assert replica == Message.parse(message).encrypted_data_keys[0].provider_info
    assert (b"payload", primary) == (opened.plaintext, opened.master_key_arn)
    assert (b"payload", sealed_context({})) == theirs.open(sealed.ciphertext)


@pytest.mark.parametrize("suite", SUITES, ids=hex)
@pytest.mark.parametrize("way", WAYS)
async def test_what_we_seal_again_the_sdk_opens(
    endpoint: str, moto: "MotoServer", kms_key: str, way: Way, suite: int
) -> None:
    """ReEncrypt of the SDK's message: the new one has the destination's context and is under our key alone."""
    message = sdk(way, moto.create_key(), kms_key).seal(b"payload", whole_context({"field": "email"}), suite=suite)
    async with key_ring(endpoint, kms_key) as ours:
        again = await ours.reseal(TENANT, message, {"field": "email"}, CONTEXTS[-1])
    assert [kms_key] == [key.provider_info for key in Message.parse(again.ciphertext).encrypted_data_keys]
    assert (b"payload", sealed_context(CONTEXTS[-1])) == sdk(way, kms_key).open(again.ciphertext)
