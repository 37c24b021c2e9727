"""GenerateDataKeys over a real connection."""

import asyncio
import json
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from betrace.kms.v1 import key_management_pb2 as pb
from betrace_kms_client import (
    AsyncKmsClient,
    DataKey,
    InvalidRequest,
    ItemRefusal,
    KmsClient,
    KmsClientError,
    ResourceExhausted,
)
from betrace_kms_client.messages import Context

from tests.daemon import running
from tests.integration.test_aws_daemon import aws
from tests.interop.tools import tool
from tests.moto_server import MotoServer

Items = list[tuple[int, Context | None, bool]]
CONTEXT = {"table": "users"}


def keys_of(results: list[DataKey | ItemRefusal]) -> list[DataKey]:
    """Return the keys, of which there must be one for each item."""
    assert all(isinstance(result, DataKey) for result in results)
    return [result for result in results if isinstance(result, DataKey)]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncKmsClient]:
    """A client of a daemon with the local provider."""
    async with running(tmp_path) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        yield client


async def test_keys_are_those_of_single_calls(client: AsyncKmsClient) -> None:
    """Items that are alike get the cached key, fresh ones get one each, in order; each unwraps with its context."""
    cached = await client.generate_data_key("acme", 32, CONTEXT)
    items: Items = [(32, CONTEXT, False), (16, CONTEXT, False), (32, CONTEXT, True), (32, None, False)] * 5
    keys = keys_of(await client.generate_data_keys("acme", items))
    assert {cached} == set(keys[::4])
    assert (1, 5, 1) == tuple(len(set(keys[at::4])) for at in (1, 2, 3))
    assert [32, 16, 32, 32] * 5 == [len(key.plaintext) for key in keys]
    assert keys[3] == await client.generate_data_key("acme", 32)
    for key, (_, context, _) in zip(keys[:4], items, strict=False):
        assert key.plaintext == (await client.decrypt("acme", key.ciphertext_blob, context)).plaintext
        with pytest.raises(InvalidRequest, match="does not open"):
            await client.decrypt("globex", key.ciphertext_blob, context)


async def test_a_bad_item_is_refused_as_alone(client: AsyncKmsClient) -> None:
    """With the text and the reason of the single call; its neighbours get their keys."""
    bad: Items = [(0, None, False), (1025, None, True), (32, {"keyType": "x"}, False), (32, {"": "x"}, False)]
    results = await client.generate_data_keys("acme", [(1, None, False), *bad, (1024, None, True)])
    assert [1, 1024] == [len(key.plaintext) for key in keys_of([results[0], results[-1]])]
    for (size, context, fresh), result in zip(bad, results[1:-1], strict=True):
        with pytest.raises(KmsClientError) as alone:
            await client.generate_data_key("acme", size, context, fresh=fresh)
        assert ItemRefusal("INVALID_ARGUMENT", alone.value.message, alone.value.reason) == result


@pytest.mark.parametrize(("count", "text"), [(0, "items must be 1 to 1000, not 0"), (1001, "items")])
async def test_a_batch_has_one_to_a_thousand_items(client: AsyncKmsClient, count: int, text: str) -> None:
    """What concerns the whole batch fails the whole call."""
    with pytest.raises(InvalidRequest, match=text):
        await client.generate_data_keys("acme", [(32, None, False)] * count)
    with pytest.raises(InvalidRequest, match="tenant_id"):
        await client.generate_data_keys("!", [(32, None, False)])


async def test_the_largest_batch(client: AsyncKmsClient) -> None:
    """A thousand fresh keys of the largest size."""
    keys = keys_of(await client.generate_data_keys("acme", [(1024, CONTEXT, True)] * 1000, timeout=60))
    assert 1000 == len({key.plaintext for key in keys})


