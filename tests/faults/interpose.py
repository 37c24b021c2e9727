"""Faults of the machine in one process: its wall clock, its disk, its name resolution. Needs a C compiler.

`interpose.c` is loaded into a daemon by LD_PRELOAD: what runs is the real daemon, with the real libraries, on a machine
that fails.
"""

import errno
import mmap
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

_CONTROL = struct.Struct("qiiii")


@dataclass
class Machine:
    """What fails in processes that are started with `environ`. `apply` what was set."""

    environ: dict[str, str]
    _control: mmap.mmap

    def set(self, *, clock_seconds: int = 0, write: int = 0, read: int = 0, sync: int = 0, names: bool = False) -> None:
        """Let the machine be so from now on: errno for operations on files, 0 for none."""
        self._control[: _CONTROL.size] = _CONTROL.pack(clock_seconds, write, read, sync, names)

    def set_disk(self, fault: str) -> None:
        """Let the disk fail: `full`, `broken` (EIO), `read-only`, or `well`."""
        code = {"full": errno.ENOSPC, "broken": errno.EIO, "read-only": errno.EROFS, "well": 0}[fault]
        broken = code if fault == "broken" else 0
        self.set(write=code, read=broken, sync=broken)


def machine(folder: Path) -> Machine:
    """Return a machine that is well."""
    library, control = folder / "interpose.so", folder / "control"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    control.write_bytes(bytes(mmap.PAGESIZE))
    with control.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), mmap.PAGESIZE)
    return Machine({"LD_PRELOAD": str(library), "FAULT_CONTROL": str(control)}, mapped)
