"""The DynamoDB store beyond the contract: lost answers, contention, refusals of AWS, and tables that lose keys."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import aioboto3
import pytest
from betrace_kms_server.core.call_slots import POOL_SIZE
from betrace_kms_server.core.errors import KeyDamaged, StoreUnavailable
from betrace_kms_server.core.keys import StoredKey, WrappedKey
from betrace_kms_server.stores.dynamodb import client as bounds
from betrace_kms_server.stores.dynamodb.client import dynamodb_client
from betrace_kms_server.stores.dynamodb.creation import create_table
from betrace_kms_server.stores.dynamodb.errors import PERMISSIONS
from betrace_kms_server.stores.dynamodb.items import head_of, item_of, row_of
from betrace_kms_server.stores.dynamodb.store import DynamoStore, open_dynamodb
from botocore.awsrequest import AWSResponse

from tests.aws_proxy import AwsProxy, Verdict, aws_proxy
from tests.contract.samples import ARN, stored_key
from tests.moto_server import ACCOUNT, REGION, MotoServer

OTHER_ARN = ARN.replace("us-east-1", "eu-west-1")
NOW = 1_700_000_900_000
RETRIES = pytest.mark.parametrize("attempts", [1, 3], ids=["no retries", "retries"])


@pytest.fixture
async def table(moto: MotoServer) -> str:
    """Make an empty table that no other test uses, and return its name."""
    name = f"keys-{secrets.token_hex(8)}"
    async for _ in create_table(name, region=REGION, endpoint=moto.url):
        pass
    return name


@pytest.fixture
async def store(moto: MotoServer, table: str) -> AsyncIterator[DynamoStore]:
    """Give the store in that table."""
    async with open_dynamodb(table, region=REGION, endpoint=moto.url) as store:
        yield store


@pytest.fixture
async def aws(moto: MotoServer) -> AsyncIterator[Any]:
    """Give a client of DynamoDB, to look into a table and to change what is there."""
    async with aioboto3.Session().client("dynamodb", region_name=REGION, endpoint_url=moto.url) as client:
        yield client


@pytest.fixture
def proxy(moto: MotoServer) -> Iterator[AwsProxy]:
    """Give a proxy before moto that fails when it is told to."""
    with aws_proxy(moto.url) as proxy:
        yield proxy


Open = Callable[[int], AbstractAsyncContextManager[DynamoStore]]


@pytest.fixture
def open_proxied(proxy: AwsProxy, table: str) -> Open:
    """Give what opens the store through the proxy, with so many attempts of the SDK for each call."""

    def opened(attempts: int) -> AbstractAsyncContextManager[DynamoStore]:
        factory = partial(dynamodb_client, attempts=attempts)
        return open_dynamodb(table, region=REGION, endpoint=proxy.url, client_factory=factory)

    return opened


def once(verdict: Verdict, action: str = "TransactWriteItems") -> Callable[[str], Verdict]:
    """Return a judge that gives a verdict on the first call of an action, and lets all others pass."""
    left = [verdict]
    return lambda asked: left.pop() if asked == action and left else "pass"


def successor(create_time_ms: int = NOW) -> StoredKey:
    """Return a key that may follow another."""
    return stored_key(create_time_ms=create_time_ms)


def rotated(key: StoredKey, time_ms: int = NOW) -> StoredKey:
    """Return a key as it is after its rotation."""
    return replace(key, status="rotated", rotate_time_ms=time_ms)


def revoked(key: StoredKey, time_ms: int = NOW) -> StoredKey:
    """Return a key as it is after its revocation."""
    return replace(key, status="revoked", revoke_time_ms=time_ms)


# Answers that are lost. moto does not know ClientRequestToken, so a retry of the SDK meets its own first try.


@RETRIES
async def test_key_whose_creation_was_not_answered_is_there_once(
    open_proxied: Open, proxy: AwsProxy, attempts: int
) -> None:
    """A creation that DynamoDB committed and whose answer was dropped is recognised: no duplicate, no lost key."""
    key = stored_key()
    async with open_proxied(attempts) as store:
        proxy.judge = once("drop-answer")
        assert key == await store.create(key)
        assert ([key], key) == (await store.all("acme"), await store.active("acme"))
    assert attempts == 1 or proxy.calls["TransactWriteItems"] == 2


@RETRIES
async def test_rotation_that_was_not_answered_is_done_once(open_proxied: Open, proxy: AwsProxy, attempts: int) -> None:
    """So is a rotation: the successor is active, the former key rotated, and the generation one higher."""
    key, following = stored_key(), successor()
    async with open_proxied(attempts) as store:
        await store.create(key)
        proxy.judge = once("drop-answer")
        assert await store.rotate(key, following) is True
        assert [rotated(key), following] == await store.all("acme")
        assert (following, 1) == (await store.active("acme"), await store.generation("acme"))


@RETRIES
async def test_revocation_that_was_not_answered_is_done_once(
    open_proxied: Open, proxy: AwsProxy, attempts: int
) -> None:
    """So is the revocation of an active key, which brings its successor."""
    key, following = stored_key(), successor()
    async with open_proxied(attempts) as store:
        await store.create(key)
        proxy.judge = once("drop-answer")
        assert await store.revoke(key, NOW, following) is True
        assert [revoked(key), following] == await store.all("acme")
        assert (following, 1) == (await store.active("acme"), await store.generation("acme"))


@RETRIES
async def test_revocation_of_a_former_key_that_was_not_answered_is_done_once(
    open_proxied: Open, proxy: AwsProxy, attempts: int
) -> None:
    """So is the revocation of a key that is not active, which brings none."""
    former = stored_key(status="rotated", rotate_time_ms=NOW)
    async with open_proxied(attempts) as store:
        await store.add(former)
        proxy.judge = once("drop-answer")
        assert await store.revoke(former, NOW, None) is True
        assert ([revoked(former)], 1) == (await store.all("acme"), await store.generation("acme"))


@RETRIES
async def test_key_whose_return_was_not_answered_is_told_as_put_back(
    open_proxied: Open, proxy: AwsProxy, attempts: int
) -> None:
    """An import that puts a key back says so, though its answer was dropped."""
    key = stored_key()
    async with open_proxied(attempts) as store:
        proxy.judge = once("drop-answer")
        assert await store.add(key) is True
        assert [key] == await store.all("acme")


@pytest.mark.parametrize("verdict", ["drop", "drop-answer"])
async def test_key_that_was_there_is_not_told_as_put_back(
    open_proxied: Open, proxy: AwsProxy, verdict: Verdict
) -> None:
    """An import tells a key that was there from one that its own first try put back, though they are equal."""
    key = stored_key()
    async with open_proxied(3) as store:
        await store.add(key)
        proxy.judge = once(verdict)
        assert False is await store.add(key)
        assert [key] == await store.all("acme")


async def test_write_that_is_never_answered_is_looked_for(open_proxied: Open, proxy: AwsProxy) -> None:
    """Not even a network that drops every answer to a write loses a key or makes a second one."""
    key, following = stored_key(), successor()
    async with open_proxied(3) as store:
        proxy.always("drop-answer", "TransactWriteItems")
        assert key == await store.create(key)
        assert await store.rotate(key, following) is True
        assert [rotated(key), following] == await store.all("acme")


async def test_write_that_stalls_is_looked_for(
    open_proxied: Open, proxy: AwsProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that gets no answer leaves time to look for what it did."""
    key, following = stored_key(), successor()
    async with open_proxied(3) as store:
        await store.create(key)
        await store.rotate(key, following)
        monkeypatch.setattr(bounds, "WRITE_SECONDS", 0.2)
        proxy.always("stall", "TransactWriteItems")
        assert following == await store.create(key)
        assert await store.rotate(key, following) is True


