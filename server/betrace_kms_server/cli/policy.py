"""The verb `betrace-kms policy`: checks a policy file, and says what it allows, anywhere that the file is."""

from pathlib import Path

import click
from tabulate import tabulate

from betrace_kms_server.access.policy import OPERATIONS, InvalidPolicy, Policy, parse_policy

NOT_ALLOWED = 1
UNREADABLE = 2
_FILE = click.argument("file", type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path))


@click.group()
def policy() -> None:
    """Check the rules that kms.policy.file names, and what they allow."""


@policy.command(
    epilog="""\b
Example:
  betrace-kms policy check policy.toml

Exit codes: 0 valid, 2 not valid or not readable.
"""
)
@_FILE
def check(file: Path) -> None:
    """Check a policy file and list its rules. A daemon that runs takes a valid one within a second."""
    rules = _read(file).rules
    rows = [(rule.name, *map(", ".join, (rule.identities, rule.tenants, rule.operations))) for rule in rules]
    click.echo(tabulate(rows, ("rule", "identities", "tenants", "operations"), maxcolwidths=[20, 32, 24, 32]))
    click.echo(f"policy: {len(rules)} rule{'' if len(rules) == 1 else 's'}, valid")


@policy.command(
    epilog="""\b
Example:
  betrace-kms policy explain policy.toml --identity backend --tenant acme --operation SignSpan

Exit codes: 0 allowed, 1 not allowed, 2 not valid or not readable.
"""
)
@_FILE
@click.option("--identity", required=True, help="Who calls: the name of a socket, a token or a certificate.")
@click.option("--tenant", required=True, help="Whose keys are to be used.")
@click.option("--operation", required=True, type=click.Choice(OPERATIONS), help="The call.")
def explain(file: Path, identity: str, tenant: str, operation: str) -> None:
    """Say which rule allows a call, or that none does."""
    rule = _read(file).rule_for(identity, operation, tenant)
    if rule is None:
        click.echo(f"denied: no rule allows {identity} to call {operation} for tenant {tenant}")
        raise SystemExit(NOT_ALLOWED)
    click.echo(f"allowed by rule {rule!r}")


def _read(file: Path) -> Policy:
    try:
        return parse_policy(file.read_bytes())
    except InvalidPolicy as error:
        problem = str(error)
    except OSError as error:
        problem = f"it cannot be read: {error.strerror}"
    click.echo(f"betrace-kms: {file}: {problem}", err=True)
    raise SystemExit(UNREADABLE)
