"""Inputs that a reader should have read or refused: made as small as they can be, and kept."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.targets import Target


def finding_of(target: Target, data: bytes) -> Exception | None:
    """Return what a target raises for an input and should not."""
    try:
        target.check(data)
    except Exception as cause:  # noqa: BLE001  # whatever it is, it is a finding
        return cause
    return None


def report(target: Target, data: bytes, cause: Exception, folder: Path) -> Path:
    """Write an input that fails in the same way, and is as small as that can be, into a folder. Returns the file."""

    def fails(smaller: bytes) -> bool:
        return type(finding_of(target, smaller)) is type(cause)

    least = minimised(data, fails)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"finding-{hashlib.sha256(least).hexdigest()[:8]}"
    file.write_bytes(least)
    return file


def minimised(data: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """Return a part of an input that fails too and of which no single byte can be left out."""
    size = 2 * len(data)
    while size := size // 2:
        at = 0
        while at < len(data):
            shorter = data[:at] + data[at + size :]
            if fails(shorter):
                data = shorter
            else:
                at += size
    return data
