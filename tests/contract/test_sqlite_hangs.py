"""The SQLite store when its volume hangs, fails or runs out: what waits is bounded, and nothing is called damage."""

import asyncio
import errno
import os
import resource
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_server.core.errors import StartRefused, StoreUnavailable
from betrace_kms_server.stores.sqlite import store as sqlite
from betrace_kms_server.stores.sqlite.errors import explained, is_damage
from betrace_kms_server.stores.sqlite.store import SqliteStore, open_sqlite
from betrace_kms_server.stores.sqlite.turns import NeverBegun, QueueFull, StillRunning, Turns

from tests.contract.samples import stored_key

EVER = 600.0


class Hang:
    """A volume that hangs until it is let go: a function of SQL that a statement calls."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.began, self.let_go = threading.Event(), threading.Event()

    def __call__(self) -> int:
        self.began.set()
        self.let_go.wait()
        return 1

    async def start(self) -> "asyncio.Task[object]":
        """Let a statement hang, and return who waits for it."""
        await self._store._database.create_function("hang", 0, self)
        task = asyncio.create_task(self._store.fetch("SELECT hang()"))
        await asyncio.to_thread(self.began.wait)
        return task


@pytest.fixture
def hang(store: SqliteStore) -> Iterator[Hang]:
    """Give a way to make a store hang."""
    hang = Hang(store)
    yield hang
    hang.let_go.set()


async def test_write_that_was_answered_as_failed_before_it_began_is_never_done(
    store: SqliteStore, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred keys that were refused while the volume hung are not in the store when it answers again."""
    reader = await hang.start()
    monkeypatch.setattr(sqlite, "_STATEMENT_SECONDS", 0.0)
    keys = [stored_key(f"tenant-{number}") for number in range(200)]
    answers = await asyncio.gather(*(store.add(key) for key in keys), return_exceptions=True)
    assert [StoreUnavailable] * 200 == [type(answer) for answer in answers]
    assert "nothing was written" in str(answers[0])
    assert store._database._tx.qsize() == 0
    hang.let_go.set()
    await reader
    monkeypatch.setattr(sqlite, "_STATEMENT_SECONDS", EVER)
    assert [] == [key async for key in store.rows()]


async def test_cancelled_caller_that_waits_writes_nothing(store: SqliteStore, hang: Hang) -> None:
    """A caller who leaves before its turn came takes its statement along."""
    reader = await hang.start()
    writer = asyncio.create_task(store.add(stored_key()))
    await asyncio.sleep(0)
    writer.cancel()
    hang.let_go.set()
    await reader
    assert ([], True) == ([key async for key in store.rows()], writer.cancelled())


async def test_callers_that_wait_are_bounded(store: SqliteStore, hang: Hang) -> None:
    """Who finds the queue full is refused at once, and those who wait are served when the volume answers."""
    reader = await hang.start()
    waiting = [asyncio.create_task(store.generation("acme")) for _ in range(sqlite._WAITING - 1)]
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="too many calls wait for the key store"):
        await store.generation("acme")
    hang.let_go.set()
    await reader
    assert [0] * len(waiting) == await asyncio.gather(*waiting)