@RETRIES
async def test_key_of_another_that_won_is_adopted(open_proxied: Open, proxy: AwsProxy, attempts: int) -> None:
    """Who lost does not take the winner's key for its own, whether or not it got an answer."""
    first, second = stored_key(), stored_key()
    async with open_proxied(attempts) as store:
        await store.create(first)
        proxy.judge = once("drop-answer")
        assert first == await store.create(second)
        assert [first] == await store.all("acme")


@pytest.mark.parametrize("verdict", ["drop", "drop-answer"])
async def test_rotation_that_lost_is_not_taken_for_done(open_proxied: Open, proxy: AwsProxy, verdict: Verdict) -> None:
    """A rotation that came too late is False, however its first try went."""
    key, theirs = stored_key(), successor()
    async with open_proxied(3) as store:
        await store.create(key)
        await store.rotate(key, theirs)
        proxy.judge = once(verdict)
        assert False is await store.rotate(key, successor())
        assert [rotated(key), theirs] == await store.all("acme")


async def test_write_that_did_not_arrive_is_not_taken_for_done(open_proxied: Open, proxy: AwsProxy) -> None:
    """Without an answer and without a key there is none, and the caller is told so."""
    async with open_proxied(1) as store:
        proxy.judge = once("drop")
        with pytest.raises(StoreUnavailable, match="no answer from DynamoDB to dynamodb:TransactWriteItems"):
            await store.create(stored_key())
        assert (None, []) == (await store.active("acme"), await store.all("acme"))


