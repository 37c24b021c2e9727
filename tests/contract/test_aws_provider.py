"""Provider aws: one client for all calls, every call bounded in time, and a master key that is told from a bad one."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from betrace_kms_server.aws.credentials import AwsCredentials
from betrace_kms_server.core.errors import (
    BadAnswer,
    CredentialsUnavailable,
    DoesNotOpen,
    KmsUnreachable,
    MasterKeyUnusable,
)
from betrace_kms_server.core.keys import WrappedKey
from betrace_kms_server.providers.aws.provider import AwsProvider, KmsApi
from betrace_kms_server.providers.aws.region import SdkClients
from botocore import exceptions as sdk

from tests.contract.samples import ARN
from tests.contract.stub_kms import ACTIONS, Clients, StubKms, provider, stubbed
from tests.moto_server import REGION, MotoServer

CONTEXT = {"tenantId": "acme", "keyType": "encryption"}
WRAPPED = WrappedKey(b"\x01\x02\x02\x00\x78" + bytes(range(179)), ARN)
METADATA = {"Arn": ARN, "KeyState": "Enabled", "KeyUsage": "ENCRYPT_DECRYPT", "KeySpec": "SYMMETRIC_DEFAULT"}


@pytest.mark.parametrize("action", ACTIONS)
async def test_silent_kms_is_unreachable(action: str) -> None:
    """A call that gets no answer ends by the bound on one call, not by the patience of the SDK."""

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        await asyncio.Event().wait()

    async with provider(stubbed(answer), call_seconds=0.01) as aws:
        with pytest.raises(KmsUnreachable, match=f"kms:{action}"):
            await ACTIONS[action](aws)


async def test_cancelled_call_is_cancelled() -> None:
    """A caller that goes away is not told that KMS is unreachable."""
    asked = asyncio.Event()

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        asked.set()
        await asyncio.Event().wait()

    async with provider(stubbed(answer)) as aws:
        call = asyncio.create_task(aws.check())
        await asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


@pytest.mark.parametrize(
    "cause",
    [
        sdk.CredentialRetrievalError(provider="container-role", error_msg="refused"),
        sdk.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"),
    ],
)
async def test_credentials_that_fail_when_the_client_is_opened_are_tried_again(cause: BaseException) -> None:
    """Credentials that cannot be had while the client is opened are no reason to die: the next call opens it anew."""
    failures = [cause]

    @asynccontextmanager
    async def open_client(region: str, endpoint: str | None) -> AsyncIterator[KmsApi]:
        if failures:
            raise failures.pop()
        yield StubKms(answer)

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        return {"KeyMetadata": METADATA}

    async with provider(Clients(open_client)) as aws:
        with pytest.raises(CredentialsUnavailable):
            await aws.check()
        await aws.check()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"KeyState": "Disabled"}, "Disabled"),
        ({"KeyState": "PendingDeletion"}, "PendingDeletion"),
        ({"KeyState": "PendingReplicaDeletion"}, "PendingReplicaDeletion"),
        ({"KeyState": "PendingImport"}, "PendingImport"),
        ({"KeyState": "Unavailable"}, "Unavailable"),
        ({"KeyState": "Creating"}, "Creating"),
        ({"KeyUsage": "SIGN_VERIFY", "KeySpec": "ECC_NIST_P256"}, "ECC_NIST_P256 for SIGN_VERIFY"),
        ({"KeyUsage": "GENERATE_VERIFY_MAC", "KeySpec": "HMAC_256"}, "HMAC_256 for GENERATE_VERIFY_MAC"),
        ({"KeySpec": "RSA_2048"}, "RSA_2048 for ENCRYPT_DECRYPT"),
    ],
)
async def test_unusable_master_key_is_told_with_its_state(change: Mapping[str, str], named: str) -> None:
    """The check tells what is wrong with the master key: the state, or what kind of key it is."""

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        return {"KeyMetadata": {**METADATA, **change}}

    async with provider(stubbed(answer)) as aws:
        with pytest.raises(MasterKeyUnusable) as raised:
            await aws.check()
    assert f"{ARN} is {named}" in raised.value.message


async def test_check_learns_the_arn_behind_an_alias() -> None:
    """A key that was configured by another name is known by its ARN from the first check on."""

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        assert parameters == {"KeyId": "alias/betrace"}
        return {"KeyMetadata": METADATA}

    async with AwsProvider("alias/betrace", region=REGION, client_factory=stubbed(answer)) as aws:
        await aws.check()
        assert (ARN, ARN) == (aws.master_key_arn, aws.decrypt_key_arns[0])


async def test_blob_of_aws_passes_through_unread() -> None:
    """The bytes of a wrapped key are the business of KMS: it gets them as they are, with the key to use."""
    asked = {}

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        asked[action] = parameters
        return {"Plaintext": bytes(32), "KeyId": ARN}

    async with provider(stubbed(answer)) as aws:
        await aws.unwrap(WRAPPED, CONTEXT)
    assert {"Decrypt": {"KeyId": ARN, "CiphertextBlob": WRAPPED.blob, "EncryptionContext": CONTEXT}} == asked


async def test_kms_is_not_asked_about_a_foreign_master_key() -> None:
    """A wrapped key of a master key that is not ours is refused without a call."""
    asked: Counter[str] = Counter()

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        asked[action] += 1

    async with provider(stubbed(answer)) as aws:
        with pytest.raises(DoesNotOpen):
            await aws.unwrap(WrappedKey(WRAPPED.blob, ARN.replace("123456789012", "999999999999")), CONTEXT)
    assert {} == asked


async def test_one_client_serves_many_calls_at_once(moto: MotoServer, kms_key: str) -> None:
    """A hundred calls at once share one client, which is closed in the end."""
    clients = Clients(SdkClients())
    async with AwsProvider(kms_key, region=REGION, endpoint=moto.url, client_factory=clients) as aws:
        await asyncio.gather(*(aws.generate_data_key(32, CONTEXT) for _ in range(100)))
    assert (1, 1) == (clients.opened, clients.closed)


async def test_disabled_master_key_is_unusable_until_it_is_enabled(moto: MotoServer, kms_key: str) -> None:
    """A disabled key is told as such by every action, and works again once it is enabled."""
    async with AwsProvider(kms_key, region=REGION, endpoint=moto.url) as aws:
        made = await aws.generate_data_key(32, CONTEXT)
        moto.kms().disable_key(kms_key)
        with pytest.raises(MasterKeyUnusable, match="is Disabled"):
            await aws.check()
        with pytest.raises(MasterKeyUnusable):
            await aws.generate_data_key(32, CONTEXT)
        with pytest.raises(MasterKeyUnusable):
            await aws.wrap(made.material, CONTEXT)
        with pytest.raises(MasterKeyUnusable):
            await aws.unwrap(made.wrapped, CONTEXT)
        moto.kms().enable_key(kms_key)
        await aws.check()
        assert made.material.raw == (await aws.unwrap(made.wrapped, CONTEXT)).raw


async def test_master_key_that_waits_for_its_deletion_is_unusable(moto: MotoServer, kms_key: str) -> None:
    """A key whose deletion is scheduled is told as such."""
    moto.kms().schedule_key_deletion(kms_key, 7)
    async with AwsProvider(kms_key, region=REGION, endpoint=moto.url) as aws:
        with pytest.raises(MasterKeyUnusable, match="is PendingDeletion"):
            await aws.check()
        with pytest.raises(MasterKeyUnusable):
            await aws.generate_data_key(32, CONTEXT)


async def test_master_key_that_does_not_exist_is_unusable(moto: MotoServer) -> None:
    """A key that is not in the account is told as such."""
    async with AwsProvider(ARN, region=REGION, endpoint=moto.url) as aws:
        with pytest.raises(MasterKeyUnusable, match=r"does not exist: check aws\.kms\.master-key-id"):
            await aws.check()


async def test_master_key_for_signatures_is_unusable(moto: MotoServer) -> None:
    """An asymmetric key is told as such, before it is used and when it is."""
    arn = moto.create_key(usage="SIGN_VERIFY", spec="ECC_NIST_P256")
    async with AwsProvider(arn, region=REGION, endpoint=moto.url) as aws:
        with pytest.raises(MasterKeyUnusable, match="SIGN_VERIFY"):
            await aws.check()
        with pytest.raises(MasterKeyUnusable):
            await aws.generate_data_key(32, CONTEXT)


@pytest.mark.usefixtures("moto")
async def test_nobody_listening_is_kms_unreachable() -> None:
    """Without a server at the endpoint the call ends in time, as an outage of KMS."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with AwsProvider(ARN, region=REGION, endpoint=f"http://127.0.0.1:{port}", call_seconds=0.5) as aws:
        with pytest.raises(KmsUnreachable, match="kms:DescribeKey"):
            await aws.check()


