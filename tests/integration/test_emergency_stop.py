"""The emergency stop of real daemons: two on one DynamoDB table, one on a file that restarts, and the runbook."""

import asyncio
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import orjson
import pytest
from betrace.kms.v1 import admin_pb2 as pb
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import AsyncKmsClient, FailedPrecondition
from betrace_kms_server import app
from betrace_kms_server.core.lock_state import LockState
from betrace_kms_server.providers.local import MASTER_KEY_FILE, LocalProvider, load_master_key
from betrace_kms_server.rpc.health import KEY_MANAGEMENT, KMS
from betrace_kms_server.signing_keys.seeds import new_key
from betrace_kms_server.stores.dynamodb.creation import create_table
from betrace_kms_server.stores.sqlite.schema import create_file
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE, open_sqlite
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.daemon import COMMAND, running, settings
from tests.documents.blocks import blocks
from tests.integration.test_aws_daemon import aws, watched
from tests.moto_server import REGION, MotoServer

SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")
RUNBOOK = Path(__file__).parents[2] / "docs/emergency-stop.md"
REASON = "INC-4711: unknown caller"


class Pod:
    """A daemon, its client and its operator."""

    def __init__(self, daemon: app.Daemon, client: AsyncKmsClient, admin: Any, channel: grpc.aio.Channel) -> None:
        self.daemon, self.client, self.admin = daemon, client, admin
        self._health: Any = health_pb2_grpc.HealthStub(channel)

    async def serves(self, service: str = KEY_MANAGEMENT) -> bool:
        """Return what its health service says now."""
        answer = await self._health.Check(health_pb2.HealthCheckRequest(service=service))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def until(self, *, serving: bool) -> None:
        """Wait until the readiness is this."""
        async for state in watched(self.daemon.addresses[0]):
            if (state == "SERVING") is serving:
                return


@asynccontextmanager
async def pod(data_dir: Path, values: Mapping[str, str] | None = None, *, serving: bool = True) -> AsyncIterator[Pod]:
    """Run a daemon that checks for a stop each second."""
    values = {**(values or {}), "kms_lock_check_seconds": "1"}
    async with (
        running(data_dir, **values) if serving else app.running(settings(data_dir, **values)) as daemon,
        AsyncKmsClient(daemon.addresses[0]) as client,
        grpc.aio.insecure_channel(f"unix:{data_dir}/admin.sock") as channel,
    ):
        yield Pod(daemon, client, KmsAdminServiceStub(channel), channel)


async def refused(call: Awaitable[object]) -> None:
    """Check that a call is refused as locked, with no hint to retry and nothing of the operator's reason."""
    with pytest.raises(FailedPrecondition) as failure:
        await call
    assert (failure.value.reason, failure.value.retry_after) == ("LOCKED", None)
    assert "betrace-kms unlock" in failure.value.message
    assert "INC" not in str(failure.value.__cause__)


async def test_a_lock_reaches_every_pod_on_the_table_and_ends_for_all(tmp_path: Path, moto: MotoServer) -> None:
    """Every call that needs a secret key is refused on both pods, the others answer; an unlock elsewhere ends it."""
    table = f"keys-{secrets.token_hex(8)}"
    async for _ in create_table(table, region=REGION, endpoint=moto.url):
        pass
    values = aws(moto.url, moto.create_key()) | {
        "kms_store": "dynamodb",
        "kms_store_table": table,
        "kms_store_endpoint": moto.url,
    }
    async with pod(tmp_path / "one", values) as one, pod(tmp_path / "two", values) as two:
        signed = await one.client.sign_span("acme", SPAN)
        sealed = await one.client.encrypt("acme", b"payload")
        assert await two.client.decrypt("acme", sealed.ciphertext_blob)
        answer = await one.admin.Lock(pb.LockRequest(reason=REASON))
        assert (answer.entries, answer.stored, answer.store_error) == (2, True, "")
        await two.until(serving=False)
        for each in (one, two):
            client = each.client
            await refused(client.sign_span("acme", SPAN))
            await refused(client.sign_span("other", SPAN))
            await refused(client.encrypt("acme", b"payload"))
            await refused(client.decrypt("acme", sealed.ciphertext_blob))
            await refused(client.generate_data_key("acme"))
            await refused(client.re_encrypt("acme", sealed.ciphertext_blob))
            await refused(client.sign_spans("acme", [SPAN]))
            assert (await client.verify_span("acme", SPAN, signed.signature, signed.key_id)).valid
            assert (await client.get_public_keys("acme")).keys
            assert (await each.serves(""), await each.serves(), await each.serves("kms")) == (True, False, True)
            status = orjson.loads((await each.admin.GetStatus(pb.GetStatusRequest())).json)
            assert (status["lock"]["reason"], status["serving"]) == (REASON, False)
            assert [cache["size"] for cache in status["caches"][:2]] == [0, 0]
        assert (await two.admin.Unlock(pb.UnlockRequest())).was_locked
        assert await two.client.decrypt("acme", sealed.ciphertext_blob)
        await one.until(serving=True)
        assert (await one.client.sign_span("acme", SPAN)).key_id == signed.key_id


