"""rotate and revoke: what an operator does to signing keys."""

import re

import click
from betrace.kms.v1 import admin_pb2 as pb

from betrace_kms_client.cli.options import admin_options, administering

FAILED = 1


@click.command(
    epilog="""\b
Examples:
  betrace-kms rotate --tenant acme
  betrace-kms rotate --all
"""
)
@click.option("--tenant", "tenant_id", help="Give this tenant a new signing key.")
@click.option(
    "--all", "everybody", is_flag=True, help="Give every tenant that has a key a new one; without a limit in time."
)
@admin_options
def rotate(tenant_id: str | None, everybody: bool, admin_addr: str, timeout: float) -> None:
    """Make new signing keys now, however young the old ones are; old signatures stay verifiable."""
    if (tenant_id is None) != everybody:
        raise click.UsageError("give --tenant TENANT, or --all")
    request = pb.RotateKeysRequest(all=True) if tenant_id is None else pb.RotateKeysRequest(tenant_id=tenant_id)
    with administering(admin_addr) as admin:
        answer = admin.RotateKeys(request, timeout=timeout if tenant_id else None)
    if tenant_id is not None:
        click.echo("rotated" if answer.rotated else "another daemon rotated it at this moment")
        return
    click.echo(f"rotated the keys of {answer.rotated:,}, failed: {answer.failed:,}")
    if answer.failed:
        click.echo("betrace-kms: tenants that failed keep their key: the daemon's log says why", err=True)
        raise SystemExit(FAILED)


@click.command(
    epilog="""\b
Examples:
  betrace-kms keys --tenant acme                       # shows the ids
  betrace-kms revoke --tenant acme --key-id 1f0c...
"""
)
@click.option("--tenant", "tenant_id", required=True, help="Whose key it is.")
@click.option("--key-id", required=True, help="Id of the key, 32 hexadecimal digits.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@admin_options
def revoke(tenant_id: str, key_id: str, yes: bool, admin_addr: str, timeout: float) -> None:
    """Revoke a signing key for good: it signs no more, and its signatures verify as KEY_REVOKED.

    If it is the active key, the tenant gets a new one in the same step.
    """
    if not re.fullmatch("[0-9a-f]{32}", key_id):
        raise click.BadParameter(
            "a key id has 32 hexadecimal digits; `betrace-kms keys` shows it", param_hint="--key-id"
        )
    if not yes:
        click.confirm(f"Signatures of key {key_id} will no longer count as valid. Revoke it for good?", abort=True)
    with administering(admin_addr) as admin:
        answer = admin.RevokeKey(pb.RevokeKeyRequest(tenant_id=tenant_id, key_id=key_id), timeout=timeout)
    click.echo(f"revoked {key_id}; the active key is {answer.active_key_id or 'none'}")
