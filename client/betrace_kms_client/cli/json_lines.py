"""encrypt --jsonl, decrypt --jsonl: fields of JSON lines, sealed and opened in batches.

Lines travel in groups, a few at once, and leave in order. A line is written whole or not at all, and nothing after the
first bad one is written. Memory is bounded by the groups in flight, and by the longest line, which has a limit.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import click

from betrace_kms_client.cli.outputs import replacing
from betrace_kms_client.cli.progress import progress_of
from betrace_kms_client.cli.streams import Refused
from betrace_kms_client.errors import KmsClientError
from betrace_kms_client.messages import Items
from betrace_kms_client.records import InvalidRecord, Item, Record, Selection
from betrace_kms_client.results import Ciphertext, ItemRefusal, Plaintext
from betrace_kms_client.sync_client import KmsClient

MAX_LINE_BYTES = 16 * 1024 * 1024

_IN_FLIGHT = 4
_BATCH_ITEMS = 1_000
_BATCH_BYTES = 1024 * 1024
"""Payloads and contexts in one call: a quarter of what a daemon takes unless configured otherwise."""
_GROUP_BYTES = 2 * 1024 * 1024
_OBJECT_BYTES = 200
"""What a line takes beside its text, so that blank lines without end are bounded too."""
_UTF8_BYTES = 4
_LEAST_DELAY_SECONDS = 0.05
_PATIENCE_SECONDS = 600.0
"""How long one batch is tried again while the daemon says when to."""

Result = Ciphertext | Plaintext | ItemRefusal
Call = Callable[[Items], Sequence[Result]]


class BadLine(Refused):
    """A line that cannot be sealed or opened: it and what follows is not written."""

    exit_code = 1

    def __init__(self, number: int, problem: str) -> None:
        super().__init__(f"line {number:,}: {problem} (nothing is written from this line on)")


@dataclass(frozen=True, slots=True)
class Work:
    """What a verb does with records: how payloads are sent, which it takes from a record, and what it puts there."""

    call: Call
    take: Callable[[Record], list[Item]]
    put: Callable[[Record, Sequence[bytes]], bytes]


@dataclass(slots=True)
class _Group:
    """Lines that follow each other, blank ones without a record; `problem` is what is wrong with the next line."""

    first: int
    lines: list[tuple[bytes, Record | None]] = field(default_factory=list, repr=False)
    items: list[Item] = field(default_factory=list, repr=False)
    size: int = 0
    problem: BadLine | None = None

    def is_full(self) -> bool:
        return len(self.items) >= _BATCH_ITEMS or self.size + _OBJECT_BYTES * len(self.lines) >= _GROUP_BYTES


def sealing(client: KmsClient, tenant_id: str) -> Work:
    """Return the work of encrypt."""
    return Work(lambda items: client.encrypt_batch(tenant_id, items), Record.to_seal, Record.sealed)


def opening(client: KmsClient, tenant_id: str) -> Work:
    """Return the work of decrypt."""
    return Work(lambda items: client.decrypt_batch(tenant_id, items), Record.to_open, Record.opened)


def convert(source: BinaryIO, output: Path | None, selection: Selection, work: Work) -> None:
    """Write the lines of an input with their fields sealed or opened. Raises BadLine and KmsClientError."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(_IN_FLIGHT, "batch")
    waiting: deque[tuple[_Group, Future[list[Result]]]] = deque()
    groups = _groups(source, selection, work)
    written = 0
    try:
        with replacing(output) as out, progress_of(source, 0) as progress:
            while True:
                while len(waiting) < _IN_FLIGHT and (group := next(groups, None)):
                    waiting.append((group, pool.submit(_answers, work.call, group.items, stop)))
                if not waiting:
                    break
                group, answers = waiting.popleft()
                for line in _converted(group, answers.result(), work):
                    out.write(line)
                    written += 1
                progress(group.size)
        for name in selection.missing():
            click.echo(f"betrace-kms: warning: no line has the field {name!r}", err=True)
    except KmsClientError as error:
        error.message += f" (nothing is written after line {written:,})"
        raise
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _groups(source: BinaryIO, selection: Selection, work: Work) -> Iterator[_Group]:
    group = _Group(1)
    number = 0
    while group.problem is None and (raw := source.readline(MAX_LINE_BYTES + 1)):
        number += 1
        try:
            if len(raw) > MAX_LINE_BYTES:
                raise InvalidRecord(f"longer than {MAX_LINE_BYTES // 1024**2} MiB")
            record = selection.record(raw)
            items = [] if record is None else work.take(record)
        except InvalidRecord as problem:
            group.problem = BadLine(number, str(problem))
            break
        if group.lines and len(group.items) + len(items) > _BATCH_ITEMS:
            yield group
            group = _Group(number)
        group.lines.append((raw, record))
        group.items += items
        group.size += len(raw)
        if group.is_full():
            yield group
            group = _Group(number + 1)
    if group.lines or group.problem is not None:
        yield group


def _converted(group: _Group, results: Sequence[Result], work: Work) -> Iterator[bytes]:
    """Give the lines of a group as they are written, up to the first bad one, which is raised."""
    rest = iter(results)
    for number, (raw, record) in enumerate(group.lines, group.first):
        if record is None:
            yield raw
            continue
        try:
            yield work.put(record, [_payload(next(rest), number, name) for name, _, _ in record.places])
        except InvalidRecord as problem:
            raise BadLine(number, str(problem)) from None
    if group.problem is not None:
        raise group.problem


def _payload(result: Result, number: int, name: str) -> bytes:
    if not isinstance(result, ItemRefusal):
        return result.ciphertext_blob if isinstance(result, Ciphertext) else result.plaintext
    if result.status == "INVALID_ARGUMENT":
        raise BadLine(number, f"{name}: {result.message}")
    raise KmsClientError(f"line {number:,}: {name}: {result.message}", reason=result.reason)


def _answers(call: Call, items: Sequence[Item], stop: threading.Event) -> list[Result]:
    """Send the payloads of a group; those that the daemon refuses for now are sent again when it says to."""
    return [result for batch in _batches(items) for result in _answer(call, batch, stop)]


def _batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    size = 0
    for payload, context in items:
        taken = len(payload) + sum(len(name) + len(value) for name, value in context.items()) * _UTF8_BYTES
        if batch and (len(batch) == _BATCH_ITEMS or size + taken > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((payload, context))
        size += taken
    if batch:
        yield batch


def _answer(call: Call, batch: Sequence[Item], stop: threading.Event) -> list[Result]:
    give_up = time.monotonic() + _PATIENCE_SECONDS
    results: dict[int, Result] = {}
    left = list(range(len(batch)))
    while left:
        try:
            results.update(zip(left, call([batch[index] for index in left]), strict=True))
            left = [index for index in left if _delay(results[index]) is not None]
            delay = max((_delay(results[index]) or 0.0 for index in left), default=0.0)
        except KmsClientError as error:
            if error.retry_after is None or _is_over(error.retry_after, give_up, stop):
                raise
            continue
        if left and _is_over(delay, give_up, stop):
            break
    return [results[index] for index in range(len(batch))]


def _delay(result: Result) -> float | None:
    return result.retry_after if isinstance(result, ItemRefusal) else None


def _is_over(delay: float, give_up: float, stop: threading.Event) -> bool:
    """Wait as long as the daemon said, and at least a little; return whether another try is not worth it."""
    return time.monotonic() + delay > give_up or stop.wait(max(delay, _LEAST_DELAY_SECONDS))
