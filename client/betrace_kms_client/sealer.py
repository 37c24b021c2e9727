"""Seals and opens small payloads in this process, under keys that it holds for a while: no call for each of them.

Keys are wiped when their time is over, when they have sealed as many messages as they may, and by `close`.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from betrace_kms_envelope import KeyMaterial, Message, Sealer

from betrace_kms_client.files import is_for_decrypt, refusals
from betrace_kms_client.messages import Context
from betrace_kms_client.results import MessageKey

if TYPE_CHECKING:
    from betrace_kms_client.async_client import AsyncKmsClient
    from betrace_kms_client.sync_client import KmsClient

DEFAULT_TTL = 300.0
"""Seconds."""
MAX_MESSAGES = 2**32
"""Under one key, and as many as one may ask for."""
MAX_OPENING_KEYS = 1_000


@dataclass(slots=True)
class _HeldKey:
    material: KeyMaterial
    expires: float


@dataclass(slots=True)
class _SealingKey(_HeldKey):
    sealer: Sealer
    left: int


class HeldKeys:
    """The keys of one tenant and context that a process holds. Not safe for threads."""

    def __init__(self, ttl: float, max_messages: int, clock: Callable[[], float] = time.monotonic) -> None:
        if ttl <= 0:
            raise ValueError("ttl is in seconds and must be more than 0")
        if not 1 <= max_messages <= MAX_MESSAGES:
            raise ValueError("max_messages must be 1 to 2^32")
        self._ttl = ttl
        self._max_messages = max_messages
        self._clock = clock
        self._sealing: _SealingKey | None = None
        self._opening: OrderedDict[bytes, _HeldKey] = OrderedDict()

    def renew(self, key: MessageKey) -> tuple[Sealer, KeyMaterial]:
        """Seal with this key from now on. Return what seals the first message."""
        self._sealing = _SealingKey(key.material, self._clock() + self._ttl, key.sealer(), self._max_messages)
        return self._use(self._sealing)

    def keep_opening_key(self, message: Message, key: KeyMaterial) -> None:
        """Keep a key that opens messages with the same header fields as this one."""
        self._opening[message.fields] = _HeldKey(key, self._clock() + self._ttl)
        if len(self._opening) > MAX_OPENING_KEYS:
            self._opening.popitem(last=False)

    def take_sealing_key(self) -> tuple[Sealer, KeyMaterial] | None:
        """Return what seals one message, or None if a new key is needed."""
        self.expire()
        return None if self._sealing is None else self._use(self._sealing)

    def _use(self, key: _SealingKey) -> tuple[Sealer, KeyMaterial]:
        key.left -= 1
        if key.left == 0:
            self._sealing = None
        return key.sealer, key.material

    def opening_key(self, message: Message) -> KeyMaterial | None:
        """Return the key of a message, if it is held."""
        self.expire()
        key = self._opening.get(message.fields)
        return None if key is None else key.material

    def expire(self) -> float | None:
        """Let go of keys whose time is over. Return after how many seconds that is so for the next, if there is one."""
        now = self._clock()
        if self._sealing is not None and self._sealing.expires <= now:
            self._sealing = None
        while self._opening and next(iter(self._opening.values())).expires <= now:
            self._opening.popitem(last=False)
        held: list[_HeldKey] = [*islice(self._opening.values(), 1), *([self._sealing] if self._sealing else [])]
        return min(key.expires for key in held) - now if held else None

    def clear(self) -> None:
        """Let go of all keys."""
        self._sealing = None
        self._opening.clear()


class KmsSealer:
    """Seals and opens payloads of one tenant and context here. May be shared by threads; made by `KmsClient.sealer`."""

    def __init__(
        self, client: "KmsClient", tenant_id: str, context: Context | None, *, ttl: float, max_messages: int
    ) -> None:
        self._client = client
        self._tenant_id = tenant_id
        self._context = context
        self._keys = HeldKeys(ttl, max_messages)
        self._lock, self._renewing = threading.Lock(), threading.Lock()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "KmsSealer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def seal(self, plaintext: bytes) -> bytes:
        """Return an AWS Encryption SDK message with this plaintext."""
        sealer, key = self._take() or self._renew()
        return sealer.seal(plaintext, key.raw)

    def open(self, message: bytes) -> bytes:
        """Return the plaintext of a message of this tenant and context."""
        with refusals():
            parsed = Message.parse(message)
            if is_for_decrypt(parsed):
                return self._client.decrypt(self._tenant_id, message, self._context).plaintext
            with self._lock:
                key = self._keys.opening_key(parsed)
            if key is None:
                key = self._client.open_message_key(self._tenant_id, parsed.header, self._context)
                with self._lock:
                    self._keys.keep_opening_key(parsed, key)
                    self._wipe_in_time()
            return parsed.open(key.raw)

    def close(self) -> None:
        """Wipe the keys. A later call gets new ones."""
        with self._lock:
            self._keys.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _take(self) -> tuple[Sealer, KeyMaterial] | None:
        with self._lock:
            return self._keys.take_sealing_key()

    def _renew(self) -> tuple[Sealer, KeyMaterial]:
        with self._renewing:
            if taken := self._take():  # another thread was here first
                return taken
            key = self._client.generate_message_key(self._tenant_id, self._context)
            with self._lock:
                renewed = self._keys.renew(key)
                self._wipe_in_time()
                return renewed

    def _wipe(self) -> None:
        with self._lock:
            self._timer = None
            self._wipe_in_time()

    def _wipe_in_time(self) -> None:
        seconds = self._keys.expire()
        if self._timer is None and seconds is not None:
            self._timer = threading.Timer(seconds, self._wipe)
            self._timer.daemon = True
            self._timer.start()


class AsyncKmsSealer:
    """Seals and opens payloads of one tenant and context here. Belongs to one loop; made by `AsyncKmsClient.sealer`."""

    def __init__(
        self, client: "AsyncKmsClient", tenant_id: str, context: Context | None, *, ttl: float, max_messages: int
    ) -> None:
        self._client = client
        self._tenant_id = tenant_id
        self._context = context
        self._keys = HeldKeys(ttl, max_messages)
        self._renewing = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> "AsyncKmsSealer":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    async def seal(self, plaintext: bytes) -> bytes:
        """Return an AWS Encryption SDK message with this plaintext."""
        sealer, key = self._keys.take_sealing_key() or await self._renew()
        return sealer.seal(plaintext, key.raw)

    async def open(self, message: bytes) -> bytes:
        """Return the plaintext of a message of this tenant and context."""
        with refusals():
            parsed = Message.parse(message)
            if is_for_decrypt(parsed):
                return (await self._client.decrypt(self._tenant_id, message, self._context)).plaintext
            if (key := self._keys.opening_key(parsed)) is None:
                key = await self._client.open_message_key(self._tenant_id, parsed.header, self._context)
                self._keys.keep_opening_key(parsed, key)
                self._wipe_in_time()
            return parsed.open(key.raw)

    def close(self) -> None:
        """Wipe the keys. A later call gets new ones."""
        self._keys.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _renew(self) -> tuple[Sealer, KeyMaterial]:
        async with self._renewing:
            if taken := self._keys.take_sealing_key():  # another task was here first
                return taken
            renewed = self._keys.renew(await self._client.generate_message_key(self._tenant_id, self._context))
            self._wipe_in_time()
            return renewed

    def _wipe(self) -> None:
        self._timer = None
        self._wipe_in_time()

    def _wipe_in_time(self) -> None:
        seconds = self._keys.expire()
        if self._timer is None and seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._wipe)