@RETRIES
async def test_generation_that_was_not_answered_is_higher(open_proxied: Open, proxy: AwsProxy, attempts: int) -> None:
    """A rise whose answer was dropped is there: once or, by a retry, twice, which does no harm."""
    async with open_proxied(attempts) as store:
        proxy.judge = once("drop-answer", "UpdateItem")
        if attempts == 1:
            with pytest.raises(StoreUnavailable):
                await store.raise_generation("acme")
        else:
            await store.raise_generation("acme")
        assert 1 <= await store.generation("acme") <= attempts


@RETRIES
async def test_wrapping_that_was_not_answered_is_done(open_proxied: Open, proxy: AwsProxy, attempts: int) -> None:
    """A retry of a key's new wrapping meets its own first try, and leaves it."""
    key = stored_key()
    anew = replace(key, wrapped_seed=WrappedKey(b"anew", OTHER_ARN))
    async with open_proxied(attempts) as store:
        await store.create(key)
        proxy.judge = once("drop-answer", "UpdateItem")
        if attempts == 1:
            with pytest.raises(StoreUnavailable):
                await store.replace(key, anew)
        else:
            await store.replace(key, anew)
        assert anew == await store.active("acme")


# Contention


def refuse(
    store: DynamoStore, times: int, code: str, reasons: list[str], action: str = "TransactWriteItems"
) -> Counter[str]:
    """Let DynamoDB refuse the next calls of an action; return what counts its calls."""
    calls: Counter[str] = Counter()

    def answer(**_: Any) -> Any:
        calls[action] += 1
        if calls[action] > times:
            return None
        error = {"Code": code, "Message": "Transaction cancelled, please refer cancellation reasons"}
        return AWSResponse("", 400, {}, None), {
            "Error": error,
            "CancellationReasons": [{"Code": reason} for reason in reasons],
        }

    store._client.meta.events.register(f"before-call.dynamodb.{action}", answer)
    return calls


@pytest.mark.parametrize("reason", ["TransactionConflict", "ProvisionedThroughputExceeded", "ThrottlingError"])
async def test_write_that_met_another_is_done_again(store: DynamoStore, reason: str) -> None:
    """Contention says nothing about who won: the write is made again, and told as done."""
    key, following = stored_key(), successor()
    await store.create(key)
    calls = refuse(store, 3, "TransactionCanceledException", ["None", reason, "None"])
    assert await store.rotate(key, following) is True
    assert (4, following) == (calls["TransactWriteItems"], await store.active("acme"))


