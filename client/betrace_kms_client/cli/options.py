"""Options, calls and tables that the verbs share."""

import base64
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
import grpc
import orjson
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub

from betrace_kms_client.channel import DEFAULT_TARGET, DEFAULT_TIMEOUT, OPTIONS, normalised
from betrace_kms_client.credentials import VARIABLES, Files, chosen
from betrace_kms_client.errors import KmsClientError, Unavailable, Unimplemented, from_rpc_error

if TYPE_CHECKING:
    from betrace_kms_client.sync_client import KmsClient

F = TypeVar("F", bound=Callable[..., Any])

CALL_FAILED = 3
ADMIN_TIMEOUT = 60.0
"""Seconds for a call to the admin service, which may ask KMS several times and wait 5 s for each answer."""


_CREDENTIALS = "betrace_kms.credentials"
"""Where the files of credentials are in click's context, so that no verb has to pass them on."""
_CREDENTIAL_OPTIONS = {
    "token_file": "The daemon's file of tokens (kms.server.token-file).",
    "tls_ca_file": "Authority of the daemon's certificate, in PEM.",
    "tls_cert_file": "Certificate for mutual TLS, in PEM.",
    "tls_key_file": "Key of that certificate, in PEM.",
}


def _keep(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    ctx.meta.setdefault(_CREDENTIALS, {})[param.name] = value


def given_credentials() -> Files:
    """Return the files of credentials that the running command was given."""
    return chosen(**click.get_current_context().meta.get(_CREDENTIALS, dict.fromkeys(_CREDENTIAL_OPTIONS)))


def client_options(function: F) -> F:
    """Add the options that say which daemon to call, and as whom."""
    for option in (
        *(
            click.option(
                f"--{name.replace('_', '-')}",
                envvar=variable,
                show_envvar=True,
                expose_value=False,
                callback=_keep,
                help=text,
            )
            for variable, (name, text) in reversed(list(zip(VARIABLES, _CREDENTIAL_OPTIONS.items(), strict=True)))
        ),
        click.option("--timeout", type=float, default=DEFAULT_TIMEOUT, show_default=True, help="Seconds to wait."),
        click.option(
            "--addr",
            envvar=["BETRACE_KMS_ADDR", "KMS_SERVER_LISTEN"],
            default=DEFAULT_TARGET,
            show_default=True,
            show_envvar=True,
            help="Where the daemon listens: host:port or unix:/path.",
        ),
    ):
        function = option(function)
    return function


def admin_options(function: F) -> F:
    """Add the options that say which daemon to administer."""
    for option in (
        click.option("--timeout", type=float, default=ADMIN_TIMEOUT, show_default=True, help="Seconds to wait."),
        click.option(
            "--admin-addr",
            envvar="BETRACE_KMS_ADMIN_ADDR",
            default=lambda: f"unix:{Path(os.environ.get('KMS_DATA_DIR') or 'data') / 'admin.sock'}",
            show_default="unix:<KMS_DATA_DIR or data>/admin.sock",
            show_envvar=True,
            help="Socket of the daemon's admin service.",
        ),
    ):
        function = option(function)
    return function


tenant_option = click.option("--tenant", "tenant_id", required=True, help="Whose key it is.")
json_option = click.option("--json", "as_json_", is_flag=True, help="Write JSON, bytes in base64.")
report_option = click.option("--json", "as_json_", is_flag=True, help="Write JSON.")
input_argument = click.argument("source", metavar="[FILE]", type=click.File("rb"), default="-")
output_option = click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file (0600), not to stdout."
)


def parse_context(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> Mapping[str, str]:
    pairs = {}
    for value in values:
        name, separator, text = value.partition("=")
        if not separator or not name:
            raise click.BadParameter(f"{value!r}: write it as NAME=VALUE")
        if name in pairs:
            raise click.BadParameter(f"{name!r} is given twice")
        pairs[name] = text
    return pairs


context_option = click.option(
    "--context",
    multiple=True,
    metavar="NAME=VALUE",
    callback=parse_context,
    help="A pair of the encryption context; may be repeated.",
)


def payload_options(function: F) -> F:
    """Add what every verb takes that turns one payload into another."""
    for option in (client_options, json_option, output_option, context_option, tenant_option, input_argument):
        function = option(function)
    return function


def json_lines_options(function: F) -> F:
    """Add the options that make a verb take JSON lines."""
    for option in (
        click.option("--fields", default="", metavar="NAMES", help="Which: email,user.ssn (with --jsonl)."),
        click.option(
            "--jsonl",
            "in_lines",
            is_flag=True,
            help="Take JSON lines, and change fields of them only. --context NAME=@MEMBER is then what each line has"
            " in that member.",
        ),
    ):
        function = option(function)
    return function


@contextmanager
def calling(addr: str, timeout: float) -> "Iterator[KmsClient]":
    """Give a client, and end the command with one line if a call of it fails."""
    from betrace_kms_client.sync_client import KmsClient  # late: `health` needs none

    files = given_credentials()
    try:
        with KmsClient(
            addr,
            timeout=timeout,
            token_file=files.token or "",
            tls_ca_file=files.authority or "",
            tls_cert_file=files.certificate or "",
            tls_key_file=files.key or "",
        ) as client:
            yield client
    except KmsClientError as error:
        _fail(error, error.message)
    except UnicodeEncodeError:
        raise click.UsageError("--tenant and --context must be UTF-8 text") from None


@contextmanager
def administering(addr: str) -> Iterator[KmsAdminServiceStub]:
    """Give the admin service, and end the command with one line if a call to it fails."""
    target = normalised(addr)
    try:
        with grpc.insecure_channel(target, options=OPTIONS) as channel:
            yield KmsAdminServiceStub(channel)
    except grpc.RpcError as call:
        error = from_rpc_error(call, target)
        message = error.message
        if isinstance(error, Unavailable) and not error.reason:
            message = (
                f"no daemon answers on {target}: is it running, and is KMS_DATA_DIR its kms.data-dir? "
                "The socket belongs to the daemon's user"
            )
        elif isinstance(error, Unimplemented):
            message = f"the daemon on {target} does not know this call: give its admin.sock, or update the daemon"
        _fail(error, message)
    except UnicodeEncodeError:
        raise click.UsageError("--tenant must be UTF-8 text") from None


def _fail(error: KmsClientError, message: str) -> NoReturn:
    request = f" (request {error.request_id})" if error.request_id else ""
    click.echo(f"betrace-kms: {message}{request}", err=True)
    raise SystemExit(CALL_FAILED) from None


def as_json(values: Mapping[str, Any]) -> bytes:
    """Return indented JSON with a final newline; bytes become base64."""
    shown = {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value for name, value in values.items()
    }
    return orjson.dumps(shown, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], align: str, *, width: int | None = None) -> str:
    """Return columns of text; `align` has l or r for each. Fits `width` by wrapping the last column, at 20 or more."""
    from tabulate import tabulate  # late: few verbs print tables

    padded = [f"{header}  " for header in headers]  # tabulate keeps two columns free beside a header
    columns = [*zip(padded, *rows, strict=True)][:-1]
    taken = sum(max(len(click.unstyle(cell)) for cell in column) + 2 for column in columns)
    last = None if width is None else max(20, width - taken)
    return tabulate(
        rows,
        headers,
        tablefmt="simple",
        colalign=["left" if letter == "l" else "right" for letter in align],
        disable_numparse=True,
        maxcolwidths=[*[None] * len(columns), last] if last else None,
    )
