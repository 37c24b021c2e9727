"""`betrace-kms keystore backup` and `restore`: a copy of the store while its daemon writes, and back again."""

import asyncio
import shutil
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import KmsClient
from betrace_kms_server.cli.keystore import keystore as keystore_group
from betrace_kms_server.host.sockets import exclusive
from betrace_kms_server.providers.local import MASTER_KEY_FILE
from betrace_kms_server.stores.sqlite import backup
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE
from betrace_kms_server.telemetry import logs
from click.testing import CliRunner

from tests.contract.samples import stored_key
from tests.daemon import COMMAND, spawned
from tests.integration.test_keystore_command import KEYS, OTHER, Keystore, keys_of, keystore, made, rows

__all__ = ["keystore"]
SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")
KILLS = 3


def test_backup_of_a_daemon_that_writes_is_restored_whole(keystore: Keystore, tmp_path: Path) -> None:
    """No call fails meanwhile, each key that was acknowledged before is in it, and old signatures verify."""
    folder, restored = tmp_path / "data", tmp_path / "restored"
    listen = f"unix:{tmp_path / 'kms.sock'}"
    signed, stop = list[tuple[str, Any]](), threading.Event()
    with spawned("--data-dir", str(folder), "--listen", listen) as daemon, KmsClient(listen) as client:
        daemon.wait_for("serving")
        sealed = client.encrypt("acme", b"payload")

        def sign() -> None:
            while not stop.is_set():
                tenant = f"tenant-{len(signed)}"
                signed.append((tenant, client.sign_span(tenant, SPAN)))

        writer = threading.Thread(target=sign)
        writer.start()
        try:
            while len(signed) < 20:
                time.sleep(0.01)
            before = len(signed)
            made_backup = keystore("backup", "--data-dir", folder, "backup.db")
            after = len(signed)
        finally:
            stop.set()
            writer.join()
    assert (0, b"") == (made_backup.returncode, made_backup.stderr)
    assert after > before
    found = int(made_backup.stdout.split(b"signing keys ")[1].split(b",")[0])
    assert before <= found <= after + 1
    assert 0o600 == stat.S_IMODE((tmp_path / "backup.db").stat().st_mode)
    assert 0 == keystore("restore", "--data-dir", restored, "backup.db").returncode
    shutil.copy(folder / MASTER_KEY_FILE, restored)
    with spawned("--data-dir", str(restored), "--listen", listen) as daemon, KmsClient(listen) as client:
        daemon.wait_for("serving")
        assert b"payload" == client.decrypt("acme", sealed.ciphertext_blob).plaintext
        for tenant, signature in signed[:before]:
            assert client.verify_span(tenant, SPAN, signature.signature, signature.key_id).valid


def test_copy_ends_however_often_the_store_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that is overtaken takes larger slices, and what it holds is the store of one moment."""
    monkeypatch.setattr(backup, "_PAUSE_SECONDS", 0.02)
    attempts, copied = [], backup._copied

    def counted(store: sqlite3.Connection, target: Path, pages: int) -> bool:
        attempts.append(pages)
        return copied(store, target, pages)

    monkeypatch.setattr(backup, "_copied", counted)
    folder, stop = made(tmp_path / "data", [stored_key(f"tenant-{number}") for number in range(50)]), threading.Event()
    with closing(sqlite3.connect(folder / DATABASE_FILE, isolation_level=None)) as database:
        database.execute("CREATE TABLE later AS SELECT zeroblob(12000000)")  # more than SQLite holds in memory

    def write() -> None:
        with closing(sqlite3.connect(folder / DATABASE_FILE, isolation_level=None)) as database:
            while not stop.is_set():
                database.execute("UPDATE tenants SET generation = generation + 1")

    writer = threading.Thread(target=write)
    writer.start()
    (tmp_path / "backup.db").touch()
    try:
        backup.copy(folder / DATABASE_FILE, tmp_path / "backup.db")
    finally:
        stop.set()
        writer.join()
    assert [256 * 4**power for power in range(len(attempts))] == attempts
    assert len(attempts) > 1
    assert 50 == asyncio.run(backup.verified(tmp_path / "backup.db", "backup.db")).keys
    with closing(sqlite3.connect(tmp_path / "backup.db")) as database:
        assert 1 == len(database.execute("SELECT DISTINCT generation FROM tenants").fetchall())


def test_kill_leaves_no_half_backup(keystore: Keystore, tmp_path: Path) -> None:
    """Whenever it is killed, there is no file of that name, or the whole one; the next backup works."""
    folder = made(tmp_path / "data", [stored_key(f"tenant-{number}") for number in range(200)])
    for number in range(KILLS):
        name = f"backup-{number}.db"
        command = [str(COMMAND), "keystore", "backup", "--data-dir", str(folder), name]
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and not list(tmp_path.glob(f"{name}*")):
                time.sleep(0.001)
            time.sleep(number / 1000)
            process.kill()
        if (tmp_path / name).exists():
            assert 200 == asyncio.run(backup.verified(tmp_path / name, name)).keys
    assert 0 == keystore("backup", "--data-dir", folder, "backup.db").returncode
    assert rows(folder) == rows_of(tmp_path / "backup.db")


def rows_of(file: Path) -> object:
    """Return the raw rows of a backup."""
    with closing(sqlite3.connect(file)) as database:
        return database.execute("SELECT * FROM signing_keys ORDER BY tenant_id, key_id").fetchall()


def test_standard_streams(keystore: Keystore, tmp_path: Path) -> None:
    """A pod's backup goes to stdout, with nothing else, and comes back by stdin."""
    folder = made(tmp_path / "data", KEYS)
    done = keystore("backup", "--data-dir", folder, "-")
    assert b"keystore: backed up to -: signing keys 4, rows of branch keys 0, tenants 2\n" == done.stderr
    (tmp_path / "backup.db").write_bytes(done.stdout)
    assert rows(folder) == rows_of(tmp_path / "backup.db")
    assert [DATABASE_FILE] == [path.name for path in folder.iterdir()]
    again = keystore("restore", "--data-dir", tmp_path / "new", "-", stdin=done.stdout)
    assert b"keystore: restored from -: signing keys 4, rows of branch keys 0, tenants 2\n" == again.stdout
    assert keys_of(folder) == keys_of(tmp_path / "new")


