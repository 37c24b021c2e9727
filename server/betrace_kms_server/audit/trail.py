"""The audit trail: one line for each key operation, in a chain of hashes, written off the hot path.

`record` puts an event into a list. A task takes what is there, every 0.2 s at most, and makes lines of it (pending.py,
chain.py) for a thread to write (file.py). What cannot be written waits and is tried again; the log says so once, and
once more when it is over.

A call that must be recorded before it is answered waits in `commit`. Then the task does not wait for more: what comes
while a group is written is the next group, so one write, and one sync, serves all calls that came meanwhile.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import structlog

from betrace_kms_server.audit.daemon_thread import DaemonThread
from betrace_kms_server.audit.file import STDOUT, ChainedFile
from betrace_kms_server.audit.pending import Group, Pending
from betrace_kms_server.core.errors import AuditUnavailable, StartRefused
from betrace_kms_server.core.key_event import KeyEvent

log = structlog.get_logger()

HEAD_FILE = "audit-head.json"


class AuditTrail:
    """Records what happened to keys, in `file` ("-" is stdout). An async context manager, to be made in the event loop.

    Its own first and last lines are AuditStarted and AuditStopped. If `required`, entering raises StartRefused when the
    first line cannot be written, `check` refuses from the first later one on that cannot, and `commit` returns when a
    line is written. `durable` implies `required`; then a line counts as written when it is synced. With `required`
    alone, lines are synced `batch_seconds` later.
    """

    def __init__(
        self,
        file: str,
        data_dir: Path,
        *,
        required: bool = False,
        durable: bool = False,
        batch_seconds: float = 0.2,
        retry_seconds: float = 1.0,
        stall_seconds: float = 5.0,
        close_seconds: float = 2.0,
        max_waiting: int = 100_000,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.required = required or durable
        self.durable = durable
        self.problem: str | None = None
        """Why lines cannot be written now, and what to do about it."""
        self.written = 0
        """Lines since the start."""
        self._file = ChainedFile(file, data_dir / HEAD_FILE, durable=durable, sync=durable or not required)
        self._batch_seconds, self._retry_seconds = batch_seconds, retry_seconds
        self._stall_seconds, self._close_seconds = stall_seconds, close_seconds
        self._pending = Pending(max_waiting, clock)
        self._group: Group | None = None
        """What is being written, the same lines until they are."""
        self._opened = False
        self._wake, self._stop = asyncio.Event(), asyncio.Event()
        self._thread = DaemonThread("audit")
        self._sync_thread = DaemonThread("audit sync") if self.required and not durable else None
        self._syncing: asyncio.Task[None] | None = None

    @property
    def lost(self) -> int:
        """Events since the start that were not recorded. A line LinesLost reports how many."""
        return self._pending.lost

    @property
    def failing(self) -> bool:
        """Lines cannot be written now."""
        return self.problem is not None

    @property
    def setting(self) -> str:
        """The setting by which calls must be recorded."""
        return "kms.audit.durable" if self.durable else "kms.audit.required"

    @property
    def file(self) -> str:
        """Where the lines go: a path, or `-`."""
        return self._file.name

    @property
    def sequence(self) -> int:
        """Number of the last written line in the chain."""
        return self._file.head.seq

    @property
    def head(self) -> str:
        """Hash of that line, 64 hexadecimal digits."""
        return self._file.head.hash

    def record(self, event: KeyEvent) -> None:
        """Take an event that is over; to be called in the event loop's thread."""
        self._pending.add(event)
        self._wake.set()

    async def commit(self, event: KeyEvent) -> bool:
        """Take an event that is over, and return whether its line is written; False as soon as that fails.

        A line that failed may still be written later: what it reports was done.
        """
        waiter = asyncio.get_running_loop().create_future()
        taken = self._pending.add(event, waiter)
        self._wake.set()
        return taken and self.problem is None and await waiter

    def check(self) -> None:
        """Raise AuditUnavailable if what is done now must be recorded and cannot be."""
        if self.required and self.problem is not None:
            raise AuditUnavailable(
                f"the audit trail cannot be written, and {self.setting} is set: the daemon's log says what to fix"
            )

    async def __aenter__(self) -> Self:
        self.record(KeyEvent("AuditStarted", ""))
        with suppress(TimeoutError):  # then it has failed, as `_in_thread` logged
            await asyncio.wait_for(self._flush(), 1.5 * self._stall_seconds)
        if self.required and self.problem is not None:
            await self._in_thread(self._file.close)
            self._end_threads()
            raise StartRefused(f"{self.setting} is set, and {self.problem}")
        self._writer = asyncio.create_task(self._write_what_comes())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.record(KeyEvent("AuditStopped", ""))
        self._stop.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._writer, self._close_seconds)
        if self._group or self._pending:
            log.error("The audit trail ends without its last lines", seq=self.sequence, problem=self.problem)
        self._give_up_waiters()
        if self._syncing is not None:
            self._syncing.cancel()
        self._end_threads()

    async def _write_what_comes(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._flush()
            if self._stop.is_set() and (self.failing or not self._pending.events):
                await self._in_thread(self._file.close)
                return
            if self.required and not self.failing:
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._retry_seconds if self.failing else self._batch_seconds)
            if self.failing:
                self._wake.set()

    async def _flush(self) -> None:
        """Write what could not be written before, then what waits; or note why that cannot be."""
        try:
            if self._group:
                await self._write(self._group)
            if self._pending:
                if not self._opened:
                    await self._in_thread(self._file.open)  # it finds where the chain goes on
                    self._opened = True
                self._group = await self._pending.take(self._file.head)
                await self._write(self._group)
        except OSError as error:
            self._failed(error.strerror or str(error), error.filename)
        except Exception as error:  # a defect must not end the writer, nor pass for a trail that is written
            if not self.failing:
                log.error("Writing the audit trail failed", exc_info=error)
            self._failed(type(error).__name__)
        else:
            if self.problem is not None:
                self.problem = None
                log.info("The audit trail is written again", seq=self.sequence, lost=self.lost)

    async def _write(self, group: Group) -> None:
        before = self.sequence
        try:
            await self._in_thread(self._file.append, group.lines, group.head)
        finally:
            self.written += self.sequence - before
        self._group = None
        group.settle(written=True)
        if self._sync_thread is not None and self._syncing is None:
            self._syncing = asyncio.create_task(self._sync_later(self._sync_thread))

    async def _sync_later(self, thread: DaemonThread) -> None:
        """Sync what no call waits for, beside the writes of the next groups."""
        await asyncio.sleep(self._batch_seconds)
        try:
            await asyncio.get_running_loop().run_in_executor(thread, self._file.sync)
        except OSError as error:
            self._failed(error.strerror or str(error), error.filename)
            self._wake.set()
        finally:
            self._syncing = None

    async def _in_thread(self, work: Callable[..., object], *arguments: object) -> None:
        """Let the thread do it; if it hangs, as on a network file system, say so and wait on."""
        loop = asyncio.get_running_loop()
        stall = loop.call_later(self._stall_seconds, self._failed, f"no end after {self._stall_seconds:g} s")
        try:
            await loop.run_in_executor(self._thread, work, *arguments)
        finally:
            stall.cancel()

    def _failed(self, reason: str, place: str | None = None) -> None:
        place = place or ("stdout" if self._file.name == STDOUT else self._file.name)
        problem = (
            f"the audit trail cannot be written ({place}: {reason}): make room there and let the daemon's user write,"
            " or choose another kms.audit.file"
        )
        if problem != self.problem:
            self.problem = problem
            log.error("The audit trail cannot be written", problem=problem, calls_are_refused=self.required)
        self._give_up_waiters()

    def _give_up_waiters(self) -> None:
        if self._group:
            self._group.settle(written=False)
        self._pending.give_up_waiters()

    def _end_threads(self) -> None:
        self._thread.shutdown(wait=False)
        if self._sync_thread is not None:
            self._sync_thread.shutdown(wait=False)
