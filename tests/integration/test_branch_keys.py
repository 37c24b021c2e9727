"""Daemons in branch-key mode, over real sockets: what KMS is asked, what survives a restart, and what is refused."""

import sqlite3
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from betrace.kms.v1 import admin_pb2 as pb
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace_kms_client import AsyncKmsClient
from betrace_kms_client.errors import FailedPrecondition, InvalidRequest, KeyDataLoss
from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.providers.local import MASTER_KEY_FILE
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE

from tests.daemon import running, settings
from tests.integration.test_aws_daemon import aws
from tests.moto_server import MotoServer

CONTEXTS = [{"record": str(number)} for number in range(200)]


async def test_contexts_cost_nothing(tmp_path: Path, moto: MotoServer, kms_key: str) -> None:
    """Four calls make the branch key, and one opens everything after a restart."""
    values = aws(moto.url, kms_key) | {"kms_encryption_mode": "branch-key"}
    async with running(tmp_path, **values) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        moto.calls.clear()
        sealed = [await client.encrypt("acme", b"secret", context) for context in CONTEXTS]
        assert {"GenerateDataKey": 2, "Encrypt": 1, "Decrypt": 1} == moto.calls
        assert {kms_key} == {message.key_id for message in sealed}
    async with running(tmp_path, **values) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        moto.calls.clear()
        for message, context in zip(sealed, CONTEXTS, strict=True):
            assert b"secret" == (await client.decrypt("acme", message.ciphertext_blob, context)).plaintext
        assert {"Decrypt": 1} == moto.calls


async def test_altered_rows_are_data_loss_for_one_tenant(tmp_path: Path) -> None:
    """After a restart the tenant's calls are refused by name, and nobody else notices."""
    values = {"kms_encryption_mode": "branch-key"}
    async with running(tmp_path, **values) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        sealed = [await client.encrypt(tenant, b"secret", CONTEXTS[0]) for tenant in ("acme", "globex")]
    with closing(sqlite3.connect(tmp_path / DATABASE_FILE)) as database:
        database.execute("UPDATE branch_keys SET enc = zeroblob(64) WHERE branch_key_id = 'acme'")
        database.commit()
    async with running(tmp_path, **values) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        for call in (
            client.encrypt("acme", b"secret", CONTEXTS[0]),
            client.decrypt("acme", sealed[0].ciphertext_blob, CONTEXTS[0]),
        ):
            with pytest.raises(KeyDataLoss) as refused:
                await call
            assert "KEY_DAMAGED" == refused.value.reason
        assert b"secret" == (await client.decrypt("globex", sealed[1].ciphertext_blob, CONTEXTS[0])).plaintext


async def test_message_of_another_tenant_has_the_one_text(tmp_path: Path) -> None:
    """Whether the other tenant has a branch key or not, and for a message that was altered."""
    async with (
        running(tmp_path, kms_encryption_mode="branch-key") as daemon,
        AsyncKmsClient(daemon.addresses[0]) as client,
    ):
        sealed = (await client.encrypt("acme", b"secret", CONTEXTS[0])).ciphertext_blob
        await client.encrypt("globex", b"secret", CONTEXTS[0])
        texts = set()
        for tenant, message in (("globex", sealed), ("unknown", sealed), ("acme", sealed[:-1] + b"\x00" * 2)):
            with pytest.raises(InvalidRequest) as refused:
                await client.decrypt(tenant, message, CONTEXTS[0])
            texts.add((refused.value.reason, refused.value.message))
        assert 1 == len(texts)


async def test_rotation_and_lock_reach_branch_keys(tmp_path: Path) -> None:
    """RotateKeys makes a new version for a tenant that never signed; a lock refuses the use of either."""
    async with (
        running(tmp_path, kms_encryption_mode="branch-key") as daemon,
        AsyncKmsClient(daemon.addresses[0]) as client,
        grpc.aio.insecure_channel(f"unix:{tmp_path}/admin.sock") as channel,
    ):
        admin = KmsAdminServiceStub(channel)
        before = (await client.encrypt("acme", b"before", CONTEXTS[0])).ciphertext_blob
        one = await admin.RotateKeys(pb.RotateKeysRequest(tenant_id="acme"))
        every = await admin.RotateKeys(pb.RotateKeysRequest(all=True))
        assert (1, 1, 0) == (one.rotated, every.rotated, every.failed)
        after = (await client.encrypt("acme", b"after", CONTEXTS[0])).ciphertext_blob
        assert b"before" == (await client.decrypt("acme", before, CONTEXTS[0])).plaintext
        assert b"after" == (await client.decrypt("acme", after, CONTEXTS[0])).plaintext
        with closing(sqlite3.connect(tmp_path / DATABASE_FILE)) as database:
            assert [(3,)] == database.execute(
                "SELECT count(*) FROM branch_keys WHERE type LIKE 'branch:version:%'"
            ).fetchall()
        locked = await admin.Lock(pb.LockRequest(reason="drill"))
        assert 3 == locked.entries  # the newest version, and the two that were opened
        for call in (client.encrypt("acme", b"secret"), client.decrypt("acme", before, CONTEXTS[0])):
            with pytest.raises(FailedPrecondition):
                await call


@pytest.mark.parametrize("lost", ["missing", "another provider"])
async def test_refused_start_on_branch_keys_of_another_master_key(
    tmp_path: Path, moto: MotoServer, kms_key: str, lost: str
) -> None:
    """A store with nothing but branch keys is no empty store: no new master key is made beside it."""
    async with (
        running(tmp_path, kms_encryption_mode="branch-key") as daemon,
        AsyncKmsClient(daemon.addresses[0]) as client,
    ):
        await client.encrypt("acme", b"secret")
    values = aws(moto.url, kms_key) | {"kms_encryption_mode": "branch-key"}
    if lost == "missing":
        (tmp_path / MASTER_KEY_FILE).unlink()
        values = {}
    with pytest.raises(StartRefused, match=MASTER_KEY_FILE if lost == "missing" else "wrapped by provider local"):
        async with running(tmp_path, **values):
            pass


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"kms_store": "dynamodb", "kms_store_table": "keys"}, r"kms\.branch-keys\.table is missing"),
        ({"kms_branch_keys_table": "keys"}, r"kms\.store is not dynamodb"),
    ],
)
def test_refused_settings_say_which_store_is_meant(tmp_path: Path, values: dict[str, str], problem: str) -> None:
    """Branch keys follow kms.store."""
    arn = "arn:aws:kms:us-east-1:123456789012:key/1"
    provider = {"betrace_kms_provider": "aws", "aws_kms_master_key_id": arn, "kms_encryption_mode": "branch-key"}
    with pytest.raises(StartRefused, match=problem):
        settings(tmp_path, **provider, **values)
