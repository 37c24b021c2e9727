"""MACs over a real connection: what KMS is asked, who may call, and what is refused."""

import asyncio
import json
from pathlib import Path

import grpc
import pytest
from betrace.kms.v1 import admin_pb2 as pb
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace_kms_client import AsyncKmsClient, ItemRefusal, KmsClient, Mac
from betrace_kms_client.errors import FailedPrecondition, InvalidRequest, KmsClientError, ResourceExhausted

from tests.daemon import running
from tests.integration.conftest import Run
from tests.moto_server import MotoServer

BATCH = [("users.email", b"%d" % number, 8 + number) for number in range(249)]


@pytest.mark.parametrize("mode", ["data-key", "branch-key"])
async def test_index_is_the_same_on_every_daemon(
    mode: str, tmp_path: Path, moto: MotoServer, kms_key: str, dynamodb: dict[str, str]
) -> None:
    """In either mode, with one call to KMS after a restart."""
    values = dynamodb | {"kms_encryption_mode": mode}
    async with running(tmp_path, **values) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        made = await client.generate_mac("acme", "users.email", b"alice@example.com")
        batch = await client.generate_mac_batch("acme", BATCH)
    assert (32, kms_key) == (len(made.mac), made.key_id)
    async with running(tmp_path, **values) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        moto.calls.clear()
        assert await client.verify_mac("acme", "users.email", b"alice@example.com", made.mac)
        assert not await client.verify_mac("acme", "users.email", b"alice@example.org", made.mac)
        assert not await client.verify_mac("acme", "users.name", b"alice@example.com", made.mac)
        assert batch == [await client.generate_mac("acme", *item) for item in BATCH]
        assert {"Decrypt": 1} == moto.calls
        assert not await client.verify_mac("globex", "users.email", b"alice@example.com", made.mac)
        assert {"Decrypt": 1} == moto.calls


async def test_without_the_table_the_calls_are_refused(tmp_path: Path, dynamodb: dict[str, str]) -> None:
    """And the text says what to do; other calls go on."""
    values = dynamodb | {"kms_branch_keys_table": ""}
    async with running(tmp_path, **values) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        for call in (client.generate_mac("acme", "p", b"x"), client.verify_mac("acme", "p", b"x", bytes(32))):
            with pytest.raises(FailedPrecondition, match="keystore init") as refused:
                await call
            assert "NO_BRANCH_KEY_STORE" == refused.value.reason
        assert (await client.encrypt("acme", b"secret")).ciphertext_blob


async def test_bad_item_fails_alone(tmp_path: Path) -> None:
    """Each with what a call for it alone would say."""
    items = [("p", b"x", 256), ("P", b"x", 256), ("p", b"x", 7), ("p", bytes(2000), 256), ("p", b"", 0)]
    async with (
        running(tmp_path, kms_server_max_message_bytes="1500") as daemon,
        AsyncKmsClient(daemon.addresses[0]) as client,
    ):
        results = await client.generate_mac_batch("acme", [items[0], items[1], items[2], items[4]])
        assert [Mac, ItemRefusal, ItemRefusal, Mac] == [type(each) for each in results]
        for item, result in zip(items[1:3], results[1:3], strict=True):
            with pytest.raises(InvalidRequest) as refused:
                await client.generate_mac("acme", *item)
            assert isinstance(result, ItemRefusal)
            assert (result.status, result.reason) == ("INVALID_ARGUMENT", refused.value.reason)
            assert result.message in str(refused.value)
        with pytest.raises(InvalidRequest, match="message has 1501 bytes, the limit is 1500"):
            await client.generate_mac("acme", "p", bytes(1501))


@pytest.mark.parametrize("count", [0, 1001])
async def test_batch_has_bounds(count: int, tmp_path: Path) -> None:
    """As the other batches have."""
    async with running(tmp_path) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        with pytest.raises(KmsClientError, match=r"items|1,000"):
            await client.generate_mac_batch("acme", [("p", b"x", 256)] * count)


