"""The key store in PostgreSQL against a real server: what it refuses, and what it does when a connection is lost."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg
import pytest
from betrace_kms_server.core.errors import StartRefused, StoreUnavailable
from betrace_kms_server.core.keys import WrappedKey
from betrace_kms_server.core.lock_state import LockState
from betrace_kms_server.stores.postgresql.conninfo import complete, password_of
from betrace_kms_server.stores.postgresql.schema import make_tables
from betrace_kms_server.stores.postgresql.store import PostgresStore, open_postgresql
from psycopg.conninfo import conninfo_to_dict

from tests.contract.postgres_peer import PASSWORD, ROLE, Place, emptied, new_place
from tests.contract.samples import stored_key
from tests.postgres_server import PostgresServer, postgres_server


@pytest.fixture
async def place(postgres: PostgresServer) -> Place:
    """Give the database of the server, with empty tables."""
    return await emptied(postgres)


@pytest.mark.parametrize(
    ("dsn", "environ", "problem"),
    [
        ("host=db.example.com dbname=kms", {}, "sslmode=verify-full"),
        ("host=db.example.com sslmode=require", {}, "sslmode=verify-full"),
        ("host=127.0.0.1,db.example.com", {}, "sslmode=verify-full"),
        ("postgresql://kms@db.example.com/kms", {}, "sslmode=verify-full"),
        ("host=localhost hostaddr=10.0.0.7", {}, "sslmode=verify-full"),
        ("service=kms", {}, "sslmode=verify-full"),
        ("", {"PGHOST": "db.example.com"}, "sslmode=verify-full"),
        ("", {"PGHOSTADDR": "10.0.0.7"}, "sslmode=verify-full"),
        ("", {"PGSERVICE": "kms"}, "sslmode=verify-full"),
        ("host=db.example.com", {"PGSSLMODE": "prefer"}, "sslmode=verify-full"),
        ("host", {}, "kms.store.dsn is malformed"),
        ("nosuch=option", {}, "kms.store.dsn is malformed"),
        ("host=localhost password=s3cret", {}, "holds a password"),
    ],
)
def test_refused_dsn(dsn: str, environ: dict[str, str], problem: str) -> None:
    """A server elsewhere must prove its name, and a password has a file."""
    with pytest.raises(StartRefused, match=problem) as caught:
        complete(dsn, environ)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("dsn", "environ"),
    [
        (None, {}),
        ("host=/run/postgresql", {}),
        ("host=127.0.0.1", {}),
        ("host=::1", {}),
        ("postgresql://kms@localhost/kms", {}),
        ("host=db.example.com sslmode=verify-full", {}),
        ("host=db.example.com", {"PGSSLMODE": "verify-full"}),
    ],
)
def test_dsn_that_is_taken(dsn: str | None, environ: dict[str, str]) -> None:
    """This machine needs no certificate."""
    assert "betrace-kms" == conninfo_to_dict(complete(dsn, environ))["application_name"]


def test_of_several_hosts_the_primary_is_chosen() -> None:
    """Unless the operator says something else."""
    both = "host=a.example.com,b.example.com sslmode=verify-full"
    assert "read-write" == conninfo_to_dict(complete(both, {}))["target_session_attrs"]
    assert "any" == conninfo_to_dict(complete(f"{both} target_session_attrs=any", {}))["target_session_attrs"]
    assert "target_session_attrs" not in conninfo_to_dict(complete("host=localhost", {}))


async def opened(conninfo: str, password: Callable[[], str | None] = lambda: None) -> None:
    """Open a store, and close it."""
    async with open_postgresql(conninfo, password):
        pass


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE betrace_kms.origin SET version = version + 1", "upgrade this daemon"),
        ("UPDATE betrace_kms.origin SET version = version - 1", "run betrace-kms keystore init"),
        ("DELETE FROM betrace_kms.origin", "was not made whole"),
        ("DROP SCHEMA betrace_kms CASCADE", "no key store of this version: run betrace-kms keystore init"),
        ("REVOKE USAGE ON SCHEMA betrace_kms FROM " + ROLE, "denies the daemon what it needs: run .* --grant-to"),
    ],
)
async def test_refused_database(statement: str, problem: str, postgres: PostgresServer) -> None:
    """The daemon makes and changes no table; it says who does."""
    place = await new_place(postgres)
    place.execute(statement)
    with pytest.raises(StartRefused, match=problem):
        await opened(place.conninfo)


async def test_refused_login(postgres: PostgresServer, place: Place, tmp_path: Path) -> None:
    """A wrong password, a user and a database that are not there, and a server that does not run."""
    secret = tmp_path / "password"
    secret.touch(0o600)
    secret.write_text(f"{PASSWORD}\n")
    tcp = postgres.tcp(place.database, ROLE)
    await opened(tcp, password_of(secret))
    secret.write_text("wrong")
    with pytest.raises(StartRefused, match="refuses the daemon's user or password"):
        await opened(tcp, password_of(secret))
    with pytest.raises(StartRefused, match=r"refuses the daemon's user or password"):
        await opened(tcp.replace(ROLE, "nobody"), password_of(secret))
    with pytest.raises(StartRefused, match="no such database"):
        await opened(postgres.local("nowhere", ROLE))
    with pytest.raises(StartRefused, match="no answer from PostgreSQL"):
        await opened("host=127.0.0.1 port=1")


async def test_a_password_that_changed_is_read_again(postgres: PostgresServer, tmp_path: Path) -> None:
    """By the next connection; the file is checked as other secrets are."""
    place = await new_place(postgres)
    postgres.execute("CREATE ROLE changing LOGIN PASSWORD 'first'; GRANT " + ROLE + " TO changing")
    secret = tmp_path / "password"
    secret.touch(0o600)
    secret.write_text("first")
    async with open_postgresql(postgres.tcp(place.database, "changing"), password_of(secret)) as store:
        postgres.execute("ALTER ROLE changing PASSWORD 'second'")
        secret.write_text("second")
        postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'changing'")
        assert await store.active("acme") is None
    secret.chmod(0o644)
    with pytest.raises(OSError, match=r"kms\.store\.password-file: .* is open to others"):
        password_of(secret)()


async def test_two_that_make_the_tables_at_once(postgres: PostgresServer) -> None:
    """One makes them, and the other finds them; rights are given again, and nothing that is there changes."""
    database = postgres.new_database()
    postgres.execute("CREATE ROLE other_daemon")

    async def make() -> bool:
        async with await psycopg.AsyncConnection.connect(postgres.local(database), autocommit=True) as connection:
            return await make_tables(connection, "other_daemon", may_shred=False)

    assert [False, False, False, True] == sorted(await asyncio.gather(*(make() for _ in range(4))))
    async with open_postgresql(postgres.local(database)) as store:
        key = await store.create(stored_key())
        await make()
        assert key == await store.active("acme")


async def test_rights_of_a_daemon_suffice_and_are_checked(place: Place) -> None:
    """It may not delete or drop what it keeps; a user that may is found by a production check."""
    async with open_postgresql(place.conninfo) as store:
        await store.check()
        rights, _ = await store.inspect()
        assert "" == rights.problem
        for statement in ("DELETE FROM betrace_kms.signing_keys", "DROP TABLE betrace_kms.tenants"):
            with pytest.raises(StoreUnavailable, match="denies the daemon what it needs"):
                await store.database.fetch(statement)
    async with open_postgresql(place.server.local(place.database)) as store:
        rights, durability = await store.inspect()
        assert "let another user own it" in rights.problem
        assert "fsync" in durability.problem  # the server of the tests


@dataclass
class Proxy:
    """What is between a store and its server. `cut_at` ends the connection once the server has answered to a text."""

    port: int = 0
    cut_at: bytes = b""
    cuts: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)


@asynccontextmanager
async def proxied(place: Place) -> AsyncIterator[Proxy]:
    """Run a proxy in this event loop."""
    proxy = Proxy()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(f"{place.server.folder}/.s.PGSQL.{place.server.port}")
        proxy.writers += [writer, back]
        cutting = False

        async def forward() -> None:
            nonlocal cutting
            while data := await reader.read(65536):
                cutting = cutting or bool(proxy.cut_at and proxy.cut_at in data)
                back.write(data)
            back.close()

        async def answer() -> None:
            while data := await there.read(65536):
                if cutting:
                    proxy.cut_at, proxy.cuts = b"", proxy.cuts + 1
                    break
                writer.write(data)
            writer.close()
            back.close()

        await asyncio.gather(forward(), answer(), return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for writer in proxy.writers:
            writer.close()
        await server.wait_closed()


@pytest.mark.parametrize("moment", [b"COMMIT", b"INSERT INTO betrace_kms.signing_keys", b"UPDATE betrace_kms."])
async def test_a_connection_that_is_lost_loses_no_key_and_makes_none_twice(moment: bytes, place: Place) -> None:
    """At the commit the outcome is read back; before it nothing was written, and the caller may repeat the call."""
    first, second = stored_key(), stored_key(key_id="f" * 32, create_time_ms=2_000_000_000_000)
    place.execute(f"ALTER ROLE {ROLE} PASSWORD NULL")
    place.server.execute(f"ALTER ROLE {ROLE} PASSWORD '{PASSWORD}'")
    async with proxied(place) as proxy:
        conninfo = place.server.tcp(place.database, ROLE, proxy.port)
        async with open_postgresql(conninfo, lambda: PASSWORD) as store:
            proxy.cut_at = moment
            created = await outcome(lambda: store.create(first))
            assert created in (first, "unavailable")
            assert (first if moment == b"COMMIT" else created) == created
            await store.create(first)
            proxy.cut_at = moment
            rotated = await outcome(lambda: store.rotate(first, second))
            assert rotated in (True, "unavailable")
            assert (True if moment == b"COMMIT" else rotated) == rotated
            assert await store.rotate(first, second)
            proxy.cut_at = moment
            await outcome(lambda: store.set_lock(LockState("drill", 1)))
            proxy.cut_at = b""
            assert [first.key_id, second.key_id] == [key.key_id for key in await store.all("acme")]
            assert 1 == await store.generation("acme")
            assert 2 <= proxy.cuts


async def outcome(call: Callable[[], object]) -> object:
    """Return what a call gives, or `unavailable`."""
    try:
        return await call()  # type: ignore[misc]
    except StoreUnavailable:
        return "unavailable"


async def test_reads_survive_connections_that_end(place: Place) -> None:
    """As when a primary fails over: who reads does not notice."""
    async with open_postgresql(place.conninfo) as store:
        key = await store.create(stored_key())
        for _ in range(3):
            place.end_connections()
            assert key == await store.active("acme")


async def test_a_standby_is_named(place: Place) -> None:
    """It answers reads, and no key is acknowledged."""
    async with open_postgresql(place.conninfo) as store:
        key = await store.create(stored_key())
        place.forbid_writes()
        assert key == await store.active("acme")
        with pytest.raises(StoreUnavailable, match="answers as a standby"):
            await store.create(stored_key("globex"))
        with pytest.raises(StoreUnavailable, match="answers as a standby"):
            await store.check()


async def test_a_lock_that_somebody_holds_ends_in_time(place: Place) -> None:
    """A caller of another tenant does not wait."""
    async with open_postgresql(place.conninfo) as store:
        await store.create(stored_key())
        with psycopg.connect(place.server.local(place.database)) as holder:
            holder.execute("SELECT 1 FROM betrace_kms.tenants WHERE tenant_id = 'acme' FOR UPDATE")
            await store.create(stored_key("globex"))
            with pytest.raises(StoreUnavailable, match="does not answer in time"):
                await store.raise_generation("acme")
            holder.rollback()
        await store.raise_generation("acme")


async def test_a_server_that_restarts_is_found_again() -> None:
    """What was committed is there, after a crash too."""
    with postgres_server() as server:
        place = await new_place(server)
        async with open_postgresql(place.conninfo) as store:
            key = await store.create(stored_key())
            server.stop()
            with pytest.raises(StoreUnavailable, match="no answer from PostgreSQL"):
                await store.active("acme")
            server.start()
            assert key == await until(store)


async def until(store: PostgresStore) -> object:
    """Read until the store answers."""
    for _ in range(50):
        try:
            return await store.active("acme")
        except StoreUnavailable:
            await asyncio.sleep(0.2)
    raise AssertionError("the store did not come back")


async def test_a_row_of_another_wrapping_is_not_overwritten(place: Place) -> None:
    """Of two that wrap a key anew one wins, whichever status the row has meanwhile."""
    key = stored_key()
    async with open_postgresql(place.conninfo) as store:
        await store.create(key)
        anew = replace(key, wrapped_seed=WrappedKey(b"anew", "arn:other"))
        late = replace(key, wrapped_seed=WrappedKey(b"late", "arn:late"))
        await asyncio.gather(store.replace(key, anew), store.replace(key, late))
        assert await store.active("acme") in (anew, late)
