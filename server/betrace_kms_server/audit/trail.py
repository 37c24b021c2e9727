"""The audit trail: one line for each key operation, in a chain of hashes, written off the hot path.

`record` puts an event into a list. A task takes what is there, every 0.2 s at most, and makes lines of it
(audit_chain.py) for a thread to write (audit_file.py). What cannot be written waits and is tried again; the log says so
once, and once more when it is over.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import structlog

from betrace_kms_server.audit.chain import Head, format_line
from betrace_kms_server.audit.daemon_thread import DaemonThread
from betrace_kms_server.audit.file import STDOUT, ChainedFile
from betrace_kms_server.core.errors import AuditUnavailable, StartRefused
from betrace_kms_server.core.key_event import KeyEvent

log = structlog.get_logger()

HEAD_FILE = "audit-head.json"
_LINES_IN_A_ROW = 50
"""How many lines are made before calls get their turn: some 0.2 ms of work."""


class AuditTrail:
    """Records what happened to keys, in `file` ("-" is stdout). An async context manager, to be made in the event loop.

    Its own first and last lines are AuditStarted and AuditStopped. If `required`, entering raises StartRefused when the
    first line cannot be written, and `check` refuses from the first later one on that cannot.
    """

    def __init__(
        self,
        file: str,
        data_dir: Path,
        *,
        required: bool = False,
        batch_seconds: float = 0.2,
        retry_seconds: float = 1.0,
        stall_seconds: float = 5.0,
        close_seconds: float = 2.0,
        max_waiting: int = 100_000,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.required = required
        self.problem: str | None = None
        """Why lines cannot be written now, and what to do about it."""
        self.written = 0
        """Lines since the start."""
        self.lost = 0
        """Events since the start that found more than `max_waiting` waiting. A line LinesLost says how many."""
        self._file = ChainedFile(file, data_dir / HEAD_FILE)
        self._batch_seconds, self._retry_seconds = batch_seconds, retry_seconds
        self._stall_seconds, self._close_seconds = stall_seconds, close_seconds
        self._max_waiting, self._clock = max_waiting, clock
        self._waiting: list[tuple[int, KeyEvent]] = []
        self._untold = 0
        """Lost events that no line reports yet."""
        self._batch: tuple[bytes, Head] | None = None
        """Lines that are being written, the same ones until they are, and the head that they lead to."""
        self._wake, self._stop = asyncio.Event(), asyncio.Event()
        self._thread = DaemonThread("audit")

    @property
    def failing(self) -> bool:
        """Lines cannot be written now."""
        return self.problem is not None

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
        if len(self._waiting) < self._max_waiting:
            self._waiting.append((self._clock(), event))
        else:
            self.lost += 1
            self._untold += 1
        if not self._wake.is_set():
            self._wake.set()

    def check(self) -> None:
        """Raise AuditUnavailable if what is done now must be recorded and cannot be."""
        if self.required and self.problem is not None:
            raise AuditUnavailable(
                "the audit trail cannot be written, and kms.audit.required is set: the daemon's log says what to fix"
            )

    async def __aenter__(self) -> Self:
        self.record(KeyEvent("AuditStarted", ""))
        with suppress(TimeoutError):  # then it has failed, as `_in_thread` logged
            await asyncio.wait_for(self._flush(), 1.5 * self._stall_seconds)
        if self.required and self.problem is not None:
            await self._in_thread(self._file.close)
            self._thread.shutdown(wait=False)
            raise StartRefused(f"kms.audit.required is set, and {self.problem}")
        self._writer = asyncio.create_task(self._write_what_comes())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.record(KeyEvent("AuditStopped", ""))
        self._stop.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._writer, self._close_seconds)
        if self._batch or self._waiting or self._untold:
            log.error("The audit trail ends without its last lines", seq=self.sequence, problem=self.problem)
        self._thread.shutdown(wait=False)

    async def _write_what_comes(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._flush()
            if self._stop.is_set() and (self.failing or not self._waiting):
                await self._in_thread(self._file.close)
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._retry_seconds if self.failing else self._batch_seconds)
            if self.failing:
                self._wake.set()

    async def _flush(self) -> None:
        """Write what could not be written before, then what waits; or note why that cannot be."""
        try:
            if self._batch:
                await self._write(*self._batch)
            if self._waiting or self._untold:
                await self._in_thread(self._file.open)  # the first time, it finds where the chain goes on
                self._batch = await self._next_batch()
                await self._write(*self._batch)
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

    async def _write(self, lines: bytes, head: Head) -> None:
        before = self.sequence
        try:
            await self._in_thread(self._file.append, lines, head)
        finally:
            self.written += self.sequence - before
        self._batch = None

    async def _next_batch(self) -> tuple[bytes, Head]:
        """Make lines of all that waits, and count what was lost behind them."""
        if self._untold:
            self._waiting.append((self._clock(), KeyEvent("LinesLost", "", items=self._untold)))
            self._untold = 0
        events, head, lines = self._waiting[:], self._file.head, []
        for number, (time_ns, event) in enumerate(events, 1):
            line, head = format_line(event, time_ns, head)
            lines.append(line)
            if number % _LINES_IN_A_ROW == 0:
                await asyncio.sleep(0)
        del self._waiting[: len(events)]
        return b"".join(lines), head

    async def _in_thread(self, work: Callable[..., object], *arguments: object) -> None:
        """Let the thread do it; if it hangs, as on a network file system, say so and wait on."""
        doing = asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        done, _ = await asyncio.wait({doing}, timeout=self._stall_seconds)
        if not done:
            self._failed(f"no end after {self._stall_seconds:g} s")
        await doing

    def _failed(self, reason: str, place: str | None = None) -> None:
        place = place or ("stdout" if self._file.name == STDOUT else self._file.name)
        problem = (
            f"the audit trail cannot be written ({place}: {reason}): make room there and let the daemon's user write,"
            " or choose another kms.audit.file"
        )
        if problem != self.problem:
            self.problem = problem
            log.error("The audit trail cannot be written", problem=problem, calls_are_refused=self.required)