async def test_credentials_that_come_late_are_found(
    moto: MotoServer, kms_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that started without credentials works as soon as there are some."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    clients = SdkClients(AwsCredentials(REGION, pause=0.0))
    async with AwsProvider(kms_key, region=REGION, endpoint=moto.url, client_factory=clients) as aws:
        with pytest.raises(CredentialsUnavailable):
            await aws.check()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        await aws.check()


async def test_token_file_that_is_missing_is_named_as_such(
    moto: MotoServer, kms_key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With IRSA configured and its token not mounted, the daemon starts and says that credentials are missing."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/daemon")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    async with AwsProvider(kms_key, region=REGION, endpoint=moto.url) as aws:
        with pytest.raises(CredentialsUnavailable):
            await aws.check()


async def test_half_of_the_credentials_is_named_as_such(
    moto: MotoServer, kms_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an access key id and no secret, the daemon starts and says that credentials are missing."""
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with AwsProvider(kms_key, region=REGION, endpoint=moto.url) as aws:
        with pytest.raises(CredentialsUnavailable):
            await aws.check()


@pytest.mark.parametrize(
    "missing", [("KeyUsage",), ("KeySpec",), ("KeyState",), ("Arn",), ("KeyUsage", "KeySpec", "KeyState", "Arn")]
)
@pytest.mark.parametrize("value", [None, ""])
async def test_member_that_is_left_out_has_the_default_of_the_api(missing: tuple[str, ...], value: str | None) -> None:
    """Emulators leave out members of DescribeKey that AWS always sends."""
    metadata = {**METADATA, "KeyId": ARN.rpartition("/")[2], "Enabled": True, **dict.fromkeys(missing, value)}

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        return {"KeyMetadata": {name: value for name, value in metadata.items() if value is not None}}

    async with provider(stubbed(answer)) as aws:
        await aws.check()
        assert ARN == aws.master_key_arn


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"Arn": ARN, "Enabled": False}, "is Disabled"),
        ({"Arn": ARN, "CustomerMasterKeySpec": "RSA_2048"}, "is RSA_2048 for ENCRYPT_DECRYPT"),
        ({"Arn": ARN, "KeyState": "Unavailable"}, "is Unavailable: connect its custom key store again"),
    ],
)
async def test_what_is_not_left_out_counts(metadata: Mapping[str, Any], named: str) -> None:
    """The older names of members count where the newer ones are missing."""

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        return {"KeyMetadata": metadata}

    async with provider(stubbed(answer)) as aws:
        with pytest.raises(MasterKeyUnusable, match=named):
            await aws.check()


@pytest.mark.parametrize(
    "answered",
    [
        {},
        {"KeyMetadata": None},
        {"KeyMetadata": {}},
        {"KeyMetadata": {**METADATA, "Arn": ARN.replace("us-east-1", "eu-west-1")}},
        {"KeyMetadata": {**METADATA, "Arn": ARN[:-1] + "0"}},
        {"KeyMetadata": {"KeyId": "00000000-0000-0000-0000-000000000000"}},
        {"KeyMetadata": {**METADATA, "Arn": 7}},
    ],
)
async def test_description_of_another_key_is_refused(answered: Mapping[str, Any]) -> None:
    """What does not describe the key that was asked for says nothing about it."""

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        return answered

    async with provider(stubbed(answer)) as aws:
        with pytest.raises(BadAnswer, match="kms:DescribeKey"):
            await aws.check()
        assert ARN == aws.master_key_arn


@pytest.mark.parametrize("state", botocore.session.get_session().get_service_model("kms").shape_for("KeyState").enum)
async def test_every_state_of_the_api_is_usable_withdrawn_or_passing(state: str) -> None:
    """Only the states that somebody chose withdraw a key."""

    async def answer(action: str, parameters: Mapping[str, Any]) -> Any:
        return {"KeyMetadata": {**METADATA, "KeyState": state}}

    outcome: object = "usable"
    async with provider(stubbed(answer)) as aws:
        try:
            await aws.check()
        except MasterKeyUnusable as error:
            outcome = error.state, error.withdrawn
    expected = {"Enabled": "usable", "Updating": "usable", "Creating": (state, False), "Unavailable": (state, False)}
    assert expected.get(state, (state, True)) == outcome
