"""A copy of the key store's file while its daemon serves, by SQLite's backup API (https://www.sqlite.org/backup.html).

The copy is the store as it was at one moment. It is read in slices, and the daemon can write between two of them. If it
does, SQLite begins anew, so each new attempt takes larger slices: the last one takes the whole file at once, and ends
however often the daemon writes.
"""

import os
import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from betrace_kms_server.core.errors import StartRefused, StoreUnavailable
from betrace_kms_server.stores.sqlite.branch_keys import SqliteBranchKeys
from betrace_kms_server.stores.sqlite.errors import explained
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE, open_sqlite

_FIRST_PAGES = 256
"""1 MiB, a few milliseconds."""
_GROWTH = 4
_PAUSE_SECONDS = 0.01
_BUSY_SECONDS = 10.0
"""For how long another process may keep the file to itself."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What was found in a key store's file."""

    keys: int
    tenants: int
    branch_key_rows: int


class _Overtaken(Exception):
    """The store was written between two slices."""


def copy(source: Path, target: Path) -> None:
    """Make a file a copy of a key store. Raises StoreUnavailable if it cannot be read, or the file not written."""
    try:
        with closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True)) as store:
            pages = _FIRST_PAGES
            while not _copied(store, target, pages):
                pages *= _GROWTH
    except (sqlite3.Error, OSError) as cause:
        raise StoreUnavailable(f"the key store cannot be copied {explained(cause)}") from cause


def _copied(store: sqlite3.Connection, target: Path, pages: int) -> bool:
    """Copy the store in slices of some pages, and return whether it was not written meanwhile."""
    os.truncate(target, 0)  # without a journal, what an attempt before left is no database
    left, since = float("inf"), time.monotonic()

    def after_slice(status: int, remaining: int, _total: int) -> None:
        nonlocal left, since
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            if time.monotonic() - since > _BUSY_SECONDS:
                raise StoreUnavailable("another process holds the key store's file: end that process, and try again")
            return
        if remaining >= left:
            raise _Overtaken
        left, since = remaining, time.monotonic()
        if remaining:
            time.sleep(_PAUSE_SECONDS)

    try:
        with closing(sqlite3.connect(target)) as new:
            new.execute("PRAGMA journal_mode=OFF")  # the caller throws half a copy away, and syncs a whole one
            new.execute("PRAGMA synchronous=OFF")
            store.backup(new, pages=pages, progress=after_slice, sleep=_PAUSE_SECONDS)
    except _Overtaken:
        return False
    return True


async def verified(file: Path, name: str) -> Contents:
    """Check every page, table, row and checksum of a file, and count what is in it. Raises StartRefused, KeyDamaged.

    Opening a file of an earlier version would change it, so a copy beside it is opened. Errors call it by `name`.
    """
    with TemporaryDirectory(prefix=f"{file.name}.", dir=file.parent) as folder:
        trial = Path(folder) / DATABASE_FILE
        shutil.copyfile(file, trial)
        keys = rows = 0
        tenants = set[str]()
        try:
            async with open_sqlite(trial) as store:
                async for key in store.rows():
                    keys += 1
                    tenants.add(key.tenant_id)
                async for row in SqliteBranchKeys(store).rows():
                    rows += 1
                    tenants.add(row.branch_key_id)
                async for head in store.shreddings():
                    head.shredding()
        except StartRefused as cause:
            raise StartRefused(str(cause).replace(str(trial), name)) from cause
    return Contents(keys, len(tenants), rows)
