"""EncryptBatch and DecryptBatch over a real connection."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from betrace_kms_client import (
    AsyncKmsClient,
    Ciphertext,
    InvalidRequest,
    ItemRefusal,
    KmsClient,
    KmsClientError,
    Plaintext,
)
from betrace_kms_client.messages import Context
from betrace_kms_envelope import Message

from tests.daemon import running
from tests.integration.test_aws_daemon import aws
from tests.moto_server import MotoServer

Items = list[tuple[bytes, Context | None]]


def items_of(count: int, contexts: int = 3) -> Items:
    """Return payloads that differ, under so many contexts in turn."""
    return [(b"payload %d" % number, {"field": str(number % contexts)}) for number in range(count)]


def sealed(items: Items, results: list[Ciphertext | ItemRefusal]) -> Items:
    """Return what DecryptBatch takes."""
    blobs = [result.ciphertext_blob for result in results if isinstance(result, Ciphertext)]
    return [(blob, context) for blob, (_, context) in zip(blobs, items, strict=True)]


def opened(results: list[Plaintext | ItemRefusal]) -> list[bytes | ItemRefusal]:
    """Return the plaintexts, and the refusals between them."""
    return [result.plaintext if isinstance(result, Plaintext) else result for result in results]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncKmsClient]:
    """A client of a daemon with the local provider."""
    async with running(tmp_path) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        yield client


@pytest.mark.parametrize("count", [1, 2, 1000])
async def test_every_item_opens_in_order(client: AsyncKmsClient, count: int) -> None:
    """As a batch and alone; all messages differ, and those of one context share their data key."""
    items = items_of(count)
    batch = sealed(items, await client.encrypt_batch("acme", items))
    plaintexts: list[bytes | ItemRefusal] = [payload for payload, _ in items]
    assert plaintexts == opened(await client.decrypt_batch("acme", batch))
    assert items[-1][0] == (await client.decrypt("acme", *batch[-1])).plaintext
    assert count == len({blob for blob, _ in batch})


async def test_a_batch_opens_what_single_calls_gave(client: AsyncKmsClient) -> None:
    """A message of Encrypt, a key of GenerateDataKey, and an empty payload."""
    message = await client.encrypt("acme", b"alone", {"a": "b"})
    key = await client.generate_data_key("acme", 32, {"a": "b"})
    (empty,) = await client.encrypt_batch("acme", [(b"", None)])
    assert isinstance(empty, Ciphertext)
    batch: Items = [
        (key.ciphertext_blob, {"a": "b"}),
        (message.ciphertext_blob, {"a": "b"}),
        (empty.ciphertext_blob, None),
    ]
    results = await client.decrypt_batch("acme", batch)
    assert [key.plaintext, b"alone", b""] == opened(results)
    assert {key.key_id} == {result.key_id for result in results if isinstance(result, Plaintext)}


async def test_a_bad_item_is_refused_as_alone(client: AsyncKmsClient) -> None:
    """Its status, text and reason are those of the single call; its neighbours do not suffer."""
    good = items_of(2, 1)
    (first, context), (second, _) = sealed(good, await client.encrypt_batch("acme", good))
    bad: Items = [
        (b"", context),
        (first, {"field": "another"}),
        (first, {"tenantId": "rival"}),
        (first[:-1] + bytes([first[-1] ^ 1]), context),
        (first[:50], context),
        (b"\x01\x80 version 1", context),
        (b"no ciphertext", context),
    ]
    results = await client.decrypt_batch("acme", [(first, context), *bad, (second, context)])
    assert [b"payload 0", b"payload 1"] == opened([results[0], results[-1]])
    for item, result in zip(bad, results[1:-1], strict=True):
        with pytest.raises(KmsClientError) as alone:
            await client.decrypt("acme", *item)
        assert ItemRefusal("INVALID_ARGUMENT", alone.value.message, alone.value.reason) == result
    too_large, reserved, fine = await client.encrypt_batch(
        "acme", [(bytes(4 * 1024 * 1024 + 1), None), (b"", {"aws-crypto-x": "y"}), (b"", None)]
    )
    assert isinstance(too_large, ItemRefusal)
    assert "the limit is 4194304" in too_large.message
    assert isinstance(reserved, ItemRefusal)
    assert "may not set tenantId" in reserved.message
    assert isinstance(fine, Ciphertext)


async def test_nothing_of_another_tenant_opens(client: AsyncKmsClient) -> None:
    """Whether or not the tenant's own items are in the batch."""
    item: Items = [(b"secret", None)]
    theirs = sealed(item, await client.encrypt_batch("rival", item))
    ours = sealed(item, await client.encrypt_batch("acme", item))
    results = await client.decrypt_batch("acme", [*ours, *theirs, *ours])
    refusal = results[1]
    assert [b"secret", refusal, b"secret"] == opened(results)
    assert isinstance(refusal, ItemRefusal)
    assert refusal.reason == "CIPHERTEXT_DOES_NOT_OPEN"


