"""The use cases of data keys: hand one out, seal, open.

A data key that was handed out never seals, and a sealing key is never handed out: they are cached apart. Everything
that a tenant's data key is used for is bound to the tenant twice, by the cache key and by the KMS encryption context.
"""

from dataclasses import dataclass, field

from betrace_kms_server.cache import KeyCache
from betrace_kms_server.envelope import (
    DATA_KEY_BYTES,
    MAX_WRAPPED_KEY_BYTES,
    EncryptedDataKey,
    Message,
    Sealer,
)
from betrace_kms_server.errors import DoesNotOpen
from betrace_kms_server.keys import DataKey, KeyMaterial, WrappedKey
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.tenancy import Context, belongs_to, encryption_context

_COMMITTING_MESSAGES = (b"\x02\x04\x78", b"\x02\x05\x78")
_VERSION_1_MESSAGE = b"\x01\x80"


@dataclass(frozen=True, slots=True)
class SealingKey:
    """A data key that only seals, with the header fields that all its messages share."""

    data_key: DataKey
    sealer: Sealer


@dataclass(frozen=True, slots=True)
class Sealed:
    """An AWS Encryption SDK message and the master key behind it."""

    ciphertext: bytes
    master_key_arn: str


@dataclass(frozen=True, slots=True)
class Opened:
    """What a ciphertext held, and the master key behind it."""

    plaintext: bytes = field(repr=False)
    master_key_arn: str


class KeyRing:
    """Data keys of all tenants, cached in front of one provider. Tenant ids and contexts have been checked before."""

    def __init__(self, provider: KeyProvider, cache: KeyCache) -> None:
        self._provider = provider
        self._cache = cache

    async def data_key(self, tenant_id: str, number_of_bytes: int, caller: Context, *, fresh: bool = False) -> DataKey:
        """Return a data key of 1 to 1,024 bytes: the cached one, or one that nobody else gets if `fresh`."""
        context = encryption_context(tenant_id, caller)

        async def load() -> DataKey:
            return await self._provider.generate_data_key(number_of_bytes, context)

        if fresh:
            return await load()
        key = ("data key", self._provider.master_key_arn, tenant_id, number_of_bytes, _pairs(caller))
        return await self._cache.get_or_load(key, load)

    async def seal(self, tenant_id: str, plaintext: bytes, caller: Context) -> Sealed:
        """Seal a payload under the tenant's sealing key for this context."""
        context = encryption_context(tenant_id, caller)

        async def load() -> SealingKey:
            data_key = await self._provider.generate_data_key(DATA_KEY_BYTES, context)
            wrapped = EncryptedDataKey(
                self._provider.message_provider_id, data_key.wrapped.master_key_arn, data_key.wrapped.blob
            )
            return SealingKey(data_key, Sealer(wrapped, context))

        key = ("sealing key", self._provider.master_key_arn, tenant_id, DATA_KEY_BYTES, _pairs(caller))
        found = await self._cache.get_or_load(key, load)
        ciphertext = found.sealer.seal(plaintext, found.data_key.material.raw)
        return Sealed(ciphertext, found.data_key.wrapped.master_key_arn)

    async def open(self, tenant_id: str, ciphertext: bytes, caller: Context) -> Opened:
        """Open a message, or unwrap a bare data key. Raises DoesNotOpen, whatever the cause.

        What it was given is told by its first bytes. Version 1 messages commit to no key and are refused.
        """
        if ciphertext.startswith(_COMMITTING_MESSAGES):
            return await self._open_message(tenant_id, ciphertext, caller)
        if ciphertext.startswith(_VERSION_1_MESSAGE) or not 1 <= len(ciphertext) <= MAX_WRAPPED_KEY_BYTES:
            raise DoesNotOpen
        wrapped = WrappedKey(ciphertext, self._provider.master_key_arn)
        material = await self._unwrap(tenant_id, wrapped, encryption_context(tenant_id, caller))
        return Opened(bytes(material.raw), wrapped.master_key_arn)

    async def _open_message(self, tenant_id: str, ciphertext: bytes, caller: Context) -> Opened:
        message = Message.parse(ciphertext)
        if not belongs_to(message.context, tenant_id, caller):
            raise DoesNotOpen
        for encrypted in message.encrypted_data_keys:
            wrapped = self._wrapped(encrypted)
            if wrapped is not None:
                material = await self._unwrap(tenant_id, wrapped, message.context)
                return Opened(message.open(material.raw), wrapped.master_key_arn)
        raise DoesNotOpen

    def _wrapped(self, encrypted: EncryptedDataKey) -> WrappedKey | None:
        """Return a message's key as one that we may unwrap, or None if another master key wrapped it."""
        if encrypted.provider_id != self._provider.message_provider_id:
            return None
        if encrypted.provider_info not in self._provider.decrypt_key_arns:
            return None
        if not 1 <= len(encrypted.ciphertext) <= MAX_WRAPPED_KEY_BYTES:
            return None
        return WrappedKey(encrypted.ciphertext, encrypted.provider_info)

    async def _unwrap(self, tenant_id: str, wrapped: WrappedKey, context: Context) -> KeyMaterial:
        async def load() -> KeyMaterial:
            return await self._provider.decrypt(wrapped, context)

        key = ("opening key", wrapped.master_key_arn, tenant_id, wrapped.blob, _pairs(context))
        return await self._cache.get_or_load(key, load)


def _pairs(context: Context) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(context.items()))
