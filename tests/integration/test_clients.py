"""The client library: both clients, their deadline, their retries and their exceptions."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import betrace_kms_client
import grpc
import pytest
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import (
    KeyManagementServiceServicer,
    add_KeyManagementServiceServicer_to_server,
)
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import AsyncKmsClient, KmsClient, KmsClientError, errors

from tests.daemon import Process, running, spawned

SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Process]:
    """A daemon as a process of its own."""
    with spawned("--data-dir", str(tmp_path), "--listen", "127.0.0.1:0") as process:
        process.wait_for("serving")
        yield process


def test_the_sync_client_does_every_call(daemon: Process) -> None:
    """Typed results, from several threads at once."""
    with KmsClient(daemon.address) as client, ThreadPoolExecutor(8) as pool:
        key = client.generate_data_key("acme", 16, {"a": "b"})
        fresh = client.generate_data_key("acme", 16, {"a": "b"}, fresh=True)
        sealed = list(pool.map(lambda number: client.encrypt("acme", b"%d" % number), range(32)))
        opened = [client.decrypt("acme", each.ciphertext_blob).plaintext for each in sealed]
        signed = client.sign_span("acme", SPAN, return_payload=True)
        verdict = client.verify_span("acme", SPAN, signed.signature, signed.key_id)
        unwrapped = client.decrypt("acme", key.ciphertext_blob, {"a": "b"})
        resealed = client.re_encrypt("acme", sealed[0].ciphertext_blob, {}, {"c": "d"})
        again = client.decrypt("acme", resealed.ciphertext_blob, {"c": "d"})
    assert (len(key.plaintext), unwrapped.plaintext, fresh == key) == (16, key.plaintext, False)
    assert opened == [b"%d" % number for number in range(32)]
    assert again.plaintext == b"0"
    assert signed.payload.startswith(b'{"attributes"')
    assert (verdict.valid, verdict.reason) == (True, "VALID")


async def test_the_async_client_does_every_call(tmp_path: Path) -> None:
    """The same methods as coroutines, over a unix socket."""
    path = tmp_path / "kms.sock"
    async with (
        running(tmp_path / "data", kms_server_listen=f"unix:{path}"),
        AsyncKmsClient(str(path)) as client,
    ):
        key = await client.generate_data_key("acme")
        sealed = await client.encrypt("acme", b"payload", {"a": "b"})
        opened = await client.decrypt("acme", sealed.ciphertext_blob, {"a": "b"})
        resealed = await client.re_encrypt("acme", sealed.ciphertext_blob, {"a": "b"})
        again = await client.decrypt("acme", resealed.ciphertext_blob, {"a": "b"})
        signed = await client.sign_span("acme", SPAN)
        verdict = await client.verify_span("acme", SPAN, signed.signature, signed.key_id)
        with pytest.raises(betrace_kms_client.InvalidRequest, match="does not open") as caught:
            await client.decrypt("rival", sealed.ciphertext_blob, {"a": "b"})
    assert again == opened
    assert (len(key.plaintext), opened.plaintext, verdict.reason) == (32, b"payload", "VALID")
    assert (caught.value.reason, len(caught.value.request_id)) == ("CIPHERTEXT_DOES_NOT_OPEN", 32)


def test_no_repr_shows_a_secret(daemon: Process) -> None:
    """Results can be logged without a leak."""
    with KmsClient(daemon.address) as client:
        key = client.generate_data_key("acme")
        opened = client.decrypt("acme", client.encrypt("acme", b"canary").ciphertext_blob)
    assert repr(key.plaintext) not in repr(key)
    assert "canary" not in repr(opened)


def test_a_daemon_that_is_not_there_is_named(daemon: Process) -> None:
    """After its retries the client says which address nobody answers on."""
    with KmsClient("127.0.0.1:1") as client, pytest.raises(betrace_kms_client.Unavailable) as caught:
        client.generate_data_key("acme")
    assert str(caught.value) == "no daemon answers at 127.0.0.1:1: start it, or give the address that it listens on"


def test_a_call_without_an_answer_ends_at_the_timeout() -> None:
    """A listener that never speaks gRPC costs the client's timeout, no more."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with (
            KmsClient(f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.3) as client,
            pytest.raises(betrace_kms_client.DeadlineExceeded, match="raise the timeout"),
        ):
            client.generate_data_key("acme")


class Failing(KeyManagementServiceServicer):
    """A service that fails with UNAVAILABLE a number of times, and then answers."""

    def __init__(self, code: grpc.StatusCode, failures: int) -> None:
        self.code = code
        self.failures = failures
        self.calls = 0
        self._lock = threading.Lock()

    def Encrypt(self, request: pb.EncryptRequest, context: Any) -> pb.EncryptResponse:
        """Fail, or answer."""
        with self._lock:
            self.calls += 1
            failing = self.calls <= self.failures
        if failing:
            context.abort(self.code, "on purpose")
        return pb.EncryptResponse(ciphertext_blob=b"sealed", key_id="key")


@pytest.mark.parametrize(
    ("code", "failures", "outcome", "calls"),
    [
        (grpc.StatusCode.UNAVAILABLE, 2, "sealed", 3),
        (grpc.StatusCode.UNAVAILABLE, 9, "Unavailable", 3),
        (grpc.StatusCode.INTERNAL, 9, "InternalError", 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 9, "ResourceExhausted", 1),
    ],
)
def test_only_unavailable_is_tried_again_three_times_in_all(
    code: grpc.StatusCode, failures: int, outcome: str, calls: int
) -> None:
    """gRPC's own service config does the retries."""
    service = Failing(code, failures)  # type: ignore[abstract]
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        add_KeyManagementServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with KmsClient(f"127.0.0.1:{port}") as client:
                found = client.encrypt("acme", b"payload").ciphertext_blob.decode()
        except KmsClientError as error:
            found = type(error).__name__
        server.stop(None).wait()
    assert (found, service.calls) == (outcome, calls)


def test_every_exception_has_its_status_and_is_exported() -> None:
    """The table, the tree drawn in the docstring and the package agree."""
    leaves = set(KmsClientError.__subclasses__())
    drawn = {line.split("── ")[1].split()[0] for line in (errors.__doc__ or "").splitlines() if "── " in line}
    assert set(errors.EXCEPTIONS.values()) == leaves - {errors.InternalError}
    assert {leaf.__name__ for leaf in leaves} == drawn
    assert drawn <= set(betrace_kms_client.__all__)
