"""The file of the SQLite store: how one of an older version becomes ours, wherever the process dies, and newer ones."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.core.keys import StoredKey
from betrace_kms_server.stores.sqlite.store import open_sqlite

from tests.contract.samples import stored_key

VERSION_1 = """
CREATE TABLE signing_keys (
    tenant_id      TEXT    NOT NULL,
    key_id         TEXT    NOT NULL,
    provider       TEXT    NOT NULL,
    master_key_arn TEXT    NOT NULL,
    wrapped_seed   BLOB    NOT NULL,
    public_key     BLOB    NOT NULL,
    status         TEXT    NOT NULL CHECK (status IN ('active', 'rotated', 'revoked')),
    create_time_ms INTEGER NOT NULL,
    rotate_time_ms INTEGER,
    revoke_time_ms INTEGER,
    checksum       BLOB    NOT NULL,
    PRIMARY KEY (tenant_id, key_id)
) STRICT;
CREATE UNIQUE INDEX one_active_key ON signing_keys (tenant_id) WHERE status = 'active';
PRAGMA application_id=0x42544B53;
PRAGMA user_version=1;
"""
"""What version 0.1.0 made."""

DIES_AT_STATEMENT = """
import asyncio, os, signal, sqlite3, sys
from pathlib import Path
from betrace_kms_server.stores.sqlite.store import open_sqlite

left, connect = int(sys.argv[2]), sqlite3.connect

def traced(*arguments, **options):
    def count(statement):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
    connection = connect(*arguments, **options)
    connection.set_trace_callback(count)
    return connection

async def open_it():
    async with open_sqlite(Path(sys.argv[1])):
        pass

sqlite3.connect = traced
asyncio.run(open_it())
"""
"""Opens the store, and is killed before it runs the statement of a number."""


KEYS = (
    "SELECT tenant_id, key_id, provider, master_key_arn, wrapped_seed, public_key, status, create_time_ms,"
    " rotate_time_ms, revoke_time_ms, checksum FROM signing_keys"
)


def version_1(database: Path) -> list[StoredKey]:
    """Make a store as version 0.1.0 did, and return its keys."""
    keys = [stored_key(f"tenant-{number:03}") for number in range(100)]
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(VERSION_1)
        for key in keys:
            connection.execute(
                "INSERT INTO signing_keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    key.tenant_id,
                    key.key_id,
                    key.provider,
                    key.wrapped_seed.master_key_arn,
                    key.wrapped_seed.blob,
                    key.public_key,
                    key.status,
                    key.create_time_ms,
                    None,
                    None,
                    key.checksum(),
                ),
            )
        connection.commit()
    return keys


def asked(database: Path, statement: str) -> Sequence[tuple[object, ...]]:
    """Return what a database answers, asked behind the store's back."""
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(statement).fetchall()


def version(database: Path) -> int:
    """Return the schema version of a file that is whole: its tables are those of the version, or this fails."""
    ((answer,),) = asked(database, "PRAGMA user_version")
    number = int(str(answer))
    tables = {name for (name,) in asked(database, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {1: {"signing_keys"}, 2: {"signing_keys", "tenants", "emergency_stop", "branch_keys"}}.get(number) == tables
    assert [("ok",)] == asked(database, "PRAGMA integrity_check")
    return number


def files(database: Path) -> Mapping[str, bytes]:
    """Return everything in the store's folder."""
    return {path.name: path.read_bytes() for path in database.parent.iterdir()}


async def test_older_store_is_brought_to_this_version(database: Path) -> None:
    """A store of version 1 keeps every key as it was, and from then on has generations, which a rotation raises."""
    keys = version_1(database)
    before = asked(database, KEYS)
    successor = stored_key("tenant-005", create_time_ms=1_700_000_000_001)
    async with open_sqlite(database) as store:
        assert (2, before) == (version(database), asked(database, KEYS))
        assert keys == [key async for key in store.rows()]
        assert 0 == await store.generation("tenant-005")
        assert await store.rotate(keys[5], successor)
        assert (1, successor) == (await store.generation("tenant-005"), await store.active("tenant-005"))
    assert {database.name} == set(files(database))


async def test_store_that_was_brought_to_this_version_is_like_a_new_one(database: Path, tmp_path: Path) -> None:
    """It makes no difference later how old a store is, but for what it records of the version that made it."""
    new = tmp_path / "new.db"
    version_1(database)
    for path in (database, new):
        async with open_sqlite(path):
            pass
    schema = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name <> 'origin' ORDER BY name"
    assert asked(new, schema) == asked(database, schema)


async def test_store_of_an_earlier_version_keeps_the_key_type_of_its_messages(database: Path) -> None:
    """Whatever made it, a file without a record of it may have daemons that open no other messages."""
    version_1(database)
    for _ in range(2):
        async with open_sqlite(database) as store:
            assert await store.sealing_key_type() == "encryption"


async def test_two_processes_may_do_it_at_once(database: Path) -> None:
    """Who comes second finds it done."""
    keys = version_1(database)

    async def opened() -> list[StoredKey]:
        async with open_sqlite(database) as store:
            return [key async for key in store.rows()]

    assert [keys] * 4 == await asyncio.gather(*(opened() for _ in range(4)))
    assert 2 == version(database)


async def test_store_that_cannot_be_written_now_keeps_its_version(database: Path) -> None:
    """A file that another process reads is refused in one line, and nothing is changed; later it is done."""
    version_1(database)
    before = files(database)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM signing_keys").fetchone()
        with pytest.raises(StartRefused, match=r"version 2: \(SQLITE_BUSY\) .*; nothing was changed") as refused:
            async with open_sqlite(database):
                pass
    assert (1, before) == (len(str(refused.value).splitlines()), files(database))
    async with open_sqlite(database):
        assert 2 == version(database)


def test_kill_at_any_statement_leaves_one_version_or_the_other(database: Path) -> None:
    """Whichever statement between version 1 and 2 is the last, every key is there, and the next start does it."""
    version_1(database)
    good, before, seen = database.read_bytes(), asked(database, KEYS), []
    for number in range(1, 100):
        database.write_bytes(good)
        died = subprocess.run([sys.executable, "-c", DIES_AT_STATEMENT, str(database), str(number)], check=False)
        seen.append(version(database))
        assert before == asked(database, KEYS)
        subprocess.run([sys.executable, "-c", DIES_AT_STATEMENT, str(database), "0"], check=True)
        assert 2 == version(database)
        if died.returncode == 0:
            break
        assert -signal.SIGKILL == died.returncode
    assert ({1, 2}, sorted(seen)) == (set(seen), seen)
    assert 4 < seen.count(1)


@pytest.mark.parametrize("number", [0, 3, 1000])
async def test_newer_schema_is_refused_and_left_alone(database: Path, number: int) -> None:
    """A store that a newer version made is left to that version."""
    version_1(database)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(f"PRAGMA user_version={number}")
    newer = files(database)
    with pytest.raises(StartRefused, match=f"has schema version {number}, this betrace-kms knows 2"):
        async with open_sqlite(database):
            pass
    assert newer == files(database)
