"""The command `betrace-kms`. Verbs that need the server come from the entry-point group `betrace_kms.commands`.

Exit codes: 0 done; 1 the answer is no (a signature is not valid, a service does not serve); 2 the command, its input or
output or the daemon's settings are wrong; 3 the call failed; 130 it was interrupted.
"""

import gc
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

import click

from betrace_kms_client.cli.streams import STREAM_FAILED, discard_output, open_missing_streams, stream_errors

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

PLUGINS = "betrace_kms.commands"
_MODULES = {
    "admin": "invalidate status validate",
    "cost": "cost",
    "emergency_stop": "lock unlock",
    "health": "health",
    "keys": "keys",
    "lifecycle": "revoke rotate",
    "macs": "mac verify-mac",
    "payloads": "data-key decrypt encrypt reencrypt",
    "shredding": "shred",
    "spans": "sign verify",
}
"""Where the verbs are. Only the one that is asked for is imported, so that `health` answers soon."""
_HOMES = {verb: module for module, verbs in _MODULES.items() for verb in verbs.split()}


class _Group(click.Group):
    """Loads a verb when it is asked for, so that the others start fast, and work where a plug-in's does not.

    Whatever the verb, a stream that fails is one line and an exit code.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        open_missing_streams()
        try:
            return super().main(*args, **kwargs)
        except OSError:  # stderr failed: an exit code is all that there can be
            discard_output()
            raise SystemExit(STREAM_FAILED) from None

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with stream_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with stream_errors():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_HOMES, *metadata.entry_points(group=PLUGINS).names})

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Complete verbs by their names alone: their help would import the server, in a second at each press of Tab."""
        from click.shell_completion import CompletionItem  # late, as click does: few commands complete anything

        verbs = [CompletionItem(verb) for verb in self.list_commands(ctx) if verb.startswith(incomplete)]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        try:
            return self._load(ctx, cmd_name)
        finally:
            gc.freeze()  # it need not look at modules and their functions either
            gc.enable()

    def _load(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        if (module := _HOMES.get(cmd_name)) is not None:
            verb: click.Command = getattr(import_module(f"betrace_kms_client.cli.{module}"), cmd_name.replace("-", "_"))
            return verb
        for entry_point in metadata.entry_points(group=PLUGINS, name=cmd_name):
            try:
                loaded: click.Command = entry_point.load()
            except ModuleNotFoundError as missing:
                return _missing(cmd_name, missing)
            return loaded
        return None


def _missing(name: str, missing: ModuleNotFoundError) -> click.Command:
    @click.command(name, context_settings={"ignore_unknown_options": True}, short_help="(needs betrace-kms[server])")
    @click.argument("rest", nargs=-1)
    def command(rest: tuple[str, ...]) -> None:
        raise click.UsageError(
            f"{name} needs the server, and {missing.name} is missing: pip install 'betrace-kms[server]'"
        )

    return command


@click.version_option(package_name="betrace-kms", message="betrace-kms %(version)s")
@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Keys for many tenants: encrypt, sign and verify through a daemon in front of AWS KMS.

    \b
    Exit codes: 0 done, 1 the answer is no, 2 wrong usage, input or output,
    3 the call failed, 130 interrupted.

    \b
    Completion of verbs, options and values, for the shell's startup file:
      bash  eval "$(_BETRACE_KMS_COMPLETE=bash_source betrace-kms)"
      zsh   eval "$(_BETRACE_KMS_COMPLETE=zsh_source betrace-kms)"
      fish  _BETRACE_KMS_COMPLETE=fish_source betrace-kms | source
    """


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(f"betrace-kms {metadata.version('betrace-kms')}")
