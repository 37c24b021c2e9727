"""The verbs `betrace-kms keystore backup` and `restore`: the file of a key store in SQLite, whole, and back.

A backup is made while the daemon serves, a restore while it does not. Neither replaces a file, and what either makes
was read in full before it gets its name.
"""

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from betrace_kms_server.cli.new_file import new_file
from betrace_kms_server.cli.settings_options import Refusal, SettingsOptions, cli_errors, settings_options
from betrace_kms_server.config.sources import Settings
from betrace_kms_server.startup import open_data_dir
from betrace_kms_server.stores.sqlite.backup import Contents, copy, verified
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE
from betrace_kms_server.telemetry import logs

_STANDARD_STREAM = "-"


@click.command(
    epilog="""\b
Examples:
  betrace-kms keystore backup --data-dir /var/lib/betrace-kms keystore-2026-01-31.db
  kubectl exec deploy/betrace-backend -c betrace-kms -- betrace-kms keystore backup - > keystore-2026-01-31.db

Exit codes: 0 done, 2 there is no backup.
"""
)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE")
@settings_options
def backup(file: Path, options: SettingsOptions) -> None:
    """Copy the key store in SQLite to a new FILE, or to stdout (-), while the daemon serves.

    Every row of the copy is checked before FILE gets its name. Beside it there must be room for two copies.
    """
    with cli_errors():
        settings = _sqlite_settings(options)
        source = settings.data_dir / DATABASE_FILE
        if not source.exists():
            raise Refusal(f"there is no key store in {settings.data_dir}: check --data-dir or kms.data-dir")
        if str(file) == _STANDARD_STREAM:
            with TemporaryDirectory(prefix="backup.", dir=settings.data_dir) as folder:
                found = _back_up(source, Path(folder) / DATABASE_FILE)
                with open(Path(folder) / DATABASE_FILE, "rb") as copied:
                    shutil.copyfileobj(copied, sys.stdout.buffer)
        else:
            found = _back_up(source, file)
    click.echo(f"keystore: backed up to {file}: {_counts(found)}", err=str(file) == _STANDARD_STREAM)


@click.command(
    epilog="""\b
Examples:
  betrace-kms keystore restore --data-dir /var/lib/betrace-kms keystore-2026-01-31.db
  kubectl exec -i keystore-restore -- betrace-kms keystore restore - < keystore-2026-01-31.db

Exit codes: 0 done, 2 nothing was restored.
"""
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True), metavar="FILE")
@settings_options
def restore(file: str, options: SettingsOptions) -> None:
    """Put a backup into a data folder that has no key store. The daemon must be stopped.

    Every row is checked before the store is there.
    """
    with cli_errors():
        settings = _sqlite_settings(options)
        found = asyncio.run(_restore(settings.data_dir, file))
    click.echo(f"keystore: restored from {file}: {_counts(found)}")


def _sqlite_settings(options: SettingsOptions) -> Settings:
    settings, _ = options.resolve()
    logs.configure(settings.log_format, "warning")  # that a copy was brought to today's schema is of no interest
    if settings.store != "sqlite":
        raise Refusal(
            f"kms.store is {settings.store}, whose tables DynamoDB itself backs up and restores: turn on point-in-time"
            " recovery, or make on-demand backups, as docs/dynamodb.md says"
        )
    return settings


def _back_up(source: Path, file: Path) -> Contents:
    with new_file(file, "a backup") as new:
        copy(source, new)
        return asyncio.run(verified(new, str(source)))


async def _restore(data_dir: Path, file: str) -> Contents:
    async with AsyncExitStack() as resources:
        open_data_dir(data_dir, resources)
        new = resources.enter_context(_new_store(data_dir, file))
        return await verified(new, file)


@contextmanager
def _new_store(data_dir: Path, file: str) -> Iterator[Path]:
    """Give a copy of a file that becomes the store in the end."""
    journal = data_dir / f"{DATABASE_FILE}-journal"
    if os.path.lexists(journal):
        raise Refusal(f"{journal} belongs to a store that was there before: move it away, and try again")
    with new_file(data_dir / DATABASE_FILE, "a restore") as new:
        with click.open_file(file, "rb") as backed_up, new.open("wb") as copied:
            shutil.copyfileobj(backed_up, copied)
        yield new


def _counts(found: Contents) -> str:
    return f"signing keys {found.keys:,}, rows of branch keys {found.branch_key_rows:,}, tenants {found.tenants:,}"
