"""The file of the audit trail, and where its chain stands: what one thread does for audit.py.

Lines are in a regular file whole or not at all: what a failed write left is cut off before the next one, and so is a
torn line that a crash left. The file may be moved or removed at any time, as logrotate does; the next lines go to a new
one. After each write the head of the chain is kept in the data folder, so that the chain goes on there and after a
restart.
"""

import errno
import fcntl
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

import structlog

from betrace_kms_server.audit.chain import MAX_LINE_BYTES, START, Head, parse_line

log = structlog.get_logger()

STDOUT = "-"
_STDOUT_DESCRIPTOR = 1
_BEGIN = b'{"seq":'
_KEPT = re.compile(rb'\{"seq":([0-9]{1,18}),"hash":"([0-9a-f]{64})"\}\n')


class ChainedFile:
    """Appends lines to a file (made with 0600), or to stdout, and keeps the head. Methods raise OSError.

    With `sync`, `append` returns when the lines are on the disk; without, `sync` puts them there. What is `durable`
    must be a regular file: nothing else can be synced.
    """

    def __init__(self, name: str, head_file: Path, *, durable: bool = False, sync: bool = True) -> None:
        self.name = name
        self._durable, self._syncs = durable, sync
        self.head = START
        """Of the lines that are written; known once the file was open."""
        self._head_file = head_file
        self._kept_bytes = 0
        """Size of the head that this process kept, 0 if it kept none."""
        self._resumed = False
        self._descriptor: int | None = None
        self._regular = False
        self._sent = 0
        """Bytes of the lines at hand that a pipe or a device took before it failed: they cannot be taken back."""
        self._undo: int | None = None
        """Size of the file before a write that failed."""

    def open(self) -> int:
        """Return the descriptor of the file that has the name now, opened anew if that is another one."""
        if self._descriptor is not None:
            if self._is_current(self._descriptor):
                self._cut_back(self._descriptor)
                return self._descriptor
            self.close()
        self._descriptor = self._opened()
        self._sent = 0
        return self._descriptor

    def append(self, lines: bytes, head: Head) -> None:
        """Write lines that lead to `head`, then keep it. After OSError call it again with the same: it goes on."""
        if head != self.head:
            self._write(self.open(), lines)
            self.head = head
        try:
            self._keep_head()
        except OSError as cause:
            raise OSError(cause.errno, cause.strerror, str(self._head_file)) from cause

    def sync(self) -> None:
        """Put on the disk what has the name now; for another thread than that of the other methods.

        It opens the file itself, since the other thread may close its own at any time, and syncs it then.
        """
        if not self._regular:
            return
        with suppress(FileNotFoundError):
            descriptor = os.open(self.name, os.O_RDONLY | os.O_NONBLOCK)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Close the file; the next `open` opens it again."""
        if self._descriptor is not None:
            with suppress(OSError):
                self._cut_back(self._descriptor)
                if self._regular and not self._syncs:
                    os.fsync(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = self._undo = None

    def _is_current(self, descriptor: int) -> bool:
        if self.name == STDOUT:
            return True
        try:
            return os.path.samestat(os.stat(self.name), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def _opened(self) -> int:
        if self.name == STDOUT:
            descriptor = os.dup(_STDOUT_DESCRIPTOR)
        else:  # O_NONBLOCK so that a FIFO that no one reads is an error and no wait without end
            descriptor = os.open(self.name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600)
        try:
            last = None
            self._regular = self.name != STDOUT and stat.S_ISREG(os.fstat(descriptor).st_mode)
            if self._regular:
                self._lock(descriptor)
                last = self._last_line(descriptor)
                if self._durable:
                    _sync_entry(self.name)
            elif self._durable:
                raise OSError(errno.EINVAL, "it is no regular file, and only one can be synced")
            elif self.name != STDOUT:
                os.set_blocking(descriptor, True)
            if not self._resumed:
                self.head = self._resume(last)
                self._resumed = True
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _lock(self, descriptor: int) -> None:
        """Keep other daemons off: two chains in one file read like one that was tampered with."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise OSError(errno.EBUSY, "another process writes it") from cause

    def _last_line(self, descriptor: int) -> bytes | None:
        """Return the last whole line, and cut off what follows it: it was written in part and never confirmed."""
        size = os.fstat(descriptor).st_size
        if not size:
            return None
        with open(self.name, "rb") as file:
            begin = file.read(len(_BEGIN))
            file.seek(max(0, size - 2 * MAX_LINE_BYTES))
            whole, newline, torn = file.read().rpartition(b"\n")
        if not _BEGIN.startswith(begin) or len(torn) > MAX_LINE_BYTES:
            raise OSError(errno.EINVAL, "it is there and is no audit trail")
        if torn:
            os.ftruncate(descriptor, size - len(torn))
            log.warning("A torn line was cut off the audit trail", file=self.name, bytes=len(torn))
        return whole.rpartition(b"\n")[2] + newline if newline else None

    def _resume(self, last: bytes | None) -> Head:
        """Return where the chain goes on: where the kept head says, or behind it after a crash before it was kept.

        Never before it: where lines are gone, the gap must show.
        """
        kept = self._kept_head()
        if last is None:
            if self._regular and kept is not None:
                log.warning("The audit trail goes on in a new file: keep the older ones", file=self.name, seq=kept.seq)
            return kept or START
        line = parse_line(last)
        found = line.head if line and line.intact else None
        if found is not None and (kept is None or found.seq > kept.seq):
            return found
        if found is None or found != kept:
            log.error(
                "The end of the audit trail is missing or was changed, `betrace-kms audit verify` shows where",
                file=self.name,
                last_seq=found and found.seq,
                expected_seq=kept and kept.seq,
            )
        return kept or START

    def _kept_head(self) -> Head | None:
        try:
            kept = _KEPT.fullmatch(self._head_file.read_bytes())
        except FileNotFoundError:
            return None
        if kept is None:
            log.error("The head of the audit trail is damaged, its last line is trusted", file=str(self._head_file))
            return None
        return Head(int(kept[1]), kept[2].decode())

    def _keep_head(self) -> None:
        """Keep the head, whole, but not synced: after a loss of power the file's last line, which is, says more.

        One of the same length is written over the last one, in one call and inside one sector: replacing the file costs
        some 0.2 ms, and a call may wait for it.
        """
        content = b'{"seq":%d,"hash":"%b"}\n' % (self.head.seq, self.head.hash.encode())
        if len(content) == self._kept_bytes:
            with suppress(FileNotFoundError), open(os.open(self._head_file, os.O_WRONLY), "wb", buffering=0) as file:
                file.write(content)
                return
        self._kept_bytes = 0
        temporary = self._head_file.with_suffix(".tmp")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        temporary.replace(self._head_file)
        self._kept_bytes = len(content)

    def _write(self, descriptor: int, lines: bytes) -> None:
        if self._regular:
            self._undo = os.fstat(descriptor).st_size
        try:
            rest = memoryview(lines)[self._sent :]
            while rest:
                sent = os.write(descriptor, rest)
                rest = rest[sent:]
                self._sent += sent
            if self._regular and self._syncs:
                os.fsync(descriptor)
        except OSError:
            with suppress(OSError):
                self._cut_back(descriptor)
            raise
        self._sent, self._undo = 0, None

    def _cut_back(self, descriptor: int) -> None:
        """Take back a write that failed."""
        if self._undo is not None:
            if os.fstat(descriptor).st_size > self._undo:
                os.ftruncate(descriptor, self._undo)
            self._undo, self._sent = None, 0


def _sync_entry(name: str) -> None:
    """Put the entry of a file in its folder on the disk: a new file is lost without it, whatever was synced in it."""
    folder = os.open(Path(name).parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
