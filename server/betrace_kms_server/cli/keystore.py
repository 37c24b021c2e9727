"""The verb `betrace-kms keystore`: wrapped signing keys to a file and back, without the daemon and without KMS.

An import never overwrites. What it leaves out it names, line by line, and it may be repeated.
"""

import asyncio
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO

import click

from betrace_kms_server.cli.keystore_init import init
from betrace_kms_server.cli.settings_options import Refusal, SettingsOptions, cli_errors, settings_options
from betrace_kms_server.config.sources import Settings
from betrace_kms_server.core.errors import KeyDamaged
from betrace_kms_server.core.keys import StoredKey
from betrace_kms_server.host.atomic_file import atomic_create
from betrace_kms_server.startup import open_branch_keys, open_data_dir, open_store
from betrace_kms_server.stores.export import key_of, line_of
from betrace_kms_server.stores.protocol import KeyStore
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE
from betrace_kms_server.telemetry import logs

NOT_ALL = 1
_LINE_BYTES = 1024 * 1024
"""A hundred times the longest line of an export."""
_ADDED, _RETIRED, _THERE, _DIFFERENT, _REFUSED = OUTCOMES = (
    "added",
    "added as rotated",
    "already there",
    "different",
    "refused",
)
"""What may become of a line, in the words of the summary."""
_LIFE = ("active", "rotated", "revoked")
"""A key's statuses in the order in which it has them."""


@click.group()
def keystore() -> None:
    """Back up and restore the key store: signing keys, their seeds wrapped. See docs/key-store.md."""


keystore.add_command(init)


@keystore.command(
    epilog="""\b
Examples:
  betrace-kms keystore export --data-dir /var/lib/betrace-kms --output keys.jsonl
  betrace-kms keystore export --config application.properties | gzip > keys.jsonl.gz

Exit codes: 0 done, 1 done, and there are branch keys that it does not hold, 2 the export is not whole.
"""
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="A new file, which no one else may read. [default: stdout]"
)
@settings_options
def export(output: Path | None, options: SettingsOptions) -> None:
    """Write every signing key of every tenant, one JSON object per line.

    A daemon that keeps them in SQLite must be stopped. Branch keys are not written: back them up with their store. With
    --output the file is there whole, or not at all.
    """
    with cli_errors():
        settings, _ = options.resolve()
        logs.configure(settings.log_format, settings.log_level)
        if settings.store == "sqlite" and not (settings.data_dir / DATABASE_FILE).exists():
            raise Refusal(f"there is no key store in {settings.data_dir}: check --data-dir or kms.data-dir")
        if output is None:
            _, is_all = asyncio.run(_export(settings, sys.stdout.buffer))
        else:
            try:
                count, is_all = _export_to_file(settings, output)
            except OSError as cause:
                raise Refusal(f"{output} cannot be written: {cause.strerror}") from cause
            click.echo(f"keystore: {count:,} key{'' if count == 1 else 's'} written to {output}")
        if not is_all:
            place = settings.branch_keys_table or settings.data_dir / DATABASE_FILE
            click.echo(f"keystore: the export holds no branch keys: back up {place} too", err=True)
            raise SystemExit(NOT_ALL)


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
    if counts[_DIFFERENT] or counts[_REFUSED]:
        raise SystemExit(NOT_ALL)


async def _opened(settings: Settings, resources: AsyncExitStack) -> KeyStore:
    if settings.store == "sqlite":  # any other kind of store takes care of several at once
        open_data_dir(settings.data_dir, resources)
    return await open_store(settings, resources)


def _export_to_file(settings: Settings, output: Path) -> tuple[int, bool]:
    """Write an export whole or not at all, and never over a file that is there."""
    if os.path.lexists(output):
        raise Refusal(f"{output} exists, and an export replaces no file")
    with atomic_create(output) as new:
        with new.open("wb") as lines:
            found = asyncio.run(_export(settings, lines))
        made = new.stat()
    if not os.path.samestat(made, output.stat()):
        raise Refusal(f"{output} was made by somebody else meanwhile")
    return found


async def _export(settings: Settings, lines: IO[bytes]) -> tuple[int, bool]:
    """Return how many keys were written, and whether there are no branch keys beside them."""
    count = 0
    async with AsyncExitStack() as resources:
        store = await _opened(settings, resources)
        async for key in store.rows():
            lines.write(line_of(key))
            count += 1
        branch_keys = await open_branch_keys(settings, store, resources)
        return count, branch_keys is None or not await branch_keys.wrapped_by()


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
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                words, problem = await _put_back(store, key_of(line))
            except (ValueError, KeyDamaged) as refusal:
                words, problem = _REFUSED, str(refusal)
            counts[words] += 1
            if problem:
                click.echo(f"{name}:{number}: {problem}")
    return counts


async def _put_back(store: KeyStore, key: StoredKey) -> tuple[str, str]:
    """Return what became of a key, and what is to be said about it, if anything."""
    if await store.add(key):
        return _ADDED, ""
    there = await store.get(key.tenant_id, key.key_id)
    if there is not None:
        return _compared(key, there)
    retired = replace(key, status="rotated", rotate_time_ms=int(time.time() * 1000))
    if await store.add(retired):
        return _RETIRED, f"tenant {key.tenant_id} has another active key, so key {key.key_id} was added as rotated"
    raise ValueError(f"key {key.key_id} of tenant {key.tenant_id} was made by somebody else meanwhile: import again")


def _compared(key: StoredKey, there: StoredKey) -> tuple[str, str]:
    about = f"key {key.key_id} of tenant {key.tenant_id}"
    if key.checksum() != there.checksum():
        what = "wrapped otherwise" if key.public_key == there.public_key else "another key"
        return _DIFFERENT, f"{about} is {what} in the store, which was left as it is"
    if _LIFE.index(key.status) > _LIFE.index(there.status):
        return _DIFFERENT, f"{about} is {key.status} here and {there.status} in the store, which was left as it is"
    return _THERE, ""
