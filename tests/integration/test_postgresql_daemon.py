"""kms.store=postgresql end to end: the command that makes the tables, real daemons on one database, and a restart."""

import asyncio
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import KmsClient, KmsClientError

from tests.contract.postgres_peer import PASSWORD, ROLE, new_place
from tests.daemon import COMMAND, spawned
from tests.integration.test_process import refused

if TYPE_CHECKING:
    from tests.moto_server import MotoServer
    from tests.postgres_server import PostgresServer

SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")


def keystore(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `betrace-kms keystore`."""
    return subprocess.run(
        [str(COMMAND), "keystore", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def environment(moto: "MotoServer", kms_key: str, dsn: str, password: Path) -> dict[str, str]:
    """Return that of a daemon on the database."""
    return {
        "BETRACE_KMS_PROVIDER": "aws",
        "AWS_KMS_MASTER_KEY_ID": kms_key,
        "AWS_KMS_ENDPOINT": moto.url,
        "KMS_STORE": "postgresql",
        "KMS_STORE_DSN": dsn,
        "KMS_STORE_PASSWORD_FILE": str(password),
        "KMS_ENCRYPTION_MODE": "branch-key",
        "KMS_CACHE_VERSION_CHECK_SECONDS": "1",
    }


def test_two_daemons_on_one_database(
    tmp_path: Path, moto: "MotoServer", kms_key: str, postgres: "PostgresServer"
) -> None:
    """They agree on one key, open each other's messages, lock each other, and an export has all of it."""
    database = postgres.new_database()
    asyncio.run(new_place(postgres))  # makes the role
    made = keystore("init", "--dsn", postgres.local(database), "--grant-to", ROLE, "--allow-shredding")
    assert (0, "") == (made.returncode, made.stderr)
    assert "the key store is made" in made.stdout
    again = keystore("init", "--dsn", postgres.local(database), "--grant-to", ROLE)
    assert "the key store was there, and keeps what it holds" in again.stdout
    secret = tmp_path / "password"
    secret.touch(0o600)
    secret.write_text(PASSWORD)
    given = environment(moto, kms_key, postgres.tcp(database, ROLE), secret)
    with (
        spawned("--data-dir", str(tmp_path / "a"), "--listen", "127.0.0.1:0", environ=given) as first,
        spawned("--data-dir", str(tmp_path / "b"), "--listen", "127.0.0.1:0", environ=given) as second,
        KmsClient(first.address) as one,
        KmsClient(second.address) as other,
        ThreadPoolExecutor(16) as callers,
    ):
        signed = list(callers.map(lambda client: client.sign_span("acme", SPAN), [one, other] * 8))
        assert 1 == len({signature.key_id for signature in signed})
        sealed = list(callers.map(lambda client: client.encrypt("acme", b"x", {"n": "1"}), [one, other] * 8))
        for each in sealed:
            assert b"x" == one.decrypt("acme", each.ciphertext_blob, {"n": "1"}).plaintext
            assert b"x" == other.decrypt("acme", each.ciphertext_blob, {"n": "1"}).plaintext
        validated = subprocess.run(
            [str(COMMAND), "validate", "--admin-addr", f"unix:{tmp_path}/a/admin.sock"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert 0 == validated.returncode, validated.stdout
    exported = subprocess.run(
        [str(COMMAND), "keystore", "export", "--data-dir", str(tmp_path / "c")],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, 4) == (exported.returncode, len(exported.stdout.splitlines())), exported.stderr


def test_a_warm_tenant_does_not_notice_a_restart_of_the_server(
    tmp_path: Path, moto: "MotoServer", kms_key: str
) -> None:
    """The database stops without a checkpoint and comes back, under load: no call of a warm tenant fails."""
    from tests.postgres_server import binaries, postgres_server

    if binaries() is None:
        pytest.skip("PostgreSQL is not installed: make postgresql unpacks Debian's")
    with postgres_server() as server:
        place = asyncio.run(new_place(server))
        secret = tmp_path / "password"
        secret.touch(0o600)
        secret.write_text(PASSWORD)
        given = environment(moto, kms_key, server.tcp(place.database, ROLE), secret)
        with (
            spawned("--data-dir", str(tmp_path / "a"), "--listen", "127.0.0.1:0", environ=given) as daemon,
            KmsClient(daemon.address) as client,
        ):
            client.sign_span("acme", SPAN)
            client.encrypt("acme", b"x")
            over, failures, calls = threading.Event(), [], [0]

            def load() -> None:
                while not over.is_set():
                    try:
                        client.sign_span("acme", SPAN)
                        client.encrypt("acme", b"x")
                        calls[0] += 2
                    except KmsClientError as error:
                        failures.append(error)

            caller = threading.Thread(target=load)
            caller.start()
            server.stop()
            time.sleep(2.5)  # longer than a version of a key is trusted without a look
            server.start()
            time.sleep(1.0)
            over.set()
            caller.join()
            assert [] == failures
            assert calls[0] > 20
            assert client.sign_span("globex", SPAN).key_id


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"KMS_STORE_DSN": "host=localhost password=s3cret"}, "kms.store.dsn"),
        ({"KMS_STORE_DSN": "postgresql://kms:s3cret@localhost/kms"}, "kms.store.dsn"),
        ({"KMS_STORE_DSN": "host=db.example.com dbname=kms"}, "sslmode=verify-full"),
        ({"KMS_STORE": "sqlite"}, "kms.store is not postgresql"),
        ({"BETRACE_KMS_PROVIDER": "local"}, "other pods could not unwrap"),
    ],
)
def test_refused_settings(given: dict[str, str], problem: str, tmp_path: Path) -> None:
    """Before anything is asked, and without the password."""
    environ = {
        "BETRACE_KMS_PROVIDER": "aws",
        "AWS_KMS_MASTER_KEY_ID": "arn:aws:kms:us-east-1:123456789012:key/abcd1234-5678-90ab-cdef-1234567890ab",
        "KMS_STORE": "postgresql",
        "KMS_STORE_DSN": "host=localhost",
        "KMS_STORE_ALLOW_EPHEMERAL": "true",
        **given,
    }
    if given.get("BETRACE_KMS_PROVIDER") == "local":
        del environ["AWS_KMS_MASTER_KEY_ID"]
    refusal = refused("--data-dir", str(tmp_path), "--listen", "127.0.0.1:0", environ=environ)
    assert problem in refusal
    assert "s3cret" not in refusal


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "give --table, for DynamoDB, or --dsn, for PostgreSQL"),
        (("--table", "t", "--dsn", "host=localhost"), "give --table, for DynamoDB, or --dsn"),
        (("--table", "keys"), "give --region"),
        (("--dsn", "host=db.example.com"), "sslmode=verify-full"),
        (("--dsn", "host=127.0.0.1 port=1"), "no answer from PostgreSQL"),
    ],
)
def test_init_that_cannot_be(arguments: tuple[str, ...], problem: str) -> None:
    """It says what to give."""
    done = keystore("init", *arguments)
    assert (2, True) == (done.returncode, problem in done.stderr), done.stderr
