"""A client of DynamoDB, and calls of it that end in time and fail as our errors.

Credentials come from the SDK's own chain, as those for KMS do (aws/credentials.py). One client lives as long as the
store: making one costs a quarter of a second and stalls the loop. Every call is bounded as a whole, its retries and the
wait for a connection of the pool included, which botocore alone would not bound.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from botocore.exceptions import ClientError

from betrace_kms_server.aws.clients import ATTEMPTS, aws_client
from betrace_kms_server.aws.credentials import DaemonCredentials
from betrace_kms_server.core.errors import KmsError
from betrace_kms_server.stores.dynamodb.errors import client_problem, is_contention, translated

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb import DynamoDBClient

R = TypeVar("R")

CALL_SECONDS = 5.0
"""What one call of ours may take."""
WRITE_SECONDS = 3.5
"""What of it may go to a write. The rest is for the read that tells whether a write without an answer was done."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.4

ClientFactory = Callable[[str, str | None], "AbstractAsyncContextManager[DynamoDBClient]"]
"""Opens a client for a region and an endpoint override."""


@asynccontextmanager
async def dynamodb_client(
    region: str, endpoint: str | None, *, attempts: int = ATTEMPTS
) -> "AsyncIterator[DynamoDBClient]":
    """Open the real client. Raises StoreUnavailable if the daemon's AWS configuration does not make one."""
    credentials = DaemonCredentials(region)
    async with AsyncExitStack() as resources:
        resources.push_async_callback(credentials.close)
        try:
            opening = aws_client("dynamodb", region, endpoint, credentials, attempts=attempts)
            client = await resources.enter_async_context(opening)
        except Exception as cause:
            raise client_problem(cause) from cause
        yield client


@asynccontextmanager
async def asking(action: str, table: str) -> AsyncIterator[None]:
    """Bound what is inside in time, and turn whatever the SDK raises into StoreUnavailable."""
    try:
        async with asyncio.timeout(CALL_SECONDS):
            yield
    except KmsError:
        raise
    except Exception as cause:  # SDKs raise more than they document; all of it is translated
        raise translated(cause, action, table) from cause


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
