"""kill -9 while the SQLite store is written: what it acknowledged is there afterwards, and each tenant has one key.

Run as a program, this file is the process that is killed.
"""

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import pytest
from betrace_kms_server.stores.protocol import KeyStore
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE, open_sqlite

from tests.contract.samples import stored_key

ROUNDS = 25
TENANTS = ("acme", "globex", "initech", "umbrella")
REPOSITORY = Path(__file__).parents[2]


async def write(database: Path) -> None:
    """Create, rotate and revoke keys for ever; print the tenant and the id of each one that the store acknowledged."""
    async with open_sqlite(database) as store:
        await asyncio.gather(*(_succeed_for_ever(store, tenant_id) for tenant_id in TENANTS))


async def _succeed_for_ever(store: KeyStore, tenant_id: str) -> None:
    active = await store.create(stored_key(tenant_id))
    _acknowledge(tenant_id, active.key_id)
    number = 0
    while True:
        number += 1
        successor = stored_key(tenant_id, create_time_ms=active.create_time_ms + 1)
        if number % 3:
            done = await store.rotate(active, successor)
        else:
            done = await store.revoke(active, successor.create_time_ms, successor)
        assert done
        active = successor
        _acknowledge(tenant_id, active.key_id)


def _acknowledge(tenant_id: str, key_id: str) -> None:
    os.write(sys.stdout.fileno(), f"{tenant_id} {key_id}\n".encode())


def test_no_acknowledged_key_is_lost_by_a_kill(tmp_path: Path) -> None:
    """The writer is killed at 25 random moments; each time every key it told of is there, and no tenant has two active.

    What was not acknowledged may be there or not, but whole: each key but the active one tells its end, and the
    generation counts the successions.
    """
    moment = random.Random(20_251_022)  # noqa: S311  # a moment to kill at, not a secret
    database = tmp_path / DATABASE_FILE
    acknowledged: dict[str, set[str]] = defaultdict(set)
    for _ in range(ROUNDS):
        for line in _killed_writer(database, moment.uniform(0, 0.1)):
            tenant_id, key_id = line.split()
            acknowledged[tenant_id].add(key_id)
        assert set(TENANTS) == set(acknowledged)
        asyncio.run(_check(database, acknowledged))
        with closing(sqlite3.connect(database)) as connection:
            assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
    assert ROUNDS * len(TENANTS) < sum(map(len, acknowledged.values()))


def _killed_writer(database: Path, seconds: float) -> list[str]:
    """Run the writer until every tenant has a key and some time longer; return the lines that came out whole."""
    with subprocess.Popen(
        [sys.executable, __file__, str(database)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])},
    ) as writer:
        assert writer.stdout is not None
        lines: list[str] = []
        while {line.split()[0] for line in lines} != set(TENANTS):
            line = writer.stdout.readline()
            assert line, "the writer ended by itself"
            lines.append(line)
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(seconds)
        writer.kill()
        lines += writer.stdout.readlines()
    return [line for line in lines if line.endswith("\n")]


async def _check(database: Path, acknowledged: dict[str, set[str]]) -> None:
    async with open_sqlite(database) as store:
        for tenant_id, key_ids in acknowledged.items():
            keys = await store.all(tenant_id)
            assert key_ids <= {key.key_id for key in keys}
            assert [keys[-1]] == [key for key in keys if key.status == "active"]
            assert all(key.rotate_time_ms or key.revoke_time_ms for key in keys[:-1])
            assert len(keys) - 1 == await store.generation(tenant_id)


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1])))