@pytest.mark.parametrize("verb", ["create", "rotate", "revoke"])
async def test_write_in_progress_is_resolved_by_reading_back(
    store: SqliteStore, hang: Hang, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """The time of a write is over while it runs; the read after it waits for its end and finds what it did."""
    first, second = stored_key(), stored_key(create_time_ms=1_700_000_000_001)
    if verb != "create":
        await store.create(first)
    await store._database.create_function("hang", 0, hang)
    table, key_id = ("signing_keys", first.key_id) if verb == "create" else ("tenants", None)
    await store._database.executescript(
        f"CREATE TEMP TRIGGER hangs AFTER {'INSERT' if key_id else 'UPDATE'} ON main.{table} BEGIN SELECT hang(); END"
    )
    run = store._turns.run

    async def impatient(statement: Any, seconds: float) -> Any:
        writer = asyncio.create_task(run(statement, EVER))
        while not writer.done() and not hang.began.is_set():
            await asyncio.wait([writer], timeout=0.001)
        if writer.done() or hang.let_go.is_set():
            return await writer
        hang.let_go.set()
        raise StillRunning

    monkeypatch.setattr(store._turns, "run", impatient)
    if verb == "create":
        assert first == await store.create(first)
    elif verb == "rotate":
        assert await store.rotate(first, second) is True
    else:
        assert await store.revoke(first, 1_700_000_000_001, second) is True


async def test_turns_tell_apart_what_began_and_what_did_not() -> None:
    """A statement whose turn never came is not run; one that runs goes on; one too many is refused."""
    turns, go, ran = Turns(waiting=2), asyncio.Event(), list[str]()

    async def statement(name: str) -> str:
        ran.append(name)
        await go.wait()
        return name

    running = asyncio.create_task(turns.run(lambda: statement("runs"), EVER))
    await asyncio.sleep(0)
    with pytest.raises(NeverBegun):
        await turns.run(lambda: statement("never"), 0.0)
    waiting = asyncio.create_task(turns.run(lambda: statement("waits"), EVER))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await turns.run(lambda: statement("one too many"), EVER)
    go.set()
    assert ["runs", "waits"] == [*await asyncio.gather(running, waiting)]
    assert ["runs", "waits"] == ran


def failure(name: str) -> sqlite3.Error:
    """Return what sqlite3 raises for a result code."""
    error = sqlite3.OperationalError("said by SQLite")
    error.sqlite_errorname = name
    return error


@pytest.mark.parametrize(
    ("cause", "step"),
    [
        (failure("SQLITE_IOERR"), "reports an I/O error"),
        (failure("SQLITE_IOERR_READ"), "reports an I/O error"),
        (failure("SQLITE_IOERR_FSYNC"), "reports an I/O error"),
        (failure("SQLITE_IOERR_CORRUPTFS"), "reports an I/O error"),
        (failure("SQLITE_CANTOPEN"), "cannot be opened"),
        (failure("SQLITE_BUSY"), "another process holds its file"),
        (failure("SQLITE_BUSY_SNAPSHOT"), "another process holds its file"),
        (failure("SQLITE_LOCKED_SHAREDCACHE"), "another process holds its file"),
        (failure("SQLITE_FULL"), "make room"),
        (failure("SQLITE_READONLY_DIRECTORY"), "read-only"),
        (failure("SQLITE_PROTOCOL"), "check that its volume is there, writable and not full"),
        (OSError(errno.EIO, "said by the kernel"), "reports an I/O error"),
        (OSError(errno.ENOSPC, "said by the kernel"), "make room"),
        (OSError(errno.EROFS, "said by the kernel"), "read-only"),
        (OSError(errno.EMFILE, "said by the kernel"), "limit of open files"),
        (OSError(errno.ENFILE, "said by the kernel"), "limit of open files"),
        (TimeoutError(), "check that its volume is there"),
    ],
    ids=str,
)
async def test_what_may_pass_is_no_damage(store: SqliteStore, cause: Exception, step: str) -> None:
    """Whatever is not SQLITE_CORRUPT or SQLITE_NOTADB has its own next step, and none is to restore a backup."""
    assert (False, True, False) == (is_damage(cause), step in explained(cause), "from a backup" in explained(cause))

    async def fails(*_: object) -> object:
        raise cause

    store._database.execute_fetchall = fails  # type: ignore[method-assign, assignment]
    with pytest.raises(StoreUnavailable) as refused:
        await store.active("acme")
    assert (True, False) == (step in refused.value.message, "said by" in refused.value.message)


@pytest.mark.parametrize("name", ["SQLITE_CORRUPT", "SQLITE_CORRUPT_INDEX", "SQLITE_NOTADB"])
async def test_damage_is_called_damage(store: SqliteStore, name: str) -> None:
    """These two codes say that the file is not what SQLite wrote, or that it could not be read."""

    async def fails(*_: object) -> object:
        raise failure(name)

    store._database.execute_fetchall = fails  # type: ignore[method-assign, assignment]
    with pytest.raises(
        StoreUnavailable, match=r"is damaged: check its volume and the kernel's log.* stop the daemon and restore"
    ):
        await store.active("acme")


@pytest.mark.parametrize("name", ["SQLITE_IOERR_READ", "SQLITE_CANTOPEN", "SQLITE_BUSY"])
async def test_start_does_not_call_an_io_error_damage(
    database: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A start that meets an I/O error is refused with its own next step."""

    async def fails(*_: object) -> None:
        raise failure(name)

    monkeypatch.setattr(sqlite, "prepare", fails)
    with pytest.raises(StartRefused) as refused:
        async with open_sqlite(database):
            pass
    assert (True, False) == (name in str(refused.value), "damaged" in str(refused.value))


async def test_used_up_open_files_are_named(store: SqliteStore) -> None:
    """A write that finds no file descriptor for its journal says which limit to raise."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open(os.devnull, os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(StoreUnavailable, match="raise the limit of open files"):
            await store.add(stored_key())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in (spare, *taken):
            os.close(descriptor)
    assert await store.add(stored_key()) is True
