"""`encrypt --jsonl` and `decrypt --jsonl`: some members of each line, by batches, a few of which are under way."""

import functools
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import click

from betrace_kms_client.cli.options import CALL_FAILED, calling
from betrace_kms_client.cli.outputs import writing
from betrace_kms_client.cli.progress import progress_of
from betrace_kms_client.cli.streams import Refused
from betrace_kms_client.errors import ResourceExhausted
from betrace_kms_client.json_lines import (
    BadLine,
    Members,
    Record,
    message_of,
    opened_value,
    plaintext_of,
    sealed_value,
)
from betrace_kms_client.messages import Context
from betrace_kms_client.results import Ciphertext, ItemRefusal, Plaintext
from betrace_kms_client.sync_client import KmsClient

F = TypeVar("F", bound=Callable[..., Any])

_LINE_BYTES = 4 * 1024 * 1024
_BATCH_ITEMS = 1_000
_BATCH_BYTES = 1024 * 1024
"""A quarter of what a daemon takes unless configured otherwise (kms.server.max-message-bytes)."""
_UNDER_WAY = 3
_Call = Callable[[str, Sequence[tuple[bytes, Context | None]]], Sequence[Ciphertext | Plaintext | ItemRefusal]]


@dataclass
class _Batch:
    """Lines, and what of them is to be sealed or opened."""

    lines: list[tuple[int, Record | bytes, list[str]]] = field(default_factory=list)
    """For each its number, the record or a line without one, and the fields that are in `items`, in order."""
    items: list[tuple[bytes, Context | None]] = field(default_factory=list)
    size: int = 0
    problem: str = ""
    """Why the line after these cannot be taken."""


class _Failed(Exception):
    """A line that the daemon refused a field of."""


def encrypt_lines(
    source: BinaryIO, tenant_id: str, members: Members, output: Path | None, addr: str, timeout: float
) -> None:
    """Seal fields of each line."""

    def call(client: KmsClient) -> _Call:
        return client.encrypt_batch

    _convert(source, tenant_id, members, output, addr, timeout, call, plaintext_of, _sealed)


def decrypt_lines(
    source: BinaryIO, tenant_id: str, members: Members, output: Path | None, addr: str, timeout: float
) -> None:
    """Open fields of each line."""

    def call(client: KmsClient) -> _Call:
        return client.decrypt_batch

    _convert(source, tenant_id, members, output, addr, timeout, call, message_of, _opened)


def lines_options(function: F) -> F:
    """Add --jsonl, --fields and --bind, which become `lines`: the members, or None without --jsonl."""

    @functools.wraps(function)
    def with_lines(
        *arguments: Any, jsonl: bool, fields: str | None, bind: tuple[str, ...], context: Context, **others: Any
    ) -> Any:
        if not jsonl and (fields is not None or bind):
            raise click.UsageError("--fields and --bind are for JSON lines: add --jsonl")
        lines = _members(fields, bind, context) if jsonl else None
        return function(*arguments, lines=lines, context=context, **others)

    for option in (
        click.option(
            "--bind",
            multiple=True,
            metavar="NAME",
            help="With --jsonl: a member that says which record it is, such as id. Sealed fields open beside the same"
            " value only. May be repeated.",
        ),
        click.option("--fields", metavar="NAMES", help="With --jsonl: the members, separated by commas."),
        click.option("--jsonl", is_flag=True, help="The input is one JSON object a line; --fields of each are meant."),
    ):
        with_lines = option(with_lines)
    return cast(F, with_lines)


def _members(fields: str | None, bound: Sequence[str], context: Context) -> Members:
    names = [name.strip() for name in (fields or "").split(",")]
    if not all(names):
        raise click.UsageError("--jsonl needs --fields: the names of members, separated by commas")
    for name in (*bound, "field"):
        if name in context:
            raise click.UsageError(f"--context may not give {name}: each line does")
    if "field" in bound:
        raise click.UsageError("--bind field is not possible: that pair is the name of the sealed member")
    if twice := [name for name, count in Counter([*names, *bound]).items() if count > 1]:
        raise click.UsageError(f"{twice[0]} is given twice: a member is sealed, or says which record it is")
    return Members(names, bound, context)


