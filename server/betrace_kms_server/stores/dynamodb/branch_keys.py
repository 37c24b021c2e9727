"""The branch key store in one DynamoDB table, in the official schema: official SDKs and daemons share it.

AWS Encryption SDK specification, framework/branch-key-store.md. Writes are the transactions of its CreateKey and
VersionKey, with their conditions. The daemon's role needs what the key store's table needs, on this table too, but for
dynamodb:UpdateItem; and dynamodb:DeleteItem, if tenants are to be shredded.
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from botocore.exceptions import ClientError

from betrace_kms_server.core.branch_rows import (
    ACTIVE,
    BEACON,
    CREATE_TIME,
    HIERARCHY_VERSION,
    ID,
    KMS_ARN,
    TYPE,
    BranchKeyRow,
    VersionRows,
    type_of,
)
from betrace_kms_server.core.errors import StoreUnavailable
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.stores.branch_keys import damaged_row, each_row, missing_row, row_of
from betrace_kms_server.stores.dynamodb.client import (
    ClientFactory,
    asking,
    commit,
    dynamodb_client,
    without_contention,
)
from betrace_kms_server.stores.dynamodb.errors import is_refusal
from betrace_kms_server.stores.dynamodb.inspection import inspect_protection
from betrace_kms_server.stores.dynamodb.table import (
    BRANCH_KEYS,
    LONGEST_RECOVERY_DAYS,
    inspect_table,
    recovery_days,
)

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb import DynamoDBClient
    from types_aiobotocore_dynamodb.type_defs import TransactWriteItemTypeDef

_ENC = "enc"
_PROBE = "#probe"
"""A branch key id that none of ours can be, because no tenant id may hold a `#`."""


class DynamoBranchKeys:
    """A BranchKeyStore in one table. See `open_branch_keys`."""

    def __init__(self, client: "DynamoDBClient", table: str, table_arn: str) -> None:
        self._client = client
        self._table = table
        self._arn = table_arn

    async def active(self, branch_key_id: str) -> BranchKeyRow | None:
        """See BranchKeyStore."""
        return await self._row_of_all(branch_key_id, ACTIVE)

    async def beacon(self, branch_key_id: str) -> BranchKeyRow | None:
        """See BranchKeyStore."""
        return await self._row_of_all(branch_key_id, BEACON)

    async def version(self, branch_key_id: str, version: UUID) -> BranchKeyRow | None:
        """See BranchKeyStore."""
        return await self.row(branch_key_id, type_of(version))

    async def create(self, rows: VersionRows, beacon: BranchKeyRow) -> bool:
        """See BranchKeyStore."""
        return await self._commit([self._put(row) for row in each_row(rows, beacon)], rows.version)

    async def add_version(self, former: BranchKeyRow, rows: VersionRows) -> bool:
        """See BranchKeyStore."""
        return await self._commit([self._put(rows.version), self._put_over(former, rows.active)], rows.version)

    async def row(self, branch_key_id: str, type_: str) -> BranchKeyRow | None:
        """See BranchKeyStore."""
        async with asking(self._client, "GetItem", self._arn):
            answer = await self._client.get_item(
                TableName=self._table, Key=_key_of(branch_key_id, type_), ConsistentRead=True
            )
        return _row_of(answer.get("Item"))

    async def rows(self) -> AsyncIterator[BranchKeyRow]:
        """See BranchKeyStore."""
        async for item in self._scan({"ConsistentRead": True}):
            if (row := _row_of(item)) is not None:
                yield row

    async def add(self, row: BranchKeyRow) -> bool:
        """See BranchKeyStore."""
        return await self._commit([self._put(row)], row)

    async def replace(self, former: BranchKeyRow, row: BranchKeyRow) -> bool:
        """See BranchKeyStore."""
        return await self._commit([self._put_over(former, row)], row)

    async def wrapped_by_other_keys(self, master_key_arn: str) -> Sequence[tuple[str, str]]:
        """See BranchKeyStore."""
        condition: dict[str, Any] = {
            "ProjectionExpression": "#id, #type",
            "FilterExpression": "#arn <> :arn",
            "ExpressionAttributeNames": {"#id": ID, "#type": TYPE, "#arn": KMS_ARN},
            "ExpressionAttributeValues": {":arn": {"S": master_key_arn}},
        }
        return [(item[ID]["S"], item[TYPE]["S"]) async for item in self._scan(condition)]

    async def destroy(self, branch_key_id: str, still: Callable[[], Awaitable[bool]]) -> int:
        """See BranchKeyStore."""
        deleted = 0
        while items := await self._page(branch_key_id):
            if not await still():
                break
            for item in items:
                deleted += await self._delete(item)
        return deleted

    async def check(self) -> None:
        """See BranchKeyStore. Asks for a row on a condition that cannot hold, as the key store's check does."""
        await self._has_rows(_PROBE)
        probe = BranchKeyRow({ID: _PROBE, TYPE: _PROBE}, secrets.token_bytes(16))
        await self._commit([self._put_over(probe, probe)], probe)

    async def inspect(self) -> Sequence[Finding]:
        """See BranchKeyStore. The role may delete rows here, if tenants are to be shredded."""
        return await inspect_protection(self._client, self._table, self._arn, "branch_key_store")

    async def check_destroy(self) -> None:
        """See BranchKeyStore. Asks for a deletion on a condition that cannot hold: AWS checks permissions before it."""
        await self._delete({ID: {"S": _PROBE}, TYPE: {"S": _PROBE}, _ENC: {"B": b"probe"}})

    async def recovery_days(self) -> int:
        """See BranchKeyStore. That of point-in-time recovery."""
        try:
            async with asking(self._client, "DescribeContinuousBackups", self._arn):
                return await recovery_days(self._client, self._table)
        except StoreUnavailable:
            return LONGEST_RECOVERY_DAYS

    async def _page(self, branch_key_id: str) -> Sequence[Mapping[str, Any]]:
        """Return the primary key and the wrapped key of some rows; nothing only if there is no row."""
        async with asking(self._client, "Query", self._arn):
            page = await self._client.query(
                TableName=self._table,
                ConsistentRead=True,
                KeyConditionExpression="#id = :id",
                ProjectionExpression="#id, #type, #enc",
                ExpressionAttributeNames={"#id": ID, "#type": TYPE, "#enc": _ENC},
                ExpressionAttributeValues={":id": {"S": branch_key_id}},
            )
        return page["Items"]

    async def _delete(self, item: Mapping[str, Any]) -> bool:
        """Delete a row if it holds what was read. Returns whether this call did: a retry of the SDK may have."""
        delete: dict[str, Any] = {
            "TableName": self._table,
            "Key": {ID: item[ID], TYPE: item[TYPE]},
            "ConditionExpression": "#enc = :enc" if _ENC in item else "attribute_not_exists(#enc)",
            "ExpressionAttributeNames": {"#enc": _ENC},
        }
        if _ENC in item:
            delete["ExpressionAttributeValues"] = {":enc": item[_ENC]}
        async with asking(self._client, "DeleteItem", self._arn):
            try:
                await without_contention(lambda: self._client.delete_item(**delete))
            except ClientError as cause:
                if not is_refusal(cause):
                    raise
                return False
        return True

    async def created_before(self, time: str) -> AsyncIterator[str]:
        """See BranchKeyStore. Not consistent, for half the price: a rotation checks the row again."""
        condition: dict[str, Any] = {
            "ProjectionExpression": "#wanted",
            "FilterExpression": "#type = :active AND #created < :time",
            "ExpressionAttributeNames": {"#wanted": ID, "#type": TYPE, "#created": CREATE_TIME},
            "ExpressionAttributeValues": {":active": {"S": ACTIVE}, ":time": {"S": time}},
        }
        async for item in self._scan(condition):
            yield item[ID]["S"]

    async def wrapped_by(self) -> AbstractSet[str]:
        """See BranchKeyStore. A damaged item that names no key is left out: it is refused when it is asked for."""
        found = self._scan({"ProjectionExpression": "#wanted", "ExpressionAttributeNames": {"#wanted": KMS_ARN}})
        return {item[KMS_ARN]["S"] async for item in found if KMS_ARN in item}

    async def _scan(self, condition: Mapping[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
        scan: dict[str, Any] = {"TableName": self._table, **condition}
        while True:
            async with asking(self._client, "Scan", self._arn):
                page = await self._client.scan(**scan)
            for item in page["Items"]:
                yield item
            if "LastEvaluatedKey" not in page:
                return
            scan["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    async def _row_of_all(self, branch_key_id: str, type_: str) -> BranchKeyRow | None:
        """Return a row that every branch key has. Raises KeyDamaged if this one has others only."""
        row = await self.row(branch_key_id, type_)
        if row is None and await self._has_rows(branch_key_id):
            row = await self._row_between_transactions(branch_key_id, type_)  # it may have been made meanwhile
            if row is None:
                raise missing_row(branch_key_id, type_)
        return row

    async def _row_between_transactions(self, branch_key_id: str, type_: str) -> BranchKeyRow | None:
        get: Any = {"Get": {"TableName": self._table, "Key": _key_of(branch_key_id, type_)}}
        async with asking(self._client, "TransactGetItems", self._arn):
            answer = await without_contention(lambda: self._client.transact_get_items(TransactItems=[get]))
        return _row_of(answer["Responses"][0].get("Item"))

    async def _has_rows(self, branch_key_id: str) -> bool:
        async with asking(self._client, "Query", self._arn):
            page = await self._client.query(
                TableName=self._table,
                ConsistentRead=True,
                KeyConditionExpression="#id = :id",
                ExpressionAttributeNames={"#id": ID},
                ExpressionAttributeValues={":id": {"S": branch_key_id}},
                Limit=1,
            )
        return bool(page["Items"])

    def _put(self, row: BranchKeyRow) -> "TransactWriteItemTypeDef":
        return {
            "Put": {
                "TableName": self._table,
                "Item": _item_of(row),
                "ConditionExpression": "attribute_not_exists(#id)",
                "ExpressionAttributeNames": {"#id": ID},
            }
        }

    def _put_over(self, former: BranchKeyRow, row: BranchKeyRow) -> "TransactWriteItemTypeDef":
        return {
            "Put": {
                "TableName": self._table,
                "Item": _item_of(row),
                "ConditionExpression": "attribute_exists(#id) AND #enc = :encOld",
                "ExpressionAttributeNames": {"#id": ID, "#enc": _ENC},
                "ExpressionAttributeValues": {":encOld": {"B": former.enc}},
            }
        }

    async def _commit(self, writes: "list[TransactWriteItemTypeDef]", row: BranchKeyRow) -> bool:
        """Write all of it or nothing. Returns whether this row, which only this write makes, is there then."""

        async def landed() -> bool:
            return await self.row(row.branch_key_id, row.type) == row

        return await commit(self._client, self._arn, writes, landed)


def _key_of(branch_key_id: str, type_: str) -> Any:
    return {ID: {"S": branch_key_id}, TYPE: {"S": type_}}


def _item_of(row: BranchKeyRow) -> Any:
    kind = {HIERARCHY_VERSION: "N"}
    return {**{name: {kind.get(name, "S"): value} for name, value in row.attributes.items()}, _ENC: {"B": row.enc}}


def _row_of(item: Mapping[str, Any] | None) -> BranchKeyRow | None:
    """Return the row that an item holds. Raises KeyDamaged if an attribute has another type than in the schema."""
    if item is None:
        return None
    kind = {_ENC: "B", HIERARCHY_VERSION: "N"}
    if any(list(value) != [kind.get(name, "S")] for name, value in item.items()):
        raise damaged_row(item[ID]["S"], item[TYPE]["S"])
    values = {name: value[kind.get(name, "S")] for name, value in item.items()}
    return row_of({name: value for name, value in values.items() if name != _ENC}, values.get(_ENC, b""))


@asynccontextmanager
async def open_branch_keys(
    table: str, *, region: str, endpoint: str | None, client_factory: ClientFactory = dynamodb_client
) -> AsyncIterator[DynamoBranchKeys]:
    """Open the branch keys in a table. Raises StartRefused if there is none, or one that would lose keys."""
    async with client_factory(region, endpoint) as client:
        yield DynamoBranchKeys(client, table, await inspect_table(client, table, BRANCH_KEYS))
