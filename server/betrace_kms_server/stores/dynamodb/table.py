"""What a table must be before keys are kept in it: checked when a daemon starts, and when a table is made ready.

The daemon's role needs dynamodb:DescribeTable and dynamodb:DescribeContinuousBackups here.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from betrace_kms_server.core.branch_rows import ID, TYPE
from betrace_kms_server.core.errors import StartRefused, StoreUnavailable
from betrace_kms_server.stores.dynamodb.client import asking
from betrace_kms_server.stores.dynamodb.errors import code_of
from betrace_kms_server.stores.dynamodb.items import PARTITION_KEY, SORT_KEY

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb import DynamoDBClient
    from types_aiobotocore_dynamodb.literals import KeyTypeType, ScalarAttributeTypeType
    from types_aiobotocore_dynamodb.type_defs import TableDescriptionTypeDef

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TableKind:
    """What a table is for: the setting that names it, and name, role and type of the parts of its primary key."""

    setting: str
    key_schema: "tuple[tuple[str, KeyTypeType, ScalarAttributeTypeType], ...]"


KEY_STORE = TableKind("kms.store.table", ((PARTITION_KEY, "HASH", "S"), (SORT_KEY, "RANGE", "S")))
BRANCH_KEYS = TableKind("kms.branch-keys.table", ((ID, "HASH", "S"), (TYPE, "RANGE", "S")))
"""AWS Encryption SDK specification, framework/branch-key-store.md, "KeySchema"."""

_USABLE = ("ACTIVE", "UPDATING")  # a table that is being updated is read and written as ever
_NAME = re.compile(r"[A-Za-z0-9_.-]{3,255}", re.ASCII)
"""Amazon DynamoDB developer guide, "Naming rules"."""
LONGEST_RECOVERY_DAYS = 35
"""Amazon DynamoDB developer guide, "Point-in-time recovery": also what it is if no other period was set."""
_LEGACY = "2017.11.29"


async def inspect_table(client: "DynamoDBClient", table: str, kind: TableKind = KEY_STORE) -> str:
    """Return a table's ARN. Raises StartRefused if it is missing or unfit; warns of what would not bring keys back."""
    described = await describe_table(client, table, kind)
    if described is None:
        raise StartRefused(
            f"there is no DynamoDB table {table} in {client.meta.region_name}: check {kind.setting} and"
            " kms.store.region; for a new key store run betrace-kms keystore init; if it was deleted, restore it from a"
            " backup"
        )
    refuse_unfit(described, table, kind)
    if described["TableStatus"] not in _USABLE:
        raise StartRefused(
            f"the DynamoDB table {table} is {described['TableStatus']}: wait until it is ACTIVE, and check it in the"
            " console if it does not become so"
        )
    arn = described["TableArn"]
    if not described.get("DeletionProtectionEnabled"):
        log.warning("Anybody who may delete the key store's table can: turn its deletion protection on", table=arn)
    await _warn_without_recovery(client, table, arn)
    return arn


def check_name(table: str, kind: TableKind = KEY_STORE) -> None:
    """Raise StartRefused for what can be no table's name: DynamoDB would also take an ARN, and emulators anything."""
    if _NAME.fullmatch(table) is None:
        raise StartRefused(
            f"{kind.setting} {table!r} is no name of a DynamoDB table: it takes 3 to 255 letters, digits, dots, dashes"
            " and underscores"
        )


async def describe_table(
    client: "DynamoDBClient", table: str, kind: TableKind = KEY_STORE
) -> "TableDescriptionTypeDef | None":
    """Return what DynamoDB says of a table, or None if there is none. Raises StartRefused if it cannot be asked."""
    check_name(table, kind)
    try:
        async with asking(client, "DescribeTable", table):
            return (await client.describe_table(TableName=table))["Table"]
    except StoreUnavailable as error:
        if code_of(error.__cause__) == "ResourceNotFoundException":
            return None
        raise StartRefused(f"the DynamoDB table {table} cannot be described: {error.message}") from error


def refuse_unfit(described: "TableDescriptionTypeDef", table: str, kind: TableKind = KEY_STORE) -> None:
    """Raise StartRefused for a table of another kind, and for one that would not keep what was written."""
    types = {each["AttributeName"]: each["AttributeType"] for each in described["AttributeDefinitions"]}
    schema = {(each["AttributeName"], each["KeyType"], types[each["AttributeName"]]) for each in described["KeySchema"]}
    if schema != set(kind.key_schema):
        raise StartRefused(
            f"the DynamoDB table {table} is no key store of betrace-kms, its primary key is another one: choose another"
            f" {kind.setting}, and make it by betrace-kms keystore init"
        )
    replicated = described.get("Replicas") or described.get("GlobalTableVersion") == _LEGACY
    if replicated and described.get("MultiRegionConsistency") == "STRONG":
        raise StartRefused(
            f"the DynamoDB table {table} is a global table with strong consistency, which takes no transactions: use a"
            " table of one Region, see docs/dynamodb.md"
        )
    if replicated:
        raise StartRefused(
            f"the DynamoDB table {table} is a global table where the last writer wins: a revocation in one Region would"
            " be undone by another, and a tenant have two active keys; use a table of one Region, see docs/dynamodb.md"
        )


async def has_recovery(client: "DynamoDBClient", table: str) -> bool:
    """Return whether point-in-time recovery is on."""
    return await recovery_days(client, table) > 0


async def recovery_days(client: "DynamoDBClient", table: str) -> int:
    """Return for how many days point-in-time recovery brings back what was deleted: 0 if it is off."""
    answer = await client.describe_continuous_backups(TableName=table)
    recovery = answer["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
    if recovery.get("PointInTimeRecoveryStatus") != "ENABLED":
        return 0
    return recovery.get("RecoveryPeriodInDays", LONGEST_RECOVERY_DAYS)


async def _warn_without_recovery(client: "DynamoDBClient", table: str, arn: str) -> None:
    try:
        async with asking(client, "DescribeContinuousBackups", arn):
            recoverable = await has_recovery(client, table)
    except StoreUnavailable as error:
        log.warning("Whether the key store's table can be recovered is not known", table=arn, problem=error.message)
        return
    if not recoverable:
        log.warning("Keys that are lost cannot be brought back: turn point-in-time recovery on", table=arn)
