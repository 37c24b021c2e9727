"""What sealing, opening and keys of messages return."""

import asyncio
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from betrace_kms_envelope import DoesNotOpen as MessageDoesNotOpen
from betrace_kms_envelope import EncryptedDataKey, Message

from betrace_kms_server.core.errors import DoesNotOpen
from betrace_kms_server.core.keys import KeyMaterial
from betrace_kms_server.core.tenancy import Context

_SLICE = 1_000
"""Frames that are opened between two turns of the loop: 3 ms."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A ciphertext and the master key behind it."""

    ciphertext: bytes
    master_key_arn: str


@dataclass(frozen=True, slots=True)
class Opened:
    """What a ciphertext held, and the master key behind it."""

    plaintext: bytes = field(repr=False)
    master_key_arn: str


@dataclass(frozen=True, slots=True)
class MessageKey:
    """A data key to seal messages with, what their headers must hold, and the master key behind it."""

    material: KeyMaterial
    encrypted: EncryptedDataKey
    context: Context = field(repr=False)
    master_key_arn: str


class SealingKey(Protocol):
    """What seals payloads of one tenant and context."""

    def seal(self, plaintext: bytes) -> Sealed:
        """Seal a payload into a message."""


@dataclass(frozen=True, slots=True)
class OpeningKey:
    """An unwrapped data key, and the master key behind it."""

    material: KeyMaterial
    master_key_arn: str

    async def open(self, message: Message) -> Opened:
        """Open a message in slices, with a turn of the loop between them: each frame takes 3 us, whatever is in it.

        Raises DoesNotOpen.
        """
        frames, chunks = message.frames(self.material.raw), list[bytes]()
        try:
            while len(part := list(islice(frames, _SLICE))) == _SLICE:
                chunks += part
                await asyncio.sleep(0)
        except MessageDoesNotOpen:
            raise DoesNotOpen from None
        return Opened(b"".join(chunks + part), self.master_key_arn)

    def handed_out(self) -> Opened:
        """Return the key itself: what a bare key holds."""
        return Opened(bytes(self.material.raw), self.master_key_arn)
