"""The clients in examples/, as a user builds them, make their calls at a daemon that wants a token and refuses some."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.daemon import Process, spawned
from tests.interop.tools import ROOT, tool

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

FOLDER = ROOT / "examples"
CALLS = 36


def built(path: str) -> str:
    """Return what a build made; skip the test if it is missing, or fail it in CI."""
    language = path.partition("/")[0]
    reason = f"examples/{path} is missing: make examples-{language} builds it"
    if (FOLDER / path).exists():
        return str(FOLDER / path)
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def java(name: str, *options: str) -> list[str]:
    """Return the command that runs a class."""
    classes = f"{built('java/target/classes')}:{built('java/target/dependency')}/*"
    return [tool("java"), "-XX:TieredStopAtLevel=1", *options, "-cp", classes, f"dev.betrace.kms.example.{name}"]


def node() -> list[str]:
    built("node/node_modules")
    return [tool("node"), str(FOLDER / "node/main.mjs")]


COMMANDS: dict[str, Callable[[], list[str]]] = {
    "go": lambda: [built("go/example")],
    "java": lambda: java("Example"),
    "node": node,
    "python": lambda: [sys.executable, str(FOLDER / "python/main.py")],
    "rust": lambda: [built("rust/target/debug/betrace-kms-example")],
}


@dataclass(frozen=True)
class Service:
    """Where a daemon listens, and the file of its token."""

    daemon: Process
    folder: Path

    @property
    def targets(self) -> list[str]:
        return [self.daemon.address, f"unix:{self.folder}/kms.sock"]

    def run(self, *command: str) -> str:
        """Return what a program printed: it must end well, and show no token."""
        token = self.folder / "token"
        done = subprocess.run(
            command,
            env={**os.environ, "KMS_TOKEN_FILE": str(token)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert 0 == done.returncode, done.stdout + done.stderr
        assert token.read_text().strip() not in done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def service(moto: "MotoServer", tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a daemon on KMS whose quota and budget are so small that each client meets both."""
    folder = tmp_path_factory.mktemp("service")
    settings = {
        "betrace.kms.provider": "aws",
        "aws.kms.master-key-id": moto.create_key(),
        "aws.kms.region": "us-east-1",
        "aws.kms.endpoint": moto.url,
        "kms.store.allow-ephemeral": "true",
        "kms.server.token-file": f"{folder}/token",
        "kms.budget.tenant-per-second": "20",
        "kms.budget.tenant-burst": "5",
        "kms.quota.tenant-per-second": "200",
        "kms.quota.tenant-burst": "20",
    }
    arguments = [f"--set={name}={value}" for name, value in settings.items()]
    listen = f"127.0.0.1:0,unix:{folder}/kms.sock"
    with spawned("--data-dir", f"{folder}/data", "--listen", listen, *arguments) as daemon:
        daemon.wait_for("serving")
        yield Service(daemon, folder)


@pytest.mark.parametrize("language", COMMANDS)
def test_each_client_makes_all_calls(service: Service, language: str) -> None:
    """By TCP and by a unix socket; it waits for the quota, and repeats the items for which there was no budget."""
    printed = service.run(*COMMANDS[language](), language, *service.targets)
    assert f"{CALLS} calls made, 0 failed" == printed.splitlines()[-1]
    assert {"BUDGET_EXCEEDED", "QUOTA_EXCEEDED"} == set(re.findall(r"waits .*: (\w+)", printed))


def test_the_bean_seals_and_opens(service: Service) -> None:
    """In a CDI container with MicroProfile Config, which Quarkus is."""
    options = {"target": service.targets[1], "token-file": f"{service.folder}/token"}
    flags = [f"-Dbetrace.sidecar.kms.{name}={value}" for name, value in options.items()]
    assert "alice@example.com\n" == service.run(*java("BeanExample", *flags), "bean")


def test_a_client_without_a_token_says_that_every_call_failed(service: Service) -> None:
    """Its exit status and its last line say so, and each line has the reason."""
    command = [sys.executable, str(FOLDER / "python/main.py"), "acme", service.targets[0]]
    environ = {name: value for name, value in os.environ.items() if name != "KMS_TOKEN_FILE"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (1, f"{CALLS // 2} calls made, {CALLS // 2 - 1} failed") == (
        done.returncode,
        done.stdout.splitlines()[-1],
    ), done.stdout
    assert "Health.Check     SERVING" in done.stdout