async def test_kms_is_asked_once_for_what_is_alike(tmp_path: Path, moto: MotoServer, kms_key: str) -> None:
    """And once for each fresh key; each unwraps by AWS KMS."""
    items: Items = [(32, {"field": str(number % 3)}, number >= 30) for number in range(35)]
    async with running(tmp_path, **aws(moto.url, kms_key)) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        moto.calls.clear()
        keys = keys_of(await client.generate_data_keys("acme", items))
        assert 3 + 5 == moto.calls["GenerateDataKey"]
        assert 3 + 5 == len(set(keys))
        results = await client.decrypt_batch(
            "acme", [(key.ciphertext_blob, context) for key, (_, context, _) in zip(keys, items, strict=True)]
        )
        assert [key.plaintext for key in keys] == [getattr(result, "plaintext", result) for result in results]


@pytest.mark.parametrize("limit", [1, 3])
async def test_a_batch_spends_the_uses_of_a_data_key(tmp_path: Path, limit: int) -> None:
    """No key is handed out more often than kms.cache.data-key-max-uses allows."""
    async with (
        running(tmp_path, kms_cache_data_key_max_uses=str(limit)) as daemon,
        AsyncKmsClient(daemon.addresses[0]) as client,
    ):
        keys = keys_of(await client.generate_data_keys("acme", [(32, None, False)] * 20))
        assert limit == max(Counter(keys).values())


async def test_items_past_the_budget_are_refused_alone(tmp_path: Path, moto: MotoServer, kms_key: str) -> None:
    """Each says when to try again, and those that need no call of KMS get their key."""
    settings = aws(moto.url, kms_key) | {"kms_budget_tenant_per_second": "1", "kms_budget_tenant_burst": "5"}
    async with running(tmp_path, **settings) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        cached = await client.generate_data_key("acme", 32)
        results = await client.generate_data_keys("acme", [(32, None, True)] * 20 + [(32, None, False)] * 20)
    refusals = [result for result in results if isinstance(result, ItemRefusal)]
    assert {("RESOURCE_EXHAUSTED", "BUDGET_EXCEEDED")} == {(each.status, each.reason) for each in refusals}
    assert all(each.retry_after for each in refusals)
    assert {cached} == set(results[20:])
    assert 10 <= len(refusals) <= 16


async def test_quota_counts_items(tmp_path: Path) -> None:
    """A batch of 100 keys costs as much as 100 calls."""
    values = {"kms_quota_tenant_per_second": "1", "kms_quota_tenant_burst": "100"}
    async with running(tmp_path, **values) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        await client.generate_data_keys("acme", [(32, None, False)] * 100)
        with pytest.raises(ResourceExhausted):
            await client.generate_data_key("acme")
        assert await client.generate_data_key("globex")


async def test_line_of_a_batch_counts_its_items(tmp_path: Path) -> None:
    """The audit line has the master key, the number of items, and no key."""
    file = tmp_path / "audit.log"
    async with running(tmp_path / "daemon", kms_audit_file=str(file)) as daemon:
        with KmsClient(daemon.addresses[0]) as client:
            keys = keys_of(await asyncio.to_thread(client.generate_data_keys, "acme", [(32, CONTEXT, True)] * 3))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    (found,) = [(line["keyId"], line["items"]) for line in lines if line["operation"] == "GenerateDataKeys"]
    assert (keys[0].key_id, 3) == found
    assert keys[0].plaintext.hex() not in file.read_text()


async def test_grpcurl_finds_and_calls_it(tmp_path: Path) -> None:
    """By reflection, as any client does that has no stubs; a key spec is as good as a length."""
    async with running(tmp_path) as daemon:
        request = '{"tenant_id": "acme", "items": [{"key_spec": "AES_128", "encryption_context": {"a": "b"}}, {}]}'
        method = f"{pb.DESCRIPTOR.services_by_name['KeyManagementService'].full_name}/GenerateDataKeys"
        command = [tool("grpcurl"), "-plaintext", "-d", request, daemon.addresses[0], method]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60, check=True)
        key, refused = json.loads(done.stdout)["results"]
    assert {"plaintext", "ciphertext_blob", "key_id"} == set(key)
    assert "INVALID_REQUEST" == refused["status"]["reason"]
