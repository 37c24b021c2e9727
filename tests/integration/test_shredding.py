"""Shredding by real daemons: the command, two daemons on one table, load, kill -9, and the bytes in the file."""

import asyncio
import os
import pty
import secrets
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import orjson
import pytest
from betrace.kms.v1 import admin_pb2 as pb
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import AsyncKmsClient, FailedPrecondition, InvalidRequest, ItemRefusal, KmsClientError
from betrace_kms_server.core.branch_rows import BEACON
from betrace_kms_server.core.shredding import Shredding
from betrace_kms_server.stores.dynamodb.branch_keys import open_branch_keys
from betrace_kms_server.stores.dynamodb.creation import create_table
from betrace_kms_server.stores.dynamodb.store import open_dynamodb
from betrace_kms_server.stores.dynamodb.table import BRANCH_KEYS
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE, open_sqlite

from tests.aws_proxy import aws_proxy
from tests.contract.test_branch_key_stores import row, rows
from tests.daemon import COMMAND, running, spawned
from tests.integration.test_aws_daemon import aws
from tests.moto_server import REGION, MotoServer

SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")
CONTEXT = {"record": "17"}
BRANCH_KEY = {"kms_encryption_mode": "branch-key"}
PAST = Shredding("pending", 1_000, 2_000)
"""A shredding that has been due for long."""


