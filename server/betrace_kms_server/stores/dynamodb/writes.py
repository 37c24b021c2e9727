"""The writes of the DynamoDB store: each one a part of a transaction, with the condition that it needs.

Names are given by placeholders where DynamoDB reserves the word (`status`).
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from betrace_kms_server.core.keys import StoredKey
from betrace_kms_server.stores.dynamodb.items import PARTITION_KEY, SHREDDINGS, SORT_KEY, head_of, item_of, row_of

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb.type_defs import TransactWriteItemTypeDef, UpdateTypeDef


def may_follow(former: StoredKey, successor: StoredKey) -> bool:
    """Return whether a key is another one of the same tenant. Where it is not, no condition would keep it out."""
    return former.tenant_id == successor.tenant_id and former.key_id != successor.key_id


class Writes:
    """The writes to one table."""

    def __init__(self, table: str) -> None:
        self._table = table

    def put(self, key: StoredKey, *, import_id: str | None = None) -> "TransactWriteItemTypeDef":
        """Put a new key. Refused if there is one of its id."""
        imported = {"import_id": {"S": import_id}} if import_id else {}
        return {
            "Put": {
                "TableName": self._table,
                "Item": {**item_of(key), **imported},
                "ConditionExpression": f"attribute_not_exists({PARTITION_KEY})",
            }
        }

    def first_active(self, key: StoredKey) -> "TransactWriteItemTypeDef":
        """Make a key the tenant's active one. Refused if the tenant has one."""
        return {
            "Update": {
                "TableName": self._table,
                "Key": head_of(key.tenant_id),
                "UpdateExpression": "SET active_key_id = :key",
                "ConditionExpression": "attribute_not_exists(active_key_id)",
                "ExpressionAttributeValues": {":key": {"S": key.key_id}},
            }
        }

    def next_active(self, former: StoredKey, successor: StoredKey) -> "TransactWriteItemTypeDef":
        """Make a key the active one in place of another, and raise the generation. Refused if the other is not it."""
        return {
            "Update": {
                "TableName": self._table,
                "Key": head_of(former.tenant_id),
                "UpdateExpression": "SET active_key_id = :key ADD generation :one",
                "ConditionExpression": "active_key_id = :former",
                "ExpressionAttributeValues": {
                    ":key": {"S": successor.key_id},
                    ":former": {"S": former.key_id},
                    ":one": {"N": "1"},
                },
            }
        }

    def next_generation(self, tenant_id: str) -> "TransactWriteItemTypeDef":
        """Raise the tenant's generation, which begins at 0."""
        return {
            "Update": {
                "TableName": self._table,
                "Key": head_of(tenant_id),
                "UpdateExpression": "ADD generation :one",
                "ExpressionAttributeValues": {":one": {"N": "1"}},
            }
        }

    def shredding(self, tenant_id: str, before: str | None, after: str | None) -> "list[TransactWriteItemTypeDef]":
        """Put one record of a shredding in place of another, and raise the generation. None is no record.

        Refused if the present record is not `before`.
        """
        values: dict[str, Any] = {":one": {"N": "1"}}
        if before is not None:
            values[":before"] = {"S": before}
        if after is not None:
            values[":after"] = {"S": after}
        change = "REMOVE shredding" if after is None else "SET shredding = :after"
        listed: dict[str, Any] = {} if after is None else {"shredding": {"S": after}}
        return [
            {
                "Update": {
                    "TableName": self._table,
                    "Key": head_of(tenant_id),
                    "UpdateExpression": f"{change} ADD generation :one",
                    "ConditionExpression": "attribute_not_exists(shredding)"
                    if before is None
                    else "shredding = :before",
                    "ExpressionAttributeValues": values,
                }
            },
            {
                "Put": {
                    "TableName": self._table,
                    "Item": {PARTITION_KEY: {"S": SHREDDINGS}, SORT_KEY: {"S": tenant_id}, **listed},
                }
            },
        ]

    def rotated(self, key: StoredKey, time_ms: int) -> "TransactWriteItemTypeDef":
        """Mark a key as rotated. Refused if its status is not what `key` says."""
        return self._retire(key, replace(key, status="rotated", rotate_time_ms=time_ms), "rotate_time_ms", time_ms)

    def revoked(self, key: StoredKey, time_ms: int) -> "TransactWriteItemTypeDef":
        """Mark a key as revoked. Refused if its status is not what `key` says."""
        return self._retire(key, replace(key, status="revoked", revoke_time_ms=time_ms), "revoke_time_ms", time_ms)

    def wrapped_anew(self, stored: StoredKey, replacement: StoredKey) -> "UpdateTypeDef":
        """Put another wrapped seed into a key's item. Refused if its present one is not that of `stored`."""
        return {
            "TableName": self._table,
            "Key": row_of(stored.tenant_id, stored.key_id),
            "UpdateExpression": "SET master_key_arn = :arn, wrapped_seed = :seed, checksum = :checksum",
            "ConditionExpression": "checksum = :former",
            "ExpressionAttributeValues": {
                ":arn": {"S": replacement.wrapped_seed.master_key_arn},
                ":seed": {"B": replacement.wrapped_seed.blob},
                ":checksum": {"B": replacement.checksum()},
                ":former": {"B": stored.checksum()},
            },
        }

    def impossible(self, tenant_id: str, key_id: str) -> "list[TransactWriteItemTypeDef]":
        """Return what makes a tenant's first key, on the condition that it is there: refused, as long as it is not."""
        condition = f"attribute_exists({PARTITION_KEY})"
        return [
            {
                "Put": {
                    "TableName": self._table,
                    "Item": row_of(tenant_id, key_id),
                    "ConditionExpression": condition,
                }
            },
            {
                "Update": {
                    "TableName": self._table,
                    "Key": row_of(tenant_id, f"{key_id}-head"),
                    "UpdateExpression": "SET active_key_id = active_key_id",
                    "ConditionExpression": condition,
                }
            },
        ]

    def _retire(self, key: StoredKey, retired: StoredKey, time: str, time_ms: int) -> "TransactWriteItemTypeDef":
        return {
            "Update": {
                "TableName": self._table,
                "Key": row_of(key.tenant_id, key.key_id),
                "UpdateExpression": f"SET #status = :status, {time} = :time, state_checksum = :state",
                "ConditionExpression": "#status = :former",
                "ExpressionAttributeNames": {"#status": "status"},
                "ExpressionAttributeValues": {
                    ":status": {"S": retired.status},
                    ":state": {"B": retired.state_checksum()},
                    ":time": {"N": str(time_ms)},
                    ":former": {"S": key.status},
                },
            }
        }
