"""The reads of the DynamoDB store: one item, the keys of a tenant, the keys of all. Consistent, unless asked otherwise.

Each page of many items is a call of its own, and bounded as such.
"""

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from betrace_kms_server.stores.dynamodb.client import asking, without_contention
from betrace_kms_server.stores.dynamodb.items import KEY_PREFIX, PARTITION_KEY, SHREDDINGS, SORT_KEY, can_exist

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb import DynamoDBClient

TRANSACTION_ITEMS = 100
"""Amazon DynamoDB API reference, TransactGetItems: the most that one transaction reads."""

Found = Mapping[str, Any]
"""An item, or what was asked for of it."""


class Reads:
    """The reads of one table."""

    def __init__(self, client: "DynamoDBClient", table: str, table_arn: str) -> None:
        self._client = client
        self._table = table
        self._arn = table_arn

    async def item(self, key: Found, attribute: str | None = None) -> Found | None:
        """Return an item by its primary key, or one attribute of it; None if there is none."""
        if not can_exist(key):
            return None
        projection: dict[str, Any] = {"ProjectionExpression": attribute} if attribute else {}
        async with asking(self._client, "GetItem", self._arn):
            answer = await self._client.get_item(TableName=self._table, Key=key, ConsistentRead=True, **projection)
        return answer.get("Item")

    async def transact_get(self, *keys: Found) -> list[Found | None]:
        """Return items as they are between two transactions, never in the middle of one, as single reads may."""
        if not all(map(can_exist, keys)):
            return [None for _ in keys]
        gets: Any = [{"Get": {"TableName": self._table, "Key": key}} for key in keys]
        async with asking(self._client, "TransactGetItems", self._arn):
            answer = await without_contention(lambda: self._client.transact_get_items(TransactItems=gets))
        return [each.get("Item") for each in answer["Responses"]]

    async def has_keys(self, tenant_id: str) -> bool:
        """Return whether the tenant has at least one key's item."""
        async for _ in self.keys_of(tenant_id, "#item", page_items=1):
            return True
        return False

    async def keys_of(
        self, tenant_id: str, attribute: str | None = None, *, page_items: int | None = None
    ) -> AsyncIterator[Found]:
        """Yield every key's item of a tenant, or one attribute of it."""
        query: dict[str, Any] = {
            "TableName": self._table,
            "ConsistentRead": True,
            "KeyConditionExpression": "#tenant = :tenant AND begins_with(#item, :prefix)",
            "ExpressionAttributeNames": {"#tenant": PARTITION_KEY, "#item": SORT_KEY},
            "ExpressionAttributeValues": {":tenant": {"S": tenant_id}, ":prefix": {"S": KEY_PREFIX}},
            **({"ProjectionExpression": attribute} if attribute else {}),
            **({"Limit": page_items} if page_items else {}),
        }
        if tenant_id:
            async for item in self._query(query):
                yield item

    async def shreddings(self) -> AsyncIterator[Found]:
        """Yield every item of the list of shreddings that says that there is one."""
        query: dict[str, Any] = {
            "TableName": self._table,
            "ConsistentRead": True,
            "KeyConditionExpression": "#tenant = :list",
            "FilterExpression": "attribute_exists(shredding)",
            "ExpressionAttributeNames": {"#tenant": PARTITION_KEY},
            "ExpressionAttributeValues": {":list": {"S": SHREDDINGS}},
        }
        async for item in self._query(query):
            yield item

    async def _query(self, query: dict[str, Any]) -> AsyncIterator[Found]:
        while True:
            async with asking(self._client, "Query", self._arn):
                page = await self._client.query(**query)
            for item in page["Items"]:
                yield item
            if "LastEvaluatedKey" not in page:
                return
            query["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    async def keys(
        self,
        condition: str | None = None,
        values: Mapping[str, Any] | None = None,
        *,
        names: Mapping[str, str] | None = None,
        projection: str | None = None,
        consistent: bool = True,
    ) -> AsyncIterator[Found]:
        """Yield every key's item of all tenants that meets a condition. `#item` names the sort key in expressions."""
        scan: dict[str, Any] = {
            "TableName": self._table,
            "ConsistentRead": consistent,
            "FilterExpression": "begins_with(#item, :prefix)" + (f" AND {condition}" if condition else ""),
            "ExpressionAttributeNames": {"#item": SORT_KEY, **(names or {})},
            "ExpressionAttributeValues": {":prefix": {"S": KEY_PREFIX}, **(values or {})},
        }
        if projection:
            scan["ProjectionExpression"] = projection
        while True:
            async with asking(self._client, "Scan", self._arn):
                page = await self._client.scan(**scan)
            for item in page["Items"]:
                yield item
            if "LastEvaluatedKey" not in page:
                return
            scan["ExclusiveStartKey"] = page["LastEvaluatedKey"]
