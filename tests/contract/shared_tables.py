"""Two tables of moto for all tests of shredding: to make them takes longer than what is tested."""

import secrets

from betrace_kms_server.stores.dynamodb.client import dynamodb_client
from betrace_kms_server.stores.dynamodb.creation import create_table
from betrace_kms_server.stores.dynamodb.table import BRANCH_KEYS, KEY_STORE

from tests.moto_server import REGION

_made: dict[str, tuple[str, str]] = {}


async def emptied_tables(url: str) -> tuple[str, str]:
    """Return the names of a key store's table and of a branch key store's, both empty."""
    kinds = (KEY_STORE, BRANCH_KEYS)
    if url not in _made:
        _made[url] = (f"keys-{secrets.token_hex(8)}", f"branch-keys-{secrets.token_hex(8)}")
        for name, kind in zip(_made[url], kinds, strict=True):
            async for _ in create_table(name, region=REGION, endpoint=url, kind=kind):
                pass
    async with dynamodb_client(REGION, url) as client:
        for name, kind in zip(_made[url], kinds, strict=True):
            for item in (await client.scan(TableName=name))["Items"]:
                await client.delete_item(TableName=name, Key={part: item[part] for part, _, _ in kind.key_schema})
    return _made[url]