def test_backup_of_a_damaged_row_is_refused(keystore: Keystore, tmp_path: Path) -> None:
    """The key is named, and no backup takes the place of a good one."""
    folder = made(tmp_path / "data", KEYS)
    with closing(sqlite3.connect(folder / DATABASE_FILE, isolation_level=None)) as database:
        database.execute("UPDATE signing_keys SET public_key = zeroblob(32) WHERE tenant_id = 'globex'")
    refused = keystore("backup", "--data-dir", folder, "backup.db")
    assert (2, {"data"}) == (refused.returncode, {path.name for path in tmp_path.iterdir()})
    assert f"signing key {OTHER.key_id} is damaged" in refused.stderr.decode()


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run the command in this process, and return why it refuses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logs, "configure", lambda *_: None)  # the runner takes stderr away again

    def run(*arguments: str | Path) -> str:
        result = CliRunner().invoke(keystore_group, [*map(str, arguments)])
        assert 2 == result.exit_code
        return result.output

    return run


def test_backup_refuses_what_it_cannot_do(refusal: Callable[..., str], tmp_path: Path) -> None:
    """A file that is there, a folder without a store, a store in DynamoDB."""
    folder = made(tmp_path / "data", KEYS)
    (tmp_path / "kept").write_text("kept")
    key = "aws.kms.master-key-id=arn:aws:kms:us-east-1:123456789012:key/abcd1234-5678-90ab-cdef-1234567890ab"
    settings = ("kms.store=dynamodb", "kms.store.table=keys", "betrace.kms.provider=aws", key)
    pairs = [word for pair in settings for word in ("--set", pair)]
    for arguments, text in (
        (("--data-dir", folder, "kept"), "kept exists, and a backup replaces no file"),
        (("--data-dir", "typo", "backup.db"), "there is no key store in typo: check --data-dir or kms.data-dir"),
        ((*pairs, "backup.db"), "kms.store is dynamodb, whose tables DynamoDB itself backs up and restores"),
        (("--data-dir", folder, "no/backup.db"), "no/backup.db cannot be written: No such file or directory"),
    ):
        assert f"betrace-kms: {text}" in refusal("backup", *arguments)
    assert ({"data", "kept"}, "kept") == ({path.name for path in tmp_path.iterdir()}, (tmp_path / "kept").read_text())


def test_restore_replaces_no_store(refusal: Callable[..., str], tmp_path: Path) -> None:
    """Neither a store, nor beside the journal of one, nor with what is no backup; the folder stays as it was."""
    store = made(tmp_path / "data", KEYS)
    (tmp_path / "backup.db").touch()
    backup.copy(store / DATABASE_FILE, tmp_path / "backup.db")
    (tmp_path / "half.db").write_bytes((tmp_path / "backup.db").read_bytes()[:8192])
    (tmp_path / "other.db").write_text("a text")
    (tmp_path / "with-journal").mkdir(0o700)
    (tmp_path / "with-journal" / f"{DATABASE_FILE}-journal").touch()
    for folder, file, text in (
        ("data", "backup.db", f"data/{DATABASE_FILE} exists, and a restore replaces no file"),
        ("with-journal", "backup.db", f"with-journal/{DATABASE_FILE}-journal belongs to a store that was there before"),
        ("new", "half.db", "the key store half.db is damaged"),
        ("new", "other.db", "the key store other.db is damaged"),
    ):
        assert f"betrace-kms: {text}" in refusal("restore", "--data-dir", folder, file)
    assert ["daemon.lock"] == [path.name for path in (tmp_path / "new").iterdir()]
    (tmp_path / "running").mkdir(0o700)
    with exclusive(tmp_path / "running" / "daemon.lock", "a daemon"):
        assert "another daemon uses kms.data-dir running: stop it first" in refusal(
            "restore", "--data-dir", "running", "backup.db"
        )
