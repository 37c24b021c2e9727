"""AWS KMS through aioboto3. The only module that knows botocore's KMS.

The role of the daemon needs, on the master key, and nothing else: kms:GenerateDataKey, kms:Encrypt, kms:Decrypt,
kms:DescribeKey. Credentials come from the SDK's own chain: environment, ~/.aws, web identity (IRSA), EKS pod identity
and ECS, instance metadata.

One client lives as long as the provider: making one costs a quarter of a second and stalls the loop. Only a client that
found no credentials at all is made anew at the next call, because botocore looks for them once, when it makes it.

Every call is bounded as a whole, the wait for a connection of the pool included, which botocore alone would not bound.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import aioboto3
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from betrace_kms_server.errors import DoesNotOpen, MasterKeyUnusable
from betrace_kms_server.keys import DataKey, KeyMaterial, WrappedKey
from betrace_kms_server.observation import KmsObserver, unobserved
from betrace_kms_server.providers.aws_errors import translated
from betrace_kms_server.tenancy import Context

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


ClientFactory = Callable[[str, str | None], AbstractAsyncContextManager[KmsApi]]
"""Opens a KMS client for a region and an endpoint override."""


def kms_client(region: str, endpoint: str | None) -> AbstractAsyncContextManager[KmsApi]:
    """Open the real client."""
    config = AioConfig(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=POOL_SIZE,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
    )
    client: AbstractAsyncContextManager[KmsApi] = aioboto3.Session().client(
        "kms", region_name=region, endpoint_url=endpoint, config=config
    )
    return client


class AwsProvider:
    """Wraps keys under a symmetric KMS key."""

    name = "aws"
    message_provider_id = "aws-kms"

    def __init__(
        self,
        master_key_id: str,
        *,
        region: str,
        endpoint: str | None = None,
        former_key_arns: Sequence[str] = (),
        call_seconds: float = 5.0,
        client_factory: ClientFactory = kms_client,
        observe: KmsObserver = unobserved,
    ) -> None:
        self.master_key_arn = master_key_id
        self._former_key_arns = tuple(former_key_arns)
        self._region = region
        self._endpoint = endpoint
        self._call_seconds = call_seconds
        self._client_factory = client_factory
        self._observe = observe
        self.clock_skew_seconds: float | None = None
        self._client: _OpenClient | None = None
        self._opening = asyncio.Lock()
        self._told = False

    async def __aenter__(self) -> "AwsProvider":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._client is not None:
            await self._client.resources.aclose()

    @property
    def decrypt_key_arns(self) -> Sequence[str]:
        """The master key, then the former ones."""
        return tuple(dict.fromkeys((self.master_key_arn, *self._former_key_arns)))

    def decrypting(self, arn: str) -> str | None:
        """See KeyProvider. A multi-Region key of another region is opened by its replica that is configured here."""
        if arn in self.decrypt_key_arns:
            return arn
        return next((ours for ours in self.decrypt_key_arns if _are_replicas(arn, ours)), None)

    async def generate_data_key(self, number_of_bytes: int, context: Context) -> DataKey:
        """See KeyProvider."""
        arn = self.master_key_arn
        answer = await self._ask(
            "GenerateDataKey",
            arn,
            lambda kms: kms.generate_data_key(
                KeyId=arn, NumberOfBytes=number_of_bytes, EncryptionContext=dict(context)
            ),
        )
        return DataKey(KeyMaterial(answer["Plaintext"]), WrappedKey(answer["CiphertextBlob"], answer["KeyId"]))

    async def encrypt(self, key: KeyMaterial, context: Context) -> WrappedKey:
        """See KeyProvider."""
        arn = self.master_key_arn
        answer = await self._ask(
            "Encrypt", arn, lambda kms: kms.encrypt(KeyId=arn, Plaintext=key.raw, EncryptionContext=dict(context))
        )
        return WrappedKey(answer["CiphertextBlob"], answer["KeyId"])

    async def decrypt(self, wrapped: WrappedKey, context: Context) -> KeyMaterial:
        """See KeyProvider. KMS is always told which key to use, so a blob of a foreign account never opens."""
        if wrapped.master_key_arn not in self.decrypt_key_arns or not wrapped.blob:
            raise DoesNotOpen
        arn = wrapped.master_key_arn
        answer = await self._ask(
            "Decrypt",
            arn,
            lambda kms: kms.decrypt(KeyId=arn, CiphertextBlob=wrapped.blob, EncryptionContext=dict(context)),
        )
        return KeyMaterial(answer["Plaintext"])

    async def check(self, arn: str | None = None) -> None:
        """See KeyProvider. Also learns the ARN of a master key that was configured as an alias (emulators only)."""
        asked = arn or self.master_key_arn
        answer = await self._ask("DescribeKey", asked, lambda kms: kms.describe_key(KeyId=asked))
        self.clock_skew_seconds = _clock_skew(answer)
        key = answer["KeyMetadata"]
        if arn is None:
            self.master_key_arn = key["Arn"]
        state, usage, spec = key.get("KeyState"), key.get("KeyUsage"), key.get("KeySpec")
        if state != "Enabled":
            raise MasterKeyUnusable(f"the master key {key['Arn']} is {state}: enable it, or cancel its deletion")
        if (usage, spec) != ("ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT"):
            raise MasterKeyUnusable(
                f"the master key {key['Arn']} is {spec} for {usage}: a symmetric key for encrypt and decrypt is needed"
            )

    async def _ask(self, action: str, arn: str, request: Callable[[KmsApi], Awaitable[A]]) -> A:
        """Make one call, bounded in time and observed, and turn the SDK's errors into ours."""
        client = None
        with self._observe(action, self._region) as call:
            try:
                async with asyncio.timeout(self._call_seconds):
                    client = await self._open()
                    answer = await request(client.api)
            except (BotoCoreError, ClientError, OSError) as cause:
                if isinstance(cause, ClientError):
                    call.answered(_request_id(cause.response))
                if isinstance(cause, NoCredentialsError) and client is not None and client is self._client:
                    self._client = None
                    await client.resources.aclose()
                error = translated(cause, action, arn)
                if error is None:
                    raise
                raise error from cause
            call.answered(_request_id(answer))
        return answer

    async def _open(self) -> "_OpenClient":
        async with self._opening:
            if self._client is None:
                async with AsyncExitStack() as resources:
                    api = await resources.enter_async_context(self._client_factory(self._region, self._endpoint))
                    self._client = _OpenClient(api, resources.pop_all())
                if not self._told:
                    log.info("AWS KMS endpoint: %s", api.meta.endpoint_url)
                    self._told = True
            return self._client


@dataclass(frozen=True, slots=True)
class _OpenClient:
    api: KmsApi
    resources: AsyncExitStack


def _request_id(answer: Mapping[str, Any]) -> str | None:
    request_id: str | None = answer.get("ResponseMetadata", {}).get("RequestId")
    return request_id


def _clock_skew(answer: Mapping[str, Any]) -> float | None:
    """Return how many seconds our clock is ahead of the `Date` of an answer (RFC 9110, section 6.6.1)."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        return (datetime.now(UTC) - parsedate_to_datetime(headers["date"])).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None


def _are_replicas(arn: str, other: str) -> bool:
    """Tell whether two ARNs name one multi-Region key: alike but for the region, with an id that begins with mrk-."""
    parts, others = arn.split(":"), other.split(":")
    if len(parts) != 6 or len(others) != 6 or not parts[5].startswith("key/mrk-"):
        return False
    return [*parts[:3], *parts[4:]] == [*others[:3], *others[4:]]
