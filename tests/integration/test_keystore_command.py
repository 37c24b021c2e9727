"""`betrace-kms keystore export` and `import`, as a shell runs them, on real files."""

import asyncio
import base64
import json
import os
import re
import sqlite3
import stat
import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
from betrace_kms_server.cli import keystore as keystore_command
from betrace_kms_server.config.sources import Settings
from betrace_kms_server.core.keys import StoredKey, WrappedKey
from betrace_kms_server.stores.export import line_of
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE, open_sqlite
from betrace_kms_server.telemetry import logs
from click.testing import CliRunner

from tests.contract.samples import ARN, stored_key
from tests.daemon import COMMAND, spawned

REPOSITORY = Path(__file__).parents[2]
Keystore = Callable[..., "subprocess.CompletedProcess[bytes]"]

FORMER = stored_key("acme", status="rotated", rotate_time_ms=1_700_000_000_001)
REVOKED = stored_key("acme", status="revoked", rotate_time_ms=1_700_000_000_001, revoke_time_ms=1_700_000_000_002)
ACTIVE = stored_key("acme", create_time_ms=1_700_000_000_003)
OTHER = stored_key("globex", wrapped_seed=WrappedKey(bytes(range(256)) * 24, ARN))
KEYS = [FORMER, REVOKED, ACTIVE, OTHER]


