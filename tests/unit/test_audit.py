"""The audit trail: its chain, the file it is written to, and what happens when that file is moved, full or gone."""

# ruff: noqa: ASYNC240  # tests look at small files while nothing else runs

import asyncio
import errno
import fcntl
import io
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_server.errors import AuditUnavailable, StartRefused
from betrace_kms_server.observation import KeyEvent
from betrace_kms_server.telemetry.audit import AuditTrail
from betrace_kms_server.telemetry.audit_chain import (
    MAX_LINE_BYTES,
    START,
    ChainVerifier,
    Finding,
    Head,
    format_line,
    parse_line,
)
from structlog.testing import capture_logs

DOCUMENT = (Path(__file__).parents[2] / "docs" / "audit-trail.md").read_text("utf-8")
TIME = 1_704_164_645_006_999_999
EVENT = KeyEvent(
    "SignSpan",
    "acme",
    "00112233445566778899aabbccddeeff",
    "unix: betrace-backend/2.1",
    cache_hit=False,
    kms_request_ids=["7a3c2c1e-6c1e-4f0e-9d0d-3a5d0c1d2e3f"],
    request_id="0123456789abcdef",
    trace_id="0af7651916cd43dd8448eb211c80319c",
)
CHANGED = "changed: its hash is not that of its content"
NO_LINE = "no line of an audit trail"
BROKEN = "broken link: the line before it is not the one that it was chained to"
TORN = "torn: the file ends before the line does"


def chain(count: int, before: Head = START, operation: str = "Encrypt") -> list[bytes]:
    lines = []
    for number in range(count):
        line, before = format_line(KeyEvent(operation, "acme"), TIME + number, before)
        lines.append(line)
    return lines


def head_of(line: bytes) -> Head:
    parsed = parse_line(line)
    assert parsed is not None
    return parsed.head


def verified(*files: bytes, head: str | None = None) -> list[Finding]:
    verifier = ChainVerifier(head)
    found: list[Finding] = []
    for number, file in enumerate(files):
        found += verifier.read(f"file{number}", io.BytesIO(file))
    return [*found, *verifier.finish()]


def found_in(*lines: bytes) -> list[tuple[int, str]]:
    """Verify one file, and give line and problem of each finding."""
    return [(finding.line, finding.problem) for finding in verified(b"".join(lines))]


# --- the chain


def test_a_line() -> None:
    """A line is compact JSON, its members in a fixed order, and SHA-256 over all of it but the hash."""
    line, head = format_line(EVENT, TIME, Head(41, "ab" * 32))
    content = (
        b'{"seq":42,"time":"2024-01-02T03:04:05.006Z","operation":"SignSpan","tenant":"acme",'
        b'"keyId":"00112233445566778899aabbccddeeff","caller":"unix: betrace-backend/2.1","result":"OK",'
        b'"cacheHit":false,"kmsRequestIds":["7a3c2c1e-6c1e-4f0e-9d0d-3a5d0c1d2e3f"],'
        b'"requestId":"0123456789abcdef","traceId":"0af7651916cd43dd8448eb211c80319c","items":1,'
        b'"prev":"abababababababababababababababababababababababababababababababab"'
    )
    digest = sha256(content + b"}").hexdigest()
    assert content + b',"hash":"' + digest.encode() + b'"}\n' == line
    assert Head(42, digest) == head


def test_no_cache_is_null() -> None:
    """Where no cache was asked, there was neither a hit nor a miss."""
    line, _ = format_line(KeyEvent("Decrypt", "acme"), TIME, START)
    assert json.loads(line)["cacheHit"] is None


@pytest.mark.parametrize(
    "tenant",
    ['"},\n{"seq":', "\x00\x1b[31m\r\n\x7f\x85\u2028", "\ud800 half a pair \udfff", "\U0001f600" * 300, "\0" * 300],
    ids=["JSON", "control characters", "surrogates", "emojis", "zeros"],
)
def test_whatever_a_tenant_is_called(tenant: str) -> None:
    """A tenant's name comes as it is from the wire, and makes neither a second line, nor a bad one, nor a long one."""
    line, head = format_line(KeyEvent("Encrypt", tenant), TIME, START)
    assert (1, True) == (line.count(b"\n"), line.endswith(b"\n"))
    expected = tenant[:128].encode("utf-8", "replace").decode()
    assert expected == json.loads(line)["tenant"]
    assert head == head_of(line)
    assert [] == verified(line)


