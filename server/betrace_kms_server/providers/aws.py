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
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import aioboto3
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from betrace_kms_server.errors import DoesNotOpen, MasterKeyUnusable
from betrace_kms_server.keys import DataKey, KeyMaterial, WrappedKey
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
    ) -> None:
        self.master_key_arn = master_key_id
        self._former_key_arns = tuple(former_key_arns)
        self._region = region
        self._endpoint = endpoint
        self._call_seconds = call_seconds
        self._client_factory = client_factory
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
        async with self._call("GenerateDataKey", self.master_key_arn) as kms:
            answer = await kms.generate_data_key(
                KeyId=self.master_key_arn, NumberOfBytes=number_of_bytes, EncryptionContext=dict(context)
            )
        return DataKey(KeyMaterial(answer["Plaintext"]), WrappedKey(answer["CiphertextBlob"], answer["KeyId"]))

    async def encrypt(self, key: KeyMaterial, context: Context) -> WrappedKey:
        """See KeyProvider."""
        async with self._call("Encrypt", self.master_key_arn) as kms:
            answer = await kms.encrypt(KeyId=self.master_key_arn, Plaintext=key.raw, EncryptionContext=dict(context))
        return WrappedKey(answer["CiphertextBlob"], answer["KeyId"])

    async def decrypt(self, wrapped: WrappedKey, context: Context) -> KeyMaterial:
        """See KeyProvider. KMS is always told which key to use, so a blob of a foreign account never opens."""
        if wrapped.master_key_arn not in self.decrypt_key_arns or not wrapped.blob:
            raise DoesNotOpen
        async with self._call("Decrypt", wrapped.master_key_arn) as kms:
            answer = await kms.decrypt(
                KeyId=wrapped.master_key_arn, CiphertextBlob=wrapped.blob, EncryptionContext=dict(context)
            )
        return KeyMaterial(answer["Plaintext"])

    async def check(self, arn: str | None = None) -> None:
        """See KeyProvider. Also learns the ARN of a master key that was configured as an alias (emulators only)."""
        asked = arn or self.master_key_arn
        async with self._call("DescribeKey", asked) as kms:
            key = (await kms.describe_key(KeyId=asked))["KeyMetadata"]
        if arn is None:
            self.master_key_arn = key["Arn"]
        state, usage, spec = key.get("KeyState"), key.get("KeyUsage"), key.get("KeySpec")
        if state != "Enabled":
            raise MasterKeyUnusable(f"the master key {key['Arn']} is {state}: enable it, or cancel its deletion")
        if (usage, spec) != ("ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT"):
            raise MasterKeyUnusable(
                f"the master key {key['Arn']} is {spec} for {usage}: a symmetric key for encrypt and decrypt is needed"
            )

    @asynccontextmanager
    async def _call(self, action: str, arn: str) -> AsyncIterator[KmsApi]:
        """Give the client for one call, bound the call in time, and turn the SDK's errors into ours."""
        client = None
        try:
            async with asyncio.timeout(self._call_seconds):
                client = await self._open()
                yield client.api
        except (BotoCoreError, ClientError, OSError) as cause:
            if isinstance(cause, NoCredentialsError) and client is not None and client is self._client:
                self._client = None
                await client.resources.aclose()
            error = translated(cause, action, arn)
            if error is None:
                raise
            raise error from cause

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


def _are_replicas(arn: str, other: str) -> bool:
    """Tell whether two ARNs name one multi-Region key: alike but for the region, with an id that begins with mrk-."""
    parts, others = arn.split(":"), other.split(":")
    if len(parts) != 6 or len(others) != 6 or not parts[5].startswith("key/mrk-"):
        return False
    return [*parts[:3], *parts[4:]] == [*others[:3], *others[4:]]
