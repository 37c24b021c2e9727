"""The audit trail: the file that it is written to, and what happens when that is moved, full or gone."""

# ruff: noqa: ASYNC240  # tests look at small files while nothing else runs

import asyncio
import errno
import fcntl
import json
import os
import re
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_server.audit.chain import (
    format_line,
)
from betrace_kms_server.audit.trail import AuditTrail
from betrace_kms_server.core.errors import AuditUnavailable, StartRefused
from betrace_kms_server.core.key_event import KeyEvent
from structlog.testing import capture_logs

from tests.unit.trails import EVENT, TIME, chain, head_of, verified


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "audit.log"


def trail_in(file: Path | str, data_dir: Path, **options: Any) -> AuditTrail:
    """Make a trail that writes without waiting for more, and tries again at once."""
    return AuditTrail(str(file), data_dir, **{"batch_seconds": 0, "retry_seconds": 0.001, **options})


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # what a thread does sets no event
            await asyncio.sleep(0.001)


async def recorded(trail: AuditTrail, *operations: str) -> None:
    """Record operations, and wait until they are written."""
    expected = trail.written + len(operations)
    for operation in operations:
        trail.record(KeyEvent(operation, "acme"))
    await until(lambda: trail.written == expected)


async def run_once(file: Path, *operations: str) -> None:
    """Run a trail from start to stop."""
    async with trail_in(file, file.parent / "data") as trail:
        await recorded(trail, *operations)


def operations_in(*files: Path) -> list[str]:
    return [json.loads(line)["operation"] for file in files for line in file.read_bytes().splitlines()]


def intact(*files: Path) -> bool:
    return [] == verified(*(file.read_bytes() for file in files))


def errors_in(logs: Sequence[Any]) -> list[str]:
    return [entry["event"] for entry in logs if entry["log_level"] == "error"]


async def test_what_is_recorded_is_written(file: Path) -> None:
    """Events become lines in their order, with the time they were recorded, between the daemon's own."""
    times = iter([TIME, TIME + 1_000_000, TIME + 2_000_000, TIME + 3_000_000])
    async with trail_in(file, file.parent / "data", clock=lambda: next(times), retry_seconds=3600) as trail:
        trail.record(EVENT)
        trail.record(KeyEvent("Encrypt", "acme"))
        await until(lambda: trail.written == 3)
        assert (3, 3, 0, False) == (trail.sequence, trail.written, trail.lost, trail.failing)
        assert head_of(file.read_bytes().splitlines(keepends=True)[-1]).hash == trail.head
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert ["AuditStarted", "SignSpan", "Encrypt", "AuditStopped"] == [line["operation"] for line in lines]
    assert ["daemon", EVENT.caller, "daemon", "daemon"] == [line["caller"] for line in lines]
    assert ["06Z", "07Z", "08Z", "09Z"] == [line["time"][-3:] for line in lines]
    assert intact(file)


async def test_what_is_recorded_last_is_written(file: Path) -> None:
    """Stopping writes what still waits, however many lines those are."""
    async with trail_in(file, file.parent / "data", batch_seconds=3600) as trail:
        await recorded(trail, "Encrypt")
        for _ in range(1000):
            trail.record(EVENT)
    assert 1003 == len(operations_in(file))
    assert intact(file)


async def test_what_is_recorded_during_a_write_is_written(file: Path) -> None:
    """Events that come while lines are made and written are in the next batch."""
    async with trail_in(file, file.parent / "data") as trail:
        for _ in range(1000):
            trail.record(EVENT)
        for _ in range(100):
            await asyncio.sleep(0)
            trail.record(EVENT)
    assert ["AuditStarted", *["SignSpan"] * 1100, "AuditStopped"] == operations_in(file)
    assert intact(file)


async def test_lines_go_in_batches(file: Path) -> None:
    """Events that come in the time of a batch wait for its end."""
    async with trail_in(file, file.parent / "data", batch_seconds=3600) as trail:
        await recorded(trail, "Encrypt")
        trail.record(EVENT)
        await asyncio.sleep(0.05)
        assert 2 == trail.written


async def test_files_are_the_daemons_own(file: Path) -> None:
    """Trail and head are for the daemon's user alone."""
    await run_once(file)
    assert [0o600, 0o600] == [path.stat().st_mode & 0o777 for path in (file, file.parent / "data" / "audit-head.json")]


