"""A client of DynamoDB, and calls of it that end in time and fail as our errors.

Every call is made ready first, and then bounded as a whole, its retries included: credentials and a slot of the
connection pool have bounds of their own, so that neither is taken for a table that does not answer.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from botocore.exceptions import ClientError

from betrace_kms_server.aws.clients import ATTEMPTS, aws_client, credentials_of
from betrace_kms_server.aws.credentials import AwsCredentials
from betrace_kms_server.aws.holder import DAEMON, Holder
from betrace_kms_server.aws.sdk_errors import CREDENTIALS_CODES
from betrace_kms_server.core.call_slots import CallSlots
from betrace_kms_server.core.errors import CredentialsUnavailable, KmsError, Overloaded, StoreUnavailable
from betrace_kms_server.stores.dynamodb.errors import code_of, is_contention, is_refusal, translated

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb import DynamoDBClient
    from types_aiobotocore_dynamodb.type_defs import TransactWriteItemTypeDef

R = TypeVar("R")

CALL_SECONDS = 5.0
"""What one call of ours may take."""
WRITE_SECONDS = 3.5
"""What of it may go to a write. The rest is for the read that finds out whether a write without an answer was done."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.4

ClientFactory = Callable[[str, str | None], "AbstractAsyncContextManager[DynamoDBClient]"]
"""Opens a client for a region and an endpoint override."""


def dynamodb_client(
    region: str, endpoint: str | None, *, attempts: int = ATTEMPTS, holder: Holder = DAEMON
) -> "AbstractAsyncContextManager[DynamoDBClient]":
    """Open the real client. `holder` is whose credentials it finds."""
    return aws_client("dynamodb", region, endpoint, AwsCredentials(region, holder=holder), attempts=attempts)


@asynccontextmanager
async def asking(client: "DynamoDBClient", action: str, table: str) -> AsyncIterator[None]:
    """Bound what is inside in time, and turn whatever the SDK raises into StoreUnavailable."""
    credentials = credentials_of(client)
    generation = 0
    try:
        if credentials is not None:
            await credentials.ready()
            generation = credentials.generation
        async with _slot(client), asyncio.timeout(CALL_SECONDS):
            yield
    except (CredentialsUnavailable, Overloaded) as cause:
        raise StoreUnavailable(f"DynamoDB cannot be asked: {cause.message}", metadata=cause.metadata) from cause
    except KmsError:
        raise
    except Exception as cause:
        if credentials is not None and code_of(cause) in CREDENTIALS_CODES:
            credentials.refused(generation)
        raise translated(cause, action, table, credentials.holder if credentials else DAEMON) from cause


@asynccontextmanager
async def _slot(client: "DynamoDBClient") -> AsyncIterator[None]:
    """Hold a slot of the client's pool. A read within a write has the write's: waiting for another could deadlock."""
    if _holds_slot.get():
        yield
        return
    slots = _SLOTS.get(client)
    if slots is None:
        slots = _SLOTS[client] = CallSlots("DynamoDB")
    async with slots.slot():
        token = _holds_slot.set(True)
        try:
            yield
        finally:
            _holds_slot.reset(token)


_SLOTS: "WeakKeyDictionary[object, CallSlots]" = WeakKeyDictionary()
"""The queue before each client's connections; it goes with the client."""
_holds_slot: ContextVar[bool] = ContextVar("holds_slot", default=False)


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


async def commit(
    client: "DynamoDBClient",
    table: str,
    writes: "Sequence[TransactWriteItemTypeDef]",
    landed: Callable[[], Awaitable[bool]],
) -> bool:
    """Write all of it or nothing. Returns False if a condition keeps it from being written.

    Whatever was answered last, a try before may have been done: `landed` reads whether it was.
    """
    async with asking(client, "TransactWriteItems", table):
        try:
            await without_contention(lambda: client.transact_write_items(TransactItems=writes))
        except Exception as cause:  # whatever it was, the write may have been done
            if await landed():
                return True
            if is_refusal(cause):
                return False
            raise
    return True
