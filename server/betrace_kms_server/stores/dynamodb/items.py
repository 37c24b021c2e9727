"""Stored keys as items of a DynamoDB table, and back.

A tenant is one partition, so that its items are read and written together:

| tenant_id (S) | item (S)       | other attributes                                                                 |
|---------------|----------------|----------------------------------------------------------------------------------|
| the tenant    | `tenant`       | the head: active_key_id (S), if it has one; generation (N), once it was raised;   |
|               |                | shredding (S), the record of core/shredding.py, unless the tenant is open         |
| the tenant    | `key#<key id>` | a key: provider, master_key_arn, status (S), wrapped_seed, public_key, checksum   |
|               |                | (B), create_time_ms, rotate_time_ms, revoke_time_ms (N), import_id (S),           |
|               |                | state_checksum (B; not in items of earlier versions)                         |
| `#lock`       | `lock`         | the emergency stop: locked (BOOL), and if it is in force reason (S), time_ms (N)  |
| `#shredding`  | the tenant     | the same shredding (S), to list them by; written with the head                    |
| `#store`      | `origin`       | what the version that made the table could do: sealing_key_type (S). Missing in   |
|               |                | tables of earlier versions, and in those that `keystore init` did not make        |

Times are milliseconds and no attribute is in seconds, so that no time to live (TTL) that somebody sets on the table by
mistake finds an item of ours to be old: read as seconds they are tens of thousands of years away.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from betrace_kms_server.core.keys import KeyStatus, StoredKey, WrappedKey
from betrace_kms_server.core.lock_state import LockState
from betrace_kms_server.stores.damage import damaged_key

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb.type_defs import UniversalAttributeValueTypeDef

    Item = Mapping[str, UniversalAttributeValueTypeDef]

PARTITION_KEY, SORT_KEY = "tenant_id", "item"
HEAD = "tenant"
KEY_PREFIX = "key#"

_MAX_SORT_KEY_BYTES = 1024  # Amazon DynamoDB developer guide, "Quotas": a longer one is refused as malformed


def head_of(tenant_id: str) -> "dict[str, UniversalAttributeValueTypeDef]":
    """Return the primary key of a tenant's head."""
    return {PARTITION_KEY: {"S": tenant_id}, SORT_KEY: {"S": HEAD}}


def row_of(tenant_id: str, key_id: str) -> "dict[str, UniversalAttributeValueTypeDef]":
    """Return the primary key of a key's item."""
    return {PARTITION_KEY: {"S": tenant_id}, SORT_KEY: {"S": KEY_PREFIX + key_id}}


LOCK = {PARTITION_KEY: {"S": "#lock"}, SORT_KEY: {"S": "lock"}}
"""Primary key of the emergency stop. No tenant can have this partition: no tenant id holds a `#`."""


def lock_item(state: LockState | None) -> "dict[str, UniversalAttributeValueTypeDef]":
    """Return the emergency stop, or that none is in force, as an item."""
    item: dict[str, UniversalAttributeValueTypeDef] = {**LOCK, "locked": {"BOOL": state is not None}}
    if state is not None:
        item |= {"reason": {"S": state.reason}, "time_ms": {"N": str(state.time_ms)}}
    return item


def lock_state(item: Mapping[str, Any] | None) -> LockState | None:
    """Return the emergency stop that an item says is in force. An item that is damaged says that one is."""
    if item is None or item.get("locked") == {"BOOL": False}:
        return None
    reason, time_ms = item.get("reason", {}).get("S", "(not readable)"), item.get("time_ms", {}).get("N", "0")
    return LockState(str(reason), int(time_ms))


ORIGIN = {PARTITION_KEY: {"S": "#store"}, SORT_KEY: {"S": "origin"}}
"""Primary key of what is known of the table. No tenant can have this partition: no tenant id holds a `#`."""


SHREDDINGS = "#shredding"
"""Partition of the list of shreddings. No tenant can have it: no tenant id holds a `#`."""


def shredding_record(item: Mapping[str, Any]) -> str | None:
    """Return the record of a shredding in an item, if it has one: "", which is a damaged one, if it is no text."""
    return item["shredding"].get("S", "") if "shredding" in item else None


def can_exist(primary_key: Mapping[str, Any]) -> bool:
    """Return whether DynamoDB could hold such an item. It refuses to be asked for one that it could not."""
    tenant_id, name = primary_key[PARTITION_KEY]["S"], primary_key[SORT_KEY]["S"]
    return bool(tenant_id) and len(name.encode()) <= _MAX_SORT_KEY_BYTES


def item_of(key: StoredKey) -> "dict[str, UniversalAttributeValueTypeDef]":
    """Return a key as an item, its checksum included."""
    item: dict[str, UniversalAttributeValueTypeDef] = {
        **row_of(key.tenant_id, key.key_id),
        "provider": {"S": key.provider},
        "master_key_arn": {"S": key.wrapped_seed.master_key_arn},
        "wrapped_seed": {"B": key.wrapped_seed.blob},
        "public_key": {"B": key.public_key},
        "status": {"S": key.status},
        "create_time_ms": {"N": str(key.create_time_ms)},
        "checksum": {"B": key.checksum()},
        "state_checksum": {"B": key.state_checksum()},
    }
    if key.rotate_time_ms is not None:
        item["rotate_time_ms"] = {"N": str(key.rotate_time_ms)}
    if key.revoke_time_ms is not None:
        item["revoke_time_ms"] = {"N": str(key.revoke_time_ms)}
    return item


def stored_key(item: Mapping[str, Any]) -> StoredKey:
    """Return the key that an item holds. Raises KeyDamaged if it is not what was written."""
    key_id = key_id_of(item)
    try:
        key = StoredKey(
            tenant_id=item[PARTITION_KEY]["S"],
            key_id=key_id,
            provider=item["provider"]["S"],
            wrapped_seed=WrappedKey(item["wrapped_seed"]["B"], item["master_key_arn"]["S"]),
            public_key=item["public_key"]["B"],
            status=cast(KeyStatus, item["status"]["S"]),
            create_time_ms=int(item["create_time_ms"]["N"]),
            rotate_time_ms=_time(item, "rotate_time_ms"),
            revoke_time_ms=_time(item, "revoke_time_ms"),
        )
        state_checksum = item["state_checksum"]["B"] if "state_checksum" in item else None
        intact = key.is_intact(item["checksum"]["B"], state_checksum)
    except (KeyError, ValueError) as cause:
        raise damaged_key(key_id) from cause
    if not intact:
        raise damaged_key(key_id)
    return key


def key_id_of(item: Mapping[str, Any]) -> str:
    """Return the id of the key that an item is about."""
    name: str = item[SORT_KEY]["S"]
    return name.removeprefix(KEY_PREFIX)


def _time(item: Mapping[str, Any], name: str) -> int | None:
    return int(item[name]["N"]) if name in item else None