async def test_a_restart_stays_locked(tmp_path: Path) -> None:
    """The stop is read before anybody is served; the HTTP port and the metrics show it."""
    async with pod(tmp_path) as on:
        await on.admin.Lock(pb.LockRequest(reason=REASON))
    async with pod(tmp_path, serving=False) as on, aiohttp.ClientSession() as http:
        async for state in watched(on.daemon.addresses[0], "kms"):
            if state == "SERVING":
                break
        assert not await on.serves()
        await refused(on.client.encrypt("acme", b"payload"))
        async with http.get(f"http://{on.daemon.ops_address}/q/health/ready") as answer:
            body = await answer.text()
            assert (answer.status, "emergency stop" in body, "INC" in body) == (503, True, False)
        async with http.get(f"http://{on.daemon.ops_address}/q/metrics") as answer:
            assert "\nkms_locked 1.0" in await answer.text()
        await on.admin.Unlock(pb.UnlockRequest())
        assert await on.serves()


async def test_locked_here_when_the_store_fails(tmp_path: Path, moto: MotoServer) -> None:
    """The pod that was asked locks, and the answer says that others were not reached."""
    async with pod(tmp_path) as on:
        await on.client.encrypt("acme", b"payload")
        (tmp_path / "keystore.db").chmod(0o400)
        (tmp_path / "keystore.db").write_bytes(b"no database" * 1000)
        answer = await on.admin.Lock(pb.LockRequest(reason=REASON))
        assert (answer.entries, answer.stored) == (1, False)
        assert answer.store_error
        await refused(on.client.encrypt("acme", b"payload"))
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await on.admin.Unlock(pb.UnlockRequest())
        assert failure.value.code() == grpc.StatusCode.UNAVAILABLE
        await refused(on.client.encrypt("acme", b"payload"))


async def test_a_reason_that_is_no_line_is_refused_and_locks_nothing(tmp_path: Path) -> None:
    """An operator's typing error is no emergency stop."""
    async with pod(tmp_path) as on:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await on.admin.Lock(pb.LockRequest(reason=""))
        assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        await on.client.encrypt("acme", b"payload")


async def test_the_runbook_as_it_is_written(tmp_path: Path) -> None:
    """Its commands run in their order; the audit trail has who locked and unlocked, also while it must be written."""
    lock, status, _for_each_pod, unlock = (block.text for block in blocks(RUNBOOK) if block.counts)
    trail = tmp_path / "audit.jsonl"
    path = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"

    async def shell(command: str) -> tuple[int, str]:
        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-euo", "pipefail", "-c", command],
            env={**os.environ, "PATH": path, "KMS_DATA_DIR": str(tmp_path), "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    assert shutil.which("bash")
    async with pod(tmp_path, {"kms_audit_file": str(trail), "kms_audit_required": "true"}) as on:
        await on.client.encrypt("acme", b"payload")
        assert await shell(lock) == (0, "locked; dropped 1 cache entry\n")
        code, text = await shell(status)
        assert code == 1
        assert re.search(rf"lock +LOCKED since \d{{4}}-.* UTC: {REASON}\n", text), text
        await refused(on.client.encrypt("acme", b"payload"))
        assert await shell(unlock) == (0, "unlocked\n")
        assert await shell(unlock) == (0, "unlocked; this daemon was not locked\n")
        assert (await shell(status))[0] == 0
        await on.client.encrypt("acme", b"payload")
    lines = [orjson.loads(line) for line in trail.read_text("utf-8").splitlines()]
    seen = [
        (line["operation"], line["result"]) for line in lines if line.get("operation") in {"Lock", "Unlock", "Encrypt"}
    ]
    assert seen == [
        ("Encrypt", "OK"),
        ("Lock", "OK"),
        ("Encrypt", "LOCKED"),
        ("Unlock", "OK"),
        ("Unlock", "OK"),
        ("Encrypt", "OK"),
    ]


async def test_what_is_due_is_rotated_only_after_the_stop(tmp_path: Path) -> None:
    """A daemon that starts locked, with a key that is long due, leaves it alone; after the unlock it catches up."""
    master = load_master_key(tmp_path / MASTER_KEY_FILE, create=True)
    create_file(tmp_path / DATABASE_FILE)
    old, _ = await new_key(LocalProvider(master), "acme", 1)
    async with open_sqlite(tmp_path / DATABASE_FILE) as store:
        await store.create(old)
        await store.set_lock(LockState("before", 1))
    async with pod(tmp_path, serving=False) as one:
        async for state in watched(one.daemon.addresses[0], KMS):  # what waits for the master key goes on from here
            if state == "SERVING":
                break
        for _ in range(3):
            await one.admin.Validate(pb.ValidateRequest())
        unlocked_at = time.time()
        assert [key.status for key in (await one.client.get_public_keys("acme")).keys] == ["ACTIVE"]
        await one.admin.Unlock(pb.UnlockRequest())
        for _ in range(200):
            keys = (await one.client.get_public_keys("acme")).keys
            if len(keys) > 1:
                break
            await asyncio.sleep(0.05)  # nothing tells a client that a scheduled run is over
    assert [key.status for key in keys] == ["ROTATED", "ACTIVE"]
    async with open_sqlite(tmp_path / DATABASE_FILE) as store:
        rotated = await store.get("acme", old.key_id)
    assert rotated is not None
    assert (rotated.rotate_time_ms or 0) >= int(unlocked_at * 1000)