async def test_a_restart(file: Path) -> None:
    """The chain goes on after a restart, and the head that was kept is the last line's."""
    for _ in range(3):
        await run_once(file, "Encrypt")
    assert ["AuditStarted", "Encrypt", "AuditStopped"] * 3 == operations_in(file)
    head = head_of(file.read_bytes().splitlines(keepends=True)[-1])
    assert {"seq": 9, "hash": head.hash} == json.loads((file.parent / "data" / "audit-head.json").read_bytes())
    assert intact(file)


@pytest.mark.parametrize("create", [False, True], ids=["nocreate", "create"])
async def test_rotation_by_rename(file: Path, create: bool) -> None:
    """Once the file is moved, the next lines are in a new one, and the chain goes on; the log has nothing to tell."""
    old = file.with_suffix(".1")
    with capture_logs() as logs:
        async with trail_in(file, file.parent / "data") as trail:
            await recorded(trail, "Encrypt")
            file.rename(old)
            if create:
                file.touch(0o600)
            await recorded(trail, "Decrypt")
    assert [] == logs
    assert ["AuditStarted", "Encrypt"] == operations_in(old)
    assert ["Decrypt", "AuditStopped"] == operations_in(file)
    assert intact(old, file)


async def test_rotation_by_removal(file: Path) -> None:
    """Where the file is removed, the chain goes on in a new one; what is in the old one is gone."""
    async with trail_in(file, file.parent / "data") as trail:
        await recorded(trail, "Encrypt")
        file.unlink()
        await recorded(trail, "Decrypt")
    assert ["Decrypt", "AuditStopped"] == operations_in(file)
    assert 3 == json.loads(file.read_bytes().splitlines()[0])["seq"]
    assert intact(file)


async def test_rotation_while_the_daemon_is_down(file: Path) -> None:
    """The chain goes on in a new file also after a restart, and the log asks to keep the old one."""
    old = file.with_suffix(".1")
    await run_once(file, "Encrypt")
    file.rename(old)
    with capture_logs() as logs:
        await run_once(file, "Decrypt")
    assert [("warning", "The audit trail goes on in a new file: keep the older ones")] == [
        (entry["log_level"], entry["event"]) for entry in logs
    ]
    assert intact(old, file)


async def test_copy_and_truncate(file: Path) -> None:
    """A file that is copied and emptied under the daemon keeps the chain, as far as the copy has every line."""
    old = file.with_suffix(".1")
    async with trail_in(file, file.parent / "data") as trail:
        await recorded(trail, "Encrypt")
        old.write_bytes(file.read_bytes())
        os.truncate(file, 0)
        await recorded(trail, "Decrypt")
    assert intact(old, file)


async def test_a_crash_before_the_head_was_kept(file: Path) -> None:
    """Where the file is further than the head that was kept, the file is right."""
    kept = file.parent / "data" / "audit-head.json"
    await run_once(file)
    older = kept.read_bytes()
    await run_once(file, "Encrypt")
    kept.write_bytes(older)
    with capture_logs() as logs:
        await run_once(file)
    assert [] == logs
    assert intact(file)


async def test_a_torn_line(file: Path) -> None:
    """What a crash left of a line, which nobody was told is written, is cut off, and the log says so."""
    await run_once(file, "Encrypt")
    whole = file.read_bytes()
    file.write_bytes(whole + chain(1)[0][:150])
    with capture_logs() as logs:
        await run_once(file)
    assert [("warning", 150)] == [(entry["log_level"], entry["bytes"]) for entry in logs]
    assert file.read_bytes().startswith(whole)
    assert intact(file)


async def test_only_a_torn_line(file: Path) -> None:
    """A crash inside the very first line leaves nothing."""
    file.write_bytes(b'{"se')
    await run_once(file)
    assert ["AuditStarted", "AuditStopped"] == operations_in(file)
    assert intact(file)