async def test_refused_condition_is_not_tried_again(store: DynamoStore) -> None:
    """Where a condition does not hold, contention beside it changes nothing."""
    await store.create(stored_key())
    calls = refuse(store, 1, "TransactionCanceledException", ["ConditionalCheckFailed", "TransactionConflict"])
    assert False is await store.rotate(stored_key(), successor())
    assert 1 == calls["TransactWriteItems"]


@pytest.mark.parametrize("write", ["raise_generation", "replace"])
async def test_single_write_that_met_a_transaction_is_done_again(store: DynamoStore, write: str) -> None:
    """So is a write of one item that a transaction stood in the way of."""
    key = stored_key()
    await store.create(key)
    calls = refuse(store, 2, "TransactionConflictException", [], "UpdateItem")
    if write == "replace":
        await store.replace(key, key)
    else:
        await store.raise_generation("acme")
    assert 3 == calls["UpdateItem"]


async def test_endless_contention_ends(store: DynamoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that always meets another ends by its bound, and the text says what it was."""
    monkeypatch.setattr(bounds, "WRITE_SECONDS", 0.2)
    refuse(store, 10**6, "TransactionCanceledException", ["TransactionConflict"])
    with pytest.raises(StoreUnavailable, match="too many write to the same tenant"):
        await store.create(stored_key())


async def test_four_daemons_agree(moto: MotoServer, table: str) -> None:
    """Four daemons with clients of their own that create and rotate the same tenants at once agree on all of them."""
    tenants = [f"tenant-{number}" for number in range(6)]
    async with AsyncExitStack() as resources:
        stores = [
            await resources.enter_async_context(open_dynamodb(table, region=REGION, endpoint=moto.url))
            for _ in range(4)
        ]
        created = await asyncio.gather(*(store.create(stored_key(tenant)) for store in stores for tenant in tenants))
        firsts = {key.tenant_id: key for key in created}
        assert set(firsts.values()) == set(created)
        followings = [(store, stored_key(tenant, create_time_ms=NOW)) for store in stores for tenant in tenants]
        won = await asyncio.gather(*(store.rotate(firsts[key.tenant_id], key) for store, key in followings))
        winners = {key.tenant_id: key for (_, key), done in zip(followings, won, strict=True) if done}
        assert (len(tenants), set(tenants)) == (sum(won), set(winners))
        for store in stores:
            for tenant in tenants:
                assert [rotated(firsts[tenant]), winners[tenant]] == await store.all(tenant)
                assert (winners[tenant], 1) == (await store.active(tenant), await store.generation(tenant))


# What AWS and the network refuse


async def consume(found: AsyncIterator[Any]) -> None:
    """Read all of it."""
    async for _ in found:
        pass


CALLS: Mapping[str, tuple[str, Callable[[DynamoStore], Awaitable[object]]]] = {
    "active": ("GetItem", lambda store: store.active("acme")),
    "get": ("TransactGetItems", lambda store: store.get("acme", "0" * 32)),
    "all": ("Query", lambda store: store.all("acme")),
    "create": ("TransactWriteItems", lambda store: store.create(stored_key())),
    "rotate": ("TransactWriteItems", lambda store: store.rotate(stored_key(), successor())),
    "revoke": ("TransactWriteItems", lambda store: store.revoke(stored_key(), NOW, successor())),
    "generation": ("GetItem", lambda store: store.generation("acme")),
    "raise_generation": ("UpdateItem", lambda store: store.raise_generation("acme")),
    "created_before": ("Scan", lambda store: consume(store.created_before(NOW))),
    "rows": ("Scan", lambda store: consume(store.rows())),
    "add": ("TransactWriteItems", lambda store: store.add(stored_key())),
    "replace": ("UpdateItem", lambda store: store.replace(stored_key(), stored_key())),
    "wrapped_by_other_keys": ("Scan", lambda store: store.wrapped_by_other_keys(ARN)),
    "wrapped_by": ("Scan", lambda store: store.wrapped_by()),
    "check": ("TransactWriteItems", lambda store: store.check()),
}
"""For each method of the store, the action that it needs, and a call."""


async def failures(store: DynamoStore, before: Callable[[str], None] = lambda action: None) -> Mapping[str, str]:
    """Call every method, after telling `before` which action it needs; return what each said."""
    said = {}
    for name, (action, call) in CALLS.items():
        before(action)
        with pytest.raises(StoreUnavailable) as raised:
            await call(store)
        said[name] = raised.value.message
    return said


async def test_every_denial_names_what_is_missing(open_proxied: Open, proxy: AwsProxy, table: str) -> None:
    """The permission and the table's ARN are what goes into the policy."""
    async with open_proxied(3) as store:
        said = await failures(store, lambda action: proxy.always("deny", action))
    needed = {name: PERMISSIONS.get(action, f"dynamodb:{action}") for name, (action, _) in CALLS.items()}
    arn = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{table}"
    assert {name: f"DynamoDB denies {each} on {arn}" for name, each in needed.items()} == {
        name: text.partition(": allow it to the daemon's role")[0] for name, text in said.items()
    }


async def test_every_throttling_says_so(open_proxied: Open, proxy: AwsProxy) -> None:
    """A call that DynamoDB throttles to the end may be made again later."""
    async with open_proxied(1) as store:
        proxy.always("throttle", *{action for action, _ in CALLS.values()})
        said = await failures(store)
    assert set() == {name for name, text in said.items() if "DynamoDB throttles dynamodb:" not in text}


async def test_every_call_that_stalls_ends(
    open_proxied: Open, proxy: AwsProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call outlives its bound, its retries and the read after a write included."""
    async with open_proxied(3) as store:
        monkeypatch.setattr(bounds, "CALL_SECONDS", 0.3)
        monkeypatch.setattr(bounds, "WRITE_SECONDS", 0.2)
        proxy.always("stall")
        began = asyncio.get_running_loop().time()
        said = await failures(store)
        took = asyncio.get_running_loop().time() - began
    assert set() == {name for name, text in said.items() if "no answer from DynamoDB to dynamodb:" not in text}
    assert took < len(CALLS) * 0.3 + 2


async def test_wait_for_a_connection_ends(open_proxied: Open, proxy: AwsProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that waits for one of the pool's connections is bounded by the same time."""
    async with open_proxied(1) as store:
        monkeypatch.setattr(bounds, "CALL_SECONDS", 0.5)
        proxy.always("stall")
        calls = [store.generation("acme") for _ in range(POOL_SIZE + 5)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {StoreUnavailable} == {type(outcome) for outcome in outcomes}


def test_bounds_are_those_of_a_call() -> None:
    """A call takes five seconds at most, and a write leaves time to look for what it did."""
    assert (5.0, True) == (bounds.CALL_SECONDS, 1.0 <= bounds.CALL_SECONDS - bounds.WRITE_SECONDS)


async def test_table_that_went_away_is_told(store: DynamoStore, aws: Any, table: str) -> None:
    """A table that is deleted under a daemon is to be restored; nothing is made in its place."""
    await aws.update_table(TableName=table, DeletionProtectionEnabled=False)
    await aws.delete_table(TableName=table)
    said = await failures(store)
    assert set() == {name for name, text in said.items() if "is not there" not in text or "restore it" not in text}


# Items


@pytest.mark.parametrize(
    "change",
    [
        "SET wrapped_seed = :bytes",
        "SET public_key = :bytes",
        "SET checksum = :bytes",
        "SET wrapped_seed = :text",
        "SET provider = :text",
        "SET master_key_arn = :text",
        "SET create_time_ms = :number",
        "SET create_time_ms = :text",
        "SET #status = :text",
        "REMOVE wrapped_seed",
        "REMOVE provider",
        "REMOVE master_key_arn",
        "REMOVE checksum",
        "REMOVE #status",
    ],
)
async def test_damaged_item_is_refused_and_left(store: DynamoStore, aws: Any, table: str, change: str) -> None:
    """An item that is not what was written is neither used nor replaced."""
    key = stored_key()
    await store.create(key)
    values = {":bytes": {"B": b"other"}, ":text": {"S": "other"}, ":number": {"N": "42"}}
    values = {name: value for name, value in values.items() if name in change}
    await aws.update_item(
        TableName=table,
        Key=row_of("acme", key.key_id),
        UpdateExpression=change,
        **({"ExpressionAttributeNames": {"#status": "status"}} if "#status" in change else {}),
        **({"ExpressionAttributeValues": values} if values else {}),
    )
    damaged = await items(aws, table)
    for call in (store.active("acme"), store.get("acme", key.key_id), store.all("acme"), consume(store.rows())):
        with pytest.raises(KeyDamaged, match=f"signing key {key.key_id} is damaged"):
            await call
    with pytest.raises(KeyDamaged):
        await store.create(stored_key())
    await store.wrapped_by()
    assert damaged == await items(aws, table)


async def items(aws: Any, table: str) -> list[Any]:
    """Return all that is in a table."""
    return list((await aws.scan(TableName=table, ConsistentRead=True))["Items"])


async def test_copy_of_an_item_is_damaged(store: DynamoStore, aws: Any, table: str) -> None:
    """A key that was copied to another tenant is not that tenant's."""
    key = stored_key()
    await store.create(key)
    await aws.put_item(TableName=table, Item={**item_of(key), **row_of("globex", key.key_id)})
    with pytest.raises(KeyDamaged):
        await store.get("globex", key.key_id)


@pytest.mark.parametrize("status", [None, "rotated"])
async def test_active_key_that_the_head_alone_knows_is_damaged(
    store: DynamoStore, aws: Any, table: str, status: str | None
) -> None:
    """A head and a key that disagree are no reason to make another key."""
    key = stored_key()
    await store.create(key)
    await aws.delete_item(TableName=table, Key=row_of("acme", key.key_id))
    if status:
        await aws.put_item(TableName=table, Item=item_of(replace(key, status="rotated")))
    for call in (store.active("acme"), store.create(stored_key())):
        with pytest.raises(KeyDamaged, match=key.key_id):
            await call


async def test_key_that_is_rotated_between_two_reads_is_found(store: DynamoStore, moto: MotoServer, table: str) -> None:
    """Who reads the head before a rotation and the key after it gets the new key."""
    key, following = stored_key(), successor()
    await store.create(key)
    async with open_dynamodb(table, region=REGION, endpoint=moto.url) as other:
        together, rotations = store._reads.transact_get, [True]

        async def late(*keys: Any) -> list[Any]:
            if rotations:
                assert await other.rotate(key, following) is rotations.pop()
            return await together(*keys)

        store._reads.transact_get = late  # type: ignore[method-assign]
        assert following == await store.active("acme")


async def test_what_no_item_can_be_called_is_not_found(store: DynamoStore) -> None:
    """DynamoDB, unlike moto, refuses to be asked for a sort key of more than 1024 bytes; we do not ask."""
    calls = refuse(store, 10**6, "ValidationException", [], "TransactGetItems")
    for tenant_id, key_id in (("acme", "x" * 1021), ("acme", "é" * 600), ("", "0" * 32)):
        assert None is await store.get(tenant_id, key_id)
    assert 0 == calls["TransactGetItems"]
    with pytest.raises(StoreUnavailable, match="with ValidationException"):
        await store.get("acme", "x" * 1020)


async def test_active_key_that_the_head_does_not_know_is_not_rotated(store: DynamoStore, aws: Any, table: str) -> None:
    """A second active key, which only a hand can have put there, takes nobody's place and gives its own to nobody."""
    key, stray = stored_key(), stored_key()
    await store.create(key)
    await aws.put_item(TableName=table, Item=item_of(stray))
    before = await items(aws, table)
    assert (False, False) == (await store.rotate(stray, successor()), await store.revoke(stray, NOW, successor()))
    assert before == await items(aws, table)


async def test_check_leaves_nothing(store: DynamoStore, aws: Any, table: str) -> None:
    """Not one item is written by checks, also many at once."""
    before = await items(aws, table)
    await asyncio.gather(*(store.check() for _ in range(10)))
    assert before == await items(aws, table)


async def test_head_holds_the_active_key_and_the_generation(store: DynamoStore, aws: Any, table: str) -> None:
    """The items are those that docs and other tools rely on."""
    key, following = stored_key(), successor()
    await store.create(key)
    await store.raise_generation("acme")
    await store.rotate(key, following)
    answer = await aws.get_item(TableName=table, Key=head_of("acme"))
    assert {**head_of("acme"), "active_key_id": {"S": following.key_id}, "generation": {"N": "2"}} == answer["Item"]
    answer = await aws.get_item(TableName=table, Key=row_of("acme", key.key_id))
    assert item_of(rotated(key)) == answer["Item"]


@pytest.mark.parametrize("generation", [{"S": "two"}, {"BOOL": True}, {"NULL": True}])
async def test_generation_that_is_no_number_is_damage(
    store: DynamoStore, aws: Any, table: str, generation: dict[str, Any]
) -> None:
    """It is named as what it is, and not taken for 0."""
    await store.create(stored_key())
    await aws.update_item(
        TableName=table,
        Key=head_of("acme"),
        UpdateExpression="SET generation = :value",
        ExpressionAttributeValues={":value": generation},
    )
    with pytest.raises(KeyDamaged, match="generation of tenant acme is damaged"):
        await store.generation("acme")


async def test_reads_are_consistent(store: DynamoStore) -> None:
    """Every read sees what was written before it, but for the list of old keys, which is looked at again anyhow."""
    await store.create(stored_key())
    asked: list[tuple[str, bool]] = []

    def note(params: Mapping[str, Any], model: Any, **_: Any) -> None:
        asked.append((model.name, params["ConsistentRead"]))

    for action in ("GetItem", "Query", "Scan"):
        store._client.meta.events.register(f"provide-client-params.dynamodb.{action}", note)
    for name in ("active", "get", "all", "generation", "rows", "wrapped_by_other_keys", "wrapped_by"):
        await CALLS[name][1](store)
    assert {("GetItem", True), ("Query", True), ("Scan", True)} == set(asked)
    asked.clear()
    await CALLS["created_before"][1](store)
    assert [("Scan", False)] == asked


async def test_every_page_is_read(store: DynamoStore, aws: Any, table: str) -> None:
    """DynamoDB answers with 1 MiB at most: 300 keys of 6 KiB need two pages."""
    blob = bytes(6144)
    keys = [
        stored_key(
            "acme" if number < 200 else f"tenant-{number}",
            status="active" if number >= 200 else "rotated",
            rotate_time_ms=None if number >= 200 else number + 1,
            wrapped_seed=WrappedKey(blob, ARN if number < 299 else OTHER_ARN),
            create_time_ms=number,
        )
        for number in range(300)
    ]
    for first in range(0, 300, 25):
        batch = [{"PutRequest": {"Item": item_of(key)}} for key in keys[first : first + 25]]
        await aws.batch_write_item(RequestItems={table: batch})
    assert "LastEvaluatedKey" in await aws.scan(TableName=table)
    assert keys[:200] == await store.all("acme")
    assert set(keys) == {key async for key in store.rows()}
    assert {f"tenant-{number}" for number in range(200, 290)} == {one async for one in store.created_before(290)}
    assert [("tenant-299", keys[299].key_id)] == await store.wrapped_by_other_keys(ARN)
    assert {ARN, OTHER_ARN} == await store.wrapped_by()


async def test_store_is_shared(store: DynamoStore) -> None:
    """Other daemons write to this store, so caches have to ask for generations."""
    assert store.shared
