"""A daemon and the official hierarchical keyring share branch keys: either makes and rotates them, both open all."""

import hmac
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from betrace.kms.v1 import admin_pb2 as pb
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace_kms_client import AsyncKmsClient, Ciphertext, Plaintext
from betrace_kms_envelope import Message
from betrace_kms_server.data_keys.hierarchy import version_of
from betrace_kms_server.stores.dynamodb.creation import create_table

from tests.daemon import running
from tests.interop.hierarchy import OfficialBranchKeys
from tests.interop.sdk import CONTEXTS, REGION, SUITES, TENANT, Combination, Sdk, differing

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

SIZES = (0, 17, 65_537)
MORE = int(os.environ.get("KEYRING_COMBINATIONS", "162"))
"""How many combinations at least, up to 594; `make test-keyring` asks for 500."""
LARGE = {f"field-{number:03}": "größe ☕ " * 4 for number in range(60)}
"""A context of nearly 4 KiB, the limit."""
ROUNDS = 2 * 3 * (1 + len(SUITES))
"""A maker each, a version each, and sealed here once and there in each suite."""


def combinations(number: int) -> list[Combination]:
    """Return what is sealed each way, so that all ways together are a number of combinations at least."""
    found = [Combination(size, context) for size in SIZES for context in CONTEXTS]
    others = (
        Combination(size, context)
        for size in (1, 4096, 4097, 65_536, 131_072, 200_001)
        for context in (LARGE, *CONTEXTS)
    )
    wanted = -(-number // ROUNDS) - len(found)
    return [*found, *islice(others, max(0, wanted))]


COMBINATIONS = combinations(MORE)


@dataclass(frozen=True, slots=True)
class Pod:
    """A daemon with branch keys on the shared table."""

    client: AsyncKmsClient
    admin: Any

    async def seal(self, combination: Combination) -> bytes:
        """Return a message that the daemon sealed."""
        sealed = await self.client.encrypt(TENANT, combination.plaintext, combination.context)
        return sealed.ciphertext_blob

    async def open(self, message: bytes, combination: Combination) -> bytes:
        """Return what the daemon opens."""
        return (await self.client.decrypt(TENANT, message, combination.context)).plaintext


@asynccontextmanager
async def pod(folder: Path, official: OfficialBranchKeys, **others: str) -> AsyncIterator[Pod]:
    """Run a daemon that shares the branch keys of the official library."""
    table = f"keys-{secrets.token_hex(8)}"
    async for _ in create_table(table, region=REGION, endpoint=official.endpoint):
        pass
    settings = {
        "betrace_kms_provider": "aws",
        "aws_kms_master_key_id": official.kms_key,
        "aws_kms_region": REGION,
        "aws_kms_endpoint": official.endpoint,
        "kms_store": "dynamodb",
        "kms_store_table": table,
        "kms_store_endpoint": official.endpoint,
        "kms_encryption_mode": "branch-key",
        "kms_branch_keys_table": official.table,
        "kms_branch_keys_logical_name": official.logical_name,
    }
    async with (
        running(folder, **settings | others) as daemon,
        AsyncKmsClient(daemon.addresses[0]) as client,
        grpc.aio.insecure_channel(f"unix:{folder}/admin.sock") as channel,
    ):
        yield Pod(client, KmsAdminServiceStub(channel))


@pytest.fixture
def official(moto: "MotoServer", kms_key: str) -> OfficialBranchKeys:
    """Give the official library on a new table that it made."""
    found = OfficialBranchKeys(moto.url, kms_key, f"branch-keys-{secrets.token_hex(8)}", "shared-branch-keys")
    found.make_table()
    return found


def version_in(message: bytes) -> str:
    """Return the version of the branch key in a message."""
    (encrypted,) = Message.parse(message).encrypted_data_keys
    return str(version_of(encrypted))


async def exchanged(here: Pod, theirs: Sdk) -> Sequence[Mapping[str, object] | object]:
    """Return which combinations do not open on the other side, both ways, in both suites."""

    async def sealed_here(combination: Combination) -> bytes:
        plaintext, context = theirs.open(await here.seal(combination))
        assert combination.whole_context == context
        return plaintext

    failed = list(await differing(COMBINATIONS, sealed_here))
    for suite in SUITES:

        async def sealed_there(combination: Combination, suite: int = suite) -> bytes:
            message = theirs.seal(combination.plaintext, combination.whole_context, suite=suite)
            return await here.open(message, combination)

        failed += await differing(COMBINATIONS, sealed_there)
    return failed


@pytest.mark.parametrize("maker", ["official", "daemon"])
async def test_both_open_what_the_other_seals_whoever_made_and_rotated(
    tmp_path: Path, official: OfficialBranchKeys, maker: str
) -> None:
    """One branch key, three versions, each made by another side: every message opens on both."""
    one = COMBINATIONS[0]
    messages: list[bytes] = []
    async with pod(tmp_path, official) as here:
        if maker == "official":
            official.create(TENANT, {"department": "admin"})
        else:
            await here.seal(one)
        assert [] == await exchanged(here, official.sdk(TENANT))
        messages.append(await here.seal(one))

        official.rotate(TENANT)
        await here.admin.InvalidateTenant(pb.InvalidateTenantRequest(tenant_id=TENANT))
        messages.append(await here.seal(one))
        assert official.active_key(TENANT)[0] == version_in(messages[-1])
        assert [] == await exchanged(here, official.sdk(TENANT))

        rotated = await here.admin.RotateKeys(pb.RotateKeysRequest(tenant_id=TENANT))
        messages.append(await here.seal(one))
        assert (1, official.active_key(TENANT)[0]) == (rotated.rotated, version_in(messages[-1]))
        assert [] == await exchanged(here, official.sdk(TENANT))

        assert 3 == len(set(map(version_in, messages)))
        for message in messages:
            assert one.plaintext == await here.open(message, one) == official.sdk(TENANT).open(message)[0]


async def test_rotation_of_a_daemon_reaches_the_others(tmp_path: Path, official: OfficialBranchKeys) -> None:
    """A daemon with an empty cache opens every version, and all daemons agree on the newest."""
    one = COMBINATIONS[0]
    async with pod(tmp_path / "one", official) as first, pod(tmp_path / "two", official) as second:
        before = await first.seal(one)
        assert version_in(before) == version_in(await second.seal(one))
        await first.admin.RotateKeys(pb.RotateKeysRequest(all=True))
        after = await first.seal(one)
        assert version_in(before) != version_in(after)
        for message in (before, after):
            assert one.plaintext == await second.open(message, one)


async def test_data_key_mode_opens_messages_of_branch_keys(tmp_path: Path, official: OfficialBranchKeys) -> None:
    """A deployment switches back, and its messages stay readable; the daemon moves them by sealing again."""
    one = COMBINATIONS[0]
    async with pod(tmp_path / "one", official) as here:
        message = await here.seal(one)
    async with pod(tmp_path / "two", official, kms_encryption_mode="data-key") as there:
        assert one.plaintext == await there.open(message, one)
        moved = await there.client.re_encrypt(TENANT, message, one.context, one.context)
        (encrypted,) = Message.parse(moved.ciphertext_blob).encrypted_data_keys
        assert ("aws-kms", one.plaintext) == (encrypted.provider_id, await there.open(moved.ciphertext_blob, one))


async def test_batches_and_files_are_messages_like_others(tmp_path: Path, official: OfficialBranchKeys) -> None:
    """What EncryptBatch and the client's streams seal opens there, and what is sealed there opens with them."""
    theirs = official.sdk(TENANT)
    async with pod(tmp_path, official) as here:
        batch = [(each.plaintext, each.context) for each in COMBINATIONS]
        sealed = await here.client.encrypt_batch(TENANT, batch)
        for item, each in zip(sealed, COMBINATIONS, strict=True):
            assert isinstance(item, Ciphertext)
            assert (each.plaintext, each.whole_context) == theirs.open(item.ciphertext_blob)
        messages = [theirs.seal(each.plaintext, each.whole_context) for each in COMBINATIONS]
        contexts = [each.context for each in COMBINATIONS]
        opened = await here.client.decrypt_batch(TENANT, list(zip(messages, contexts, strict=True)))
        assert [each.plaintext for each in COMBINATIONS] == [
            each.plaintext for each in opened if isinstance(each, Plaintext)
        ]
        for message, each in zip(messages, COMBINATIONS, strict=True):
            stream = here.client.encrypt_stream(TENANT, pieces(each.plaintext), each.context)
            file = b"".join([piece async for piece in stream])
            assert (each.plaintext, each.whole_context) == theirs.open(file)
            back = here.client.decrypt_stream(TENANT, pieces(message), each.context)
            assert each.plaintext == b"".join([piece async for piece in back])


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    """Yield bytes as a caller's stream does, in pieces of an odd size."""
    for at in range(0, len(content), 10_007):
        yield content[at : at + 10_007]


@pytest.mark.parametrize("mode", ["branch-key", "data-key"])
async def test_macs_are_under_the_beacon_key_that_the_official_library_made(
    tmp_path: Path, official: OfficialBranchKeys, mode: str
) -> None:
    """In either mode, as the standard library computes them; the row stays what it was."""
    official.create(TENANT, {"tenantId": TENANT})
    row, beacon_key = official.beacon(TENANT)
    async with pod(tmp_path, official, kms_encryption_mode=mode) as here:
        made = (await here.client.generate_mac(TENANT, "users.email", b"alice")).mac
        assert await here.client.verify_mac(TENANT, "users.email", b"alice", made)
    extracted = hmac.digest(bytes(32), beacon_key, "sha256")
    key = hmac.digest(extracted, b"betrace-kms/mac/v1\x00users.email\x01", "sha256")
    assert hmac.digest(key, b"alice", "sha256") == made
    assert row == official.beacon(TENANT)[0]