class Pod:
    """A daemon, its client and its operator."""

    def __init__(self, client: AsyncKmsClient, admin: Any, data_dir: Path, ops_address: str) -> None:
        self.client, self.admin, self.data_dir, self.ops_address = client, admin, data_dir, ops_address

    async def shred(self, **fields: Any) -> pb.ShredTenantResponse:
        """Call ShredTenant for acme."""
        answer: pb.ShredTenantResponse = await self.admin.ShredTenant(pb.ShredTenantRequest(tenant_id="acme", **fields))
        return answer

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Run a verb of the command on the admin socket; returns its exit code and what it wrote."""
        done = await asyncio.to_thread(
            subprocess.run,
            [str(COMMAND), *arguments, "--admin-addr", f"unix:{self.data_dir}/admin.sock"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


@asynccontextmanager
async def pod(data_dir: Path, values: Mapping[str, str]) -> AsyncIterator[Pod]:
    """Run a daemon."""
    async with (
        running(data_dir, **values) as daemon,
        AsyncKmsClient(daemon.addresses[0]) as client,
        grpc.aio.insecure_channel(f"unix:{data_dir}/admin.sock") as channel,
    ):
        yield Pod(client, KmsAdminServiceStub(channel), data_dir, daemon.ops_address)


async def refused(call: Awaitable[object], reason: str) -> None:
    """Check that a call is refused for good, by this reason."""
    with pytest.raises(FailedPrecondition) as failure:
        await call
    assert (reason, None) == (failure.value.reason, failure.value.retry_after)


async def until_shredded(pod: Pod) -> None:
    """Wait until the daemon has destroyed what is due."""
    while (await pod.shred()).state != "SHREDDED":  # noqa: ASYNC110  # another daemon's work has no event here
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("mode", ["branch-key", "data-key"])
async def test_every_call_that_encrypts_or_decrypts_is_refused(tmp_path: Path, mode: str) -> None:
    """And none that is about evidence; after a restart too, and a cancel brings all back."""
    values = {"kms_encryption_mode": mode}
    async with pod(tmp_path, values) as on:
        client = on.client
        signed = await client.sign_span("acme", SPAN)
        sealed = (await client.encrypt("acme", b"secret", CONTEXT)).ciphertext_blob
        blob = (await client.generate_data_key("acme")).ciphertext_blob
        mac = (await client.generate_mac("acme", "email", b"alice")).mac
        answer = await on.shred()
        assert ("PENDING_SHRED", 7 * 86_400) == (answer.state, answer.due_time.seconds - answer.request_time.seconds)
        assert (mode == "branch-key") is answer.HasField("unrecoverable_after")
        assert answer.entries
    async with pod(tmp_path, values) as on:
        client = on.client
        for call in (
            client.encrypt("acme", b"secret", CONTEXT),
            client.decrypt("acme", sealed, CONTEXT),
            client.decrypt("acme", blob),
            client.generate_data_key("acme"),
            client.generate_data_key("acme", fresh=True),
            client.re_encrypt("acme", sealed, CONTEXT),
            client.re_encrypt("acme", blob),
            client.generate_message_key("acme"),
            client.generate_mac("acme", "email", b"alice"),
            client.verify_mac("acme", "email", b"alice", mac),
        ):
            await refused(call, "TENANT_PENDING_SHRED")
        (hashed,) = await client.generate_mac_batch("acme", [("email", b"alice", 256)])
        assert isinstance(hashed, ItemRefusal)
        assert "TENANT_PENDING_SHRED" == hashed.reason
        (key,) = await client.generate_data_keys("acme", [(32, None, False)])
        assert isinstance(key, ItemRefusal)
        assert "TENANT_PENDING_SHRED" == key.reason
        for batch in (client.encrypt_batch, client.decrypt_batch):
            (item,) = await batch("acme", [(sealed, CONTEXT)])
            assert isinstance(item, ItemRefusal)
            assert "TENANT_PENDING_SHRED" == item.reason
        assert signed.key_id == (await client.sign_span("acme", SPAN)).key_id
        assert (await client.verify_span("acme", SPAN, signed.signature, signed.key_id)).valid
        assert (await client.get_public_keys("acme")).keys
        assert (await client.encrypt("globex", b"secret")).ciphertext_blob
        status = orjson.loads((await on.admin.GetStatus(pb.GetStatusRequest())).json)
        assert {"pending": 1, "failing": 0} == status["shredding"]
        async with aiohttp.ClientSession() as session, session.get(f"http://{on.ops_address}/q/metrics") as metrics:
            assert "\nkms_shreddings_pending 1.0" in await metrics.text()
        assert "OPEN" == (await on.shred(cancel=True)).state
        assert b"secret" == (await client.decrypt("acme", sealed, CONTEXT)).plaintext


async def test_due_tenant_is_destroyed_at_the_start_and_its_bytes_are_gone(tmp_path: Path) -> None:
    """From the raw file too; others stay. A new branch key does not open what was sealed under the old one."""
    async with pod(tmp_path, BRANCH_KEY) as on:
        sealed = (await on.client.encrypt("acme", b"secret", CONTEXT)).ciphertext_blob
        other = (await on.client.encrypt("globex", b"secret", CONTEXT)).ciphertext_blob
        assert (await on.admin.RotateKeys(pb.RotateKeysRequest(tenant_id="acme"))).rotated
        await on.client.encrypt("acme", b"secret", CONTEXT)
    with closing(sqlite3.connect(tmp_path / DATABASE_FILE)) as database:
        wrapped = dict(database.execute("SELECT enc, branch_key_id FROM branch_keys").fetchall())
    assert 7 == len(wrapped)
    async with open_sqlite(tmp_path / DATABASE_FILE) as store:
        assert await store.set_shredding("acme", None, PAST)
    async with pod(tmp_path, BRANCH_KEY) as on:
        await until_shredded(on)
        files = (tmp_path / DATABASE_FILE).read_bytes()
        assert [DATABASE_FILE] == [name for name in os.listdir(tmp_path) if name.startswith(DATABASE_FILE)]
        assert {("acme", False), ("globex", True)} == {(tenant, enc in files) for enc, tenant in wrapped.items()}
        await refused(on.client.encrypt("acme", b"secret", CONTEXT), "TENANT_SHREDDED")
        await refused(on.client.decrypt("acme", sealed, CONTEXT), "TENANT_SHREDDED")
        await refused(on.client.re_encrypt("acme", sealed, CONTEXT), "TENANT_SHREDDED")
        assert "OPEN" == (await on.shred(recreate=True)).state
        with pytest.raises(InvalidRequest):
            await on.client.decrypt("acme", sealed, CONTEXT)
        anew = (await on.client.encrypt("acme", b"anew", CONTEXT)).ciphertext_blob
        assert b"anew" == (await on.client.decrypt("acme", anew, CONTEXT)).plaintext
        assert b"secret" == (await on.client.decrypt("globex", other, CONTEXT)).plaintext


@asynccontextmanager
async def tables(moto: MotoServer) -> AsyncIterator[dict[str, str]]:
    """Make two tables, and give the settings of daemons on them."""
    names = [f"{kind}-{secrets.token_hex(8)}" for kind in ("keys", "branch-keys")]
    async for _ in create_table(names[0], region=REGION, endpoint=moto.url):
        pass
    async for _ in create_table(names[1], region=REGION, endpoint=moto.url, kind=BRANCH_KEYS):
        pass
    yield (
        aws(moto.url, moto.create_key())
        | BRANCH_KEY
        | {
            "kms_store": "dynamodb",
            "kms_store_table": names[0],
            "kms_branch_keys_table": names[1],
            "kms_store_endpoint": moto.url,
            "kms_cache_version_check_seconds": "1",
        }
    )


async def test_shred_under_load_reaches_every_daemon_and_no_other_tenant(tmp_path: Path, moto: MotoServer) -> None:
    """A call that begins later than the bound opens nothing on either daemon; other tenants' calls all succeed."""
    async with (
        tables(moto) as values,
        pod(tmp_path / "one", values) as one,
        pod(tmp_path / "two", values) as two,
    ):
        sealed = {
            tenant: (await one.client.encrypt(tenant, b"secret", CONTEXT)).ciphertext_blob
            for tenant in ("acme", "globex")
        }
        opened: list[float] = []
        warm, done = asyncio.Event(), asyncio.Event()

        async def until_refused(client: AsyncKmsClient) -> str:
            while True:
                began = time.monotonic()
                try:
                    await client.decrypt("acme", sealed["acme"], CONTEXT)
                except KmsClientError as error:
                    return error.reason
                opened.append(began)
                if len(opened) == 20:
                    warm.set()

        async def undisturbed(client: AsyncKmsClient) -> int:
            calls = 0
            while not done.is_set():
                assert b"secret" == (await client.decrypt("globex", sealed["globex"], CONTEXT)).plaintext
                await client.encrypt("globex", b"secret", {"record": str(calls)})
                calls += 1
            return calls

        others = [asyncio.create_task(undisturbed(each.client)) for each in (one, two)]
        loads = [asyncio.create_task(until_refused(each.client)) for each in (one, two) for _ in range(3)]
        await warm.wait()
        assert "PENDING_SHRED" == (await one.shred()).state
        asked = time.monotonic()
        assert {"TENANT_PENDING_SHRED"} == set(await asyncio.gather(*loads))
        for each in (one, two):
            await refused(each.client.decrypt("acme", sealed["acme"], CONTEXT), "TENANT_PENDING_SHRED")
        done.set()
        assert all(await asyncio.gather(*others))
        assert max(opened) <= asked + 1.0  # kms.cache.version-check-seconds


