"""Connections to PostgreSQL: few, checked before use, bounded in time, and none of them left in a transaction.

Works behind PgBouncer in transaction mode: no prepared statements, no settings of a session. What a transaction needs
is set in it (`SET LOCAL`).

A write whose connection is lost has an unknown outcome. `write` finds it out: it reads in a transaction that first
takes the lock of the tenant, so what the server may still be committing is over by then.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import errors
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from betrace_kms_server.core.errors import StoreUnavailable
from betrace_kms_server.host.process import descriptor_shortage

T = TypeVar("T")
Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Row = tuple[Any, ...]

CONNECTIONS = 8
WAITING = 256
STATEMENT_SECONDS = 5.0
_CONNECT_SECONDS = 3
_RECONNECT_SECONDS = 1.0
"""For how long the pool tries by itself; from then on, who needs a connection does."""
_LIMITS = (
    "SELECT set_config('statement_timeout', '5s', true), set_config('lock_timeout', '3s', true),"
    " set_config('idle_in_transaction_session_timeout', '10s', true), set_config('synchronous_commit', 'on', true)"
)
"""For one transaction. `synchronous_commit` is what makes a commit durable, whatever the server's default is."""
_LOST = (psycopg.OperationalError, psycopg.InterfaceError, TimeoutError, OSError)


class Database:
    """A pool of connections. A context manager."""

    def __init__(self, conninfo: str, password: Callable[[], str | None]) -> None:
        self._refusal: Exception | None = None
        """Why no connection could be made, when it was last tried."""

        class Recorded(psycopg.AsyncConnection[Row]):
            @classmethod
            async def connect(cls, *args: Any, **given: Any) -> Any:
                self._refusal = None
                try:
                    return await super().connect(*args, **given)
                except Exception as error:
                    self._refusal = error
                    raise

        async def options() -> dict[str, Any]:  # for each connection: the password may have changed
            secret = await asyncio.to_thread(password)
            given = {"autocommit": True, "prepare_threshold": None, "connect_timeout": _CONNECT_SECONDS}
            return {**given, "password": secret} if secret else given

        async def connect() -> psycopg.AsyncConnection[Row]:
            return await psycopg.AsyncConnection.connect(conninfo, **await options())

        self._connect = connect
        self._pool = AsyncConnectionPool(
            conninfo,
            min_size=1,
            max_size=CONNECTIONS,
            max_waiting=WAITING,
            timeout=STATEMENT_SECONDS,
            max_lifetime=3600.0,
            reconnect_timeout=_RECONNECT_SECONDS,
            connection_class=Recorded,
            open=False,
            check=AsyncConnectionPool.check_connection,
            kwargs=options,
        )

    async def __aenter__(self) -> "Database":
        """Raise StoreUnavailable at once if no connection can be made: the pool would try again and again."""
        try:
            await (await self._connect()).close()
        except (psycopg.Error, OSError) as cause:
            raise unavailable(cause) from cause
        await self._pool.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._pool.close(timeout=1.0)

    async def fetch(self, statement: LiteralString, *parameters: object) -> Sequence[Row]:
        """Run one statement that only reads; once more if the connection was lost. Raises StoreUnavailable."""
        try:
            return await self._read(statement, parameters)
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, psycopg.OperationalError):
                raise
            return await self._read(statement, parameters)

    async def write(
        self,
        work: Callable[[Connection], Awaitable[T]],
        lock: tuple[LiteralString, str] | None = None,
        landed: Callable[[], Awaitable[T | None]] | None = None,
    ) -> T:
        """Do work in one transaction, which is durable when this returns. Raises StoreUnavailable.

        `lock` is a statement that takes the lock under which the work is done, and its parameter. If the connection is
        lost, `landed` is asked what became of the work; nothing, or False, is that it has not landed.
        """
        try:
            async with self._connection() as connection, asyncio.timeout(STATEMENT_SECONDS), connection.transaction():
                await connection.execute(_LIMITS)
                if lock is not None:
                    await connection.execute(lock[0], (lock[1],))
                return await work(connection)
        except StoreUnavailable as error:
            if landed is None or not isinstance(error.__cause__, _LOST):
                raise
            if lock is not None:
                await self.write(_nothing, lock)  # waits for what the server may still be doing
            outcome = await landed()
            if not outcome:
                raise
            return outcome

    async def _read(self, statement: LiteralString, parameters: Sequence[object]) -> Sequence[Row]:
        async with self._connection() as connection, asyncio.timeout(STATEMENT_SECONDS):
            cursor = await connection.execute(statement, parameters)
            return await cursor.fetchall()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        try:
            async with self._pool.connection() as connection:
                yield connection
        except (psycopg.Error, PoolTimeout, TooManyRequests, PoolClosed, TimeoutError, OSError) as cause:
            if isinstance(cause, PoolTimeout) and self._refusal is not None:
                cause.__cause__ = self._refusal  # the pool knows only that there was no connection in time
                raise unavailable(self._refusal) from cause
            raise unavailable(cause) from cause


async def _nothing(connection: Connection) -> None: ...


def unavailable(cause: BaseException) -> StoreUnavailable:
    """Return the error for whatever psycopg raised. What the server said stays in the cause, for the log."""
    return StoreUnavailable(descriptor_shortage() or _explained(cause), place="table")


_WRONG_LOGIN = "PostgreSQL refuses the daemon's user or password: check kms.store.dsn and kms.store.password-file"
_REFUSALS = {
    "password authentication failed": _WRONG_LOGIN,
    "no password supplied": _WRONG_LOGIN,
    'role ".*" does not exist': _WRONG_LOGIN,
    "pg_hba.conf": "PostgreSQL admits no such user from here: add a line to its pg_hba.conf",
    'database ".*" does not exist': "PostgreSQL has no such database: check kms.store.dsn",
    "certificate": "TLS with PostgreSQL fails: check sslrootcert, and that the server's certificate names the host",
    "too many (clients|connections)": "PostgreSQL has no connection left: raise max_connections, or use PgBouncer",
}
"""libpq gives a refused login no code, so what is in the English text says which it is."""


def _explained(cause: BaseException) -> str:
    said = str(cause).lower() if isinstance(cause, psycopg.OperationalError) else ""
    if (known := next((step for text, step in _REFUSALS.items() if re.search(text, said)), None)) is not None:
        return known
    match cause:
        case errors.InsufficientPrivilege():
            return "PostgreSQL denies the daemon what it needs: run betrace-kms keystore init with --grant-to its user"
        case errors.UndefinedTable() | errors.InvalidSchemaName() | errors.UndefinedColumn():
            return "the database has no key store of this version: run betrace-kms keystore init"
        case errors.ReadOnlySqlTransaction():
            return "PostgreSQL answers as a standby, which cannot be written: let kms.store.dsn find the primary"
        case errors.DiskFull():
            return "PostgreSQL's disk is full: make room on it"
        case errors.QueryCanceled() | errors.LockNotAvailable() | TimeoutError():
            return "PostgreSQL does not answer in time: check its load and its locks; try again later"
        case PoolTimeout() | TooManyRequests():
            return "PostgreSQL does not answer, or too many calls wait for it: check kms.store.dsn and the route to it"
        case psycopg.OperationalError() | psycopg.InterfaceError() | OSError():
            return "no answer from PostgreSQL: check kms.store.dsn, that it runs, and the route to it; try again later"
    return f"PostgreSQL refuses a statement ({getattr(cause, 'sqlstate', None) or type(cause).__name__}): report it"