@pytest.mark.parametrize(
    ("damage", "line", "problem"),
    [
        pytest.param(lambda lines: lines[:2], 3, "2 lines are missing between seq 2 and 5", id="cut off"),
        pytest.param(lambda lines: [*lines[:3], chain(1)[0]], 4, "out of order", id="replaced"),
        pytest.param(lambda lines: [*lines[:3], b'{"seq":4}\n'], 4, "no line", id="damaged"),
        pytest.param(
            lambda lines: [*lines[:3], lines[3].replace(b"daemon", b"nobody")], 4, "changed", id="changed content"
        ),
        pytest.param(
            lambda lines: [*lines[:3], format_line(EVENT, TIME, head_of(lines[2]))[0]], 5, "broken", id="rewritten"
        ),
    ],
)
async def test_an_end_that_was_tampered_with(
    file: Path, damage: Callable[[list[bytes]], list[bytes]], line: int, problem: str
) -> None:
    """The log says that the last lines are not those that were written, and the chain shows it for good."""
    await run_once(file, "Encrypt", "Decrypt")
    file.write_bytes(b"".join(damage(file.read_bytes().splitlines(keepends=True))))
    with capture_logs() as logs:
        await run_once(file)
    assert ["The end of the audit trail is missing or was changed, `betrace-kms audit verify` shows where"] == (
        errors_in(logs)
    )
    first = verified(file.read_bytes())[0]
    assert (line, problem) == (first.line, first.problem[: len(problem)])


@pytest.mark.parametrize("damaged", [b"", b"{}", b'{"seq":1,"hash":"beef"}\n', b'{"seq":-1}'])
async def test_a_damaged_head(file: Path, damaged: bytes) -> None:
    """Where the kept head cannot be read, the file's last line is trusted, and the log says so."""
    await run_once(file)
    (file.parent / "data" / "audit-head.json").write_bytes(damaged)
    with capture_logs() as logs:
        await run_once(file)
    assert ["The head of the audit trail is damaged, its last line is trusted"] == errors_in(logs)
    assert intact(file)


# --- what cannot be written


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a disk that is full: the last write is a short one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk(file: Path) -> None:
    """A batch for which there is no room leaves nothing in the file, waits, and is written when there is room."""
    with capture_logs() as logs:
        async with trail_in(file, file.parent / "data") as trail:
            await recorded(trail, "Encrypt")
            before = file.read_bytes()
            with file_size_limit(len(before) + 700):
                for _ in range(3):
                    trail.record(EVENT)
                await until(lambda: trail.failing)
                assert re.fullmatch(
                    rf"the audit trail cannot be written \({file}: File too large\): make room there and let the"
                    " daemon's user write, or choose another kms.audit.file",
                    trail.problem or "",
                )
                trail.record(EVENT)
                for _ in range(20):
                    await asyncio.sleep(0.001)
                assert (before, 2) == (file.read_bytes(), trail.sequence)
            await until(lambda: not trail.failing)
    assert ["error", "info"] == [entry["log_level"] for entry in logs]
    assert ["AuditStarted", "Encrypt", *["SignSpan"] * 4, "AuditStopped"] == operations_in(file)
    assert intact(file)


async def test_a_full_disk_and_a_rotation(file: Path) -> None:
    """Where the file is moved while it is full, it ends with a whole line, and the rest is in the new one."""
    old = file.with_suffix(".1")
    async with trail_in(file, file.parent / "data") as trail:
        for _ in range(20):
            trail.record(EVENT)
        await until(lambda: trail.written == 21)
        with file_size_limit(file.stat().st_size + 700):
            for _ in range(3):
                trail.record(EVENT)
            await until(lambda: trail.failing)
            file.rename(old)
            await until(lambda: not trail.failing)
    assert intact(old, file)
    assert (21, 4) == (len(operations_in(old)), len(operations_in(file)))


