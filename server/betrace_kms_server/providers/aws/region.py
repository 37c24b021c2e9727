"""KMS in one region: a client that is opened when it is first needed, a queue, and a breaker for outages.

A call is made ready first: the client is there, and so are credentials. Then it takes a slot of the connection pool,
then a permit of the breaker, and only then does its time begin to run. So neither a slow source of credentials nor a
burst of our own is ever KMS's failure.

The clients of all regions share their credentials, found or assumed once: what cannot be reached may be a whole region,
with the STS that would give new ones.

How a call ends is reported to the breaker:

- no answer in time, an answer that KMS is out of order, or one that is not KMS's: a failure;
- any other answer, also a denial and throttling: a success, because KMS is there. What one tenant asks for too often
  must not keep the others away; throttling slows the queue down instead;
- no credentials, trouble of this machine or a cancelled call: nothing, because none says how KMS is.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from botocore.exceptions import ClientError

from betrace_kms_server.aws.clients import aws_client, credentials_of
from betrace_kms_server.aws.credentials import AwsCredentials
from betrace_kms_server.aws.sdk_errors import CREDENTIALS_CODES, THROTTLED_CODES, code_of
from betrace_kms_server.core.call_slots import CallSlots
from betrace_kms_server.core.errors import KmsError, KmsUnreachable, Throttled
from betrace_kms_server.core.key_event import KmsObserver
from betrace_kms_server.providers.aws.errors import of_opening, says_nothing_of_kms, translated
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

OPEN_SECONDS = 5.0
"""What making a client may take. AWS_DEFAULTS_MODE=auto lets the SDK ask the metadata service."""

TRANSIENT = (KmsUnreachable, Throttled)
"""Errors of one region, which another region need not have."""

CALLS_AT_ONCE, CALLS_OF_TENANT = 16, 8
"""Calls that run at a time, in all and of one tenant. The SDK spends milliseconds of the event loop on each: with more
of them, warm calls wait. See docs/adr/0006-fair-queue-before-kms.md."""


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
    """Opens real clients, which share their credentials: by default, those of the Region of the first."""

    def __init__(self, credentials: AwsCredentials | None = None) -> None:
        self._credentials = credentials

    @asynccontextmanager
    async def __call__(self, region: str, endpoint: str | None) -> AsyncIterator[KmsApi]:
        """See ClientFactory."""
        self._credentials = self._credentials or AwsCredentials(region)
        async with aws_client("kms", region, endpoint, self._credentials) as client:
            yield client


@dataclass(frozen=True, slots=True)
class _OpenClient:
    api: KmsApi
    resources: AsyncExitStack


class KmsRegion:
    """KMS in the region `name`. A caller of `ask` has made it ready, holds one of `slots` and a permit of `breaker`."""

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
        self.slots = CallSlots(f"KMS in {name}", size=CALLS_AT_ONCE, per_tenant=CALLS_OF_TENANT)
        self._endpoint = endpoint
        self._client_factory = client_factory
        self._observe = observe
        self._client: _OpenClient | None = None
        self._opening = asyncio.Lock()
        self._logged = ""

    @property
    def credentials(self) -> AwsCredentials | None:
        """What the client signs with; None before it was opened."""
        return None if self._client is None else credentials_of(self._client.api)

    async def close(self) -> None:
        """Close the client, if one was opened."""
        if self._client is not None:
            await self._client.resources.aclose()

    async def make_ready(self, action: str, arn: str) -> KmsApi:
        """Return the client, with credentials to sign with. Raises our errors only."""
        client = self._client
        if client is None:
            try:
                async with asyncio.timeout(OPEN_SECONDS):
                    client = await self._open()
            except Exception as cause:
                raise self._failed(cause, of_opening(cause, action, arn)) from cause
        if (credentials := credentials_of(client.api)) is not None:
            await credentials.ready()
        return client.api

    async def ask(self, kms: KmsApi, action: str, arn: str, request: Request[A], permit: Permit, seconds: float) -> A:
        """Make one call, observed and bounded to `seconds`, and turn whatever the SDK raises into our errors."""
        credentials = credentials_of(kms)
        generation = 0 if credentials is None else credentials.generation
        with permit, self._observe(action, self.name) as call:
            try:
                async with asyncio.timeout(seconds):
                    answer = await request(kms, arn)
            except Exception as cause:  # noqa: BLE001  # the SDK's exceptions have no common root
                if isinstance(cause, ClientError):
                    call.answered(request_id(getattr(cause, "response", {})))
                if credentials is not None and code_of(cause) in CREDENTIALS_CODES:
                    credentials.refused(generation)
                error = self._failed(cause, translated(cause, action, arn))
                if not says_nothing_of_kms(error):
                    self._report(permit, answered=not isinstance(error, KmsUnreachable))
                try:
                    raise error from cause
                finally:
                    del error  # it leads to this frame, and the cycle would keep the request and its key for a while
            self._report(permit, answered=True)
            call.answered(request_id(answer))
        return answer

    def _attempt_ended(self, response: tuple[Any, Mapping[str, Any]] | None, **_: Any) -> None:
        """Slow the queue down when an attempt is throttled. The SDK calls this before it decides whether to retry."""
        if response is not None and response[1].get("Error", {}).get("Code") in THROTTLED_CODES:
            self.slots.throttled()

    def _failed(self, cause: Exception, error: KmsError) -> KmsError:
        """Return the error; what nothing has a name for goes to the log with its traceback, once per kind."""
        if error.metadata.get("kind") == "sdk" and type(cause).__name__ != self._logged:
            self._logged = type(cause).__name__
            log.error("The AWS SDK fails at a call to KMS in %s", self.name, exc_info=cause)
        return error

    def _report(self, permit: Permit, *, answered: bool) -> None:
        """Report to the breaker how a call ended, and the operator if that opens or closes it."""
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
                    if (events := getattr(api.meta, "events", None)) is not None:
                        events.register("needs-retry.kms", self._attempt_ended)
                    self._client = _OpenClient(api, resources.pop_all())
                log.info("AWS KMS endpoint: %s", api.meta.endpoint_url)
            return self._client


def request_id(answer: Mapping[str, Any]) -> str | None:
    """Return the AWS request id of an answer, good or bad."""
    found: str | None = answer.get("ResponseMetadata", {}).get("RequestId")
    return found
