"""WrapCount: how often this daemon may still encrypt under a key with random IVs.

NIST SP 800-38D, section 8.3, allows 2^32 invocations under one key with random IVs of 96 bits: beyond, a repeated IV is
too likely. The count is in a file of the data folder, and taken from there in blocks: a daemon that dies loses the rest
of its block, never a wrap that it made. Daemons that share a key share the bound, so it is a setting.
"""

import asyncio
import hashlib
from pathlib import Path

import structlog

from betrace_kms_server.core.errors import MasterKeyUnusable, StoreUnavailable
from betrace_kms_server.host.atomic_file import atomic_replace

log = structlog.get_logger()

FOLDER = "pkcs11-wraps"
BLOCK = 2**16
_WARN_AT = 3 / 4


class WrapCount:
    """Counts the wraps of a master key, at most `limit`. `folder` is made if it is missing."""

    def __init__(self, folder: Path, master_key: str, *, limit: int, block: int = BLOCK) -> None:
        self._path = folder / f"{hashlib.sha256(master_key.encode()).hexdigest()[:32]}.txt"
        self._master_key = master_key
        self._limit = limit
        self._block = block
        self._left = 0
        self._reserving = asyncio.Lock()

    @property
    def share(self) -> float:
        """Which share of the limit is taken, as of the last block."""
        return self._total() / self._limit

    async def take(self) -> None:
        """Count one wrap. Raises MasterKeyUnusable at the limit, and StoreUnavailable if the file cannot be kept."""
        while self._left == 0:
            async with self._reserving:
                if self._left == 0:
                    self._left = await asyncio.to_thread(self._reserve)
        self._left -= 1

    def _reserve(self) -> int:
        total = self._total()
        block = min(self._block, self._limit - total)
        if block <= 0:
            raise MasterKeyUnusable(
                f"{self._master_key} has wrapped all the keys that one AES-GCM key may ({self._limit}): make another,"
                " set pkcs11.key-label to it, and list this one in pkcs11.former-key-labels",
                metadata={"master_key": self._master_key},
                state="Exhausted",
            )
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            with atomic_replace(self._path) as new:
                new.write_text(f"{total + block} {self._master_key}\n")
        except OSError as cause:
            raise StoreUnavailable(
                f"the count of wraps in {self._path.parent} cannot be written: free space there, or make it writable"
            ) from cause
        if (total + block) / self._limit >= _WARN_AT:
            log.warning("The master key nears its bound of wraps", master_key=self._master_key, wraps=total + block)
        return block

    def _total(self) -> int:
        try:
            number, _, name = self._path.read_text().rstrip("\n").partition(" ")
        except FileNotFoundError:
            return 0
        except (OSError, UnicodeDecodeError) as cause:
            raise self._damaged() from cause
        if name != self._master_key or not (number.isascii() and number.isdigit()):
            raise self._damaged()
        return int(number)

    def _damaged(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"the count of wraps in {self._path} is damaged or cannot be read: restore it from a backup, or make"
            " another key and set pkcs11.key-label to it"
        )
