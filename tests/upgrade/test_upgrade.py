"""What earlier versions kept opens and verifies today, and a pod may go back: docs/upgrade.md says how.

The vectors were made once by each version's own code. The history has that code, which runs here beside today's.
"""

import json
import secrets
import shutil
import sqlite3
import subprocess
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE

from tests.daemon import COMMAND
from tests.integration.test_aws_daemon import aws
from tests.interop.tools import ROOT
from tests.upgrade.evidence import check, made
from tests.upgrade.versions import VERSIONS, check_out, earlier, today

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

VECTORS = ROOT / "tests" / "vectors" / "upgrade"


def store_of(version: str, folder: Path) -> Path:
    """Return a data folder as a daemon of a version left it."""
    data_dir = folder / "data"
    data_dir.mkdir(0o700)
    for file in (VECTORS / version / "store").iterdir():
        shutil.copyfile(file, data_dir / file.name)
        (data_dir / file.name).chmod(0o600)
    return data_dir


@pytest.mark.parametrize("version", VERSIONS)
def test_upgrade_and_way_back_with_sqlite(version: str, tmp_path: Path) -> None:
    """Today's daemon takes the store, the earlier one takes it back, and each reads what the other one wrote."""
    packages = check_out(VERSIONS[version], tmp_path / "packages")
    data_dir = store_of(version, tmp_path)
    kept = json.loads((VECTORS / version / "evidence.json").read_text("utf-8"))
    admin = f"unix:{data_dir}/admin.sock"
    trail = data_dir / "audit.log"
    environ = {"KMS_AUDIT_FILE": str(trail)}
    with today(data_dir, environ) as daemon:
        check(daemon.address, kept)
        new = made(daemon.address, admin, "globex")
        daemon.process.terminate()
        daemon.process.wait(30)
    with earlier(packages, data_dir, environ) as daemon:
        check(daemon.address, kept)
        check(daemon.address, new)
        back = made(daemon.address, admin, "initech")
        daemon.process.terminate()
        daemon.process.wait(30)
    with today(data_dir, environ) as daemon:
        for each in (kept, new, back):
            check(daemon.address, each)
        daemon.process.terminate()
        daemon.process.wait(30)
    done = subprocess.run([str(COMMAND), "audit", "verify", str(trail)], capture_output=True, text=True, check=False)
    assert (0, True) == (done.returncode, done.stdout.endswith("intact\n"))


def test_vectors_open_without_the_history(tmp_path: Path) -> None:
    """A clone without the earlier code still opens and verifies what it kept."""
    for version in VERSIONS:
        data_dir = store_of(version, tmp_path)
        with today(data_dir, {}) as daemon:
            check(daemon.address, json.loads((VECTORS / version / "evidence.json").read_text("utf-8")))


@pytest.mark.parametrize("version", VERSIONS)
def test_backup_leaves_a_store_at_its_version(version: str, tmp_path: Path) -> None:
    """One that is made before the first start of this version is good for the earlier one, too."""
    data_dir = store_of(version, tmp_path)
    command = [str(COMMAND), "keystore", "backup", "--data-dir", str(data_dir), str(tmp_path / "backup.db")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert ("", True) == (done.stderr, "signing keys 3, rows of branch keys 0, tenants 1\n" in done.stdout)
    stored = (VECTORS / version / "store" / DATABASE_FILE).read_bytes()
    assert stored == (data_dir / DATABASE_FILE).read_bytes()
    tables = "SELECT sql FROM sqlite_schema ORDER BY name"
    schemas = []
    for file in (data_dir / DATABASE_FILE, tmp_path / "backup.db"):
        with closing(sqlite3.connect(file)) as database:
            schemas.append(database.execute(tables).fetchall())
    assert schemas[0] == schemas[1]


@pytest.mark.parametrize("version", VERSIONS)
def test_two_versions_on_one_table(version: str, tmp_path: Path, moto: "MotoServer", kms_key: str) -> None:
    """While pods are upgraded one by one, each reads what the other one writes, and sees its rotations."""
    packages = check_out(VERSIONS[version], tmp_path / "packages")
    table = f"keys-{secrets.token_hex(6)}"
    environ: Mapping[str, str] = {
        name.upper(): value
        for name, value in (
            aws(moto.url, kms_key) | {"kms_store": "dynamodb", "kms_store_table": table, "kms_store_endpoint": moto.url}
        ).items()
    }
    init = [str(COMMAND), "keystore", "init", "--table", table, "--region", "us-east-1", "--endpoint", moto.url]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
    upgraded = {**environ, "KMS_ENCRYPTION_SEALING_KEY_TYPE": "encryption"}
    with earlier(packages, tmp_path / "old", environ) as old, today(tmp_path / "new", upgraded) as new:
        by_old = made(old.address, f"unix:{tmp_path}/old/admin.sock", "acme")
        by_new = made(new.address, f"unix:{tmp_path}/new/admin.sock", "globex")
        for daemon in (old, new):
            check(daemon.address, by_old)
            check(daemon.address, by_new)
