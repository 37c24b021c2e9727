"""shred: destroy a tenant's branch key, so that what it sealed opens no more."""

import sys
import textwrap

import click
from betrace.kms.v1 import admin_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from betrace_kms_client.cli.options import admin_options, administering

_STATES = {
    "OPEN": "open: it is encrypted for",
    "PENDING_SHRED": "PENDING SHRED: refused, and can be cancelled",
    "DESTROYING": "DESTROYING: too late to cancel",
    "SHREDDED": "SHREDDED: what was encrypted for it is lost",
}


@click.command(
    epilog="""\b
Examples:
  betrace-kms shred acme                # asks for the tenant's id
  betrace-kms shred acme --cancel       # until it is due
  betrace-kms shred acme --recreate     # a new branch key, after it was shredded
"""
)
@click.argument("tenant_id", metavar="TENANT")
@click.option("--cancel", is_flag=True, help="End a shredding that is pending.")
@click.option("--recreate", is_flag=True, help="Encrypt for a shredded tenant again, under a new branch key.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@admin_options
def shred(tenant_id: str, cancel: bool, recreate: bool, yes: bool, admin_addr: str, timeout: float) -> None:
    """Refuse to encrypt and decrypt for a tenant at once, and destroy its branch key after kms.shred.wait-days.

    For a tenant that is to be shredded already it changes nothing, and shows how far that is. Signing keys and public
    keys stay. docs/shredding.md says what else does.
    """
    if cancel and recreate:
        raise click.UsageError("give --cancel or --recreate, not both")
    if not (yes or cancel or recreate):
        _confirm(tenant_id)
    request = pb.ShredTenantRequest(tenant_id=tenant_id, cancel=cancel, recreate=recreate)
    with administering(admin_addr) as admin:
        answer = admin.ShredTenant(request, timeout=timeout)
    click.echo(f"{tenant_id} is {_STATES.get(answer.state, answer.state)}")
    if answer.state == "OPEN":
        return
    click.echo(f"asked for            {_time(answer.request_time)}")
    click.echo(f"{'destroyed' if answer.state == 'SHREDDED' else 'due'}".ljust(21) + _time(answer.due_time))
    known = answer.HasField("unrecoverable_after")
    click.echo(f"unrecoverable after  {_time(answer.unrecoverable_after) if known else 'never: see below'}")
    if answer.not_destroyed:
        click.echo("\nnot destroyed:")
    for sentence in answer.not_destroyed:
        click.echo(textwrap.fill(sentence, 100, initial_indent="- ", subsequent_indent="  "))


def _confirm(tenant_id: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("give --yes where there is no terminal to ask on")
    click.echo(f"Calls of {tenant_id} are refused at once. After the wait, what was encrypted for it is lost for ever.")
    if click.prompt("Type the tenant's id to go on") != tenant_id:
        raise click.UsageError("that is not the tenant's id: nothing was done")


def _time(time: Timestamp) -> str:
    return f"{time.ToDatetime():%Y-%m-%d %H:%M:%S} UTC"