async def test_kill_in_the_middle_of_the_destruction_loses_nothing_of_it(tmp_path: Path, moto: MotoServer) -> None:
    """The next start completes it: no row is left, and the tenant was never open meanwhile."""
    async with tables(moto) as values:
        keys, branch_keys = values["kms_store_table"], values["kms_branch_keys_table"]
        left: list[int] = []

        async def count() -> bool:
            left.append(1)
            return False

        async with (
            open_dynamodb(keys, region=REGION, endpoint=moto.url) as store,
            open_branch_keys(branch_keys, region=REGION, endpoint=moto.url) as branch_store,
        ):
            assert await branch_store.create(rows(), row("acme", BEACON))
            assert await store.set_shredding("acme", None, PAST)
            with aws_proxy(moto.url) as proxy:
                proxy.judge = lambda action: (
                    "stall" if action == "DeleteItem" and proxy.calls["DeleteItem"] > 1 else "pass"
                )
                given = {**values, "kms_store_endpoint": proxy.url, "kms_data_dir": str(tmp_path / "killed")}
                environ = {name.upper(): value for name, value in given.items()}
                with spawned(environ={**environ, "KMS_SERVER_LISTEN": "127.0.0.1:0"}) as daemon:
                    while proxy.calls["DeleteItem"] < 2:  # noqa: ASYNC110  # the proxy counts in a thread
                        await asyncio.sleep(0.02)
                    daemon.process.kill()
                    daemon.process.wait()
            state = (await store.head("acme")).shredding()
            assert state is not None
            assert "destroying" == state.status
            await branch_store.destroy("acme", count)
            assert left
            async with pod(tmp_path / "next", values) as on:
                await until_shredded(on)
                await refused(on.client.encrypt("acme", b"secret", CONTEXT), "TENANT_SHREDDED")
            left.clear()
            await branch_store.destroy("acme", count)
            assert not left


