"""What is left of keys in the memory of a living daemon, once it was told to drop them."""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from betrace.kms.v1 import admin_pb2 as pb
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import AsyncKmsClient
from betrace_kms_envelope import Message
from betrace_kms_server.core.keys import WrappedKey
from betrace_kms_server.core.tenancy import encryption_context, signing_context
from betrace_kms_server.providers.aws.provider import AwsProvider
from betrace_kms_server.providers.local import LocalProvider, load_master_key
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.stores.sqlite.store import open_sqlite

from tests.daemon import Process, spawned
from tests.faults.memory_scan import copies
from tests.integration.test_aws_daemon import aws
from tests.moto_server import REGION, MotoServer

SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")
TRANSPORT_COPIES = 10
"""SECURITY.md: received bytes that the transport has freed and not yet used again, however many keys there were."""
TENANTS = [f"tenant-{number:02}" for number in range(8)]


@pytest.fixture(params=["local", "aws"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Process]:
    """A daemon of each provider whose memory may be read."""
    values = {
        "kms.process.dumpable": "true",
        "kms.data-dir": str(tmp_path / "data"),
        "kms.server.listen": "127.0.0.1:0",
    }
    if request.param == "aws":
        moto: MotoServer = request.getfixturevalue("moto")
        key: str = request.getfixturevalue("kms_key")
        names = {name.replace(".", "_").replace("-", "_"): name for name in AWS_NAMES}
        values |= {names[name]: value for name, value in aws(moto.url, key).items()}
    with spawned(*(part for name, value in values.items() for part in ("--set", f"{name}={value}"))) as process:
        process.wait_for("serving")
        yield process


AWS_NAMES = (
    "betrace.kms.provider",
    "aws.kms.master-key-id",
    "aws.kms.region",
    "aws.kms.endpoint",
    "kms.store.allow-ephemeral",
)


@asynccontextmanager
async def provider_of(request: pytest.FixtureRequest, data_dir: Path) -> AsyncIterator[KeyProvider]:
    """Give a provider of this process that unwraps what the daemon's wrapped."""
    if (data_dir / "local-master.key").exists():
        yield LocalProvider(load_master_key(data_dir / "local-master.key", create=False))
        return
    moto: MotoServer = request.getfixturevalue("moto")
    async with AwsProvider(request.getfixturevalue("kms_key"), region=REGION, endpoint=moto.url) as provider:
        yield provider


async def test_dropped_keys_are_gone_from_memory(
    daemon: Process, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Sealing keys, keys that were handed out, and seeds: found while they are in use, and gone after a lock."""
    pid, data_dir = daemon.process.pid, tmp_path / "data"
    keys: dict[str, bytes] = {}
    async with (
        AsyncKmsClient(daemon.address) as client,
        grpc.aio.insecure_channel(f"unix:{data_dir}/admin.sock") as channel,
        provider_of(request, data_dir) as provider,
    ):
        for tenant in TENANTS:
            await client.sign_span(tenant, SPAN)
            keys[f"handed-out {tenant}"] = (await client.generate_data_key(tenant)).plaintext
            message = Message.parse((await client.encrypt(tenant, b"payload")).ciphertext_blob)
            wrapped = message.encrypted_data_keys[0]
            arn = provider.master_key_arn
            sealing = await provider.unwrap(
                WrappedKey(wrapped.ciphertext, arn), encryption_context(tenant, {}, "sealing")
            )
            keys[f"sealing {tenant}"] = bytes(sealing.raw)
            assert message.is_under(sealing.raw)
        shutil.copy(data_dir / "keystore.db", tmp_path / "copy.db")
        async with open_sqlite(tmp_path / "copy.db") as store:
            for tenant in TENANTS:
                stored = await store.active(tenant)
                assert stored is not None
                seed = await provider.unwrap(stored.wrapped_seed, signing_context(tenant, stored.key_id))
                keys[f"seed {tenant}"] = bytes(seed.raw)
        warm = copies(pid, keys)
        await KmsAdminServiceStub(channel).Lock(pb.LockRequest(reason="memory scan"))
        await asyncio.sleep(0.2)  # what a call holds goes with the call
        locked = copies(pid, keys)
    report(warm, locked)
    assert min(warm["handed-out raw"], warm["sealing raw"], warm["seed raw"]) >= len(TENANTS)
    assert (locked["sealing raw"], locked["seed raw"]) == (0, 0)
    assert sum(number for form, number in locked.items() if form.endswith("base64")) <= TRANSPORT_COPIES
    assert locked["handed-out raw"] <= len(TENANTS)


def report(warm: Counter[str], locked: Counter[str]) -> None:
    """Print the figures of SECURITY.md."""
    print(f"\n{len(TENANTS)} tenants; copies while warm: {dict(sorted(warm.items()))}; locked: {dict(locked)}")
