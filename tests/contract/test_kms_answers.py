"""Answers of KMS that break its contract, and states of the master key: what is used, what is refused."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from betrace_kms_server.aws.arns import Replica
from betrace_kms_server.core.errors import BadAnswer, MasterKeyUnusable
from betrace_kms_server.core.keys import KeyMaterial, WrappedKey
from betrace_kms_server.data_keys.keyring import KeyRing
from betrace_kms_server.providers.aws.provider import AwsProvider
from botocore.session import get_session

from tests.contract.samples import ARN
from tests.contract.stub_kms import provider, stubbed
from tests.moto_server import REGION

CONTEXT = {"tenantId": "acme", "keyType": "encryption"}
OTHER = ARN.replace("123456789012", "999999999999")
MULTI_REGION = "arn:aws:kms:us-east-1:123456789012:key/mrk-0123456789abcdef0123456789abcdef"
REPLICA = MULTI_REGION.replace("us-east-1", "eu-west-1")
STATES = get_session().get_service_model("kms").shape_for("KeyState").enum

GOOD: Mapping[str, Mapping[str, Any]] = {
    "GenerateDataKey": {"Plaintext": bytes(range(32)), "CiphertextBlob": b"blob", "KeyId": ARN},
    "Encrypt": {"CiphertextBlob": b"blob", "KeyId": ARN},
    "Decrypt": {"Plaintext": bytes(range(32)), "KeyId": ARN},
    "DescribeKey": {"KeyMetadata": {"Arn": ARN, "KeyState": "Enabled"}},
}


def doctored(changes: Mapping[str, Mapping[str, Any]]) -> AwsProvider:
    """Return a provider whose KMS answers well, but for members that are changed, or left out if None."""

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        merged = {**GOOD[action], **changes.get(action, {})}
        return {name: value for name, value in merged.items() if value is not None}

    return provider(stubbed(answer))


BAD_KEYS: list[Mapping[str, Any]] = [
    *({"Plaintext": bytes(length)} for length in (0, 1, 3, 16, 31, 33, 64, 1024)),
    {"Plaintext": None},
    {"Plaintext": "x" * 32},
]
BAD_BLOBS: list[Mapping[str, Any]] = [
    {"CiphertextBlob": b""},
    {"CiphertextBlob": None},
    {"CiphertextBlob": "blob"},
    {"CiphertextBlob": bytes(6145)},
]
BAD_IDS: list[Mapping[str, Any]] = [{"KeyId": OTHER}, {"KeyId": None}, {"KeyId": ""}, {"KeyId": 7}, {"KeyId": REPLICA}]


@pytest.mark.parametrize("change", [*BAD_KEYS, *BAD_BLOBS, *BAD_IDS], ids=repr)
async def test_data_key_that_was_not_asked_for_is_refused(change: Mapping[str, Any]) -> None:
    """A new key has the length that was asked for, a wrapped form, and our master key behind it, or it is not used."""
    async with doctored({"GenerateDataKey": change}) as aws:
        with pytest.raises(BadAnswer, match="GenerateDataKey"):
            await aws.generate_data_key(32, CONTEXT)


@pytest.mark.parametrize("change", [*BAD_BLOBS, *BAD_IDS], ids=repr)
async def test_wrapped_key_that_is_none_is_refused(change: Mapping[str, Any]) -> None:
    """So with what Encrypt gives back, which would go to the key store."""
    async with doctored({"Encrypt": change}) as aws:
        with pytest.raises(BadAnswer, match="Encrypt"):
            await aws.wrap(KeyMaterial(bytes(32)), CONTEXT)


@pytest.mark.parametrize(
    "change", [{"Plaintext": b""}, {"Plaintext": None}, {"Plaintext": bytes(4097)}, *BAD_IDS], ids=repr
)
async def test_unwrapped_key_that_is_none_is_refused(change: Mapping[str, Any]) -> None:
    """So with what Decrypt gives back."""
    async with doctored({"Decrypt": change}) as aws:
        with pytest.raises(BadAnswer, match="Decrypt"):
            await aws.unwrap(WrappedKey(b"blob", ARN), CONTEXT)


@pytest.mark.parametrize("metadata", [None, {}, {"Arn": OTHER}, {"Arn": 7}, "key"], ids=repr)
async def test_description_of_another_key_is_refused(metadata: Any) -> None:
    """A description that is of no key, or of another one, makes nothing usable."""
    async with doctored({"DescribeKey": {"KeyMetadata": metadata}}) as aws:
        with pytest.raises(BadAnswer, match="DescribeKey"):
            await aws.check()


@pytest.mark.parametrize("length", [0, 3, 33])
async def test_nothing_is_sealed_or_handed_out_under_such_a_key(new_cache: Any, length: int) -> None:
    """A KMS that ignores the length makes no message and no data key, and nothing of it stays in the cache."""
    async with doctored({"GenerateDataKey": {"Plaintext": bytes(length)}}) as aws:
        cache = new_cache()
        keyring = KeyRing(aws, cache)
        for call in (keyring.seal("acme", b"secret", {}), keyring.data_key("acme", 32, {})):
            with pytest.raises(BadAnswer):
                await call
        assert 0 == len(cache)


async def test_bad_answers_do_not_open_the_circuit() -> None:
    """They say nothing of whether KMS can be reached."""
    async with doctored({"GenerateDataKey": {"Plaintext": b""}}) as aws:
        for _ in range(30):
            with pytest.raises(BadAnswer):
                await aws.generate_data_key(32, CONTEXT)
        assert {REGION: "closed"} == aws.breakers


async def test_a_replica_is_the_key_that_was_asked() -> None:
    """A multi-Region key may answer under the ARN of the Region that was asked."""

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        return {**GOOD[action], "KeyId": MULTI_REGION}

    async with AwsProvider(
        MULTI_REGION, region=REGION, replicas=[Replica(REPLICA)], client_factory=stubbed(answer)
    ) as aws:
        assert MULTI_REGION == (await aws.generate_data_key(32, CONTEXT)).wrapped.master_key_arn


MEMBERS = {"Arn": ARN, "KeyState": "Enabled", "KeyUsage": "ENCRYPT_DECRYPT", "KeySpec": "SYMMETRIC_DEFAULT"}


@pytest.mark.parametrize("left_out", ["KeyState", "KeyUsage", "KeySpec"])
async def test_member_that_is_left_out_is_the_default(left_out: str) -> None:
    """An emulator may leave out what CreateKey was not given, be it as a member that is missing, empty or null."""
    for value in (None, ""):
        async with doctored({"DescribeKey": {"KeyMetadata": {**MEMBERS, left_out: value}}}) as aws:
            await aws.check()
    async with doctored({"DescribeKey": {"KeyMetadata": {k: v for k, v in MEMBERS.items() if k != left_out}}}) as aws:
        await aws.check()


@pytest.mark.parametrize(
    "change",
    [
        {"KeyUsage": "SIGN_VERIFY"},
        {"KeySpec": "RSA_2048"},
        {"KeySpec": None, "CustomerMasterKeySpec": "RSA_2048"},
        {"KeyState": None, "Enabled": False},
    ],
    ids=repr,
)
async def test_member_that_says_otherwise_is_no_default(change: Mapping[str, Any]) -> None:
    """What is there is taken at its word."""
    async with doctored({"DescribeKey": {"KeyMetadata": {**MEMBERS, **change}}}) as aws:
        with pytest.raises(MasterKeyUnusable) as refused:
            await aws.check()
        assert refused.value.decided


@pytest.mark.parametrize("state", [*STATES, "SomethingNew"])
async def test_only_what_somebody_decided_takes_warm_keys_along(state: str) -> None:
    """A custom key store that is away for a moment, or a state that is new, lets warm keys serve."""
    expected = {
        "Enabled": None,
        "Updating": None,
        "Disabled": True,
        "PendingDeletion": True,
        "PendingReplicaDeletion": True,
        "PendingImport": True,
        "Creating": False,
        "Unavailable": False,
        "SomethingNew": False,
    }[state]
    async with doctored({"DescribeKey": {"KeyMetadata": {**MEMBERS, "KeyState": state}}}) as aws:
        outcome = (await asyncio.gather(aws.check(), return_exceptions=True))[0]
    assert expected == (outcome.decided if isinstance(outcome, MasterKeyUnusable) else None)
    assert isinstance(outcome, MasterKeyUnusable) or outcome is None
