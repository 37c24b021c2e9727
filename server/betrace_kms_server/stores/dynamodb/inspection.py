"""What must be so of a table in production, beside what a daemon refuses to start on. Changes nothing.

The daemon's role needs what table.py needs, and must not be allowed dynamodb:DeleteItem on the key store.
"""

import secrets
from typing import TYPE_CHECKING

from betrace_kms_server.aws.endpoints import inspect_endpoints
from betrace_kms_server.core.errors import StoreUnavailable
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.stores.dynamodb.client import asking
from betrace_kms_server.stores.dynamodb.errors import code_of
from betrace_kms_server.stores.dynamodb.items import PARTITION_KEY, row_of
from betrace_kms_server.stores.dynamodb.table import describe_table, has_recovery

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb import DynamoDBClient

_REFUSED = "ConditionalCheckFailedException"
_REMEDY = "run betrace-kms keystore init, which turns it on, with an operator's rights"


async def inspect_protection(client: "DynamoDBClient", table: str, arn: str, name: str) -> list[Finding]:
    """Return whether a table is in AWS, cannot be deleted, and can be brought back. Raises StoreUnavailable."""
    described = await describe_table(client, table)
    protected = described is not None and described.get("DeletionProtectionEnabled", False)
    async with asking(client, "DescribeContinuousBackups", arn):
        recoverable = await has_recovery(client, table)
    return [
        inspect_endpoints(f"{name}_endpoint", {"DynamoDB": client.meta.endpoint_url}),
        Finding(f"{name}_protection", "" if protected else f"deletion protection of {arn} is off: {_REMEDY}"),
        Finding(f"{name}_recovery", "" if recoverable else f"point-in-time recovery of {arn} is off: {_REMEDY}"),
    ]


async def inspect_deletion(client: "DynamoDBClient", table: str, arn: str, tenant_id: str) -> Finding:
    """Return whether the role may delete keys. Raises StoreUnavailable if that cannot be found out.

    Asks for a deletion on a condition that cannot hold: AWS checks permissions before it. `tenant_id` must be none.
    """
    try:
        async with asking(client, "DeleteItem", arn):
            await client.delete_item(
                TableName=table,
                Key=row_of(tenant_id, secrets.token_hex(16)),
                ConditionExpression=f"attribute_exists({PARTITION_KEY})",
            )
    except StoreUnavailable as error:
        if "action" in error.metadata:  # denied
            return Finding("key_store_role")
        if code_of(error.__cause__) != _REFUSED:
            raise
    return Finding(
        "key_store_role",
        f"the daemon's role may use dynamodb:DeleteItem on {arn}, and never needs it there: take it away in its IAM"
        " policy",
    )
