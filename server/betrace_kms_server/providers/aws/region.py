"""KMS in one region: a client that is opened when it is first needed, and a breaker for when nobody answers.

One client lives as long as the provider: making the first costs a quarter of a second and stalls the loop. Only a
client that found no credentials at all is made anew at the next call, because botocore looks for them once, when it
makes it.

The clients of all regions share their credentials, found or assumed once: what cannot be reached may be a whole region,
with the STS that would give new ones.

Every call is bounded as a whole, the wait for a connection of the pool included, which botocore alone would not bound.
How it ends is told to the breaker:

- no answer in time, an answer that KMS is out of order, or throttling: a failure;
- any other answer, also a denial: a success, because KMS is there;
- no credentials, a cancelled call or a defect of ours: nothing, because none tells how KMS is.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import aioboto3
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from betrace_kms_server.core.errors import CredentialsUnavailable, KmsUnreachable, Throttled
from betrace_kms_server.core.key_event import KmsObserver
from betrace_kms_server.providers.aws.errors import translated
from betrace_kms_server.providers.breaker import CircuitBreaker, Permit

if TYPE_CHECKING:
    from types_aiobotocore_kms.type_defs import (
        DecryptResponseTypeDef,
        DescribeKeyResponseTypeDef,
        EncryptResponseTypeDef,
        GenerateDataKeyResponseTypeDef,
    )

log = logging.getLogger(__name__)

A = TypeVar("A", bound=Mapping[str, Any])

CONNECT_SECONDS, READ_SECONDS, ATTEMPTS, POOL_SIZE = 1, 2, 3, 50

TRANSIENT = (KmsUnreachable, Throttled)
"""Errors of one region, which another region need not have."""


class KmsApi(Protocol):
    """The calls of a KMS client that we use."""

    @property
    def meta(self) -> Any:
        """botocore's ClientMeta, for its endpoint_url."""

    async def generate_data_key(
        self, *, KeyId: str, NumberOfBytes: int, EncryptionContext: Mapping[str, str]
    ) -> "GenerateDataKeyResponseTypeDef": ...

    async def encrypt(
        self, *, KeyId: str, Plaintext: bytes | bytearray, EncryptionContext: Mapping[str, str]
    ) -> "EncryptResponseTypeDef": ...

    async def decrypt(
        self, *, KeyId: str, CiphertextBlob: bytes, EncryptionContext: Mapping[str, str]
    ) -> "DecryptResponseTypeDef": ...

    async def describe_key(self, *, KeyId: str) -> "DescribeKeyResponseTypeDef": ...


Request = Callable[[KmsApi, str], Awaitable[A]]
"""One call of a client, given the key's ARN in the client's region."""

ClientFactory = Callable[[str, str | None], AbstractAsyncContextManager[KmsApi]]
"""Opens a KMS client for a region and an endpoint override."""


class SdkClients:
    """Opens real clients, of one session as soon as there is one that found credentials."""

    def __init__(self) -> None:
        self._session: aioboto3.Session | None = None

    @asynccontextmanager
    async def __call__(self, region: str, endpoint: str | None) -> AsyncIterator[KmsApi]:
        """See ClientFactory."""
        session = self._session or aioboto3.Session()
        if await session.get_credentials() is not None:
            self._session = session
        config = AioConfig(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=POOL_SIZE,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        )
        async with session.client("kms", region_name=region, endpoint_url=endpoint, config=config) as client:
            yield client


@dataclass(frozen=True, slots=True)
class _OpenClient:
    api: KmsApi
    resources: AsyncExitStack


class KmsRegion:
    """KMS in the region `name`. Whoever calls `ask` got the permit from `breaker`."""

    def __init__(
        self,
        name: str,
        endpoint: str | None,
        *,
        client_factory: ClientFactory,
        breaker: CircuitBreaker,
        observe: KmsObserver,
    ) -> None:
        self.name = name
        self.breaker = breaker
        self._endpoint = endpoint
        self._client_factory = client_factory
        self._observe = observe
        self._client: _OpenClient | None = None
        self._opening = asyncio.Lock()
        self._told = False

    async def close(self) -> None:
        """Close the client, if one was opened."""
        if self._client is not None:
            await self._client.resources.aclose()

    async def ask(self, action: str, arn: str, request: Request[A], permit: Permit, seconds: float) -> A:
        """Make one call, observed and bounded to `seconds`, and turn the SDK's errors into ours."""
        client = None
        with permit, self._observe(action, self.name) as call:
            try:
                async with asyncio.timeout(seconds):
                    client = await self._open()
                    answer = await request(client.api, arn)
            except (BotoCoreError, ClientError, OSError) as cause:
                if isinstance(cause, ClientError):
                    call.answered(request_id(cause.response))
                if isinstance(cause, NoCredentialsError) and client is not None and client is self._client:
                    self._client = None
                    await client.resources.aclose()
                error = translated(cause, action, arn)
                if error is None:
                    raise
                if not isinstance(error, CredentialsUnavailable):
                    self._report(permit, answered=not isinstance(error, TRANSIENT))
                try:
                    raise error from cause
                finally:
                    del error  # it leads to this frame, and the cycle would keep the request and its key for a while
            self._report(permit, answered=True)
            call.answered(request_id(answer))
        return answer

    def _report(self, permit: Permit, *, answered: bool) -> None:
        """Tell the breaker how a call ended, and the operator if that opens or closes it."""
        before = self.breaker.state
        (permit.success if answered else permit.failure)()
        after = self.breaker.state
        if (before, after) == ("closed", "open"):
            log.warning("KMS in %s fails too often: it is left alone for a few seconds, then tried again", self.name)
        elif (before, after) == ("half_open", "closed"):
            log.info("KMS in %s answers again", self.name)

    async def _open(self) -> _OpenClient:
        async with self._opening:
            if self._client is None:
                async with AsyncExitStack() as resources:
                    api = await resources.enter_async_context(self._client_factory(self.name, self._endpoint))
                    self._client = _OpenClient(api, resources.pop_all())
                if not self._told:
                    log.info("AWS KMS endpoint: %s", api.meta.endpoint_url)
                    self._told = True
            return self._client


def request_id(answer: Mapping[str, Any]) -> str | None:
    """Return the AWS request id of an answer, good or bad."""
    found: str | None = answer.get("ResponseMetadata", {}).get("RequestId")
    return found
