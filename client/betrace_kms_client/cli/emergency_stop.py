"""lock and unlock: the emergency stop."""

import click
from betrace.kms.v1 import admin_pb2 as pb

from betrace_kms_client.cli.options import admin_options, administering

NOT_EVERYWHERE = 1


@click.command(
    epilog="""\b
Examples:
  betrace-kms lock --reason "INC-4711: master key exposed"
  betrace-kms status                                   # shows the reason
  betrace-kms unlock
"""
)
@click.option("--reason", required=True, help="Why, for other operators: 1 to 200 characters. Callers never see it.")
@admin_options
def lock(reason: str, admin_addr: str, timeout: float) -> None:
    """Emergency stop: drop every secret key, and refuse all calls that need one until `unlock`.

    This daemon stops at once. Every other daemon on its key store follows within its kms.lock.check-seconds; exits with
    1 if the key store could not be written, so that the others were not reached.
    """
    with administering(admin_addr) as admin:
        answer = admin.Lock(pb.LockRequest(reason=reason), timeout=timeout)
    click.echo(f"locked; dropped {answer.entries:,} cache {'entry' if answer.entries == 1 else 'entries'}")
    if not answer.stored:
        click.echo(
            f"betrace-kms: only this daemon is locked, because {answer.store_error}; it repeats the write until the key"
            " store takes it: lock the other pods one by one, by their own admin sockets",
            err=True,
        )
        raise SystemExit(NOT_EVERYWHERE)


@click.command(
    epilog="""\b
Examples:
  betrace-kms unlock
"""
)
@admin_options
def unlock(admin_addr: str, timeout: float) -> None:
    """End the emergency stop for every daemon on the key store; keys are loaded again when they are asked for."""
    with administering(admin_addr) as admin:
        answer = admin.Unlock(pb.UnlockRequest(), timeout=timeout)
    click.echo("unlocked" if answer.was_locked else "unlocked; this daemon was not locked")
