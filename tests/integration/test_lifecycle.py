"""Rotation, revocation and invalidation of a real daemon, by the admin socket and by the command."""

import asyncio
import sqlite3
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import orjson
import pytest
from betrace.kms.v1 import admin_pb2 as pb
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import AsyncKmsClient
from betrace_kms_evidence import SpanVerifier, read_jwks
from betrace_kms_server import app
from betrace_kms_server.core.keys import StoredKey, WrappedKey

from tests.daemon import COMMAND, running
from tests.integration.test_aws_daemon import aws

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")


class Subject:
    """A daemon, its clients, and where its data is."""

    def __init__(self, daemon: app.Daemon, client: AsyncKmsClient, admin: Any, data_dir: Path) -> None:
        self.daemon, self.client, self.admin, self.data_dir = daemon, client, admin, data_dir

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Run a verb of the command on the admin socket; returns its exit code and what it wrote."""
        done = await asyncio.to_thread(
            subprocess.run,
            [str(COMMAND), *arguments, "--admin-addr", f"unix:{self.data_dir}/admin.sock"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    async def statuses(self, tenant: str = "acme") -> dict[str, str]:
        """Return key id -> status of a tenant's keys, oldest first."""
        return {key.key_id: key.status for key in (await self.client.get_public_keys(tenant)).keys}


@asynccontextmanager
async def subject(data_dir: Path, **values: str) -> AsyncIterator[Subject]:
    """Run a daemon."""
    async with (
        running(data_dir, **values) as daemon,
        AsyncKmsClient(daemon.addresses[0]) as client,
        grpc.aio.insecure_channel(f"unix:{data_dir}/admin.sock") as channel,
    ):
        yield Subject(daemon, client, KmsAdminServiceStub(channel), data_dir)


@pytest.fixture
async def on(tmp_path: Path) -> AsyncIterator[Subject]:
    """A daemon with the local provider."""
    async with subject(tmp_path) as on:
        yield on


async def test_a_rotated_key_signs_no_more_and_verifies_for_ever(on: Subject) -> None:
    """The next signature is the new key's; the old one verifies here and offline, and the old public key stays."""
    first = await on.client.sign_span("acme", SPAN)
    assert (await on.admin.RotateKeys(pb.RotateKeysRequest(tenant_id="acme"))).rotated == 1
    second = await on.client.sign_span("acme", SPAN)
    assert first.key_id != second.key_id
    assert await on.statuses() == {first.key_id: "ROTATED", second.key_id: "ACTIVE"}
    offline = SpanVerifier(read_jwks((await on.client.get_public_keys("acme")).jwks))
    for signed in (first, second):
        assert (await on.client.verify_span("acme", SPAN, signed.signature, signed.key_id)).reason == "VALID"
        assert offline.verify(SPAN, signed.signature, signed.key_id, None) == "VALID"


async def test_a_revoked_key_is_told_with_its_time_and_the_tenant_signs_on(on: Subject) -> None:
    """Revoking the active key rotates at once; old signatures verify as KEY_REVOKED, those of other keys stay good."""
    old = await on.client.sign_span("acme", SPAN)
    await on.admin.RotateKeys(pb.RotateKeysRequest(tenant_id="acme"))
    bad = await on.client.sign_span("acme", SPAN)
    assert (await on.client.verify_span("acme", SPAN, bad.signature, bad.key_id)).reason == "VALID"
    answer = await on.admin.RevokeKey(pb.RevokeKeyRequest(tenant_id="acme", key_id=bad.key_id))
    good = await on.client.sign_span("acme", SPAN)
    assert good.key_id == answer.active_key_id != bad.key_id
    assert (await on.client.verify_span("acme", SPAN, bad.signature, bad.key_id)).reason == "KEY_REVOKED"
    assert (await on.client.verify_span("acme", SPAN, old.signature, old.key_id)).reason == "VALID"
    keys = {key.key_id: key for key in (await on.client.get_public_keys("acme")).keys}
    assert (keys[bad.key_id].status, bool(keys[bad.key_id].revoke_time)) == ("REVOKED", True)
    assert keys[good.key_id].status == "ACTIVE"
    again = await on.admin.RevokeKey(pb.RevokeKeyRequest(tenant_id="acme", key_id=bad.key_id))
    assert again.active_key_id == good.key_id
    assert len(keys) == len(await on.statuses()) == 3


async def test_nobody_elses_key_can_be_revoked_or_rotated(on: Subject) -> None:
    """Unknown tenants and keys are NOT_FOUND, malformed ones INVALID_ARGUMENT, and nothing changes."""
    signed = await on.client.sign_span("acme", SPAN)
    requests = {
        "NOT_FOUND": [
            on.admin.RevokeKey(pb.RevokeKeyRequest(tenant_id="rival", key_id=signed.key_id)),
            on.admin.RevokeKey(pb.RevokeKeyRequest(tenant_id="acme", key_id="0" * 32)),
            on.admin.RotateKeys(pb.RotateKeysRequest(tenant_id="rival")),
        ],
        "INVALID_ARGUMENT": [
            on.admin.RevokeKey(pb.RevokeKeyRequest(tenant_id="acme", key_id="x")),
            on.admin.RotateKeys(pb.RotateKeysRequest(tenant_id="no tenant")),
            on.admin.RotateKeys(pb.RotateKeysRequest()),
            on.admin.RotateKeys(pb.RotateKeysRequest(all=False)),
            on.admin.InvalidateTenant(pb.InvalidateTenantRequest()),
        ],
    }
    for status, calls in requests.items():
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code().name == status
    assert await on.statuses() == {signed.key_id: "ACTIVE"}


