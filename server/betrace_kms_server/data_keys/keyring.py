"""The use cases of data keys: hand one out, seal, open, seal again.

A data key that was handed out never seals, and a sealing key is never handed out: they are cached apart, and their
wrapped bytes differ in keyType, so those of a sealing key, cut out of a message, do not open as a bare key. Everything
that a tenant's data key is used for is bound to the tenant twice, by the cache key and by the KMS encryption context.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol, TypeVar

import orjson
from betrace_kms_envelope import (
    DATA_KEY_BYTES,
    KNOWN_MESSAGES,
    MAX_WRAPPED_KEY_BYTES,
    EncryptedDataKey,
    Message,
    Sealer,
)
from betrace_kms_envelope import DoesNotOpen as MessageDoesNotOpen

from betrace_kms_server.cache.key_cache import Key, KeyCache, Load
from betrace_kms_server.core.errors import DoesNotOpen, InvalidRequest, KmsError
from betrace_kms_server.core.key_event import KeyEvent, note_miss
from betrace_kms_server.core.keys import DataKey, WrappedKey
from betrace_kms_server.core.master_keys import message_provider_id
from betrace_kms_server.core.tenancy import Context, DataKeyType, belongs_to, encryption_context, fits_kms
from betrace_kms_server.data_keys.branch_messages import BranchMessages
from betrace_kms_server.data_keys.budget import Budget
from betrace_kms_server.data_keys.results import MessageKey, Opened, OpeningKey, Sealed, SealingKey
from betrace_kms_server.providers.protocol import KeyProvider

_NO_PAIRS = bytes(32)
_VERSION_1_MESSAGE = b"\x01\x80"


@dataclass(frozen=True, slots=True)
class _HandedOut:
    """A data key that callers get."""

    data_key: DataKey
    budget: Budget


@dataclass(frozen=True, slots=True)
class _SealingKey:
    """A data key that only seals, with the header fields that all its messages share."""

    data_key: DataKey
    sealer: Sealer
    budget: Budget

    def seal(self, plaintext: bytes) -> Sealed:
        """Seal a payload; its use of the budget has been taken."""
        return Sealed(self.sealer.seal(plaintext, self.data_key.material.raw), self.data_key.wrapped.master_key_arn)


@dataclass(frozen=True, slots=True)
class _Wrapped:
    """A wrapped data key that a caller brought, and what there is to know to unwrap it."""

    use: str
    tenant_id: str
    digest: bytes = field(repr=False)
    """What distinguishes it and its context from others of its use; of a fixed size."""
    context: Context = field(repr=False)
    candidates: Callable[[], Sequence[WrappedKey]] = field(repr=False)
    accept: Callable[[OpeningKey], bool] | None = field(default=None, repr=False)
    """Whether an unwrapped key is the right one; None where the master key's service has checked all there is."""


class _Budgeted(Protocol):
    @property
    def budget(self) -> Budget: ...


B = TypeVar("B", bound=_Budgeted)


