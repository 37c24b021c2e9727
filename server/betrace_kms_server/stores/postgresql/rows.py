"""Rows of signing keys: the statements that read and write them, and the keys that they hold."""

from betrace_kms_server.core.keys import StoredKey, WrappedKey
from betrace_kms_server.stores.damage import damaged_key
from betrace_kms_server.stores.postgresql.database import Connection, Row

COLUMNS = (
    "SELECT tenant_id, key_id, provider, wrapped_seed, master_key_arn, public_key, status, create_time_ms,"
    " rotate_time_ms, revoke_time_ms, checksum, state_checksum FROM betrace_kms.signing_keys"
)
_INSERT = (
    "INSERT INTO betrace_kms.signing_keys (tenant_id, key_id, provider, wrapped_seed, master_key_arn, public_key,"
    " status, create_time_ms, rotate_time_ms, revoke_time_ms, checksum, state_checksum)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
)
RETIRE = (
    "UPDATE betrace_kms.signing_keys SET status = %s, rotate_time_ms = %s, revoke_time_ms = %s, state_checksum = %s"
    " WHERE tenant_id = %s AND key_id = %s AND status = %s"
)
HAD_KEY = (
    "SELECT 1 FROM betrace_kms.signing_keys WHERE tenant_id = %s"
    " UNION ALL SELECT 1 FROM betrace_kms.tenants WHERE tenant_id = %s AND had_key LIMIT 1"
)


async def insert(connection: Connection, key: StoredKey) -> bool:
    """Put a key, unless there is one of its id, or another active one if this is active."""
    done = await connection.execute(
        _INSERT,
        (
            key.tenant_id,
            key.key_id,
            key.provider,
            key.wrapped_seed.blob,
            key.wrapped_seed.master_key_arn,
            key.public_key,
            key.status,
            key.create_time_ms,
            key.rotate_time_ms,
            key.revoke_time_ms,
            key.checksum(),
            key.state_checksum(),
        ),
    )
    if done.rowcount and key.status == "active":
        await connection.execute("UPDATE betrace_kms.tenants SET had_key = TRUE WHERE tenant_id = %s", (key.tenant_id,))
    return done.rowcount == 1


async def insert_active(connection: Connection, key: StoredKey) -> bool:
    """Put a tenant's first key, unless the tenant has or had one: the row of the tenant is locked."""
    found = await connection.execute(HAD_KEY, (key.tenant_id, key.tenant_id))
    return not await found.fetchall() and await insert(connection, key)


async def there_is(connection: Connection, key: StoredKey) -> bool:
    """Return whether there is a key of this id."""
    found = await connection.execute(
        "SELECT 1 FROM betrace_kms.signing_keys WHERE tenant_id = %s AND key_id = %s", (key.tenant_id, key.key_id)
    )
    return bool(await found.fetchall())


def stored_key(row: Row) -> StoredKey:
    """Return the key that a row holds. Raises KeyDamaged if it is not what was written."""
    tenant_id, key_id, provider, wrapped_seed, arn, public_key, status, created, rotated, revoked, *sums = row
    key = StoredKey(
        tenant_id, key_id, provider, WrappedKey(wrapped_seed, arn), public_key, status, created, rotated, revoked
    )
    if not key.is_intact(*sums):
        raise damaged_key(key_id)
    return key
