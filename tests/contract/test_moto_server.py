"""The moto that stands in for AWS refuses what AWS refuses; otherwise what passes against it would prove little."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aioboto3
import pytest
from botocore.exceptions import ClientError

from tests import moto_server
from tests.moto_server import REGION, MotoServer

CONTEXT = {"tenantId": "acme"}


@pytest.fixture
async def kms(moto: MotoServer) -> AsyncIterator[Any]:
    """Give the SDK's own client of KMS."""
    async with aioboto3.Session().client("kms", region_name=REGION, endpoint_url=moto.url) as client:
        moto.calls.clear()
        yield client


async def refusal(call: Any) -> str:
    """Return the error code with which a call is refused."""
    with pytest.raises(ClientError) as refused:
        await call
    assert 400 == refused.value.response["ResponseMetadata"]["HTTPStatusCode"]
    return str(refused.value.response["Error"]["Code"])


async def encrypted(kms: Any, key_id: str, context: Mapping[str, str] = CONTEXT) -> bytes:
    """Return a secret, encrypted."""
    answer = await kms.encrypt(KeyId=key_id, Plaintext=b"secret", EncryptionContext=context)
    return bytes(answer["CiphertextBlob"])


async def test_calls_are_counted_by_action(kms: Any, moto: MotoServer, kms_key: str) -> None:
    """Every call of KMS counts, refused or not, until the count is cleared."""
    blob = await encrypted(kms, kms_key)
    await kms.decrypt(KeyId=kms_key, CiphertextBlob=blob, EncryptionContext=CONTEXT)
    await refusal(kms.decrypt(KeyId=kms_key, CiphertextBlob=blob, EncryptionContext={}))
    assert {"Encrypt": 1, "Decrypt": 2} == moto.calls
    moto.calls.clear()
    assert {} == moto.calls


@pytest.mark.parametrize(
    ("change", "code"),
    [("disable_key", "DisabledException"), ("schedule_key_deletion", "KMSInvalidStateException")],
)
async def test_unusable_key_is_refused_by_every_action(kms: Any, kms_key: str, change: str, code: str) -> None:
    """A key that is disabled or pending deletion neither encrypts nor decrypts, and is changed by its ARN."""
    blob = await encrypted(kms, kms_key)
    await getattr(kms, change)(KeyId=kms_key)
    assert code == await refusal(kms.generate_data_key(KeyId=kms_key, NumberOfBytes=32))
    assert code == await refusal(kms.encrypt(KeyId=kms_key, Plaintext=b"secret"))
    assert code == await refusal(kms.decrypt(KeyId=kms_key, CiphertextBlob=blob, EncryptionContext=CONTEXT))


async def test_key_for_signatures_does_not_encrypt(kms: Any, moto: MotoServer) -> None:
    """A key of another usage is refused."""
    arn = moto.create_key(usage="SIGN_VERIFY", spec="ECC_NIST_P256")
    assert "InvalidKeyUsageException" == await refusal(kms.generate_data_key(KeyId=arn, NumberOfBytes=32))


async def test_ciphertext_of_another_key_is_told_from_rubbish(kms: Any, moto: MotoServer, kms_key: str) -> None:
    """The key in the request must be the right one, and rubbish is rubbish."""
    blob = await encrypted(kms, moto.create_key())
    assert "IncorrectKeyException" == await refusal(
        kms.decrypt(KeyId=kms_key, CiphertextBlob=blob, EncryptionContext=CONTEXT)
    )
    for rubbish in (b"\xff", b"\xff" * 6144, blob[:60]):
        assert "InvalidCiphertextException" == await refusal(kms.decrypt(KeyId=kms_key, CiphertextBlob=rubbish))


@pytest.mark.parametrize("size", [0, 6145])
async def test_ciphertext_of_an_impossible_length_is_invalid(kms: Any, kms_key: str, size: int) -> None:
    """A ciphertext has 1 to 6,144 bytes."""
    assert "ValidationException" == await refusal(kms.decrypt(KeyId=kms_key, CiphertextBlob=bytes(size)))