def test_the_longest_line_is_bounded() -> None:
    """Whatever comes over the wire, a line is not too long to be verified."""
    text = "\0" * 100_000
    event = KeyEvent(text, text, text, text, text, None, [text] * 1000, text, text)
    line, _ = format_line(event, TIME, START)
    assert len(line) < MAX_LINE_BYTES
    assert [] == verified(line)


def test_an_intact_chain() -> None:
    """A chain is intact in one file and over several, and also where its first files are gone."""
    lines = chain(6)
    verifier = ChainVerifier()
    assert [] == list(verifier.read("audit.log", io.BytesIO(b"".join(lines))))
    assert (6, 1, head_of(lines[-1])) == (verifier.lines, verifier.first, verifier.last)
    assert [] == verified(b"".join(lines[:2]), b"", b"".join(lines[2:5]), lines[5])
    assert [] == found_in(*lines[3:])
    assert [] == verified()


def test_every_changed_byte_is_found() -> None:
    """Whichever byte changes, and whichever bits of it, there is a finding on its line."""
    lines = chain(3)
    trail, ends = b"".join(lines), [sum(map(len, lines[: count + 1])) for count in range(3)]
    for place in range(len(trail)):
        line = 1 + sum(end <= place for end in ends)
        for change in (0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xFF):
            damaged = bytearray(trail)
            damaged[place] ^= change
            found = verified(bytes(damaged))
            assert [line] == [finding.line for finding in found[:1]], (place, change)


def test_every_byte_put_in_or_taken_out_is_found() -> None:
    """A byte that is left out, doubled or becomes the end of a line does not pass."""
    trail = b"".join(chain(2))
    for place in range(len(trail)):
        for other in (b"", trail[place : place + 1] * 2, b"\n"):
            damaged = trail[:place] + other + trail[place + 1 :]
            assert damaged == trail or verified(damaged), (place, other)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        pytest.param(lambda line: line.replace(b'"acme"', b'"evil"'), CHANGED, id="another tenant"),
        pytest.param(lambda line: line.replace(b'{"seq":20', b'{"seq":99'), CHANGED, id="another number"),
        pytest.param(lambda line: b"garbage\n", NO_LINE, id="no JSON"),
        pytest.param(lambda line: b"\xff" * (3 * MAX_LINE_BYTES) + line, NO_LINE, id="far too long"),
    ],
)
def test_one_changed_line_is_one_finding(damage: Callable[[bytes], bytes], problem: str) -> None:
    """A damaged line makes none of the others suspect."""
    lines = chain(50)
    lines[19] = damage(lines[19])
    assert [(20, problem)] == found_in(*lines)


def test_a_finding_says_where() -> None:
    """A finding has the file, the line in that file, and the number in the chain."""
    lines = chain(6)
    second = b"".join(lines[3:]).replace(b'"seq":5,"time":"2024', b'"seq":5,"time":"2023')
    assert [Finding("file1", 2, 5, CHANGED)] == verified(b"".join(lines[:3]), second)


def test_a_line_rewritten_with_a_new_hash() -> None:
    """Whoever gives a changed line a fitting hash breaks the link of the next line."""
    lines = chain(6)
    lines[2], _ = format_line(KeyEvent("Encrypt", "evil"), TIME, head_of(lines[1]))
    assert [(4, BROKEN)] == found_in(*lines)


def test_a_first_line_that_is_none() -> None:
    """A chain that begins with 1 begins with nothing before it."""
    assert [(1, BROKEN)] == found_in(*chain(3, Head(0, "ab" * 32)))


def test_missing_lines_are_counted() -> None:
    """Lines that were taken out are counted, at the line that follows."""
    one, two, _, four, five, six = chain(6)
    assert [(3, "1 line is missing between seq 2 and 4")] == found_in(one, two, four, five, six)
    assert [(2, "4 lines are missing between seq 1 and 6")] == found_in(one, six)
    assert [(2, NO_LINE), (3, "3 lines are missing between seq 1 and 6")] == found_in(one, b"?\n", six)


def test_lines_put_in() -> None:
    """A line of somebody else is found, and costs none of ours."""
    one, two, three = chain(3)
    assert [(2, NO_LINE)] == found_in(one, b"\n", two, three)
    assert [(3, NO_LINE)] == found_in(one, two, b'{"seq":3}\n', three)


