"""The verbs of `betrace-kms` that need the server: they come to the client's command by an entry point."""

from collections.abc import Mapping

import click
import uvloop

from betrace_kms_server import app
from betrace_kms_server.cli.settings_options import (
    SettingsOptions,
    cli_errors,
    settings_options,
    warn_of_unused_variables,
)
from betrace_kms_server.config.reload import Reread
from betrace_kms_server.config.settings import Settings
from betrace_kms_server.host import process, signals
from betrace_kms_server.telemetry import logs


@click.command(
    epilog="""\b
Examples:
  betrace-kms serve
  betrace-kms serve --listen unix:/run/betrace-kms/kms.sock --data-dir /var/lib/betrace-kms
  betrace-kms serve --config application.properties --config-dir /etc/betrace-kms
  betrace-kms serve --set kms.cache.max-size=5000

Every setting may also come from the environment: kms.data-dir is KMS_DATA_DIR.
"""
)
@click.option("--listen", help="Addresses, separated by commas: 127.0.0.1:50051, unix:/path. Sets kms.server.listen.")
@settings_options
def serve(listen: str | None, options: SettingsOptions) -> None:
    """Run the daemon until SIGTERM or Ctrl-C."""
    process.tune_malloc()
    process.raise_open_files()
    signals.outlive_hang_ups()
    with cli_errors():
        process.harden()
        settings, origins = options.resolve(listen=listen)
        process.set_dumpable(settings.process_dumpable)
        logs.configure(settings.log_format, settings.log_level)
        warn_of_unused_variables()
        uvloop.run(_run(settings, origins, lambda: options.resolve(listen=listen)))


async def _run(settings: Settings, origins: Mapping[str, str], reread: Reread) -> None:
    await app.serve(settings, origins, reread)
    signals.ignore_signals()  # what is repeated while Python ends must not change the exit code
