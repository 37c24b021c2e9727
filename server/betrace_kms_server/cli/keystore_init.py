"""The verb `betrace-kms keystore init`: makes the tables that kms.store=dynamodb or postgresql keeps keys in."""

import asyncio
from functools import partial

import click

from betrace_kms_server.aws.holder import OPERATOR
from betrace_kms_server.config.values import check_endpoint
from betrace_kms_server.core.errors import KmsError, StartRefused

NOT_DONE = 2


def _endpoint(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return check_endpoint(value) if value else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command(
    epilog="""\b
Examples:
  betrace-kms keystore init --table betrace-kms-keys --region us-east-1
  KMS_STORE_TABLE=betrace-kms-keys KMS_STORE_REGION=us-east-1 betrace-kms keystore init
  betrace-kms keystore init --dsn "host=db dbname=kms user=admin sslmode=verify-full" --grant-to betrace_kms

Run it with an operator's credentials: the daemon's own role may not make tables. It may be run again: a table that is
there keeps what it holds. PostgreSQL takes the password from PGPASSFILE or ~/.pgpass.

Exit codes: 0 all tables are ready, 2 one is not.
"""
)
@click.option("--table", envvar="KMS_STORE_TABLE", show_envvar=True, help="DynamoDB: name of the table.")
@click.option(
    "--region",
    envvar=["KMS_STORE_REGION", "AWS_KMS_REGION"],
    show_envvar=True,
    help="Region of the table: that of the KMS key.",
)
@click.option(
    "--branch-keys-table",
    envvar="KMS_BRANCH_KEYS_TABLE",
    show_envvar=True,
    help="Name of the table of branch keys.  [default: the table's name, -branch-keys instead of -keys at its end]",
)
@click.option(
    "--endpoint",
    envvar="KMS_STORE_ENDPOINT",
    show_envvar=True,
    callback=_endpoint,
    help="DynamoDB endpoint, for emulators.",
)
@click.option("--dsn", envvar="KMS_STORE_DSN", show_envvar=True, help="PostgreSQL: the database, as kms.store.dsn.")
@click.option("--grant-to", help="PostgreSQL: the daemon's user, which gets the rights that it needs.")
@click.option("--allow-shredding", is_flag=True, help="PostgreSQL: let that user delete branch keys.")
def init(
    table: str | None,
    region: str | None,
    branch_keys_table: str | None,
    endpoint: str | None,
    dsn: str | None,
    grant_to: str | None,
    allow_shredding: bool,
) -> None:
    """Make the tables of signing keys and of branch keys, in DynamoDB or in PostgreSQL, or turn on what they lack."""
    if (table is None) == (dsn is None):
        raise click.UsageError("give --table, for DynamoDB, or --dsn, for PostgreSQL")
    try:
        if dsn is not None:
            asyncio.run(_init_postgresql(dsn, grant_to, allow_shredding))
            return
        if table is None or region is None:
            raise click.UsageError("give --region, the one of the KMS key")
        asyncio.run(_init(table, branch_keys_table or branch_keys_table_of(table), region, endpoint))
    except (KmsError, StartRefused) as error:
        click.echo(f"betrace-kms: {error}", err=True)
        raise SystemExit(NOT_DONE) from None


def branch_keys_table_of(table: str) -> str:
    """Return the name of the table of branch keys beside a table of signing keys, if no other is chosen."""
    return f"{table.removesuffix('-keys')}-branch-keys"


async def _init(table: str, branch_keys_table: str, region: str, endpoint: str | None) -> None:
    from betrace_kms_server.stores.dynamodb.client import dynamodb_client  # late: importing the AWS SDK takes a second
    from betrace_kms_server.stores.dynamodb.creation import create_table
    from betrace_kms_server.stores.dynamodb.table import BRANCH_KEYS, KEY_STORE, check_name

    if table == branch_keys_table:
        raise StartRefused(
            f"kms.store.table and kms.branch-keys.table are both {table}: they are two tables, choose another name for"
            " one of them"
        )
    both = ((table, KEY_STORE), (branch_keys_table, BRANCH_KEYS))
    for name, kind in both:
        check_name(name, kind)
    for name, kind in both:
        client_factory = partial(dynamodb_client, holder=OPERATOR)
        async for done in create_table(
            name, region=region, endpoint=endpoint, kind=kind, client_factory=client_factory
        ):
            click.echo(done)
    click.echo(f"set kms.store.table={table} and kms.branch-keys.table={branch_keys_table}")


async def _init_postgresql(dsn: str, role: str | None, may_shred: bool) -> None:
    try:
        import psycopg

        from betrace_kms_server.stores.postgresql.conninfo import complete
        from betrace_kms_server.stores.postgresql.database import unavailable
        from betrace_kms_server.stores.postgresql.schema import make_tables
    except ImportError as cause:
        raise StartRefused("PostgreSQL needs betrace-kms[postgresql]: install that") from cause
    try:
        async with await psycopg.AsyncConnection.connect(complete(dsn), autocommit=True) as connection:
            new = await make_tables(connection, role, may_shred=may_shred)
    except (psycopg.Error, OSError) as cause:
        raise unavailable(cause) from cause
    click.echo("the key store is made" if new else "the key store was there, and keeps what it holds")
    if role:
        click.echo(f"{role} has the rights of a daemon{', and may delete branch keys' if may_shred else ''}")
