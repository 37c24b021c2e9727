"""A client of DynamoDB, and calls of it that end in time and fail as our errors.

Credentials come from the SDK's own chain, as those for KMS do. One client lives as long as the store: making one costs
a quarter of a second and stalls the loop. Every call is bounded as a whole, its retries and the wait for a connection
of the pool included, which botocore alone would not bound.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import aioboto3
from aiobotocore.config import AioConfig
from botocore.exceptions import ClientError

from betrace_kms_server.stores.dynamodb.errors import SDK_ERRORS, is_contention, translated

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb import DynamoDBClient

R = TypeVar("R")

CONNECT_SECONDS, READ_SECONDS, ATTEMPTS, POOL_SIZE = 1, 2, 3, 50

CALL_SECONDS = 5.0
"""What one call of ours may take."""
WRITE_SECONDS = 3.5
"""What of it may go to a write. The rest is for the read that tells whether a write without an answer was done."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.4

ClientFactory = Callable[[str, str | None], "AbstractAsyncContextManager[DynamoDBClient]"]
"""Opens a client for a region and an endpoint override."""


def dynamodb_client(
    region: str, endpoint: str | None, *, attempts: int = ATTEMPTS
) -> "AbstractAsyncContextManager[DynamoDBClient]":
    """Open the real client."""
    config = AioConfig(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=POOL_SIZE,
        retries={"mode": "standard", "total_max_attempts": attempts},
    )
    client: AbstractAsyncContextManager[DynamoDBClient] = aioboto3.Session().client(
        "dynamodb", region_name=region, endpoint_url=endpoint, config=config
    )
    return client


@asynccontextmanager
async def asking(action: str, table: str) -> AsyncIterator[None]:
    """Bound what is inside in time, and turn the SDK's errors into StoreUnavailable, if they are not for defects."""
    try:
        async with asyncio.timeout(CALL_SECONDS):
            yield
    except SDK_ERRORS as cause:
        error = translated(cause, action, table)
        if error is None:
            raise
        raise error from cause


async def without_contention(action: Callable[[], Awaitable[R]]) -> R:
    """Do something, and do it again when a write was in its way. Raises the SDK's errors, TimeoutError among them."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + WRITE_SECONDS
    pause = _FIRST_PAUSE
    async with asyncio.timeout_at(deadline):
        while True:
            try:
                return await action()
            except ClientError as cause:
                # Drawn anew each time, so that those who met once do not meet again.
                jittered = pause * (0.5 + secrets.randbelow(1000) / 1000)
                if not is_contention(cause) or clock() + jittered >= deadline:
                    raise
            await asyncio.sleep(jittered)
            pause = min(2 * pause, _LONGEST_PAUSE)
