"""KMS in one region: a client that is opened when it is first needed, and a breaker for when there is no answer.

One client lives as long as the provider: making the first costs a quarter of a second and stalls the loop. The clients
of all regions share their credentials (aws/credentials.py), found or assumed once: what cannot be reached may be a
whole region, with the STS that would give new ones.

Every call is bounded as a whole, the wait for a connection included, which botocore alone would not bound. Credentials
are obtained before, within a bound of their own. How a call ends is reported to the breaker:

- no answer in time, an answer that KMS is out of order, or throttling: a failure;
- any other answer, also a denial: a success, because KMS is there;
- no credentials, a cancelled call or an answer that cannot be used: nothing, because none says how KMS is.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from botocore.exceptions import ClientError

from betrace_kms_server.aws.credentials import Credentials
from betrace_kms_server.core.errors import BadAnswer, CredentialsUnavailable, KmsError, KmsUnreachable, Throttled
from betrace_kms_server.core.key_event import KmsCall, KmsObserver
from betrace_kms_server.providers.aws.errors import client_problem, credentials_problem, translated
from betrace_kms_server.providers.breaker import CircuitBreaker, Permit

if TYPE_CHECKING:
    from types_aiobotocore_kms.type_defs import (
        DecryptResponseTypeDef,
        DescribeKeyResponseTypeDef,
        EncryptResponseTypeDef,
        GenerateDataKeyResponseTypeDef,
    )

log = logging.getLogger(__name__)

R = TypeVar("R")

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


@dataclass(frozen=True, slots=True)
class Answered(Generic[R]):
    """What an answer was checked to hold, and the answer, for its request id."""

    result: R
    answer: Mapping[str, Any] = field(repr=False)


Request = Callable[[KmsApi, str], Awaitable[Answered[R]]]
"""One call of a client, given the key's ARN in the client's region. Raises BadAnswer."""

ClientFactory = Callable[[str, str | None], AbstractAsyncContextManager[KmsApi]]
"""Opens a KMS client for a region and an endpoint override."""


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
        credentials: Credentials,
        breaker: CircuitBreaker,
        observe: KmsObserver,
    ) -> None:
        self.name = name
        self.breaker = breaker
        self._endpoint = endpoint
        self._client_factory = client_factory
        self._credentials = credentials
        self._observe = observe
        self._client: _OpenClient | None = None
        self._opening = asyncio.Lock()
        self._endpoint_logged = False

    async def close(self) -> None:
        """Close the client, if one was opened."""
        if self._client is not None:
            await self._client.resources.aclose()

    async def ask(self, action: str, arn: str, request: Request[R], permit: Permit, seconds: float) -> R:
        """Make one call, observed and bounded to `seconds`, and turn the SDK's errors into ours."""
        with permit, self._observe(action, self.name) as call:
            error: KmsError
            try:
                answered = await self._asked(action, arn, request, seconds)
            except KmsError as known:
                error, cause = known, known.__cause__
            except Exception as unknown:  # noqa: BLE001  # SDKs raise more than they document; all of it is translated
                error, cause = translated(unknown, action, arn), unknown
            else:
                self._report(permit, answered=True)
                call.answered(request_id(answered.answer))
                return answered.result
            self._note_failure(permit, call, error, cause)
            try:
                raise error from cause
            finally:
                del (
                    error,
                    cause,
                )  # they lead to this frame, and the cycle would keep the request and its key for a while

    async def _asked(self, action: str, arn: str, request: Request[R], seconds: float) -> Answered[R]:
        client = await self._open(action, arn)
        try:
            await self._credentials.ready()
        except Exception as cause:
            raise credentials_problem(cause) from cause
        async with asyncio.timeout(seconds):
            return await request(client.api, arn)

    def _note_failure(self, permit: Permit, call: KmsCall, error: KmsError, cause: BaseException | None) -> None:
        if isinstance(cause, ClientError):
            call.answered(request_id(cause.response))
            if isinstance(error, CredentialsUnavailable):
                self._credentials.refused()
        if not isinstance(error, (CredentialsUnavailable, BadAnswer)):
            self._report(permit, answered=not isinstance(error, TRANSIENT))

    def _report(self, permit: Permit, *, answered: bool) -> None:
        """Report to the breaker how a call ended, and log it if that opens or closes the circuit."""
        before = self.breaker.state
        (permit.success if answered else permit.failure)()
        after = self.breaker.state
        if (before, after) == ("closed", "open"):
            log.warning("KMS in %s fails too often: its circuit is open for a few seconds", self.name)
        elif (before, after) == ("half_open", "closed"):
            log.info("KMS in %s answers again", self.name)

    async def _open(self, action: str, arn: str) -> _OpenClient:
        async with self._opening:
            if self._client is None:
                async with AsyncExitStack() as resources:
                    try:
                        api = await resources.enter_async_context(self._client_factory(self.name, self._endpoint))
                    except Exception as cause:
                        raise client_problem(cause, action, arn) from cause
                    self._client = _OpenClient(api, resources.pop_all())
                if not self._endpoint_logged:
                    log.info("AWS KMS endpoint: %s", api.meta.endpoint_url)
                    self._endpoint_logged = True
            return self._client


def request_id(answer: Mapping[str, Any]) -> str | None:
    """Return the AWS request id of an answer, good or bad."""
    found: str | None = answer.get("ResponseMetadata", {}).get("RequestId")
    return found
