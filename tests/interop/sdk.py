"""The official AWS Encryption SDK for Python and our own core, both on one KMS endpoint, and what is tried on them.

Both sides are told nothing of each other but the KMS key. The official side takes its endpoint and credentials from
the environment, as its users do: AWS_ENDPOINT_URL_KMS must be set before a `Sdk` is made.
"""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import boto3  # type: ignore[import-untyped]
from aws_cryptographic_material_providers.mpl import (  # type: ignore[import-untyped]
    AwsCryptographicMaterialProviders,
)
from aws_cryptographic_material_providers.mpl.config import (  # type: ignore[import-untyped]
    MaterialProvidersConfig,
)
from aws_cryptographic_material_providers.mpl.models import (  # type: ignore[import-untyped]
    CreateAwsKmsKeyringInput,
    CreateMultiKeyringInput,
)
from aws_encryption_sdk import (  # type: ignore[import-untyped]
    CommitmentPolicy,
    EncryptionSDKClient,
    StrictAwsKmsMasterKeyProvider,
)
from aws_encryption_sdk.identifiers import Algorithm  # type: ignore[import-untyped]
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.data_keys.keyring import KeyRing
from betrace_kms_server.providers.aws.provider import AwsProvider

REGION = "us-east-1"
TENANT = "acme"

SUITES = (0x0478, 0x0578)
MIB = 1 << 20
SIZES = (0, 1, 15, 16, 17, 4095, 4096, 4097, 65_535, 65_536, 65_537, MIB)
CONTEXTS: tuple[Mapping[str, str], ...] = (
    {},
    {"field": "email"},
    # The last two names sort one way by UTF-8, which is the format's order, and the other way by UTF-16.
    {"größe": "naïve ☕", "empty": "", "\uff5e": "\U0001d11e", "\U0001f511": "\uff5e"},
)

Way = Literal["keyring", "master key provider"]
WAYS: tuple[Way, ...] = ("keyring", "master key provider")
"""How the official SDK reaches KMS: by the material providers library, or by its legacy interface."""


@dataclass(frozen=True, slots=True)
class Combination:
    """A message to seal on one side and to open on the other."""

    size: int
    context: Mapping[str, str]
    """The caller's pairs."""
    frame_length: int = 65_536
    """0 is non-framed."""

    @property
    def plaintext(self) -> bytes:
        """The same bytes for the same size, and no two frames alike."""
        return _plaintext(self.size)

    @property
    def whole_context(self) -> dict[str, str]:
        """What the header and KMS see of a message that the SDK seals."""
        return whole_context(self.context)

    @property
    def sealed_context(self) -> dict[str, str]:
        """What they see of a message that we seal."""
        return sealed_context(self.context)


@cache
def _plaintext(size: int) -> bytes:
    return hashlib.shake_256(b"interop").digest(size)


def whole_context(caller: Mapping[str, str]) -> dict[str, str]:
    """Return the context of our tenant's data key with the caller's pairs."""
    return {**caller, "tenantId": TENANT, "keyType": "encryption"}


def sealed_context(caller: Mapping[str, str]) -> dict[str, str]:
    """Return the context of the messages that we seal: that of a key that only seals."""
    return whole_context(caller) | {"keyType": "sealing"}


def unsigned(context: Mapping[str, str]) -> dict[str, str]:
    """Return a header's context without the pair that suite 0x0578 adds: the public key of its signature."""
    return {name: value for name, value in context.items() if name != "aws-crypto-public-key"}


class Sdk:
    """The official SDK with one source of data keys: its argument `keyring`, `key_provider` or `materials_manager`."""

    def __init__(self, **source: Any) -> None:
        self._client = EncryptionSDKClient(commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)
        self._source = source

    def seal(
        self, plaintext: bytes, context: Mapping[str, str], *, suite: int = 0x0478, frame_length: int = 4096
    ) -> bytes:
        """Return a message. `frame_length` is 0 (non-framed) or a multiple of 128, the SDK's own restriction."""
        message, _ = self._client.encrypt(
            source=plaintext,
            encryption_context=dict(context),
            algorithm=Algorithm.get_by_id(suite),
            frame_length=frame_length,
            **self._source,
        )
        return bytes(message)

    def open(self, message: bytes) -> tuple[bytes, dict[str, str]]:
        """Return a message's plaintext and the whole context of its header."""
        plaintext, header = self._client.decrypt(source=message, **self._source)
        return plaintext, dict(header.encryption_context)


def material_providers() -> Any:
    """Return the library that makes keyrings."""
    return AwsCryptographicMaterialProviders(config=MaterialProvidersConfig())


def keyring(*arns: str) -> Any:
    """Return the material providers library's keyring for these KMS keys, which wraps with all and opens with any."""
    library = material_providers()
    kms = boto3.session.Session().client("kms", region_name=REGION)
    first, *others = (
        library.create_aws_kms_keyring(CreateAwsKmsKeyringInput(kms_key_id=arn, kms_client=kms)) for arn in arns
    )
    return library.create_multi_keyring(CreateMultiKeyringInput(generator=first, child_keyrings=others))


def sdk(way: Way, *arns: str) -> Sdk:
    """Return the official SDK for these KMS keys; the first makes the data keys, and the others wrap them too."""
    if way == "keyring":
        return Sdk(keyring=keyring(*arns))
    return Sdk(key_provider=StrictAwsKmsMasterKeyProvider(key_ids=arns))


@asynccontextmanager
async def key_ring(endpoint: str, arn: str) -> AsyncIterator[KeyRing]:
    """Run the daemon's own core, with the real provider, on a KMS endpoint."""
    async with AwsProvider(arn, region=REGION, endpoint=endpoint) as provider:
        cache = KeyCache("encryption", ttl=3600, max_size=1000)
        yield KeyRing(provider, cache)
        await cache.close()


async def differing(
    combinations: Iterable[Combination], reopened: Callable[[Combination], Awaitable[bytes]]
) -> list[Combination]:
    """Return the combinations whose plaintext came back different. What is raised names the combination."""
    found = []
    for combination in combinations:
        try:
            if await reopened(combination) != combination.plaintext:
                found.append(combination)
        except Exception as error:
            error.add_note(f"with {combination}")
            raise
    return found