@pytest.mark.parametrize("then", ["nothing", "rename", "truncate"])
async def test_a_disk_that_does_not_take_back(file: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """Where what a failed write left cannot be cut off at once, it is before the next write, or where it was moved."""

    def failing(descriptor: int, length: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    old = file.with_suffix(".1")
    async with trail_in(file, file.parent / "data", retry_seconds=3600) as trail:  # it tries again when it is closed
        await recorded(trail, *["Encrypt"] * 20)
        with file_size_limit(file.stat().st_size + 700):
            with monkeypatch.context() as disk:
                disk.setattr(os, "ftruncate", failing)
                for _ in range(3):
                    trail.record(EVENT)
                await until(lambda: trail.failing)
                assert not intact(file)
            if then == "rename":
                file.rename(old)
            elif then == "truncate":
                os.truncate(file, 0)
    if then == "truncate":
        assert b'{"seq":22,' == file.read_bytes()[:10]
    else:
        assert intact(*([old] if then == "rename" else []), file)


async def test_a_head_that_cannot_be_kept(file: Path) -> None:
    """Lines that are written are not written again when only the head could not be kept; it is tried again, too."""
    data = file.parent / "data"
    moved = file.parent / "moved"
    async with trail_in(file, data) as trail:
        data.rename(moved)
        trail.record(EVENT)
        await until(lambda: trail.failing)
        assert f"({data / 'audit-head.json'}: No such file or directory)" in (trail.problem or "")
        assert 2 == trail.written
        moved.rename(data)
        await until(lambda: not trail.failing)
    assert ["AuditStarted", "SignSpan", "AuditStopped"] == operations_in(file)
    assert intact(file)


async def test_a_path_that_is_no_file(file: Path) -> None:
    """A daemon whose trail cannot be opened says so, goes on, and writes everything once it can be."""
    file.mkdir()
    with capture_logs() as logs:
        async with trail_in(file, file.parent / "data") as trail:
            assert f"({file}: Is a directory)" in (trail.problem or "")
            trail.record(EVENT)
            trail.check()
            file.rmdir()
            await until(lambda: not trail.failing)
    assert ["The audit trail cannot be written", "The audit trail is written again"] == [log["event"] for log in logs]
    assert ["AuditStarted", "SignSpan", "AuditStopped"] == operations_in(file)


async def test_tries_have_their_own_pace(file: Path) -> None:
    """A write that failed is tried again without waiting for the time of a batch."""
    file.mkdir()
    async with trail_in(file, file.parent / "data", batch_seconds=3600) as trail:
        await asyncio.sleep(0.01)
        file.rmdir()
        await until(lambda: not trail.failing)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("/dev/full", "No space left on device"), ("/missing/audit.log", "No such file or directory")],
)
async def test_required_and_never_written(file: Path, name: str, reason: str) -> None:
    """A daemon that must record and cannot does not start."""
    with pytest.raises(StartRefused, match=rf"kms.audit.required is set, and the audit trail .*\({name}: {reason}\)"):
        async with trail_in(name, file.parent / "data", required=True):
            pass


async def test_required_refuses_and_recovers(file: Path) -> None:
    """A daemon that must record refuses from the first failed write on, until a write succeeds."""
    async with trail_in(file, file.parent / "data", required=True) as trail:
        trail.check()
        file.unlink()
        file.mkdir()
        trail.record(EVENT)
        await until(lambda: trail.failing)
        with pytest.raises(AuditUnavailable, match="cannot be written"):
            trail.check()
        file.rmdir()
        await until(lambda: not trail.failing)
        trail.check()


async def test_another_file_is_left_alone(file: Path) -> None:
    """A file that is no audit trail is not written to, nor is its last line cut off."""
    file.write_bytes(b"# no trail\nno newline")
    async with trail_in(file, file.parent / "data") as trail:
        assert "it is there and is no audit trail" in (trail.problem or "")
    assert b"# no trail\nno newline" == file.read_bytes()


async def test_two_daemons_do_not_share_a_file(file: Path) -> None:
    """A second daemon does not write into the first one's file, but waits for it."""
    (file.parent / "other").mkdir()
    async with trail_in(file, file.parent / "other") as second:
        async with trail_in(file, file.parent / "data") as first:
            assert "another process writes it" in (first.problem or "")
            assert not second.failing
    assert intact(file)


async def test_lost_lines_are_counted(file: Path) -> None:
    """Beyond the bound events are counted, and a line in the chain tells how many were lost, at their place."""
    file.mkdir()
    async with trail_in(file, file.parent / "data", max_waiting=3, retry_seconds=3600) as trail:
        for _ in range(7):
            trail.record(EVENT)
        assert 5 == trail.lost
        file.rmdir()
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert [("AuditStarted", 1), ("SignSpan", 1), ("SignSpan", 1), ("LinesLost", 6)] == [
        (line["operation"], line["items"]) for line in lines
    ]
    assert intact(file)


async def test_a_defect_does_not_pass_for_a_trail(file: Path) -> None:
    """An event that cannot be a line is lost, counted and logged; whoever waits for it learns it, and others go on."""
    with capture_logs() as logs:
        async with trail_in(file, file.parent / "data", required=True) as trail:
            assert not await trail.commit(KeyEvent("Encrypt", None))  # type: ignore[arg-type]
            assert await trail.commit(KeyEvent("Decrypt", "acme"))
            assert (1, False) == (trail.lost, trail.failing)
    assert ["An event cannot be a line of the audit trail, it is lost"] == errors_in(logs)
    assert ["AuditStarted", "LinesLost", "Decrypt", "AuditStopped"] == operations_in(file)
    assert intact(file)


