"""A daemon and the command, for tests of its verbs."""

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.daemon import COMMAND, Process, spawned

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One daemon for all the commands."""
    with spawned("--data-dir", str(tmp_path_factory.mktemp("data")), "--listen", "127.0.0.1:0") as process:
        process.wait_for("serving")
        yield process


@pytest.fixture
def run(daemon: Process, tmp_path: Path) -> Run:
    """Run the command in an empty folder, with stdin where it is given."""

    def run_command(*arguments: str, stdin: bytes = b"", addr: str = "") -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [str(COMMAND), *arguments],
            input=stdin,
            capture_output=True,
            timeout=120,
            cwd=tmp_path,
            env={**os.environ, "BETRACE_KMS_ADDR": addr or daemon.address},
            check=False,
        )

    return run_command


@pytest.fixture
async def dynamodb(moto: "MotoServer", kms_key: str) -> dict[str, str]:
    """Settings of a daemon with a key store and a branch key store in new tables."""
    keys, branch_keys = f"keys-{secrets.token_hex(6)}", f"branch-keys-{secrets.token_hex(6)}"
    from betrace_kms_server.stores.dynamodb.creation import create_table  # late, as moto
    from betrace_kms_server.stores.dynamodb.table import BRANCH_KEYS, KEY_STORE

    from tests.integration.test_aws_daemon import aws
    from tests.moto_server import REGION

    for kind, table in ((KEY_STORE, keys), (BRANCH_KEYS, branch_keys)):
        async for _ in create_table(table, region=REGION, endpoint=moto.url, kind=kind):
            pass
    return aws(moto.url, kms_key) | {
        "kms_store": "dynamodb",
        "kms_store_endpoint": moto.url,
        "kms_store_table": keys,
        "kms_store_region": REGION,
        "kms_branch_keys_table": branch_keys,
    }
