"""A database with the tables of a key store, made once for a server and emptied for each test."""

from dataclasses import dataclass
from typing import LiteralString

import psycopg
from betrace_kms_server.stores.postgresql.schema import make_tables

from tests.postgres_server import PostgresServer

ROLE, PASSWORD = "betrace_kms_daemon", "correct horse"
_TABLES = "signing_keys, betrace_kms.tenants, betrace_kms.emergency_stop, betrace_kms.branch_keys"
_MADE: dict[int, str] = {}


@dataclass(frozen=True, slots=True)
class Place:
    """A database, and a role that has the daemon's rights there and no others."""

    server: PostgresServer
    database: str

    @property
    def conninfo(self) -> str:
        """How the daemon connects, without a password over the socket."""
        return self.server.local(self.database, ROLE)

    @property
    def settings(self) -> dict[str, str]:
        """What a daemon's environment needs for it."""
        return {"KMS_STORE": "postgresql", "KMS_STORE_DSN": self.conninfo}

    def execute(self, statement: str) -> None:
        """Run a statement as the owner of the tables."""
        self.server.execute(statement, self.database)

    def read(self, statement: LiteralString, *parameters: str) -> list[str]:
        """Return the first column of what a statement finds."""
        with psycopg.connect(self.server.local(self.database)) as connection:
            return [row[0] for row in connection.execute(statement, parameters)]

    def forbid_writes(self) -> None:
        """Let the database answer as a standby does, also where somebody is connected already."""
        self.execute(f"ALTER DATABASE {self.database} SET default_transaction_read_only = on")
        self.end_connections()

    def end_connections(self) -> None:
        """End all connections of the daemon's role."""
        self.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'")  # noqa: S608


async def new_place(server: PostgresServer) -> Place:
    """Make a database with tables."""
    place = Place(server, server.new_database())
    server.execute(
        f"DO $$ BEGIN CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )
    async with await psycopg.AsyncConnection.connect(server.local(place.database), autocommit=True) as connection:
        assert await make_tables(connection, ROLE, may_shred=True)
    return place


async def emptied(server: PostgresServer) -> Place:
    """Return the one database of a server, with empty tables."""
    if server.port not in _MADE:
        _MADE[server.port] = (await new_place(server)).database
    place = Place(server, _MADE[server.port])
    server.execute(f"ALTER DATABASE {place.database} RESET default_transaction_read_only")
    place.execute(f"TRUNCATE betrace_kms.{_TABLES}")
    return place
