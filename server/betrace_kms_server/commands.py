"""The verbs of `betrace-kms` that need the server: they come to the client's command by an entry point."""

import os
import resource
from pathlib import Path

import click
import uvloop

from betrace_kms_server import app, config
from betrace_kms_server.errors import KmsError, StartRefused
from betrace_kms_server.telemetry import logs

REFUSED = 2
"""Exit code of a daemon that does not start."""


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
@click.option("--data-dir", help="Folder of the key store. Sets kms.data-dir.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="KMS_CONFIG_FILE",
    show_envvar=True,
    help="A properties file.",
)
@click.option(
    "--config-dir",
    "config_dirs",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="KMS_CONFIG_DIR",
    show_envvar=True,
    multiple=True,
    help="A mounted ConfigMap or Secret, one file for each setting; the first one given is the strongest.",
)
@click.option("--set", "pairs", multiple=True, metavar="NAME=VALUE", help="Any setting, e.g. aws.kms.region=us-east-1.")
def serve(
    listen: str | None,
    data_dir: str | None,
    config_file: Path | None,
    config_dirs: tuple[Path, ...],
    pairs: tuple[str, ...],
) -> None:
    """Run the daemon until SIGTERM or Ctrl-C."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the keys
    os.umask(0o077)  # sockets, key store and master key are the daemon's own
    try:
        settings, origins = config.resolve(
            [
                config.from_command_line(_given(listen, data_dir, pairs)),
                config.from_environment(os.environ),
                *map(config.from_folder, config_dirs),
                *([config.from_properties(config_file)] if config_file else []),
            ]
        )
        logs.configure(settings.log_format, settings.log_level)
        uvloop.run(app.serve(settings, origins))
    except (StartRefused, KmsError) as refusal:
        for line in str(refusal).splitlines():
            click.echo(f"betrace-kms: {line}", err=True)
        raise SystemExit(REFUSED) from None


def _given(listen: str | None, data_dir: str | None, pairs: tuple[str, ...]) -> dict[str, str]:
    given = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise StartRefused(f"--set {pair}: write it as NAME=VALUE")
        given[name.strip()] = value
    if listen is not None:
        given["kms.server.listen"] = listen
    if data_dir is not None:
        given["kms.data-dir"] = data_dir
    return given