async def test_quota_counts_items(tmp_path: Path) -> None:
    """A caller that tries guesses is slowed, however it sends them."""
    values = {"kms_quota_tenant_per_second": "1", "kms_quota_tenant_burst": "100"}
    async with running(tmp_path, **values) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        await client.generate_mac_batch("acme", [("p", b"x", 256)] * 100)
        for call in (client.generate_mac("acme", "p", b"x"), client.verify_mac("acme", "p", b"x", bytes(32))):
            with pytest.raises(ResourceExhausted):
                await call
        assert await client.generate_mac("globex", "p", b"x")


async def test_audit_lines_hold_no_message(tmp_path: Path) -> None:
    """Who asked, under which master key and for how many, and neither message nor MAC."""
    audit = tmp_path / "audit.jsonl"
    async with running(tmp_path, kms_audit_file=str(audit)) as daemon:
        with_sync = KmsClient(daemon.addresses[0])
        with with_sync as client:
            made = await asyncio.to_thread(client.generate_mac, "acme", "users.email", b"alice@example.com")
            assert await asyncio.to_thread(client.verify_mac, "acme", "users.email", b"alice@example.com", made.mac)
            assert 2 == len(await asyncio.to_thread(client.generate_mac_batch, "acme", BATCH[:2]))
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    found = {line["operation"]: line.get("keyId") for line in lines if "Mac" in line["operation"]}
    assert dict.fromkeys(("GenerateMac", "VerifyMac", "GenerateMacBatch"), made.key_id) == found
    assert b"alice" not in audit.read_bytes()
    assert made.mac.hex() not in audit.read_text()


async def test_emergency_stop_refuses_macs(tmp_path: Path) -> None:
    """Each call, whether the tenant has a key or not; afterwards the MACs are what they were."""
    async with (
        running(tmp_path) as daemon,
        AsyncKmsClient(daemon.addresses[0]) as client,
        grpc.aio.insecure_channel(f"unix:{tmp_path}/admin.sock") as channel,
    ):
        admin = KmsAdminServiceStub(channel)
        made = await client.generate_mac("acme", "p", b"x")
        await admin.Lock(pb.LockRequest(reason="drill"))
        for tenant in ("acme", "globex"):
            for call in (
                client.generate_mac(tenant, "p", b"x"),
                client.verify_mac(tenant, "p", b"x", made.mac),
                client.generate_mac_batch(tenant, [("p", b"x", 256)]),
            ):
                with pytest.raises(FailedPrecondition) as refused:
                    await call
                assert "LOCKED" == refused.value.reason
        await admin.Unlock(pb.UnlockRequest())
        assert made == await client.generate_mac("acme", "p", b"x")


def test_commands(run: Run) -> None:
    """What mac prints verify-mac takes, and its exit code tells."""
    made = run("mac", "--tenant", "acme", "--purpose", "users.email", stdin=b"alice@example.com")
    digits = made.stdout.decode().strip()
    assert (0, 64, b"") == (made.returncode, len(digits), made.stderr)
    verify = ("verify-mac", "--tenant", "acme", "--purpose", "users.email", "--mac")
    for message, mac, wanted in (
        (b"alice@example.com", digits, (0, b"valid\n")),
        (b"alice@example.com\n", digits, (1, b"not valid\n")),
        (b"alice@example.com", digits[:-2], (0, b"valid\n")),
        (b"alice@example.com", digits[:30], (3, b"")),
        (b"alice@example.com", "no", (2, b"")),
    ):
        verified = run(*verify, mac, stdin=message)
        assert wanted == (verified.returncode, verified.stdout)
    short = run("mac", "--tenant", "acme", "--purpose", "users.email", "--bits", "12", stdin=b"alice@example.com")
    assert digits[:3] + "0\n" == short.stdout.decode()
