"""The verb `betrace-kms keystore`, with `export` and `import`: wrapped keys of any kind of store to lines and back.

An import never overwrites. What it leaves out it names, line by line, and it may be repeated.
"""

import asyncio
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import IO

import click

from betrace_kms_server.aws.holder import OPERATOR
from betrace_kms_server.cli.keystore_backup import backup, restore
from betrace_kms_server.cli.keystore_import import DIFFERENT, OUTCOMES, REFUSED, Restore
from betrace_kms_server.cli.keystore_init import init
from betrace_kms_server.cli.new_file import new_file
from betrace_kms_server.cli.settings_options import Refusal, SettingsOptions, cli_errors, settings_options
from betrace_kms_server.config.sources import Settings
from betrace_kms_server.startup import open_branch_keys, open_data_dir, open_store
from betrace_kms_server.stores import branch_key_export
from betrace_kms_server.stores.export import line_of
from betrace_kms_server.stores.protocol import KeyStore
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE
from betrace_kms_server.telemetry import logs

NOT_ALL = 1
_LINE_BYTES = 1024 * 1024
"""A hundred times the longest line of an export."""


@click.group()
def keystore() -> None:
    """Back up and restore the key store: signing keys and branch keys, wrapped. See docs/key-store.md."""


for verb in (backup, restore, init):
    keystore.add_command(verb)


@keystore.command(
    epilog="""\b
Examples:
  betrace-kms keystore export --data-dir /var/lib/betrace-kms --output keys.jsonl
  betrace-kms keystore export --config application.properties | gzip > keys.jsonl.gz

Exit codes: 0 done, 2 the export is not whole.
"""
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="A new file, which no one else may read. [default: stdout]"
)
@settings_options
def export(output: Path | None, options: SettingsOptions) -> None:
    """Write every signing key and branch key of every tenant, one JSON object per line.

    A daemon that keeps them in SQLite must be stopped. With --output the file is there whole, or not at all.
    """
    with cli_errors():
        settings, _ = options.resolve()
        logs.configure(settings.log_format, settings.log_level)
        if settings.store == "sqlite" and not (settings.data_dir / DATABASE_FILE).exists():
            raise Refusal(f"there is no key store in {settings.data_dir}: check --data-dir or kms.data-dir")
        if output is None:
            asyncio.run(_export(settings, sys.stdout.buffer))
            return
        with new_file(output, "an export") as new, new.open("wb") as lines:
            keys, rows = asyncio.run(_export(settings, lines))
        written = _count(keys, "key") + (f" and {_count(rows, 'row')} of branch keys" if rows else "")
        click.echo(f"keystore: {written} written to {output}")


@keystore.command(
    "import",
    epilog="""\b
Examples:
  betrace-kms keystore import --data-dir /var/lib/betrace-kms keys.jsonl
  zcat keys.jsonl.gz | betrace-kms keystore import --config application.properties -

Exit codes: 0 every key is there now, 1 at least one line was not taken as it is, 2 it was broken off.
""",
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True), metavar="FILE")
@settings_options
def import_(file: str, options: SettingsOptions) -> None:
    """Put the keys of an export back. A daemon that keeps them in SQLite must be stopped.

    Never overwrites, and may be repeated. A key that was active goes in as rotated, and is named, if its tenant has
    another active key.
    """
    with cli_errors():
        settings, _ = options.resolve()
        logs.configure(settings.log_format, settings.log_level)
        counts = asyncio.run(_import(settings, file, _lines(file)))
    click.echo("keystore: " + ", ".join(f"{counts[words]:,} {words}" for words in OUTCOMES))
    if counts[DIFFERENT] or counts[REFUSED]:
        raise SystemExit(NOT_ALL)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


async def _opened(settings: Settings, resources: AsyncExitStack) -> KeyStore:
    if settings.store == "sqlite":  # any other kind of store takes care of several at once
        open_data_dir(settings.data_dir, resources)
    return await open_store(settings, resources, OPERATOR)


async def _export(settings: Settings, lines: IO[bytes]) -> tuple[int, int]:
    """Return how many signing keys and how many rows of branch keys were written."""
    keys = rows = 0
    async with AsyncExitStack() as resources:
        store = await _opened(settings, resources)
        async for key in store.rows():
            lines.write(line_of(key))
            keys += 1
        branch_keys = await open_branch_keys(settings, store, resources, OPERATOR)
        if branch_keys is not None:
            async for row in branch_key_export.in_order(branch_keys):
                lines.write(branch_key_export.line_of(row, settings.logical_name))
                rows += 1
    return keys, rows


def _lines(name: str) -> Iterator[bytes]:
    try:
        with click.open_file(name, "rb") as file:
            for number in itertools.count(1):
                line = file.readline(_LINE_BYTES + 1)
                if len(line) > _LINE_BYTES:
                    raise Refusal(f"{name}: line {number} is longer than {_LINE_BYTES:,} bytes: give what export wrote")
                if not line:
                    return
                yield line
    except OSError as cause:
        raise Refusal(f"{name} cannot be read: {cause.strerror}") from cause


async def _import(settings: Settings, name: str, lines: Iterable[bytes]) -> Counter[str]:
    """Put back what can be, say of each other line why it was not, and count what became of them."""
    counts = Counter[str]()
    async with AsyncExitStack() as resources:
        store = await _opened(settings, resources)
        branch_keys = await open_branch_keys(settings, store, resources, OPERATOR)
        restore = Restore(store, branch_keys, settings.logical_name)
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            words, problem = await restore.line(line)
            counts[words] += 1
            if problem:
                click.echo(f"{name}:{number}: {problem}")
    return counts