async def test_context_is_authenticated_pair_by_pair(kms: Any, kms_key: str) -> None:
    """Letters that move between a name and its value make another context."""
    blob = await encrypted(kms, kms_key, {"ab": "c"})
    assert "InvalidCiphertextException" == await refusal(
        kms.decrypt(KeyId=kms_key, CiphertextBlob=blob, EncryptionContext={"a": "bc"})
    )


async def test_context_has_a_largest_size(kms: Any, kms_key: str) -> None:
    """A context of more than 8,192 bytes is refused."""
    assert "ValidationException" == await refusal(
        kms.encrypt(KeyId=kms_key, Plaintext=b"secret", EncryptionContext={"name": "x" * 8189})
    )


async def test_replica_is_a_key_of_its_own(kms: Any, moto: MotoServer) -> None:
    """A replica opens what its primary sealed, says what it is, and is disabled alone."""
    primary = moto.create_key(multi_region=True)
    key_id = primary.rpartition("/")[2]
    assert ("mrk-", 36) == (key_id[:4], len(key_id))
    blob = await encrypted(kms, key_id)
    answer = await kms.replicate_key(KeyId=primary, ReplicaRegion="eu-west-1")
    replica = answer["ReplicaKeyMetadata"]["Arn"]
    assert primary.replace(REGION, "eu-west-1") == replica
    await kms.disable_key(KeyId=primary)
    async with aioboto3.Session().client("kms", region_name="eu-west-1", endpoint_url=moto.url) as europe:
        opened = await europe.decrypt(KeyId=replica, CiphertextBlob=blob, EncryptionContext=CONTEXT)
        assert (b"secret", replica) == (opened["Plaintext"], opened["KeyId"])
        described = [await kms.describe_key(KeyId=primary), await europe.describe_key(KeyId=replica)]
    kinds = [key["KeyMetadata"]["MultiRegionConfiguration"]["MultiRegionKeyType"] for key in described]
    assert (["PRIMARY", "REPLICA"], ["Disabled", "Enabled"]) == (
        kinds,
        [key["KeyMetadata"]["KeyState"] for key in described],
    )


async def test_only_a_multi_region_key_has_replicas(kms: Any, kms_key: str) -> None:
    """A key of one Region is not replicated."""
    assert "UnsupportedOperationException" == await refusal(kms.replicate_key(KeyId=kms_key, ReplicaRegion="eu-west-1"))


async def test_conditional_writes_are_atomic(moto: MotoServer) -> None:
    """Of many conditional writes of one item at once, one wins."""
    async with aioboto3.Session().client("dynamodb", region_name=REGION, endpoint_url=moto.url) as table:
        await table.create_table(
            TableName="race",
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )

        async def put(number: int) -> int:
            await table.put_item(
                TableName="race",
                Item={"id": {"S": "only"}, "by": {"N": str(number)}},
                ConditionExpression="attribute_not_exists(id)",
            )
            return number

        outcomes = await asyncio.gather(*(put(number) for number in range(30)), return_exceptions=True)
        (winner,) = [outcome for outcome in outcomes if isinstance(outcome, int)]
        item = await table.get_item(TableName="race", Key={"id": {"S": "only"}})
        await table.delete_table(TableName="race")
    assert str(winner) == item["Item"]["by"]["N"]


def test_as_a_script_it_prints_the_key_it_made() -> None:
    """Run as a script it tells a key ARN on standard output and its endpoint on standard error, and goes on serving."""
    script = str(Path(moto_server.__file__))
    with subprocess.Popen(
        [sys.executable, script, "0", "--create-key"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        arn, endpoint = process.stdout.readline(), process.stderr.readline()
        alive = process.poll() is None
        process.terminate()
    assert arn.startswith(f"arn:aws:kms:{REGION}:123456789012:key/")
    assert endpoint.startswith("moto listens on http://127.0.0.1:")
    assert alive


def test_as_a_script_it_refuses_a_port_in_use(moto: MotoServer) -> None:
    """A port that somebody listens on is told at once."""
    port = moto.url.rpartition(":")[2]
    script = [sys.executable, str(Path(moto_server.__file__)), port]
    ended = subprocess.run(script, capture_output=True, text=True, timeout=30, check=False)
    assert (2, "") == (ended.returncode, ended.stdout)
    assert f"port {port} cannot be used" in ended.stderr
