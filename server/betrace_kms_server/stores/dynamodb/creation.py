"""Makes a table ready to keep keys: for an operator, before the first start. The daemon never does any of this.

Needs dynamodb:DescribeTable, dynamodb:CreateTable, dynamodb:PutItem, dynamodb:UpdateTable,
dynamodb:DescribeContinuousBackups and dynamodb:UpdateContinuousBackups on the table: an operator's rights, not the
daemon's.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

from betrace_kms_server.core.errors import StoreUnavailable
from betrace_kms_server.stores.dynamodb.client import ClientFactory, asking, dynamodb_client
from betrace_kms_server.stores.dynamodb.errors import code_of
from betrace_kms_server.stores.dynamodb.items import ORIGIN
from betrace_kms_server.stores.dynamodb.table import KEY_STORE, TableKind, describe_table, has_recovery, refuse_unfit

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb import DynamoDBClient

_POLLS, _POLL_SECONDS = 120, 1.0
"""A new table takes some seconds; backups of it can be turned on a moment later."""

Sleep = Callable[[float], Awaitable[None]]


async def create_table(
    table: str,
    *,
    region: str,
    endpoint: str | None,
    kind: TableKind = KEY_STORE,
    client_factory: ClientFactory = dynamodb_client,
    sleep: Sleep = asyncio.sleep,
) -> AsyncIterator[str]:
    """Make a table, or only what an existing one lacks, and report each thing as soon as it is done.

    On-demand billing, encryption at rest by DynamoDB's own key, deletion protection, point-in-time recovery. Raises
    StartRefused for a table that is no key store or would lose keys, and StoreUnavailable if AWS does not do it.
    """
    async with client_factory(region, endpoint) as client:
        described = await describe_table(client, table, kind)
        if described is None:
            await _create(client, table, kind)
            yield f"made the table {table}: on-demand billing, deletion protection on"
        else:
            refuse_unfit(described, table, kind)
            yield f"the table {table} is there"
        arn, protected = await _active(client, table, kind, sleep)
        if described is None and kind is KEY_STORE:  # so no daemon of an earlier version uses it
            async with asking(client, "PutItem", arn):
                await client.put_item(TableName=table, Item={**ORIGIN, "sealing_key_type": {"S": "sealing"}})
        if not protected:
            async with asking(client, "UpdateTable", arn):
                await client.update_table(TableName=table, DeletionProtectionEnabled=True)
            yield "turned deletion protection on"
        if await _turn_recovery_on(client, table, arn, sleep):
            yield "turned point-in-time recovery on"
        yield f"{arn} is ready"


async def _create(client: "DynamoDBClient", table: str, kind: TableKind) -> None:
    try:
        async with asking(client, "CreateTable", table):
            await client.create_table(
                TableName=table,
                AttributeDefinitions=[
                    {"AttributeName": name, "AttributeType": value_type} for name, _, value_type in kind.key_schema
                ],
                KeySchema=[{"AttributeName": name, "KeyType": role} for name, role, _ in kind.key_schema],
                BillingMode="PAY_PER_REQUEST",
                DeletionProtectionEnabled=True,
            )
    except StoreUnavailable as error:
        if (
            code_of(error.__cause__) != "ResourceInUseException"
        ):  # a retry of the SDK, or somebody else at the same time
            raise


async def _active(client: "DynamoDBClient", table: str, kind: TableKind, sleep: Sleep) -> tuple[str, bool]:
    """Wait until a table is active; return its ARN, and whether it is protected from deletion."""
    for _ in range(_POLLS):
        described = await describe_table(client, table)
        if described is not None and described["TableStatus"] == "ACTIVE":
            refuse_unfit(described, table, kind)  # of a table that was made at the same time by somebody else
            return described["TableArn"], described.get("DeletionProtectionEnabled", False)
        await sleep(_POLL_SECONDS)
    raise StoreUnavailable(f"the DynamoDB table {table} does not become ACTIVE: check it in the console")


async def _turn_recovery_on(client: "DynamoDBClient", table: str, arn: str, sleep: Sleep) -> bool:
    """Turn point-in-time recovery on; return whether it was off."""
    for _ in range(_POLLS):
        async with asking(client, "DescribeContinuousBackups", arn):
            if await has_recovery(client, table):
                return False
        try:
            async with asking(client, "UpdateContinuousBackups", arn):
                await client.update_continuous_backups(
                    TableName=table, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
                )
            return True
        except StoreUnavailable as error:
            if (
                code_of(error.__cause__) != "ContinuousBackupsUnavailableException"
            ):  # while backups of a new table come up
                raise
        await sleep(_POLL_SECONDS)
    raise StoreUnavailable(f"point-in-time recovery of {arn} cannot be turned on: do so in the console")
