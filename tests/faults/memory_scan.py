"""Counts copies of known keys in the memory of a living process: raw, in base64 and in hexadecimal digits.

A copy is found wherever the process may write: heap, arenas, stacks, mapped files. Reading needs the process's user and
kms.process.dumpable=true, or root.
"""

import base64
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

_MAP = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw.. \S+ \S+ \S+ *(.*)")
_CHUNK = 16 * 1024 * 1024


def memory(pid: int) -> bytes:
    """Return everything that a process can write, one region after the other."""
    regions = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text("utf-8").splitlines():
            if (found := _MAP.match(line)) is None or found[3] in ("[vvar]", "[vsyscall]"):
                continue
            begin, end = int(found[1], 16), int(found[2], 16)
            while begin < end:
                try:
                    file.seek(begin)
                    part = file.read(min(end - begin, _CHUNK))
                except OSError:  # a page that is gone, or is no memory
                    break
                if not part:
                    break
                regions.append(part)
                begin += len(part)
    return b"\0".join(regions)


def copies(pid: int, keys: Mapping[str, bytes]) -> Counter[str]:
    """Return how many copies of keys there are, by name and form. Keys of one name are counted together."""
    seen, found = memory(pid), Counter[str]()
    for name, key in keys.items():
        kind = name.partition(" ")[0]
        for form, text in (("raw", key), ("base64", base64.b64encode(key).rstrip(b"=")), ("hex", key.hex().encode())):
            found[f"{kind} {form}"] += seen.count(text[: max(16, len(text) - 4)])
    return +found


def rss_mib(pid: int) -> int:
    """Return the resident set size of a process in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