class KeyRing:
    """Data keys of all tenants, cached in front of one provider. Tenant ids and contexts have been checked before.

    A sealing key seals at most `max_messages` messages, and one data key is handed out at most `max_uses` times. A
    message may carry at most `max_encrypted_data_keys` wrapped keys. New messages have the keyType `sealing_key_type`:
    `encryption` only as long as daemons of earlier versions must open them. With `branch_messages` messages under
    branch keys open too, and are what is sealed if that says so.
    """

    def __init__(
        self,
        provider: KeyProvider,
        cache: KeyCache,
        *,
        max_messages: int = 2**32,
        max_uses: int | None = None,
        max_encrypted_data_keys: int = 10,
        sealing_key_type: DataKeyType = "sealing",
        branch_messages: BranchMessages | None = None,
    ) -> None:
        self._provider = provider
        self._cache = cache
        self._max_messages = max_messages
        self._max_uses = max_uses
        self._max_encrypted_data_keys = max_encrypted_data_keys
        self._sealing_key_type: DataKeyType = sealing_key_type
        self._branch_messages = branch_messages
        self._sealing_use = f"{sealing_key_type} sealing key"

    async def data_key(
        self,
        tenant_id: str,
        number_of_bytes: int,
        caller: Context,
        *,
        fresh: bool = False,
        event: KeyEvent | None = None,
    ) -> DataKey:
        """Return a data key of 1 to 1,024 bytes: the cached one, or one that no one else gets if `fresh`."""
        return (await self.data_keys(tenant_id, number_of_bytes, caller, fresh=fresh, event=event))[0]

    async def data_keys(
        self,
        tenant_id: str,
        number_of_bytes: int,
        caller: Context,
        *,
        fresh: bool = False,
        event: KeyEvent | None = None,
        uses: int = 1,
    ) -> tuple[DataKey, int]:
        """Return a data key, and how often of up to `uses` times it may be handed out: once if `fresh`."""
        context = encryption_context(tenant_id, caller)
        if fresh or self.is_single_use:
            await self._cache.admit(tenant_id)
            note_miss(event)
            return await self._provider.generate_data_key(number_of_bytes, context), 1

        async def load() -> _HandedOut:
            return _HandedOut(await self._provider.generate_data_key(number_of_bytes, context), Budget(self._max_uses))

        key = ("data key", self._provider.master_key_arn, tenant_id, number_of_bytes, digest(caller))
        found, taken = await self._spend(key, load, event, uses)
        return found.data_key, taken

    @property
    def is_single_use(self) -> bool:
        """Whether each data key is handed out once, as if all callers asked for `fresh`."""
        return self._max_uses == 1

    async def message_key(self, tenant_id: str, caller: Context, event: KeyEvent | None = None) -> MessageKey:
        """Return a new data key under which the caller seals messages itself, and what their headers must hold."""
        context = encryption_context(tenant_id, caller)
        if self._branch_messages is not None and self._branch_messages.seals:
            return (await self._branch_messages.sealing_key(tenant_id, context, event)).message_key()
        data_key = await self.data_key(tenant_id, DATA_KEY_BYTES, caller, fresh=True, event=event)
        return MessageKey(data_key.material, self._encrypted(data_key), context, data_key.wrapped.master_key_arn)

    async def seal(self, tenant_id: str, plaintext: bytes, caller: Context, event: KeyEvent | None = None) -> Sealed:
        """Seal a payload into an AWS Encryption SDK message, under a data key for this context alone."""
        return (await self.sealing_key(tenant_id, caller, event))[0].seal(plaintext)

    async def sealing_key(
        self, tenant_id: str, caller: Context, event: KeyEvent | None = None, *, uses: int = 1
    ) -> tuple[SealingKey, int]:
        """Return what seals for this tenant and context, and how many of `uses` were taken of its budget."""
        if self._branch_messages is not None and self._branch_messages.seals:
            context = encryption_context(tenant_id, caller)
            return await self._branch_messages.sealing_key(tenant_id, context, event), uses
        context = encryption_context(tenant_id, caller, self._sealing_key_type)

        async def load() -> _SealingKey:
            data_key = await self._provider.generate_data_key(DATA_KEY_BYTES, context)
            return _SealingKey(data_key, Sealer(self._encrypted(data_key), context), Budget(self._max_messages))

        key = (
            self._sealing_use,
            self._provider.master_key_arn,
            tenant_id,
            DATA_KEY_BYTES,
            digest(caller),
        )
        return await self._spend(key, load, event, uses)

    async def open(self, tenant_id: str, ciphertext: bytes, caller: Context, event: KeyEvent | None = None) -> Opened:
        """Open a message, or unwrap a bare data key. Raises DoesNotOpen, whatever the cause.

        Its first bytes say what it was given. A bare key opens only if a caller may have it (keyType `encryption`).
        Version 1 messages commit to no key and are refused.
        """
        if is_message(ciphertext):
            message = self.parse(ciphertext)
            return await (await self.key_of(tenant_id, message, caller, event)).open(message)
        return (await self.bare_key(tenant_id, ciphertext, caller, event)).handed_out()

    async def opening_key(
        self, tenant_id: str, message: Message, caller: Context, event: KeyEvent | None = None
    ) -> OpeningKey:
        """Return the data key of a message, of which the header is enough, after that verified under it.

        Raises DoesNotOpen, and InvalidRequest if the key is one that never leaves the daemon.
        """
        if message.context.get("keyType") == "sealing" and belongs_to(message.context, tenant_id, caller):
            raise InvalidRequest("the message was sealed by Encrypt: open it with Decrypt")
        found = await self.key_of(tenant_id, message, caller, event)
        if not message.is_under(found.material.raw):  # a key from the cache was checked for another message
            raise DoesNotOpen
        return found

    def parse(self, message: bytes, like: Message | None = None) -> Message:
        """Read the header of a message. Raises DoesNotOpen; `like` as in `Message.parse`."""
        try:
            return Message.parse(message, max_encrypted_data_keys=self._max_encrypted_data_keys, like=like)
        except MessageDoesNotOpen:
            raise DoesNotOpen from None

    async def reseal(
        self,
        tenant_id: str,
        ciphertext: bytes,
        caller: Context,
        destination: Context,
        event: KeyEvent | None = None,
    ) -> Sealed:
        """Open a ciphertext and seal what it held for the destination context under today's keys.

        A message becomes a message, and a bare data key is wrapped anew. Raises DoesNotOpen.
        """
        if is_message(ciphertext):
            opened = await self.open(tenant_id, ciphertext, caller, event)
            return await self.seal(tenant_id, opened.plaintext, destination, event)
        found = await self.bare_key(tenant_id, ciphertext, caller, event)
        note_miss(event)
        wrapped = await self._provider.wrap(found.material, encryption_context(tenant_id, destination))
        return Sealed(wrapped.blob, wrapped.master_key_arn)

    async def _spend(self, key: Key, load: Load[B], event: KeyEvent | None, uses: int = 1) -> tuple[B, int]:
        """Return a key and how many uses of its budget were taken; one without any left makes way for its successor."""
        while True:
            found = await self._cache.get_or_load(key, load, event=event)
            if taken := found.budget.spend(uses):
                if found.budget.just_ran_low:
                    self._cache.refresh_soon(key)
                return found, taken
            self._cache.discard(key, found)

    def _encrypted(self, data_key: DataKey) -> EncryptedDataKey:
        wrapped = data_key.wrapped
        provider_id = message_provider_id(wrapped.master_key_arn)
        return EncryptedDataKey(provider_id, wrapped.master_key_arn, wrapped.blob)

    async def key_of(
        self, tenant_id: str, message: Message, caller: Context, event: KeyEvent | None = None
    ) -> OpeningKey:
        """Return the key of a message, and of all with the same `fields`. Whether it is, opening the message says."""
        if not belongs_to(message.context, tenant_id, caller):
            raise DoesNotOpen
        if self._branch_messages is not None:
            key = await self._branch_messages.key_of(tenant_id, message, event)
            if key is not None:
                return key
        return await self._unwrap(
            _Wrapped(
                "message key",
                tenant_id,
                sha256(message.fields).digest(),  # context and wrapped keys
                message.context,
                candidates=lambda: self._candidates(message),
                accept=lambda key: message.is_under(key.material.raw),
            ),
            event,
        )

    def _candidates(self, message: Message) -> list[WrappedKey]:
        """Return the message's wrapped keys that one of our master keys may unwrap."""
        candidates = []
        for encrypted in message.encrypted_data_keys:
            if encrypted.provider_id == message_provider_id(encrypted.provider_info):
                arn = self._provider.unwrapping_key_for(encrypted.provider_info)
                if arn is not None and 1 <= len(encrypted.ciphertext) <= MAX_WRAPPED_KEY_BYTES:
                    candidates.append(WrappedKey(encrypted.ciphertext, arn))
        return candidates

    async def bare_key(self, tenant_id: str, blob: bytes, caller: Context, event: KeyEvent | None = None) -> OpeningKey:
        """Unwrap a data key that is in no message. Raises DoesNotOpen."""
        if blob.startswith(_VERSION_1_MESSAGE) or not 1 <= len(blob) <= MAX_WRAPPED_KEY_BYTES:
            raise DoesNotOpen

        def candidates() -> list[WrappedKey]:
            return [WrappedKey(blob, arn) for arn in self._provider.decrypt_key_arns]

        context = encryption_context(tenant_id, caller)
        identity = sha256(digest(context) + blob).digest()
        return await self._unwrap(_Wrapped("bare key", tenant_id, identity, context, candidates), event)

    async def _unwrap(self, wrapped: _Wrapped, event: KeyEvent | None) -> OpeningKey:
        """Return the key of the first candidate that unwraps; if none does, raise what says most about why."""

        async def load() -> OpeningKey:
            failure: KmsError = DoesNotOpen()
            try:
                if not fits_kms(wrapped.context):
                    raise failure
                for candidate in wrapped.candidates():
                    try:
                        material = await self._provider.unwrap(candidate, wrapped.context)
                        return OpeningKey(material, candidate.master_key_arn)
                    except DoesNotOpen:
                        continue
                    except KmsError as error:
                        failure = error
                raise failure
            finally:
                del failure  # its traceback holds this frame, and so what the caller sent

        key = (wrapped.use, self._provider.master_key_arn, wrapped.tenant_id, wrapped.digest)
        return await self._cache.get_or_load(key, load, wrapped.accept, event)


def is_message(ciphertext: bytes) -> bool:
    """Return whether this begins as a message does; else it can only be a bare key."""
    return ciphertext.startswith(KNOWN_MESSAGES)


def digest(context: Context) -> bytes:
    """Return 32 bytes that stand for an encryption context in a cache key, however large it is."""
    if not context:
        return _NO_PAIRS
    return sha256(orjson.dumps(context, option=orjson.OPT_SORT_KEYS)).digest()
