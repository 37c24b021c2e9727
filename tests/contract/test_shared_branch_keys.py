"""Branch keys in DynamoDB, shared by daemons: answers that are lost, and Regions of one multi-Region key."""

import secrets
from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.data_keys.branch_keys import BranchKeys
from betrace_kms_server.providers.aws.provider import AwsProvider
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.stores.dynamodb.branch_keys import DynamoBranchKeys, open_branch_keys
from betrace_kms_server.stores.dynamodb.client import dynamodb_client
from betrace_kms_server.stores.dynamodb.creation import create_table
from betrace_kms_server.stores.dynamodb.table import BRANCH_KEYS

from tests.aws_proxy import AwsProxy, aws_proxy
from tests.moto_server import REGION, MotoServer


@pytest.fixture
async def table(moto: MotoServer) -> str:
    """Make an empty table and return its name."""
    name = f"branch-keys-{secrets.token_hex(8)}"
    async for _ in create_table(name, region=REGION, endpoint=moto.url, kind=BRANCH_KEYS):
        pass
    return name


@pytest.fixture
async def provider(moto: MotoServer, kms_key: str) -> AsyncIterator[KeyProvider]:
    """Give the provider on moto."""
    async with AwsProvider(kms_key, region=REGION, endpoint=moto.url) as provider:
        yield provider


def branch_keys(provider: KeyProvider, store: DynamoBranchKeys, cache: KeyCache) -> BranchKeys:
    """Return the branch keys of one daemon."""

    async def changed(tenant_id: str) -> None:
        cache.invalidate(tenant_id)

    return BranchKeys(provider, store, cache, logical_name="logical", changed=changed)


@pytest.mark.parametrize("attempts", [1, 3], ids=["no retries", "retries"])
async def test_writes_that_were_not_answered_are_done_once(
    moto: MotoServer, table: str, provider: KeyProvider, new_cache: Callable[[], KeyCache], attempts: int
) -> None:
    """A branch key, and a version, that DynamoDB committed before the answer was lost are taken for what they are."""

    def drop_one(proxy: AwsProxy) -> None:
        left = [1]
        proxy.judge = lambda action: "drop-answer" if action == "TransactWriteItems" and left and left.pop() else "pass"

    with aws_proxy(moto.url) as proxy:
        factory = partial(dynamodb_client, attempts=attempts)
        async with open_branch_keys(table, region=REGION, endpoint=proxy.url, client_factory=factory) as store:
            keys = branch_keys(provider, store, new_cache())
            drop_one(proxy)
            first = await keys.active("acme")
            drop_one(proxy)
            assert await keys.rotate("acme")
            second = await keys.active("acme")
            assert first.version != second.version
            row = await store.active("acme")
            assert row is not None
            assert second.version == row.version
            assert first.material.raw == (await keys.version("acme", first.version)).material.raw
    assert (4 if attempts > 1 else 2) == proxy.calls["TransactWriteItems"]


async def test_replica_opens_and_rotates_without_changing_the_arn_of_the_row(
    moto: MotoServer, table: str, new_cache: Callable[[], KeyCache]
) -> None:
    """A row keeps the ARN that it was made with, which KMS authenticates, whichever Region is asked."""
    primary = moto.create_key(multi_region=True)
    replica = str(moto.kms().replicate_key(primary, "eu-west-1").arn)
    async with (
        open_branch_keys(table, region=REGION, endpoint=moto.url) as store,
        AwsProvider(primary, region=REGION, endpoint=moto.url) as here,
        AwsProvider(replica, region="eu-west-1", endpoint=moto.url) as there,
    ):
        first = await branch_keys(here, store, new_cache()).active("acme")
        away = branch_keys(there, store, new_cache())
        assert first.material.raw == (await away.active("acme")).material.raw
        assert await away.rotate("acme")
        row = await store.active("acme")
        assert row is not None
        assert (primary, {primary}) == (row.kms_arn, await store.wrapped_by())
        second = await branch_keys(here, store, new_cache()).active("acme")
        assert second.material.raw == (await away.active("acme")).material.raw != first.material.raw


async def test_former_master_key_opens_and_a_new_version_is_under_the_new_one(
    moto: MotoServer, table: str, provider: KeyProvider, new_cache: Callable[[], KeyCache]
) -> None:
    """What a former key wrapped opens while it is listed, and a rotation moves what is new off it."""
    new_arn, old_arn = moto.create_key(), provider.master_key_arn
    async with (
        open_branch_keys(table, region=REGION, endpoint=moto.url) as store,
        AwsProvider(new_arn, region=REGION, endpoint=moto.url, former_key_arns=[old_arn]) as changed,
    ):
        first = await branch_keys(provider, store, new_cache()).active("acme")
        keys = branch_keys(changed, store, new_cache())
        opened = await keys.active("acme")
        assert (first.version, old_arn) == (opened.version, opened.master_key_arn)
        assert await keys.rotate("acme")
        assert new_arn == (await keys.active("acme")).master_key_arn
        assert first.material.raw == (await keys.version("acme", first.version)).material.raw