@pytest.fixture
def keystore(tmp_path: Path) -> Keystore:
    """Run the command in an empty folder."""

    def run(*arguments: str | Path, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [str(COMMAND), "keystore", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            timeout=60,
            cwd=tmp_path,
            check=False,
        )

    return run


def made(folder: Path, keys: Iterable[StoredKey]) -> Path:
    """Make a data folder whose store has these keys."""
    folder.mkdir(mode=0o700)

    async def fill() -> None:
        async with open_sqlite(folder / DATABASE_FILE) as store:
            for key in keys:
                assert await store.add(key)

    asyncio.run(fill())
    return folder


def rows(folder: Path) -> Sequence[tuple[object, ...]]:
    """Return the raw rows of a store, in the order of their ids."""
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as database:
        return database.execute("SELECT * FROM signing_keys ORDER BY tenant_id, key_id").fetchall()


def keys_of(folder: Path) -> set[StoredKey]:
    """Return the keys of a store."""

    async def read() -> set[StoredKey]:
        async with open_sqlite(folder / DATABASE_FILE) as store:
            return {key async for key in store.rows()}

    return asyncio.run(read())


def exported(keys: Iterable[StoredKey]) -> bytes:
    """Return the export of these keys."""
    return b"".join(map(line_of, keys))


def test_export_that_is_imported_gives_the_same_rows(keystore: Keystore, tmp_path: Path) -> None:
    """Every column of every row is byte for byte what it was, and a second import changes nothing."""
    old, new = made(tmp_path / "old", KEYS), tmp_path / "new"
    out = keystore("export", "--data-dir", old, "--output", "keys.jsonl")
    assert (0, b"keystore: 4 keys written to keys.jsonl\n") == (out.returncode, out.stdout)
    first = keystore("import", "--data-dir", new, "keys.jsonl")
    assert b"keystore: 4 added, 0 added as rotated, 0 already there, 0 different, 0 refused\n" == first.stdout
    assert rows(old) == rows(new)
    second = keystore("import", "--data-dir", new, "-", stdin=keystore("export", "--data-dir", old).stdout)
    assert b"keystore: 0 added, 0 added as rotated, 4 already there, 0 different, 0 refused\n" == second.stdout
    assert (0, 0, rows(old)) == (first.returncode, second.returncode, rows(new))


def test_line_is_as_documented(keystore: Keystore, tmp_path: Path) -> None:
    """One JSON object for each key, with exactly the fields of docs/key-store.md."""
    folder = made(tmp_path / "data", [REVOKED])
    (line,) = keystore("export", "--data-dir", folder).stdout.splitlines()
    documented = (
        (REPOSITORY / "docs/key-store.md").read_text("utf-8").partition("## The format")[2].partition("### ")[0]
    )
    assert re.findall(r"^\| `(\w+)` \|", documented, re.MULTILINE) == list(json.loads(line))
    assert {
        "tenantId": "acme",
        "keyId": REVOKED.key_id,
        "provider": "aws",
        "masterKeyArn": ARN,
        "wrappedSeed": base64.b64encode(REVOKED.wrapped_seed.blob).decode(),
        "publicKey": base64.b64encode(REVOKED.public_key).decode(),
        "status": "revoked",
        "createTime": 1_700_000_000_000,
        "rotateTime": 1_700_000_000_001,
        "revokeTime": 1_700_000_000_002,
        "checksum": REVOKED.checksum().hex(),
    } == json.loads(line)


def test_file_is_for_its_owner_and_replaces_none(keystore: Keystore, tmp_path: Path) -> None:
    """An export has mode 0600 whatever the umask, and leaves alone what is there already, be it a link to nowhere."""
    folder = made(tmp_path / "data", KEYS)
    umask = os.umask(0)
    try:
        keystore("export", "--data-dir", folder, "--output", "keys.jsonl")
    finally:
        os.umask(umask)
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("kept", "link"):
        refused = keystore("export", "--data-dir", folder, "--output", name)
        assert (2, f"betrace-kms: {name} exists, and an export replaces no file\n") == (
            refused.returncode,
            refused.stderr.decode(),
        )
    assert (0o600, "kept") == (stat.S_IMODE((tmp_path / "keys.jsonl").stat().st_mode), (tmp_path / "kept").read_text())
    assert {"data", "keys.jsonl", "kept", "link"} == {path.name for path in tmp_path.iterdir()}


def test_file_that_comes_up_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that finds a file in its place when it is done says so, and leaves nothing of its own."""
    output = tmp_path / "keys.jsonl"

    async def export(settings: Settings, lines: IO[bytes]) -> tuple[int, int]:
        output.write_text("kept")
        return lines.write(b"an export"), 0

    monkeypatch.setattr(keystore_command, "_export", export)
    monkeypatch.setattr(logs, "configure", lambda *_: None)  # the runner takes stderr away again
    folder = made(tmp_path / "data", KEYS)
    result = CliRunner().invoke(
        keystore_command.keystore, ["export", "--data-dir", str(folder), "--output", str(output)]
    )
    assert (2, f"betrace-kms: {output} was made by somebody else meanwhile\n") == (result.exit_code, result.output)
    assert ("kept", {"data", "keys.jsonl"}) == (output.read_text(), {path.name for path in tmp_path.iterdir()})


def test_export_needs_a_place_to_write_to(keystore: Keystore, tmp_path: Path) -> None:
    """A folder that is not there is told in one line."""
    refused = keystore("export", "--data-dir", made(tmp_path / "data", KEYS), "--output", "missing/keys.jsonl")
    assert (2, b"betrace-kms: missing/keys.jsonl cannot be written: No such file or directory\n") == (
        refused.returncode,
        refused.stderr,
    )


def test_damaged_row_leaves_no_export(keystore: Keystore, tmp_path: Path) -> None:
    """What is not what was written goes into no export, and half an export is none; the key is named."""
    folder = made(tmp_path / "data", KEYS)
    with closing(sqlite3.connect(folder / DATABASE_FILE, isolation_level=None)) as database:
        database.execute("UPDATE signing_keys SET public_key = zeroblob(32) WHERE tenant_id = 'globex'")
    refused = keystore("export", "--data-dir", folder, "--output", "keys.jsonl")
    assert (2, {"data"}) == (refused.returncode, {path.name for path in tmp_path.iterdir()})
    assert f"signing key {OTHER.key_id} is damaged" in refused.stderr.decode()


def test_export_of_no_store_is_refused(keystore: Keystore, tmp_path: Path) -> None:
    """A mistyped folder gives no empty export, and is not made."""
    refused = keystore("export", "--data-dir", "typo")
    assert (2, b"", b"betrace-kms: there is no key store in typo: check --data-dir or kms.data-dir\n") == (
        refused.returncode,
        refused.stdout,
        refused.stderr,
    )
    assert [] == list(tmp_path.iterdir())


def test_settings_come_from_everywhere(keystore: Keystore, tmp_path: Path) -> None:
    """A properties file names the folder as it does for serve, and a setting that is none is refused."""
    made(tmp_path / "keys", [ACTIVE])
    (tmp_path / "application.properties").write_text("kms.data-dir=keys\n")
    (tmp_path / "mounted").mkdir()
    (tmp_path / "mounted" / "kms.data-dir").write_text("keys")
    assert exported([ACTIVE]) == keystore("export", "--config", "application.properties").stdout
    assert exported([ACTIVE]) == keystore("export", "--config-dir", "mounted").stdout
    assert exported([ACTIVE]) == keystore("export", "--set", "kms.data-dir=keys").stdout
    refused = keystore("import", "--set", "kms.data-folder=data", "-")
    assert (2, b"betrace-kms: kms.data-folder (from command line): no such setting\n") == (
        refused.returncode,
        refused.stderr,
    )


def test_running_daemon_is_not_disturbed(keystore: Keystore, tmp_path: Path) -> None:
    """While a daemon uses the folder, neither verb touches it, and both say why; when it has stopped they work."""
    folder = tmp_path / "data"
    (tmp_path / "keys.jsonl").write_bytes(exported(KEYS))
    with spawned("--data-dir", str(folder), "--listen", f"unix:{tmp_path / 'kms.sock'}") as daemon:
        daemon.wait_for("serving")
        for verb in (["export"], ["import", "keys.jsonl"]):
            refused = keystore(*verb, "--data-dir", folder)
            assert (2, b"") == (refused.returncode, refused.stdout)
            assert f"betrace-kms: another daemon uses kms.data-dir {folder}: stop it first\n" == refused.stderr.decode()
    assert [] == rows(folder)
    assert 0 == keystore("import", "--data-dir", folder, "keys.jsonl").returncode


def test_import_replaces_no_key(keystore: Keystore, tmp_path: Path) -> None:
    """A key that is in the store stays; one that differs is named with its line, and the others go in."""
    rewrapped = replace(OTHER, wrapped_seed=WrappedKey(b"wrapped anew", ARN))
    impostor = stored_key("acme", key_id=FORMER.key_id, status="rotated", rotate_time_ms=1)
    folder = made(tmp_path / "data", [FORMER, OTHER])
    (tmp_path / "keys.jsonl").write_bytes(exported([impostor, ACTIVE, rewrapped, FORMER]))
    done = keystore("import", "--data-dir", folder, "keys.jsonl")
    assert (
        1,
        [
            f"keys.jsonl:1: key {FORMER.key_id} of tenant acme is another key in the store, which was left as it is",
            f"keys.jsonl:3: key {OTHER.key_id} of tenant globex is wrapped otherwise in the store, which was left as it"
            " is",
            "keystore: 1 added, 0 added as rotated, 1 already there, 2 different, 0 refused",
        ],
    ) == (done.returncode, done.stdout.decode().splitlines())
    assert {FORMER, ACTIVE, OTHER} == keys_of(folder)


def test_import_does_not_pass_over_a_revocation(keystore: Keystore, tmp_path: Path) -> None:
    """A key that is further in its life in the export than in the store is named; the other way round is usual."""
    former = replace(REVOKED, status="rotated", revoke_time_ms=None)
    folder = made(tmp_path / "data", [former])
    (tmp_path / "newer.jsonl").write_bytes(exported([REVOKED]))
    (tmp_path / "older.jsonl").write_bytes(exported([replace(former, status="active", rotate_time_ms=None)]))
    newer, older = (keystore("import", "--data-dir", folder, f"{age}.jsonl") for age in ("newer", "older"))
    assert (1, 0) == (newer.returncode, older.returncode)
    assert (
        f"newer.jsonl:1: key {REVOKED.key_id} of tenant acme is revoked here and rotated in the store, which was left"
        " as it is\n"
        "keystore: 0 added, 0 added as rotated, 0 already there, 1 different, 0 refused\n"
    ) == newer.stdout.decode()
    assert b"keystore: 0 added, 0 added as rotated, 1 already there, 0 different, 0 refused\n" == older.stdout
    assert {former} == keys_of(folder)


def test_second_active_key_goes_in_as_rotated(keystore: Keystore, tmp_path: Path) -> None:
    """A tenant keeps the key that it signs with; the other one verifies, and the line says so."""
    mine = stored_key("acme")
    folder = made(tmp_path / "data", [mine])
    done = keystore("import", "--data-dir", folder, "-", stdin=exported([ACTIVE, OTHER]))
    assert (
        0,
        f"-:1: tenant acme has another active key, so key {ACTIVE.key_id} was added as rotated\n"
        "keystore: 1 added, 1 added as rotated, 0 already there, 0 different, 0 refused\n",
    ) == (done.returncode, done.stdout.decode())
    (retired,) = keys_of(folder) - {mine, OTHER}
    assert ACTIVE == replace(retired, status="active", rotate_time_ms=None)
    assert (retired.rotate_time_ms or 0) > ACTIVE.create_time_ms
    again = keystore("import", "--data-dir", folder, "-", stdin=exported([ACTIVE, OTHER]))
    assert b"keystore: 0 added, 0 added as rotated, 2 already there, 0 different, 0 refused\n" == again.stdout


def test_damaged_lines_are_refused_and_others_go_in(keystore: Keystore, tmp_path: Path) -> None:
    """Each line that is not what was exported is named with its number and its trouble, and the exit code is 1."""
    good = json.loads(line_of(FORMER))
    damaged: dict[str, object] = {
        "is no JSON: the line was cut off or damaged": line_of(FORMER)[:-20],
        "is no JSON object": b"[]",
        "checksum is missing": {name: good[name] for name in good if name != "checksum"},
        "note is unknown": {**good, "note": "x"},
        "does not have its checksum: it was damaged or edited": {**good, "masterKeyArn": ARN + "0"},
        "tenant_id must be 1 to 128 characters of [A-Za-z0-9._:-]": {**good, "tenantId": "a b"},
        "key_id must be the 32 lower-case hexadecimal digits that SignSpan returned": {**good, "keyId": "0"},
        "provider must be a text that is not empty": {**good, "provider": 1},
        "wrappedSeed must be 1 to 6144 bytes in base64": {**good, "wrappedSeed": "*" + good["wrappedSeed"]},
        "publicKey must be 32 bytes in base64": {**good, "publicKey": "AAAA"},
        "status must be one of active, rotated, revoked": {**good, "status": ["rotated"]},
        "createTime must be milliseconds since the Unix epoch": {**good, "createTime": True},
        "rotateTime must be milliseconds since the Unix epoch": {**good, "rotateTime": 2**63},
        "revokeTime must be milliseconds since the Unix epoch": {**good, "revokeTime": "2023-11-14T22:13:20Z"},
        "checksum must be 32 bytes in hexadecimal digits": {**good, "checksum": "x" * 64},
        "status active does not fit rotateTime and revokeTime": {**good, "status": "active"},
        "status rotated does not fit rotateTime and revokeTime": {**good, "revokeTime": 1},
        "status revoked does not fit rotateTime and revokeTime": {**good, "status": "revoked"},
    }
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in damaged.values()]
    text = b"\n".join([line_of(OTHER), *lines, line_of(ACTIVE)])
    folder = tmp_path / "data"
    done = keystore("import", "--data-dir", folder, "-", stdin=text)
    *told, summary = done.stdout.decode().splitlines()
    assert [f"-:{number}: {problem}" for number, problem in enumerate(damaged, 3)] == told
    assert (1, f"keystore: 2 added, 0 added as rotated, 0 already there, 0 different, {len(damaged)} refused") == (
        done.returncode,
        summary,
    )
    assert {OTHER, ACTIVE} == keys_of(folder)


def test_damaged_row_in_the_store_stops_no_import(keystore: Keystore, tmp_path: Path) -> None:
    """A key that is damaged in the store is named and left alone, and the others go in."""
    folder = made(tmp_path / "data", [FORMER])
    with closing(sqlite3.connect(folder / DATABASE_FILE, isolation_level=None)) as database:
        database.execute("UPDATE signing_keys SET public_key = zeroblob(32)")
    before = rows(folder)
    done = keystore("import", "--data-dir", folder, "-", stdin=exported([FORMER, OTHER]))
    problem, summary = done.stdout.decode().splitlines()
    assert f"-:1: signing key {FORMER.key_id} is damaged in the key store" in problem
    assert (1, "keystore: 1 added, 0 added as rotated, 0 already there, 0 different, 1 refused") == (
        done.returncode,
        summary,
    )
    assert before[0] in rows(folder)