async def test_the_command_rotates_and_revokes(on: Subject) -> None:
    """rotate, rotate --all and revoke, with the exit codes that scripts need."""
    signed = await on.client.sign_span("acme", SPAN)
    await on.client.sign_span("globex", SPAN)
    assert await on.command("rotate", "--tenant", "acme") == (0, "rotated\n")
    assert await on.command("rotate", "--all") == (0, "rotated the keys of 2, failed: 0\n")
    assert [*(await on.statuses()).values()] == ["ROTATED", "ROTATED", "ACTIVE"]
    code, text = await on.command("revoke", "--tenant", "acme", "--key-id", signed.key_id, "--yes")
    assert (code, signed.key_id in text) == (0, True)
    assert (await on.statuses())[signed.key_id] == "REVOKED"
    assert (await on.command("rotate"))[0] == 2
    code, text = await on.command("rotate", "--tenant", "nobody")
    assert (code, "no signing key to rotate" in text) == (3, True)


async def test_a_due_key_is_rotated_at_start_once(tmp_path: Path) -> None:
    """A run that was missed is caught up: the key is older than the largest age at the last instant of the schedule."""
    async with subject(tmp_path) as on:
        old = await on.client.sign_span("acme", SPAN)
    with sqlite3.connect(tmp_path / "keystore.db") as database:
        tenant_id, key_id, provider, seed, arn, public_key = database.execute(
            "SELECT tenant_id, key_id, provider, wrapped_seed, master_key_arn, public_key FROM signing_keys"
        ).fetchone()
        aged = StoredKey(tenant_id, key_id, provider, WrappedKey(seed, arn), public_key, "active", create_time_ms=1)
        database.execute(
            "UPDATE signing_keys SET create_time_ms = 1, checksum = ?, state_checksum = ?",
            [aged.checksum(), aged.state_checksum()],
        )
    database.close()
    for _ in range(2):
        async with subject(tmp_path) as on:
            for _ in range(100):
                if len(found := await on.statuses()) == 2:
                    break
                await asyncio.sleep(0.05)
    assert [*found.values()] == ["ROTATED", "ACTIVE"]
    assert next(iter(found)) == old.key_id


async def test_a_master_key_that_is_disabled_takes_its_cached_keys_with_it(
    tmp_path: Path, moto: "MotoServer", kms_key: str
) -> None:
    """A cold call hears of it, DescribeKey confirms it, and warm tenants are refused too: fail closed."""
    async with subject(tmp_path, **aws(moto.url, kms_key)) as on:
        await on.client.sign_span("warm", SPAN)
        sealed = await on.client.encrypt("warm", b"payload")
        moto.kms().disable_key(kms_key)
        with pytest.raises(Exception, match="cannot be used"):
            await on.client.encrypt("cold", b"payload")
        for _ in range(100):
            if not sum(len(cache) for cache in on.daemon.caches if cache.kind != "public"):
                break
            await asyncio.sleep(0.05)
        for call in (on.client.sign_span("warm", SPAN), on.client.decrypt("warm", sealed.ciphertext_blob)):
            with pytest.raises(Exception, match="cannot be used"):
                await call
        moto.kms().enable_key(kms_key)
        await on.client.sign_span("warm", SPAN)


async def test_every_call_to_kms_is_in_the_audit_trail(tmp_path: Path, moto: "MotoServer", kms_key: str) -> None:
    """Also those of a validation over HTTP, and of the move to another master key; but not DescribeKey."""
    trail, other = tmp_path / "audit.jsonl", moto.create_key()
    async with subject(tmp_path / "data", kms_audit_file=str(trail), **aws(moto.url, kms_key)) as on:
        await on.client.sign_span("acme", SPAN)
    async with (
        subject(
            tmp_path / "data",
            kms_audit_file=str(trail),
            aws_kms_decrypt_key_ids=kms_key,
            **aws(moto.url, kms_key) | {"aws_kms_master_key_id": other},
        ) as on,
        aiohttp.ClientSession() as session,
    ):
        async with session.post(f"http://{on.daemon.ops_address}/api/admin/kms/validate") as answer:
            assert (await answer.json())["overall"] == "PASS"
        for _ in range(100):
            if b"RewrapKey" in trail.read_bytes():
                break
            await asyncio.sleep(0.05)
    lines = [orjson.loads(line) for line in trail.read_bytes().splitlines()]
    calls = {line["operation"]: line for line in lines if line["kmsRequestIds"]}
    assert {"Validate", "UnwrapKey", "RewrapKey"} < set(calls)
    assert calls["Validate"]["caller"] == "http"
    assert len(calls["Validate"]["kmsRequestIds"]) >= 5
    assert calls["RewrapKey"]["tenant"] == "acme"