def test_lines_that_changed_places() -> None:
    """Where two lines are swapped, one is missing at its place and out of order where it is."""
    one, two, three, four, five = chain(5)
    assert [
        (2, "1 line is missing between seq 1 and 3"),
        (3, "out of order or repeated: seq 2 comes after seq 3"),
    ] == found_in(one, three, two, four, five)


def test_a_piece_that_is_out_of_order() -> None:
    """A piece that moved is one finding at its old place and one at its new, however long it is."""
    lines = chain(100)
    assert [
        (41, "20 lines are missing between seq 40 and 61"),
        (71, "out of order or repeated: seq 41 comes after seq 90"),
    ] == found_in(*lines[:40], *lines[60:90], *lines[40:60], *lines[90:])


@pytest.mark.parametrize("repeated", [1, 20])
def test_repeated_lines(repeated: int) -> None:
    """Lines that are there twice are one finding."""
    lines = chain(50)
    problem = f"out of order or repeated: seq {31 - repeated} comes after seq 30"
    assert [(31, problem)] == found_in(*lines[:30], *lines[30 - repeated : 30], *lines[30:])


def test_a_chain_that_begins_anew() -> None:
    """Where a chain begins anew, or goes on from an older line, that is one finding, and the rest is checked."""
    old, new = chain(10), chain(20, operation="Decrypt")
    assert [(11, "out of order or repeated: seq 1 comes after seq 10")] == found_in(*old, *new)
    fork = chain(20, head_of(old[4]), "Decrypt")
    fork[15] = fork[15].replace(b"acme", b"evil")
    assert [(11, "out of order or repeated: seq 6 comes after seq 10"), (26, CHANGED)] == found_in(*old, *fork)


def test_a_torn_last_line() -> None:
    """A file that ends inside a line is found, be it only the line's end that is missing."""
    one, two, three = chain(3)
    assert [(2, TORN)] == found_in(one, two[:100])
    assert [Finding("file0", 2, 2, TORN)] == verified(one + two[:-1], three)


def test_lines_cut_off_at_the_end() -> None:
    """Only a head that was noted before tells that the last lines are gone; it may be any line that is there."""
    lines = chain(5)
    trail, head = b"".join(lines), head_of(lines[3]).hash
    assert [] == verified(trail, head=head)
    assert [] == verified(b"".join(lines[:4]), head=head)
    problem = f"the line with hash {head} is not there: lines were cut off, or all was rewritten"
    assert [Finding("file0", 3, None, problem)] == verified(b"".join(lines[:3]), head=head)


# --- the file


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
    """An event that cannot be written as a line stops the trail loudly, once in the log."""
    with capture_logs() as logs:
        async with trail_in(file, file.parent / "data", required=True) as trail:
            trail.record(KeyEvent("Encrypt", None))  # type: ignore[arg-type]
            await until(lambda: trail.failing)
            with pytest.raises(AuditUnavailable):
                trail.check()
    assert [
        "Writing the audit trail failed",
        "The audit trail cannot be written",
        "The audit trail ends without its last lines",
    ] == errors_in(logs)


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


# --- the document


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


def test_documented_fields() -> None:
    """The document lists the members of a line, in their order."""
    line, _ = format_line(EVENT, TIME, START)
    assert list(json.loads(line)) == re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE)


def test_the_documented_example() -> None:
    """The line in the document is a line as we write it."""
    (example,) = blocks("json")
    assert [] == verified(example.encode())


def test_the_documented_script(tmp_path: Path) -> None:
    """The script in the document accepts what we write, and names the first line that does not fit."""
    (script,) = blocks("python")
    assert len(script.splitlines()) <= 15

    def run(*lines: bytes) -> tuple[int, str]:
        (tmp_path / "audit.log").write_bytes(b"".join(lines))
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "audit.log")], capture_output=True, text=True, check=False
        )
        return done.returncode, (done.stdout + done.stderr).strip()

    one, two, three = chain(3)
    assert (0, f"intact, head {head_of(three).hash}") == run(one, two, three)
    assert (0, f"intact, head {head_of(three).hash}") == run(two, three)
    assert (1, "line 2 was changed, or lines before it are missing") == run(one, two.replace(b"acme", b"evil"), three)
    assert (1, "line 2 was changed, or lines before it are missing") == run(one, three)
