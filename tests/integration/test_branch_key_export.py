"""`betrace-kms keystore export` and `import` of branch keys: between stores, beside others, broken off, shredded."""

import asyncio
import json
import sqlite3
import subprocess
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from betrace.kms.v1 import admin_pb2 as pb
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace_kms_client import AsyncKmsClient
from betrace_kms_server.core.shredding import Shredding, Status
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE, open_sqlite

from tests.daemon import COMMAND, running
from tests.integration.test_aws_daemon import aws
from tests.moto_server import MotoServer

CONTEXT = {"record": "17"}
MODE = {"kms_encryption_mode": "branch-key"}
LOGICAL = {"kms_branch_keys_logical_name": "betrace-kms"}


async def keystore(
    *arguments: object, stdin: bytes = b"", values: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run the command; `values` are settings as those of daemons are given."""
    environ = [f"{name.upper()}={value}" for name, value in (values or {}).items()]
    done = await asyncio.to_thread(
        subprocess.run,
        ["env", *environ, str(COMMAND), "keystore", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def counted(added: int = 0, retired: int = 0, there: int = 0, different: int = 0, refused: int = 0) -> str:
    """Return the summary of an import."""
    return (
        f"keystore: {added} added, {retired} added as rotated, {there} already there, {different} different,"
        f" {refused} refused\n"
    )


def rows(folder: Path) -> list[tuple[object, ...]]:
    """Return the raw rows of a folder's branch key store."""
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as database:
        return database.execute("SELECT * FROM branch_keys ORDER BY branch_key_id, type").fetchall()


async def sealed_by(folder: Path, values: Mapping[str, str], *, rotate: bool = True) -> tuple[list[bytes], bytes]:
    """Seal under two versions of acme's branch key; returns the messages and a MAC."""
    async with (
        running(folder, **MODE, **values) as daemon,
        AsyncKmsClient(daemon.addresses[0]) as client,
        grpc.aio.insecure_channel(f"unix:{folder}/admin.sock") as channel,
    ):
        messages = [(await client.encrypt("acme", b"secret", CONTEXT)).ciphertext_blob]
        if rotate:
            await KmsAdminServiceStub(channel).RotateKeys(pb.RotateKeysRequest(tenant_id="acme"))
            messages.append((await client.encrypt("acme", b"secret", CONTEXT)).ciphertext_blob)
        return messages, (await client.generate_mac("acme", "email", b"alice")).mac


async def check_opens(folder: Path, values: Mapping[str, str], messages: list[bytes], mac: bytes) -> None:
    """Check that a daemon opens the messages, and computes the same MAC."""
    async with running(folder, **MODE, **values) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        for message in messages:
            assert b"secret" == (await client.decrypt("acme", message, CONTEXT)).plaintext
        assert mac == (await client.generate_mac("acme", "email", b"alice")).mac


def copy_master_key(old: Path, new: Path) -> None:
    """Let a second folder have the local master key of the first, as a restore does."""
    new.chmod(0o700)
    (new / "local-master.key").write_bytes((old / "local-master.key").read_bytes())
    (new / "local-master.key").chmod(0o600)


async def test_rows_are_byte_for_byte_what_they_were(tmp_path: Path) -> None:
    """Every version, the active one and the beacon key; a second import changes nothing."""
    old, new = tmp_path / "old", tmp_path / "new"
    messages, mac = await sealed_by(old, {})
    exported = await keystore("export", "--data-dir", old, "--output", tmp_path / "keys.jsonl")
    assert (0, "") == (exported.returncode, exported.stderr)
    assert "keystore: 0 keys and 4 rows of branch keys written to" in exported.stdout
    for summary in (counted(added=4), counted(there=4)):
        imported = await keystore("import", "--data-dir", new, tmp_path / "keys.jsonl")
        assert (0, summary) == (imported.returncode, imported.stdout)
    assert rows(old) == rows(new)
    copy_master_key(old, new)
    await check_opens(new, {}, messages, mac)


async def test_keys_move_from_a_file_to_a_table_and_back(
    tmp_path: Path, moto: MotoServer, kms_key: str, dynamodb: dict[str, str]
) -> None:
    """Under the logical name that they were made with, and with the same rows in the end."""
    old, new = tmp_path / "old", tmp_path / "new"
    messages, mac = await sealed_by(old, aws(moto.url, kms_key))
    first = await keystore("export", "--data-dir", old, values=aws(moto.url, kms_key))
    wrong = await keystore("import", "-", stdin=first.stdout.encode(), values=dynamodb)
    assert 1 == wrong.returncode
    assert 4 == wrong.stdout.count("set kms.branch-keys.logical-name=betrace-kms")
    to_table = await keystore("import", "-", stdin=first.stdout.encode(), values=dynamodb | LOGICAL)
    assert (0, counted(added=4)) == (to_table.returncode, to_table.stdout)
    await check_opens(tmp_path / "pod", {**dynamodb, **LOGICAL}, messages, mac)
    second = await keystore("export", values=dynamodb | LOGICAL)
    assert sorted(first.stdout.splitlines()) == sorted(second.stdout.splitlines())
    back = await keystore("import", "--data-dir", new, "-", stdin=second.stdout.encode(), values=aws(moto.url, kms_key))
    assert (0, rows(old)) == (back.returncode, rows(new))


async def test_import_beside_another_branch_key(tmp_path: Path, moto: MotoServer, kms_key: str) -> None:
    """The store's own seals on, versions that come open, and another beacon key is named: its MACs are others."""
    old, new, values = tmp_path / "old", tmp_path / "new", aws(moto.url, kms_key)
    messages, _ = await sealed_by(old, values)
    mine, mac = await sealed_by(new, values, rotate=False)
    exported = await keystore("export", "--data-dir", old, values=values)
    imported = await keystore("import", "--data-dir", new, "-", stdin=exported.stdout.encode(), values=values)
    assert (1, counted(added=2, retired=1, different=1)) == (
        imported.returncode,
        imported.stdout[imported.stdout.index("keystore:") :],
    )
    assert "row beacon:ACTIVE of branch key acme is another key in the store" in imported.stdout
    assert "branch key acme has another active version" in imported.stdout
    await check_opens(new, values, [*mine, *messages], mac)


async def test_active_row_waits_for_what_it_needs(tmp_path: Path) -> None:
    """An import that was broken off leaves no branch key that seals and does not open; the whole one completes it."""
    old, new = tmp_path / "old", tmp_path / "new"
    messages, mac = await sealed_by(old, {})
    lines = (await keystore("export", "--data-dir", old)).stdout.splitlines(keepends=True)
    assert "branch:ACTIVE" == json.loads(lines[-1])["type"]
    for left_out in range(3):
        given = "".join(line for number, line in enumerate(lines) if number != left_out)
        imported = await keystore("import", "--data-dir", tmp_path / str(left_out), "-", stdin=given.encode())
        needed = json.loads(lines[left_out])["type"] in (
            json.loads(lines[-1])["attributes"]["version"],
            "beacon:ACTIVE",
        )
        assert needed == ("import the whole export" in imported.stdout)
        assert int(needed) == imported.returncode
    for number in range(1, 5):  # broken off after each line
        imported = await keystore("import", "--data-dir", new, "-", stdin="".join(lines[:number]).encode())
        assert (0, number == 4) == (imported.returncode, "branch:ACTIVE" in str(rows(new)))
    copy_master_key(old, new)
    await check_opens(new, {}, messages, mac)


async def test_altered_line_is_refused_and_others_go_in(tmp_path: Path) -> None:
    """A single bit of what is wrapped is enough."""
    old = tmp_path / "old"
    await sealed_by(old, {})
    lines = (await keystore("export", "--data-dir", old)).stdout.splitlines()
    first = json.loads(lines[0])
    first["enc"] = ("B" if first["enc"][0] == "A" else "A") + first["enc"][1:]
    given = "\n".join([json.dumps(first), *lines[1:]]).encode()
    imported = await keystore("import", "--data-dir", tmp_path / "new", "-", stdin=given)
    assert 1 == imported.returncode
    assert "-:1: does not have its checksum: it was damaged or edited\n" in imported.stdout


@pytest.mark.parametrize("status", ["pending", "destroying", "shredded"])
async def test_shredded_tenant_is_not_brought_back(tmp_path: Path, status: Status) -> None:
    """By an export from before, also while it waits; another tenant's keys go in."""
    folder = tmp_path / "data"
    await sealed_by(folder, {})
    async with running(folder, **MODE) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        await client.encrypt("globex", b"secret")
    exported = (await keystore("export", "--data-dir", folder)).stdout
    async with open_sqlite(folder / DATABASE_FILE) as store:
        assert await store.set_shredding("acme", None, Shredding(status, 1, 2**42))
        await store.fetch("DELETE FROM branch_keys")
    imported = await keystore("import", "--data-dir", folder, "-", stdin=exported.encode())
    assert 1 == imported.returncode
    assert all("shred" in line for line in imported.stdout.splitlines()[:4])
    assert imported.stdout.endswith(counted(added=3, refused=4))
    assert {"globex"} == {row[0] for row in rows(folder)}


async def test_lines_of_branch_keys_need_a_table(tmp_path: Path, dynamodb: dict[str, str]) -> None:
    """Without one the text says what to set."""
    old = tmp_path / "old"
    await sealed_by(old, {})
    exported = (await keystore("export", "--data-dir", old)).stdout
    del dynamodb["kms_branch_keys_table"]
    imported = await keystore("import", "-", stdin=exported.encode(), values=dynamodb)
    assert (1, 4) == (imported.returncode, imported.stdout.count("set kms.branch-keys.table"))


async def test_validation_tries_the_branch_key_table(tmp_path: Path, dynamodb: dict[str, str]) -> None:
    """Beside the key store's; without one there is nothing to try."""
    names = {}
    for table in (dynamodb["kms_branch_keys_table"], ""):
        values = dynamodb | {"kms_branch_keys_table": table}
        async with running(tmp_path, **values), grpc.aio.insecure_channel(f"unix:{tmp_path}/admin.sock") as channel:
            outcome = await KmsAdminServiceStub(channel).Validate(pb.ValidateRequest())
        names[table] = [test.name for test in outcome.tests if test.passed and "store" in test.name]
    assert [["key_store", "branch_key_store"], ["key_store"]] == list(names.values())