def _convert(
    source: BinaryIO,
    tenant_id: str,
    members: Members,
    output: Path | None,
    addr: str,
    timeout: float,
    call_of: Callable[[KmsClient], _Call],
    payload_of: Callable[[str, str], bytes],
    value_of: Callable[[str, Any], str],
) -> None:
    under_way: deque[tuple[_Batch, Future[Sequence[Any]]]] = deque()
    with (
        calling(addr, timeout) as client,
        writing(output) as written,
        progress_of(source, 0) as progress,
        ThreadPoolExecutor(_UNDER_WAY) as threads,
    ):
        call = call_of(client)

        def finish(limit: int) -> None:
            while len(under_way) > limit:
                batch, answer = under_way.popleft()
                _write(batch, answer.result(), value_of, written)

        try:
            for batch in _batches(source, members, payload_of, progress):
                under_way.append((batch, threads.submit(_results, call, tenant_id, batch.items, timeout)))
                finish(_UNDER_WAY - 1)
            finish(0)
        except BadLine as bad:
            raise Refused(str(bad)) from None
        except _Failed as failed:
            click.echo(f"betrace-kms: {failed}", err=True)
            raise SystemExit(CALL_FAILED) from None
        finally:
            threads.shutdown(cancel_futures=True)


def _batches(
    source: BinaryIO,
    members: Members,
    payload_of: Callable[[str, str], bytes],
    progress: Callable[[int], None],
) -> Iterator[_Batch]:
    batch = _Batch()
    for number in itertools.count(1):
        line = source.readline(_LINE_BYTES + 1)
        if not line:
            break
        try:
            if len(line) > _LINE_BYTES:
                raise BadLine(f"is longer than {_LINE_BYTES:,} bytes: seal it as a file, without --jsonl")
            record, items = _items(line, members, payload_of)
        except BadLine as bad:
            batch.problem = f"line {number}: {bad}"
            break
        if len(batch.items) + len(items) > _BATCH_ITEMS or batch.size > _BATCH_BYTES:
            yield batch
            batch = _Batch()
        batch.lines.append((number, record, [name for name in members.fields if _has(record, name)]))
        batch.items += items
        batch.size += sum(len(payload) for payload, _ in items) + len(line)
        progress(len(line))
    yield batch


def _has(record: Record | bytes, name: str) -> bool:
    return isinstance(record, Record) and record.value(name) is not None


def _items(
    line: bytes, members: Members, payload_of: Callable[[str, str], bytes]
) -> tuple[Record | bytes, list[tuple[bytes, Context | None]]]:
    if not line.strip():
        return line, []
    record = Record(line)
    items: list[tuple[bytes, Context | None]] = []
    for name in members.fields:
        if (value := record.value(name)) is not None:
            items.append((payload_of(name, value), members.context_of(record, name)))
    return record, items


def _results(
    call: _Call, tenant_id: str, items: Sequence[tuple[bytes, Context | None]], timeout: float
) -> Sequence[Ciphertext | Plaintext | ItemRefusal]:
    """Return a result for each item; what may succeed later is sent again, for `timeout` seconds."""
    results: dict[int, Ciphertext | Plaintext | ItemRefusal] = {}
    left: Sequence[int] = range(len(items))
    deadline = time.monotonic() + timeout
    while left:
        pause = 0.0
        try:
            results.update(zip(left, call(tenant_id, [items[index] for index in left]), strict=True))
        except ResourceExhausted as refusal:
            if refusal.retry_after is None or time.monotonic() + refusal.retry_after > deadline:
                raise
            pause = refusal.retry_after
        else:
            delays = {
                index: result.retry_after
                for index, result in results.items()
                if isinstance(result, ItemRefusal) and result.retry_after is not None
            }
            pause, left = max(delays.values(), default=0.0), list(delays)
            if time.monotonic() + pause > deadline:
                break
        time.sleep(pause)
    return [results[index] for index in range(len(items))]


def _write(batch: _Batch, results: Sequence[Any], value_of: Callable[[str, Any], str], output: BinaryIO) -> None:
    given = iter(results)
    for number, record, names in batch.lines:
        if not isinstance(record, Record):
            output.write(record)
            continue
        values = {}
        for name in names:
            result = next(given)
            if isinstance(result, ItemRefusal):
                raise _Failed(f"line {number}: field {name}: {result.message}")
            try:
                values[name] = value_of(name, result)
            except BadLine as bad:
                raise BadLine(f"line {number}: {bad}") from None
        output.write(record.with_values(values))
    if batch.problem:
        raise BadLine(batch.problem)


def _sealed(_name: str, result: Ciphertext) -> str:
    return sealed_value(result.ciphertext_blob)


def _opened(name: str, result: Plaintext) -> str:
    return opened_value(name, result.plaintext)
