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
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigParseError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    InvalidConfigError,
    InvalidIMDSEndpointError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from betrace_kms_server.errors import (
    AccessDenied,
    CredentialsUnavailable,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
    Throttled,
)
from betrace_kms_server.keys import DataKey, KeyMaterial, WrappedKey
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

    async def __aenter__(self) -> "AwsProvider":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._client is not None:
            await self._client.resources.aclose()

    @property
    def decrypt_key_arns(self) -> Sequence[str]:
        """The master key, then the former ones."""
        return (self.master_key_arn, *self._former_key_arns)

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
                log.info("AWS KMS endpoint: %s", api.meta.endpoint_url)
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


def _unusable(_action: str, arn: str) -> KmsError:
    return MasterKeyUnusable(
        f"KMS cannot use the master key {arn}: check that it exists in this region, is enabled, is not pending"
        " deletion, and is a symmetric key for encrypt and decrypt"
    )


def _denied(action: str, arn: str) -> KmsError:
    return AccessDenied(
        f"KMS denies kms:{action} on {arn}: allow this action to the daemon's role in its IAM policy and in the key"
        " policy",
        metadata={"action": f"kms:{action}", "master_key": arn},
    )


def _throttled(action: str, _arn: str) -> KmsError:
    return Throttled(f"KMS throttles kms:{action}: try again later, or ask AWS for a higher request quota")


def _unreachable(action: str, _arn: str) -> KmsError:
    return KmsUnreachable(f"no answer from KMS to kms:{action}: check aws.kms.region, the route and the VPC endpoint")


def _credentials(_action: str, _arn: str) -> KmsError:
    return CredentialsUnavailable(
        "the daemon's own AWS credentials are missing, expired or refused: check its role, its environment and the"
        " machine's clock"
    )


def _does_not_open(_action: str, _arn: str) -> KmsError:
    return DoesNotOpen()


CODES: Mapping[str, Callable[[str, str], KmsError]] = {
    # AWS KMS API reference, "Errors" of each of the four actions
    "NotFoundException": _unusable,
    "DisabledException": _unusable,
    "KMSInvalidStateException": _unusable,
    "InvalidKeyUsageException": _unusable,
    "InvalidArnException": _unusable,
    "UnsupportedOperationException": _unusable,
    "InvalidCiphertextException": _does_not_open,
    "IncorrectKeyException": _does_not_open,
    "KeyUnavailableException": _unreachable,
    "DependencyTimeoutException": _unreachable,
    "KMSInternalException": _unreachable,
    "LimitExceededException": _throttled,
    # AWS KMS API reference, "Common errors", and what the SDKs retry as throttling
    "AccessDeniedException": _denied,
    "AccessDenied": _denied,
    "NotAuthorized": _denied,
    "ThrottlingException": _throttled,
    "Throttling": _throttled,
    "ThrottledException": _throttled,
    "RequestLimitExceeded": _throttled,
    "TooManyRequestsException": _throttled,
    "RequestThrottled": _throttled,
    "InternalFailure": _unreachable,
    "ServiceUnavailable": _unreachable,
    "ExpiredTokenException": _credentials,
    "ExpiredToken": _credentials,
    "RequestExpired": _credentials,
    "UnrecognizedClientException": _credentials,
    "InvalidClientTokenId": _credentials,
    "InvalidSignatureException": _credentials,
    "SignatureDoesNotMatch": _credentials,
    "IncompleteSignature": _credentials,
    "MissingAuthenticationToken": _credentials,
    "MissingAuthenticationTokenException": _credentials,
    "OptInRequired": _credentials,
}


_NETWORK = (TimeoutError, HTTPClientError, BotoConnectionError, IncompleteReadError)
_CREDENTIALS = (
    ConfigParseError,
    CredentialRetrievalError,
    InvalidConfigError,
    InvalidIMDSEndpointError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    OSError,  # a token or credentials file that is not there; the network's are wrapped in one of those above
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)


def translated(cause: BaseException, action: str, arn: str) -> KmsError | None:
    """Return our error for an SDK's, or None where there is none: then it is a defect of ours, and INTERNAL."""
    if isinstance(cause, ClientError):
        if cause.operation_name != action:  # the SDK asked STS for credentials first, and STS refused
            return _credentials(action, arn)
        known = CODES.get(cause.response.get("Error", {}).get("Code", ""))
        if known is not None:
            return known(action, arn)
        status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status == 429:
            return _throttled(action, arn)
        return _unreachable(action, arn) if status >= 500 else None
    if isinstance(cause, _NETWORK):
        return _unreachable(action, arn)
    return _credentials(action, arn) if isinstance(cause, _CREDENTIALS) else None
