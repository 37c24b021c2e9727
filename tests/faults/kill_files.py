"""kill -9 of what makes files and tables: the very first start, keystore export, import and init, and a re-wrapping.

Each is killed at a random moment and done again to its end; then everything must be there, or be made anew where
nothing had been acknowledged.
"""

import os
import random
import secrets
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import orjson
from betrace_kms_client import KmsClient
from betrace_kms_server.providers.local import MASTER_KEY_FILE
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE

from tests.daemon import COMMAND, spawned
from tests.faults.acknowledged import span
from tests.faults.kill import Drill, Report


def kill_command(seconds: float, *arguments: str, environ: Mapping[str, str]) -> bool:
    """Run `betrace-kms` and kill it after some time. Returns whether it had ended well by then."""
    with subprocess.Popen(
        [str(COMMAND), *arguments],
        env={**os.environ, **environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            return False


def completed(*arguments: str, environ: Mapping[str, str]) -> str:
    """Run `betrace-kms` to its end. Returns what went wrong, or ""."""
    done = subprocess.run(
        [str(COMMAND), *arguments], env={**os.environ, **environ}, capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else f"{arguments[:2]} after a kill: {done.stdout}{done.stderr}"


class Kills:
    """Kills of one kind each, in folders of their own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._random = random.Random(seed)  # noqa: S311  # moments to kill at, not secrets

    def first_starts(self, kills: int) -> Report:
        """Kill the very first start, some in its first 200 ms, most around the moment in which its files are made."""
        report = Report()
        for number in range(kills):
            folder = self._folder / f"first-{number}"
            data, listen, token = folder / "data", f"unix:{folder}/kms.sock", folder / "token"
            folder.mkdir()
            arguments = ("--data-dir", str(data), "--listen", listen)
            environ = {"KMS_SERVER_TOKEN_FILE": str(token)}
            with spawned(*arguments, environ=environ) as daemon:
                if number % 3:
                    deadline = time.monotonic() + 20
                    while not data.exists() and time.monotonic() < deadline:
                        time.sleep(0.001)
                    time.sleep(self._random.uniform(0.0, 0.25))
                else:
                    time.sleep(self._random.uniform(0.0, 0.2))
                daemon.process.kill()
            report.kills += 1
            report.ledger.counts["stores made before the kill"] += (data / DATABASE_FILE).exists()
            report.ledger.counts["master keys made before the kill"] += (data / MASTER_KEY_FILE).exists()
            token_before = token.read_text() if token.exists() else ""
            report.ledger.counts["tokens made before the kill"] += bool(token_before)
            began = time.monotonic()
            with spawned(*arguments, environ=environ) as daemon:
                try:
                    daemon.wait_for("serving", 60)
                except AssertionError as failure:
                    report.lost.append(f"no start after a kill: {failure}")
                    continue
                report.restarts.append(time.monotonic() - began)
                if token_before and token.read_text() != token_before:
                    report.lost.append("the token was replaced")
                with KmsClient(listen, token_file=token) as client:
                    blob = client.encrypt("acme", b"x").ciphertext_blob
                    client.sign_span("acme", span("acme"))
                if b"keyType\x00\x07sealing" not in blob:
                    report.lost.append("a new key store does not seal with keyType=sealing")
            shutil.rmtree(folder)
        return report

    def exports_and_imports(self, kills: int, tenants: int = 200) -> Report:
        """Kill an export and an import in turns, and do each again to its end."""
        source = self._folder / "source"
        source.mkdir()
        with (
            spawned("--data-dir", f"{source}/data", "--listen", f"unix:{source}/kms.sock") as daemon,
            KmsClient(f"unix:{source}/kms.sock") as client,
        ):
            daemon.wait_for("serving")
            for number in range(tenants):
                client.sign_span(f"tenant-{number}", span(f"tenant-{number}"))
        report, whole, environ = Report(), source / "whole.jsonl", dict[str, str]()
        began = time.monotonic()
        report.lost += filter(
            None, [completed("keystore", "export", "--data-dir", f"{source}/data", "--output", str(whole), environ={})]
        )
        takes = time.monotonic() - began
        expected = sorted(whole.read_bytes().splitlines())
        for number in range(kills):
            target = self._folder / f"import-{number}"
            target.mkdir()
            (target / "data").mkdir(mode=0o700)
            seconds = self._random.uniform(0.5, 1.1) * takes  # the process takes most of it to start
            output = target / "keys.jsonl"
            export = ("keystore", "export", "--output", str(output), "--data-dir", f"{source}/data")
            into = ("keystore", "import", "--data-dir", f"{target}/data", str(whole))
            if number % 2:
                report.ledger.counts["exports done before the kill"] += kill_command(seconds, *export, environ=environ)
                if not output.exists():
                    report.lost += filter(None, [completed(*export, environ=environ)])
                if sorted(output.read_bytes().splitlines()) != expected:
                    report.lost.append("an export is not whole")
            else:
                ended = kill_command(seconds * 1.3, *into, environ=environ)
                report.ledger.counts["imports done before the kill"] += ended
                report.ledger.counts["imports begun before the kill"] += (target / "data" / DATABASE_FILE).exists()
                report.lost += filter(None, [completed(*into, environ=environ)])
                back = ("keystore", "export", "--output", str(output), "--data-dir", f"{target}/data")
                report.lost += filter(None, [completed(*back, environ=environ)])
                if sorted(output.read_bytes().splitlines()) != expected:
                    report.lost.append("an import lacks keys")
            report.kills += 1
            shutil.rmtree(target)
        return report

    def table_creations(self, kills: int, url: str) -> Report:
        """Kill `keystore init`, and run it again to its end."""
        report, takes = Report(), 0.0
        environ = {"KMS_STORE_ENDPOINT": url}
        for number in range(kills + 1):
            table = f"init-{secrets.token_hex(6)}"
            init = ("keystore", "init", "--table", table, "--region", "us-east-1")
            if number:
                ended = kill_command(self._random.uniform(0.6, 1.1) * takes, *init, environ=environ)
                report.ledger.counts["done before the kill"] += ended
                report.kills += 1
            began = time.monotonic()
            report.lost += filter(None, [completed(*init, environ=environ)])
            takes = max(takes, time.monotonic() - began)
        return report

    def rewrappings(self, kills: int, url: str, masters: tuple[str, str], tenants: int = 60) -> Report:
        """Change the master key back and forth, and kill the daemon while it moves signing keys."""
        folder = self._folder / "rewrap"
        folder.mkdir()

        def environ(number: int) -> dict[str, str]:
            today, former = masters[number % 2], masters[1 - number % 2]
            return aws_environ(url, today) | {"AWS_KMS_DECRYPT_KEY_IDS": former}

        drill, listen = Drill(folder, seed=1, environ=environ(kills + 1)), f"unix:{folder}/kms.sock"
        report, ledger = drill.report, drill.report.ledger
        arguments = ("--data-dir", f"{folder}/data", "--listen", listen)
        with spawned(*arguments, environ=environ(0)) as daemon, KmsClient(listen) as client:
            daemon.wait_for("serving", 60)
            for tenant in (f"tenant-{number}" for number in range(tenants)):
                signed = client.sign_span(tenant, span(tenant))
                ledger.signatures[tenant, signed.key_id] = signed
                ledger.sealed.append((tenant, {}, client.encrypt(tenant, b"payload").ciphertext_blob, b"payload"))
        for number in range(1, kills + 1):
            began = time.monotonic()
            with spawned(*arguments, environ=environ(number)) as daemon:
                daemon.wait_for("serving", 60)
                report.restarts.append(time.monotonic() - began)
                time.sleep(self._random.uniform(0.0, 0.8))
                ledger.counts["moved all before the kill"] += "Signing keys were moved" in daemon.log
            report.kills += 1  # leaving the context kills
        with spawned(*arguments, environ=environ(kills + 1)) as daemon:
            daemon.wait_for("Signing keys were moved", 60)
        drill.check()
        moved = folder / "moved.jsonl"
        export = ("keystore", "export", "--output", str(moved), *arguments[:2])
        report.lost += filter(None, [completed(*export, environ=environ(kills + 1))])
        rows = [orjson.loads(line) for line in moved.read_bytes().splitlines()]
        under = sum(masters[(kills + 1) % 2] in row.values() for row in rows)
        if under != tenants:
            report.lost.append(f"{under} of {tenants} keys are wrapped by the master key of today")
        return report


def aws_environ(url: str, master: str) -> dict[str, str]:
    """Return the settings of provider aws on an emulator."""
    return {
        "BETRACE_KMS_PROVIDER": "aws",
        "AWS_KMS_MASTER_KEY_ID": master,
        "AWS_KMS_ENDPOINT": url,
        "KMS_STORE_ALLOW_EPHEMERAL": "true",
    }