@pytest.mark.parametrize(("count", "text"), [(0, "items must be 1 to 1000, not 0"), (1001, "more than 1,000 items")])
async def test_a_batch_has_one_to_a_thousand_items(client: AsyncKmsClient, count: int, text: str) -> None:
    """What concerns the whole batch fails the whole call; a large request is refused before it is parsed."""
    for call in (client.encrypt_batch, client.decrypt_batch):
        with pytest.raises(InvalidRequest, match=text):
            await call("acme", items_of(count))
        with pytest.raises(InvalidRequest, match="tenant_id"):
            await call("!", items_of(1))


async def test_kms_is_asked_once_for_each_context(tmp_path: Path, moto: MotoServer, kms_key: str) -> None:
    """Sealed cold, and opened by a daemon that has just started."""
    settings = aws(moto.url, kms_key)
    items = items_of(200, contexts=20)
    async with running(tmp_path, **settings) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        moto.calls.clear()
        batch = sealed(items, await client.encrypt_batch("acme", items))
        assert 20 == moto.calls["GenerateDataKey"]
    async with running(tmp_path, **settings) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        moto.calls.clear()
        plaintexts: list[bytes | ItemRefusal] = [payload for payload, _ in items]
        assert plaintexts == opened(await client.decrypt_batch("acme", batch))
        assert 20 == moto.calls["Decrypt"]


async def test_a_batch_spends_the_messages_of_a_data_key(tmp_path: Path) -> None:
    """Ten items of one context are under four keys that seal three messages each, and open in one batch."""
    items = items_of(10, contexts=1)
    async with (
        running(tmp_path, kms_cache_encryption_key_max_messages="3") as daemon,
        AsyncKmsClient(daemon.addresses[0]) as client,
    ):
        batch = sealed(items, await client.encrypt_batch("acme", items))
        plaintexts: list[bytes | ItemRefusal] = [payload for payload, _ in items]
        assert plaintexts == opened(await client.decrypt_batch("acme", batch))
    keys = {Message.parse(blob).encrypted_data_keys for blob, _ in batch}
    assert 4 == len(keys)


async def test_items_past_the_budget_are_refused_alone(tmp_path: Path, moto: MotoServer, kms_key: str) -> None:
    """Those that need no call of KMS, or got theirs, are sealed; each of the others says when to try again."""
    settings = aws(moto.url, kms_key) | {"kms_budget_tenant_per_second": "1", "kms_budget_tenant_burst": "5"}
    async with running(tmp_path, **settings) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        results = await client.encrypt_batch("acme", items_of(40, contexts=20))
    refusals = [result for result in results if isinstance(result, ItemRefusal)]
    assert {("RESOURCE_EXHAUSTED", "BUDGET_EXCEEDED")} == {(each.status, each.reason) for each in refusals}
    assert all(each.retry_after for each in refusals)
    assert [isinstance(each, ItemRefusal) for each in results[:20]] == [
        isinstance(each, ItemRefusal) for each in results[20:]
    ]
    assert 10 <= len(results) - len(refusals) <= 16


async def test_line_of_a_batch_counts_its_items(tmp_path: Path) -> None:
    """The audit line has the master key and the number of items."""
    file = tmp_path / "audit.log"
    async with running(tmp_path / "daemon", kms_audit_file=str(file)) as daemon:
        with KmsClient(daemon.addresses[0]) as client:
            results = await asyncio.to_thread(client.encrypt_batch, "acme", items_of(3))
            batch = sealed(items_of(3), results)
            assert 3 == len(opened(await asyncio.to_thread(client.decrypt_batch, "acme", batch)))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    found = {line["operation"]: (line["keyId"], line["items"]) for line in lines if line["items"] > 1}
    (key_id,) = {result.key_id for result in results if isinstance(result, Ciphertext)}
    assert {"EncryptBatch": (key_id, 3), "DecryptBatch": (key_id, 3)} == found