# --- pipes


@contextmanager
def stdout_to(descriptor: int) -> Iterator[None]:
    kept = os.dup(1)
    os.dup2(descriptor, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def small_pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    try:
        yield reader, writer
    finally:
        for descriptor in (reader, writer):
            os.close(descriptor)


async def test_stdout(file: Path) -> None:
    """On stdout the chain goes on over restarts, because the head is kept; the log has nothing to tell."""
    with file.open("wb") as output, stdout_to(output.fileno()), capture_logs() as logs:
        for _ in range(2):
            async with trail_in("-", file.parent / "data") as trail:
                await recorded(trail, "Encrypt")
    assert ["AuditStarted", "Encrypt", "AuditStopped"] * 2 == operations_in(file)
    assert [] == logs
    assert intact(file)


async def test_a_pipe_that_is_full(file: Path) -> None:
    """What a pipe took in part goes on where it stopped, so that no line is there twice or torn."""
    with small_pipe() as (reader, writer):
        for descriptor in (reader, writer):
            os.set_blocking(descriptor, False)
        with stdout_to(writer):
            async with trail_in("-", file.parent / "data") as trail:
                for _ in range(50):
                    trail.record(EVENT)
                await until(lambda: trail.failing)
                text = os.read(reader, 1000)
                while trail.written < 51:
                    await asyncio.sleep(0.001)
                    with suppress(BlockingIOError):
                        text += os.read(reader, 4096)
        text += os.read(reader, 65536)
    assert 52 == text.count(b"\n")
    assert [] == verified(text)


async def test_stdout_that_nobody_reads_any_more(file: Path) -> None:
    """A broken pipe is a trail that cannot be written."""
    reader, writer = os.pipe()
    with stdout_to(writer):
        os.close(writer)
        async with trail_in("-", file.parent / "data", required=True) as trail:
            assert b"AuditStarted" in os.read(reader, 4096)
            os.close(reader)
            trail.record(EVENT)
            await until(lambda: trail.failing)
            assert "(stdout: Broken pipe)" in (trail.problem or "")
            with pytest.raises(AuditUnavailable):
                trail.check()


async def test_a_fifo_that_nobody_reads(file: Path) -> None:
    """A FIFO without a reader is an error and no wait without end."""
    os.mkfifo(file)
    async with trail_in(file, file.parent / "data") as trail:
        assert "No such device or address" in (trail.problem or "")


async def test_stopping_during_a_write(file: Path) -> None:
    """The daemon's last line is written also if it stops while other lines are being written."""
    os.mkfifo(file)
    reader = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(reader, True)
    with os.fdopen(reader, "rb") as pipe:
        async with trail_in(file, file.parent / "data", stall_seconds=0.01, close_seconds=30) as trail:
            for _ in range(50):
                trail.record(EVENT)
            await until(lambda: trail.failing)
            reading = asyncio.create_task(asyncio.to_thread(pipe.readlines))
        lines = await reading
    assert (52, "AuditStopped") == (len(lines), json.loads(lines[-1])["operation"])


async def test_a_fifo_that_becomes_a_file(file: Path) -> None:
    """What a reader took before it went away is written once more, whole, to what has the name then."""
    os.mkfifo(file)
    reader = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 8192)
    async with trail_in(file, file.parent / "data", stall_seconds=0.01) as trail:
        for _ in range(50):
            trail.record(EVENT)
        await until(lambda: trail.failing)
        file.unlink()
        os.close(reader)
        await until(lambda: not trail.failing)
    assert ["SignSpan"] * 50 == operations_in(file)[:50]
    assert intact(file)


async def test_a_write_that_hangs(file: Path) -> None:
    """A write without an end counts as failing, stopping does not wait for it, and it ends by itself."""
    os.mkfifo(file)
    reader = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    try:
        with capture_logs() as logs:
            async with trail_in(file, file.parent / "data", stall_seconds=0.01, close_seconds=0.01) as trail:
                for _ in range(50):
                    trail.record(EVENT)
                await until(lambda: trail.failing)
                assert "no end after 0.01 s" in (trail.problem or "")
        assert "The audit trail ends without its last lines" == errors_in(logs)[-1]
        text = b""
        while text.count(b"\n") < 51:
            with suppress(BlockingIOError):
                text += os.read(reader, 4096)
        assert [] == verified(text)
    finally:
        os.close(reader)