async def test_command_asks_for_the_tenant_and_shows_what_becomes_of_it(tmp_path: Path) -> None:
    """On a terminal; elsewhere it wants --yes. The audit trail has who asked for what, and until when."""
    trail = tmp_path / "audit.jsonl"
    async with pod(tmp_path / "data", BRANCH_KEY | {"kms_audit_file": str(trail)}) as on:
        code, text = await on.command("shred", "acme")
        assert (2, True) == (code, "--yes" in text)
        wrong = await asyncio.to_thread(typed, on.data_dir, "acmE")
        assert "nothing was done" in wrong
        assert "OPEN" == (await on.shred(cancel=True)).state
        right = await asyncio.to_thread(typed, on.data_dir, "acme")
        assert "acme is PENDING SHRED" in right
        assert "shredding     1 pending\n" in (await on.command("status"))[1]
        code, text = await on.command("shred", "acme", "--yes")
        assert (0, True, True) == (code, "unrecoverable after  20" in text, "not destroyed:" in text)
        with pytest.raises(grpc.aio.AioRpcError, match="not shredded yet"):
            await on.shred(recreate=True)
        with pytest.raises(grpc.aio.AioRpcError, match="not both"):
            await on.shred(cancel=True, recreate=True)
        assert (0, "acme is open: it is encrypted for\n") == await on.command("shred", "acme", "--cancel")
    lines = [orjson.loads(line) for line in trail.read_bytes().splitlines()]
    shown = [(line["operation"], line["result"], "unrecoverableAfter" in line) for line in lines if line["tenant"]]
    assert ("RequestShredding", "OK", True) in shown
    assert ("ShredTenant", "OK", True) in shown
    assert ("ShredTenant", "TENANT_PENDING_SHRED", False) in shown
    assert ("CancelShredding", "OK", False) in shown


def typed(data_dir: Path, answer: str) -> str:
    """Run `betrace-kms shred acme` on a terminal, and return what it shows when this is typed."""
    leader, follower = pty.openpty()
    with os.fdopen(leader, "r+b", buffering=0) as terminal:
        process = subprocess.Popen(
            [str(COMMAND), "shred", "acme", "--admin-addr", f"unix:{data_dir}/admin.sock"],
            stdin=follower,
            stdout=follower,
            stderr=follower,
        )
        os.close(follower)
        terminal.write(f"{answer}\n".encode())
        shown = b""
        try:
            while chunk := terminal.read(65536):
                shown += chunk
        except OSError:  # Linux says EIO when the last writer has closed
            pass
        process.wait(timeout=30)
    return shown.decode()
