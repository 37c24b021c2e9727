"""The options by which a verb of the server gets its settings, and how it refuses: lines on stderr, exit code 2."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click
import structlog

from betrace_kms_server.config import sources as config
from betrace_kms_server.core.errors import KmsError, StartRefused

log = structlog.get_logger()


class Refusal(click.ClickException):
    """A verb cannot do its work: each line says what to do next."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        """Print each line on stderr."""
        for line in self.message.splitlines():
            click.echo(f"betrace-kms: {line}", file=file, err=True)


@dataclass(frozen=True, slots=True)
class SettingsOptions:
    """The settings options of a command line."""

    data_dir: str | None
    config_file: Path | None
    config_dirs: tuple[Path, ...]
    pairs: tuple[str, ...]

    def resolve(self, **more: str | None) -> tuple[config.Settings, Mapping[str, str]]:
        """Return the settings from every source, and where each value came from. Raises StartRefused.

        `more` are attributes of Settings that the verb has options of its own for; None means not given.
        """
        given: dict[str, str] = {}
        for pair in self.pairs:
            name, separator, value = pair.partition("=")
            if not separator:
                raise StartRefused(f"--set {pair}: write it as NAME=VALUE")
            if given.setdefault(name.strip(), value) != value:
                raise StartRefused(f"--set {name}: it is given twice with different values, remove one of them")
        names = {attribute: name for name, attribute in config.NAMES.items()}
        for attribute, option in {**more, "data_dir": self.data_dir}.items():
            if option is not None and given.setdefault(names[attribute], option) != option:
                raise StartRefused(f"{names[attribute]} is given by --set and by its own option: remove one of them")
        return config.resolve(
            [
                config.from_command_line(given),
                config.from_environment(os.environ),
                *map(config.from_folder, self.config_dirs),
                *([config.from_properties(self.config_file)] if self.config_file else []),
            ]
        )


_OPTIONS = (
    click.option("--data-dir", help="Folder of the key store. Sets kms.data-dir."),
    click.option(
        "--config",
        "config_file",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="KMS_CONFIG_FILE",
        show_envvar=True,
        help="A properties file.",
    ),
    click.option(
        "--config-dir",
        "config_dirs",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="KMS_CONFIG_DIR",
        show_envvar=True,
        multiple=True,
        help="A mounted ConfigMap or Secret, one file for each setting; the first one given is the strongest.",
    ),
    click.option(
        "--set", "pairs", multiple=True, metavar="NAME=VALUE", help="Any setting, e.g. aws.kms.region=us-east-1."
    ),
)


def settings_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options that settings come from; it takes them as one SettingsOptions named `options`."""

    @functools.wraps(verb)
    def with_options(
        data_dir: str | None,
        config_file: Path | None,
        config_dirs: tuple[Path, ...],
        pairs: tuple[str, ...],
        **others: Any,
    ) -> None:
        verb(options=SettingsOptions(data_dir, config_file, config_dirs, pairs), **others)

    decorated: Callable[..., None] = with_options
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def warn_of_unused_variables() -> None:
    """Warn of variables that look like settings and are none. Values may be secrets of others, and are not shown."""
    for variable, meant in config.unused_variables(os.environ):
        advice = f": set {meant} instead" if meant else ", compare with docs/configuration.md"
        log.warning(f"The environment variable {variable} is no setting and is ignored{advice}")  # noqa: G004


@contextmanager
def cli_errors() -> Iterator[None]:
    """Turn a refusal or a failure that has words for the operator into a Refusal of the verb."""
    try:
        yield
    except (StartRefused, KmsError) as cause:
        raise Refusal(str(cause)) from cause
