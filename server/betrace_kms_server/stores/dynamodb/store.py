"""The key store in one DynamoDB table: for any number of daemons at once. What is in an item: dynamodb_items.py.

The daemon's role needs these on the table, and nothing else (deploy/iam/betrace-kms-policy.json):
dynamodb:DescribeTable and dynamodb:DescribeContinuousBackups at start; dynamodb:GetItem, dynamodb:Query and
dynamodb:Scan to read; dynamodb:PutItem and dynamodb:UpdateItem to write, most of it in transactions.

- What changes a tenant's keys is one transaction over the key items and the tenant's head, which names the active key.
  So there is one active key at any time, and two daemons that write at once agree on one winner.
- Nothing in this table deletes an item, and the generation in the head is only ever added to.
- Reads are consistent, but for the list of tenants whose keys are old.
- A write whose answer is lost may have been done; a retry of the SDK is then refused by our own write. Before we say
  that a write was not done, we read: a key id (128 random bits, drawn for each try) that is there is ours.
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from betrace_kms_server.core.errors import StoreUnavailable
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.core.keys import StoredKey
from betrace_kms_server.core.lock_state import LockState
from betrace_kms_server.core.shredding import Shredding, TenantHead
from betrace_kms_server.core.tenancy import DataKeyType
from betrace_kms_server.stores.damage import damaged_generation, damaged_key, no_active_key
from betrace_kms_server.stores.dynamodb.client import ClientFactory, asking, commit, dynamodb_client, without_contention
from betrace_kms_server.stores.dynamodb.errors import is_refusal
from betrace_kms_server.stores.dynamodb.inspection import inspect_deletion, inspect_protection
from betrace_kms_server.stores.dynamodb.items import (
    LOCK,
    ORIGIN,
    PARTITION_KEY,
    SORT_KEY,
    head_of,
    key_id_of,
    lock_item,
    lock_state,
    row_of,
    shredding_record,
    stored_key,
)
from betrace_kms_server.stores.dynamodb.reads import TRANSACTION_ITEMS, Reads
from betrace_kms_server.stores.dynamodb.table import inspect_table
from betrace_kms_server.stores.dynamodb.writes import Writes, may_follow

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb import DynamoDBClient
    from types_aiobotocore_dynamodb.type_defs import TransactWriteItemTypeDef

_PROBE_TENANT = "#probe"
"""A partition that no tenant can have, because no tenant id may hold a `#`."""
_READS = 20
"""How often an active key is read again that was rotated between two reads."""


class DynamoStore:
    """A KeyStore in one table. See `open_dynamodb`."""

    shared = True

    def __init__(self, client: "DynamoDBClient", table: str, table_arn: str) -> None:
        self._client = client
        self._table = table
        self._arn = table_arn
        self._reads = Reads(client, table, table_arn)
        self._writes = Writes(table)

    async def active(self, tenant_id: str) -> StoredKey | None:
        """See KeyStore."""
        for _ in range(_READS):
            known = await self._reads.item(head_of(tenant_id), "active_key_id")
            if not known:
                if not await self._reads.has_keys(tenant_id):
                    return None
                [head] = await self._reads.transact_get(head_of(tenant_id))
                if head and "active_key_id" in head:
                    continue  # it was made meanwhile
                raise no_active_key(tenant_id)
            key_id = known["active_key_id"]["S"]
            head, item = await self._reads.transact_get(head_of(tenant_id), row_of(tenant_id, key_id))
            if not head or head.get("active_key_id") != known["active_key_id"]:
                continue  # it was rotated meanwhile
            key = None if item is None else stored_key(item)
            if key is None or key.status != "active":
                raise damaged_key(key_id)
            return key
        raise StoreUnavailable("the tenant's key is being rotated without end: try again later")

    async def get(self, tenant_id: str, key_id: str) -> StoredKey | None:
        """See KeyStore."""
        [item] = await self._reads.transact_get(row_of(tenant_id, key_id))
        return None if item is None else stored_key(item)

    async def get_many(self, tenant_id: str, key_ids: AbstractSet[str]) -> Mapping[str, StoredKey]:
        """See KeyStore. One query finds the ids that are there; a status is read only between two transactions."""
        there = key_ids
        if len(key_ids) > 1:
            there = {key_id_of(item) async for item in self._reads.keys_of(tenant_id, "#item")} & key_ids
        found: dict[str, StoredKey] = {}
        ordered = sorted(there)
        for start in range(0, len(ordered), TRANSACTION_ITEMS):
            some = ordered[start : start + TRANSACTION_ITEMS]
            items = await self._reads.transact_get(*(row_of(tenant_id, key_id) for key_id in some))
            found |= {key_id_of(item): stored_key(item) for item in items if item}
        return found

    async def all(self, tenant_id: str) -> Sequence[StoredKey]:
        """See KeyStore."""
        keys = [stored_key(item) async for item in self._reads.keys_of(tenant_id)]
        return sorted(keys, key=lambda key: (key.create_time_ms, key.key_id))

    async def create(self, key: StoredKey) -> StoredKey:
        """See KeyStore."""
        winner = await self.active(key.tenant_id)
        if winner is not None:
            return winner

        async def there_is_one() -> bool:
            nonlocal winner
            winner = await self.active(key.tenant_id)
            return winner is not None

        if not await self._commit([self._writes.put(key), self._writes.first_active(key)], there_is_one):
            raise StoreUnavailable("the key store did not keep a key that it was given: check its table")
        return winner or key

    async def rotate(self, former: StoredKey, successor: StoredKey) -> bool:
        """See KeyStore."""
        time_ms = successor.create_time_ms
        if not may_follow(former, successor):
            return False

        async def landed() -> bool:
            row = await self.get(former.tenant_id, former.key_id)
            return row is not None and row.rotate_time_ms == time_ms and await self._holds(successor)

        return await self._commit(
            [
                self._writes.rotated(former, time_ms),
                self._writes.put(successor),
                self._writes.next_active(former, successor),
            ],
            landed,
        )

    async def revoke(self, key: StoredKey, revoke_time_ms: int, successor: StoredKey | None) -> bool:
        """See KeyStore."""
        if (key.status == "active") != (successor is not None):
            raise ValueError("an active key is revoked with a successor, and any other key without one")
        if successor is not None and not may_follow(key, successor):
            return False

        async def landed() -> bool:
            row = await self.get(key.tenant_id, key.key_id)
            revoked = row is not None and (row.status, row.revoke_time_ms) == ("revoked", revoke_time_ms)
            return revoked and (successor is None or await self._holds(successor))

        if key.status == "revoked":
            return await landed()
        writes = [self._writes.revoked(key, revoke_time_ms)]
        if successor is None:
            writes.append(self._writes.next_generation(key.tenant_id))
        else:
            writes += [self._writes.put(successor), self._writes.next_active(key, successor)]
        return await self._commit(writes, landed)

    async def generation(self, tenant_id: str) -> int:
        """See KeyStore."""
        return (await self.head(tenant_id)).generation

    async def head(self, tenant_id: str) -> TenantHead:
        """See KeyStore."""
        head = await self._reads.item(head_of(tenant_id), "generation, shredding") or {}
        try:
            return TenantHead(
                tenant_id, int(head["generation"]["N"]) if "generation" in head else 0, shredding_record(head)
            )
        except (KeyError, TypeError, ValueError) as cause:
            raise damaged_generation(tenant_id) from cause

    async def set_shredding(self, tenant_id: str, former: Shredding | None, state: Shredding | None) -> bool:
        """See KeyStore."""
        before, after = (None if each is None else each.record(tenant_id) for each in (former, state))

        async def landed() -> bool:
            return (await self.head(tenant_id)).record == after

        if before == after:
            return await landed()
        return await self._commit(self._writes.shredding(tenant_id, before, after), landed)

    async def shreddings(self) -> AsyncIterator[TenantHead]:
        """See KeyStore. Reads the list of them, which is written with the heads, and not each head."""
        async for item in self._reads.shreddings():
            yield TenantHead(item[SORT_KEY]["S"], 0, shredding_record(item))

    async def raise_generation(self, tenant_id: str) -> None:
        """See KeyStore. A retry that raises it twice does no harm."""
        update = self._writes.next_generation(tenant_id)["Update"]
        async with asking(self._client, "UpdateItem", self._arn):
            await without_contention(lambda: self._client.update_item(**update))

    async def created_before(self, time_ms: int) -> AsyncIterator[str]:
        """See KeyStore. Not consistent, for half the price: a rotation checks the key again."""
        async for item in self._reads.keys(
            "#status = :active AND create_time_ms < :time",
            {":active": {"S": "active"}, ":time": {"N": str(time_ms)}},
            names={"#status": "status"},
            projection=PARTITION_KEY,
            consistent=False,
        ):
            yield item[PARTITION_KEY]["S"]

    async def rows(self) -> AsyncIterator[StoredKey]:
        """See KeyStore."""
        async for item in self._reads.keys():
            yield stored_key(item)

    async def add(self, key: StoredKey) -> bool:
        """See KeyStore. The key's id is not new here, so a number drawn for this try shows whether it was done."""
        import_id = secrets.token_hex(16)

        async def landed() -> bool:
            item = await self._reads.item(row_of(key.tenant_id, key.key_id), "import_id")
            return item is not None and item.get("import_id") == {"S": import_id}

        writes = [self._writes.put(key, import_id=import_id)]
        if key.status == "active":
            writes.append(self._writes.first_active(key))
        return await self._commit(writes, landed)

    async def replace(self, stored: StoredKey, replacement: StoredKey) -> None:
        """See KeyStore."""
        update = self._writes.wrapped_anew(stored, replacement)
        async with asking(self._client, "UpdateItem", self._arn):
            try:
                await without_contention(lambda: self._client.update_item(**update))
            except ClientError as cause:
                if not is_refusal(cause):
                    raise

    async def wrapped_by_other_keys(self, master_key_arn: str) -> Sequence[tuple[str, str]]:
        """See KeyStore."""
        found = self._reads.keys(
            "master_key_arn <> :arn", {":arn": {"S": master_key_arn}}, projection=f"{PARTITION_KEY}, #item"
        )
        return [(item[PARTITION_KEY]["S"], key_id_of(item)) async for item in found]

    async def wrapped_by(self) -> AbstractSet[str]:
        """See KeyStore. A damaged item that names no key is left out: it is refused when somebody asks for its key."""
        found = self._reads.keys("attribute_exists(master_key_arn)", projection="master_key_arn")
        return {item["master_key_arn"]["S"] async for item in found}

    async def lock_state(self) -> LockState | None:
        """See KeyStore."""
        return lock_state(await self._reads.item(LOCK))

    async def set_lock(self, state: LockState | None) -> None:
        """See KeyStore. One item, put whole: a retry of the SDK that puts it twice does no harm."""
        async with asking(self._client, "PutItem", self._arn):
            await without_contention(lambda: self._client.put_item(TableName=self._table, Item=lock_item(state)))

    async def sealing_key_type(self) -> DataKeyType:
        """See KeyStore."""
        origin = await self._reads.item(ORIGIN)
        return "sealing" if origin and origin.get("sealing_key_type") == {"S": "sealing"} else "encryption"

    async def check(self) -> None:
        """See KeyStore. Asks for what makes a tenant's first key, on a condition that cannot hold.

        AWS checks permissions, the table and its throughput before it checks the condition, so that being
        refused for the condition alone shows that a key would be kept. Nothing is written, not even for a moment.
        """
        async with asking(self._client, "TransactWriteItems", self._arn):
            try:
                await without_contention(
                    lambda: self._client.transact_write_items(
                        TransactItems=self._writes.impossible(_PROBE_TENANT, secrets.token_hex(16))
                    )
                )
            except ClientError as cause:
                if not is_refusal(cause):
                    raise

    async def inspect(self) -> Sequence[Finding]:
        """See KeyStore."""
        found = await inspect_protection(self._client, self._table, self._arn, "key_store")
        return [*found, await inspect_deletion(self._client, self._table, self._arn, _PROBE_TENANT)]

    async def _commit(
        self, writes: "Sequence[TransactWriteItemTypeDef]", landed: Callable[[], Awaitable[bool]]
    ) -> bool:
        return await commit(self._client, self._arn, writes, landed)

    async def _holds(self, key: StoredKey) -> bool:
        """Return whether a key is there, whatever became of it since, or whichever master key wraps it now."""
        row = await self.get(key.tenant_id, key.key_id)
        return row is not None and row.public_key == key.public_key


@asynccontextmanager
async def open_dynamodb(
    table: str, *, region: str, endpoint: str | None, client_factory: ClientFactory = dynamodb_client
) -> AsyncIterator[DynamoStore]:
    """Open the store in a table. Raises StartRefused if there is none, or one that would lose keys."""
    async with client_factory(region, endpoint) as client:
        yield DynamoStore(client, table, await inspect_table(client, table))
