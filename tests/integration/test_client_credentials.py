"""What clients and commands send to prove who they are, and where they take it from."""

import asyncio
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1 import key_management_pb2_grpc
from betrace_kms_client import AsyncKmsClient, InvalidRequest, KmsClient, Unauthenticated
from betrace_kms_client.channel import normalised
from betrace_kms_client.credentials import Token

from tests.authority import Authority
from tests.daemon import COMMAND, Process, spawned

OLD, NEW = (secrets.token_urlsafe(32) for _ in range(2))
TRUSTED = Authority()


@dataclass
class Picky(key_management_pb2_grpc.KeyManagementServiceServicer):
    """Answers calls that carry one token, and counts all."""

    accepted: str
    calls: int = 0

    async def GenerateDataKey(self, request: pb.GenerateDataKeyRequest, context: Any) -> pb.GenerateDataKeyResponse:
        self.calls += 1
        if ("authorization", f"Bearer {self.accepted}") not in [tuple(each) for each in context.invocation_metadata()]:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
        return pb.GenerateDataKeyResponse(plaintext=bytes(32))


@asynccontextmanager
async def picky(accepted: str) -> AsyncIterator[tuple[Picky, str]]:
    """Run a server that accepts one token."""
    service, server = Picky(accepted), grpc.aio.server()  # type: ignore[abstract]  # the other calls are not made
    key_management_pb2_grpc.add_KeyManagementServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield service, f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{OLD}\n")
    return path


async def test_a_token_that_was_refused_is_read_again_once(token_file: Path) -> None:
    """Both clients call a second time with the new token, and do not where the file has no other."""
    async with picky(OLD) as (service, address):
        with KmsClient(address, token_file=token_file) as threads:
            async with AsyncKmsClient(address, token_file=token_file) as client:
                await client.generate_data_key("acme")
                await asyncio.to_thread(threads.generate_data_key, "acme")
                service.accepted, service.calls = NEW, 0
                await asyncio.to_thread(token_file.write_text, f"{NEW}\n")
                await client.generate_data_key("acme")
                await asyncio.to_thread(threads.generate_data_key, "acme")
                assert service.calls in (2, 3, 4)  # fewer where the file was checked in time
                service.accepted, service.calls = OLD, 0
                with pytest.raises(Unauthenticated):
                    await client.generate_data_key("acme")
                with pytest.raises(Unauthenticated):
                    await asyncio.to_thread(threads.generate_data_key, "acme")
                assert 2 == service.calls


def test_a_token_is_read_again_when_its_file_changes(token_file: Path) -> None:
    """Checked at most once a second; `renewed` does not wait for that."""
    token = Token(token_file)
    first = token.metadata()
    token_file.write_text(f"# the new one\n\nbackend {NEW}\n{OLD}\n")
    assert first == token.metadata()
    assert token.renewed()
    assert (("authorization", f"Bearer {NEW}"),) == token.metadata()
    assert not token.renewed()
    assert Token(None).metadata() is None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "No such file or directory"),
        ("", "it holds no token"),
        ("# one\n", "it holds no token"),
        ("é", "no token"),
    ],
)
def test_a_token_file_without_a_token(tmp_path: Path, content: str | None, text: str) -> None:
    """The client says which file and why, and calls nobody."""
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    with KmsClient("127.0.0.1:1", token_file=path) as client, pytest.raises(Unauthenticated, match=text) as caught:
        client.generate_data_key("acme")
    assert str(path) in caught.value.message


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    """One without the other is a mistake of the caller, and so is a file that is not there."""
    with pytest.raises(InvalidRequest, match="needs its key"):
        KmsClient("127.0.0.1:1", tls_cert_file=tmp_path / "tls.crt")
    with pytest.raises(Unauthenticated, match=r"ca\.crt cannot be read"):
        KmsClient("127.0.0.1:1", tls_ca_file=tmp_path / "ca.crt")


def test_an_address_of_the_daemon_is_one_of_a_client() -> None:
    """KMS_SERVER_LISTEN serves both: the first address counts, without its options."""
    assert "unix:/run/a.sock" == normalised("unix:/run/a.sock;identity=a;mode=0660;group=5,127.0.0.1:50051")


@pytest.fixture(scope="module")
def over_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Path]]:
    """A daemon with a token on a socket, and mutual TLS on TCP."""
    folder = tmp_path_factory.mktemp("tls")
    chain, key = TRUSTED.issue("daemon", host="127.0.0.1").write(folder)
    (folder / "ca.crt").write_bytes(TRUSTED.pem)
    TRUSTED.issue("backend").write(folder / "client")
    settings = {
        "kms.server.tls.cert-file": chain,
        "kms.server.tls.key-file": key,
        "kms.server.tls.client-ca-file": folder / "ca.crt",
        "kms.server.token-file": folder / "token",
    }
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    listen = f"127.0.0.1:0,unix:{folder}/kms.sock"
    with spawned("--data-dir", str(folder / "data"), "--listen", listen, *options) as process:
        process.wait_for("serving")
        yield process, folder


def run(*words: str, **environ: object) -> "subprocess.CompletedProcess[str]":
    """Run a command."""
    variables = {name: str(value) for name, value in environ.items()}
    return subprocess.run(
        [COMMAND, *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **variables},
        check=False,
    )


def test_commands_send_a_token(over_tls: tuple[Process, Path]) -> None:
    """From the option or from the environment; without, the command says how to identify oneself; health needs none."""
    _, folder = over_tls
    there = ("--addr", f"unix:{folder}/kms.sock")
    key = ("data-key", "--tenant", "acme", *there)
    assert 0 == run(*key, "--token-file", str(folder / "token")).returncode
    assert 0 == run(*key, KMS_TOKEN_FILE=folder / "token").returncode
    without = run(*key, KMS_TOKEN_FILE="")
    assert (3, True) == (without.returncode, "KMS_TOKEN_FILE" in without.stderr)
    absent = run(*key, KMS_TOKEN_FILE=folder / "absent")
    assert (3, True) == (absent.returncode, f"{folder}/absent cannot be read" in absent.stderr)
    assert "SERVING\n" == run("health", *there, KMS_TOKEN_FILE=folder / "absent").stdout


def test_commands_and_probes_show_a_certificate(over_tls: tuple[Process, Path]) -> None:
    """A TCP address gets TLS when there are files for it, and a socket does not."""
    process, folder = over_tls
    files = {
        "KMS_TLS_CA_FILE": folder / "ca.crt",
        "KMS_TLS_CERT_FILE": folder / "client" / "tls.crt",
        "KMS_TLS_KEY_FILE": folder / "client" / "tls.key",
    }
    assert "SERVING\n" == run("health", "--addr", process.address, **files).stdout
    assert 0 == run("data-key", "--tenant", "acme", "--addr", process.address, **files).returncode
    assert "SERVING\n" == run("health", "--addr", f"unix:{folder}/kms.sock", **files).stdout
    assert 3 == run("health", "--addr", process.address).returncode
    bad = run("health", "--addr", process.address, KMS_TLS_CERT_FILE=files["KMS_TLS_CERT_FILE"])
    assert (3, True) == (bad.returncode, "needs its key" in bad.stderr)
