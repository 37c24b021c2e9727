"""Seals and opens content of any size where it is: the daemon gives the key, and never sees the content.

Frames are sealed and opened one after the other, so memory holds a few megabytes. A file that was cut or altered leaves
no plaintext behind: the result takes its name only after the last tag has verified.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from betrace_kms_envelope import DoesNotOpen, KeyMaterial, Message, Opening, TooLarge, header_length

from betrace_kms_client.errors import InvalidRequest
from betrace_kms_client.new_file import new_file
from betrace_kms_client.results import MessageKey

BLOCK_BYTES = 1024 * 1024
_START_BYTES = 64 * 1024
MAX_DECRYPT_BYTES = 64 * 1024 * 1024
"""Sixteen times what a daemon takes unless configured otherwise (kms.server.max-message-bytes)."""

Name = str | os.PathLike[str]
Progress = Callable[[int], None]
"""Is told how many bytes have been read since it was called last."""


@dataclass(frozen=True, slots=True)
class Start:
    """The first bytes of a message: its header, and what was read after it."""

    header: bytes
    rest: bytes

    @property
    def is_for_decrypt(self) -> bool:
        """Whether only the daemon opens the message."""
        return is_for_decrypt(Message.parse(self.header))


def is_for_decrypt(message: Message) -> bool:
    """Return whether Encrypt sealed a message, under a key that never leaves the daemon."""
    return message.context.get("keyType") == "sealing"


class StartReader:
    """Collects the first bytes of a message until its header is there."""

    def __init__(self) -> None:
        self._held = b""

    def add(self, data: bytes | None) -> Start | None:
        """Take more of the message, or None at its end. Raises DoesNotOpen as soon as it can be none."""
        if data is None:
            raise DoesNotOpen
        self._held += data
        length = header_length(self._held)
        return None if length is None else Start(self._held[:length], self._held[length:])


@contextmanager
def refusals() -> Iterator[None]:
    """Let a message that does not open be the error that the daemon would answer."""
    try:
        yield
    except (DoesNotOpen, TooLarge) as refusal:
        raise InvalidRequest(str(refusal), reason="CIPHERTEXT_DOES_NOT_OPEN") from None


def read_start(source: BinaryIO) -> Start:
    """Read a message up to the end of its header, and a little more. Raises DoesNotOpen if there is none."""
    reader = StartReader()
    while True:
        if start := reader.add(source.read(_START_BYTES) or None):
            return start


def read_for_decrypt(start: Start, source: BinaryIO) -> bytes:
    """Read the whole of a message that Encrypt sealed."""
    message = start.header + start.rest + source.read(MAX_DECRYPT_BYTES)
    if len(message) > MAX_DECRYPT_BYTES:
        raise InvalidRequest(
            f"the message says that Encrypt sealed it, which seals less than {MAX_DECRYPT_BYTES // 1024**2} MiB: it was"
            " altered"
        )
    return message


def seal(key: MessageKey, start: bytes, source: BinaryIO, target: BinaryIO, progress: Progress | None = None) -> None:
    """Seal the content that `start` begins and `source` goes on with."""
    sealing = key.sealing()
    target.write(sealing.header)
    target.write(sealing.update(start))
    block = bytearray(BLOCK_BYTES)
    view = memoryview(block)
    try:
        while size := source.readinto(view):  # type: ignore[attr-defined]  # every file that is read in bytes has it
            target.write(sealing.update(view[:size]))
            if progress:
                progress(size)
        target.write(sealing.finalize())
    finally:
        view[:] = bytes(BLOCK_BYTES)


def open_to(
    start: Start, key: KeyMaterial, source: BinaryIO, target: BinaryIO, progress: Progress | None = None
) -> None:
    """Open the message that `start` begins and `source` goes on with. Raises DoesNotOpen, maybe only at its end."""
    opening = Opening(start.header, key.raw)
    block = start.rest
    while True:
        target.write(opening.update(block))
        if progress:
            progress(len(block))
        if not (block := source.read(BLOCK_BYTES)):
            break
    opening.finalize()


def seal_file(key: MessageKey, source: Name, target: Name, progress: Progress | None = None) -> None:
    """Seal a file into a new one."""
    with open(source, "rb") as content, new_file(Path(target)) as message:
        seal(key, b"", content, message, progress)


def open_file(start: Start, key: KeyMaterial, source: BinaryIO, target: Name, progress: Progress | None = None) -> None:
    """Open a message into a new file."""
    with new_file(Path(target)) as content:
        open_to(start, key, source, content, progress)


def write_file(content: bytes, target: Name) -> None:
    """Write a new file."""
    with new_file(Path(target)) as file:
        file.write(content)


async def in_thread(work: Callable[[Progress], None], progress: Progress | None) -> None:
    """Run work on files in a thread. Cancelling it ends the work, which leaves nothing."""
    cancelled = threading.Event()

    def check(size: int) -> None:
        if cancelled.is_set():
            raise InterruptedError
        if progress:
            progress(size)

    running = asyncio.ensure_future(asyncio.to_thread(work, check))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.wait((running,))
        raise
