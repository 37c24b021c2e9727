"""Reflection in both versions, streams that end with the daemon, signals, and observers that fail."""

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import AsyncKmsClient, KmsClient
from betrace_kms_server.rpc import interceptors
from betrace_kms_server.telemetry.observers import CallObserver
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2 as pb
from structlog.testing import capture_logs

from tests.daemon import Process, running, spawned

VERSIONS = ["grpc.reflection.v1", "grpc.reflection.v1alpha"]
SERVICE = "betrace.kms.v1.KeyManagementService"


def reflection(channel: grpc.aio.Channel, version: str) -> Any:
    """Open a reflection stream."""
    return channel.stream_stream(
        f"/{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=pb.ServerReflectionRequest.SerializeToString,
        response_deserializer=pb.ServerReflectionResponse.FromString,
    )()


async def ask(channel: grpc.aio.Channel, version: str, **request: Any) -> pb.ServerReflectionResponse:
    """Ask one thing."""
    stream = reflection(channel, version)
    await stream.write(pb.ServerReflectionRequest(**request))
    await stream.done_writing()
    answer: pb.ServerReflectionResponse = await stream.read()
    return answer


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """Give a channel to a daemon."""
    async with running(tmp_path) as daemon, grpc.aio.insecure_channel(daemon.addresses[0]) as channel:
        yield channel


@pytest.mark.parametrize("version", VERSIONS)
async def test_services_are_listed_in_both_versions(channel: grpc.aio.Channel, version: str) -> None:
    """Each version lists itself and the other, beside ours and health."""
    answer = await ask(channel, version, list_services="")
    assert {SERVICE, "grpc.health.v1.Health", *(f"{each}.ServerReflection" for each in VERSIONS)} == {
        service.name for service in answer.list_services_response.service
    }


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        (SERVICE, "key_management"),
        (f"{SERVICE}.Encrypt", "key_management"),
        (f"{SERVICE}.VerifySpans", "key_management"),
        ("betrace.kms.v1.EncryptRequest", "key_management"),
        ("betrace.kms.v1.EncryptRequest.tenant_id", "key_management"),
        ("betrace.kms.v1.EncryptRequest.EncryptionContextEntry", "key_management"),
        ("betrace.kms.v1.AttributeValue.value", "span"),
        ("betrace.kms.v1.KeySpec", "key_management"),
        ("betrace.kms.v1.AES_256", "key_management"),
        ("betrace.kms.v1.ComplianceSpan", "span"),
        ("grpc.health.v1.Health.Check", "health"),
        ("grpc.health.v1.HealthCheckResponse.SERVING", "health"),
        ("grpc.reflection.v1.ServerReflection", "reflection/v1/"),
        ("grpc.reflection.v1alpha.ServerReflection.ServerReflectionInfo", "reflection/v1alpha/"),
        ("grpc.reflection.v1.ServerReflectionRequest.host", "reflection/v1/"),
    ],
)
async def test_symbols_are_found(channel: grpc.aio.Channel, version: str, symbol: str, file: str) -> None:
    """Whatever grpcurl or buf may ask to describe has its file, with all that it imports."""
    answer = await ask(channel, version, file_containing_symbol=symbol)
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(each)
        for each in answer.file_descriptor_response.file_descriptor_proto
    ]
    assert any(file in each.name for each in files), (symbol, [each.name for each in files])
    assert {name for each in files for name in each.dependency} <= {each.name for each in files}


@pytest.mark.parametrize(
    "symbol", ["", ".", "x", f"{SERVICE}.", f"{SERVICE}.Nothing", "betrace.kms.v1", "betrace.kms.v1.EncryptRequest.x"]
)
async def test_what_is_unknown_is_not_found(channel: grpc.aio.Channel, symbol: str) -> None:
    """The protocol's own error, and the stream goes on."""
    answer = await ask(channel, VERSIONS[0], file_containing_symbol=symbol)
    assert grpc.StatusCode.NOT_FOUND.value[0] == answer.error_response.error_code


def serves(daemon: Process, address: str) -> bool:
    """Whether a daemon answers."""
    with KmsClient(address) as client:
        return bool(client.encrypt("acme", b"x").ciphertext_blob) and daemon.process.poll() is None


def test_hang_up_does_not_kill(tmp_path: Path) -> None:
    """SIGHUP is logged, whether it comes while the daemon starts or later, and calls go on."""
    address = f"unix:{tmp_path}/kms.sock"
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", address) as daemon:
        daemon.wait_for("serving")
        for _ in range(3):
            daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("SIGHUP: the daemon goes on")
        assert serves(daemon, address)
        daemon.process.send_signal(signal.SIGTERM)
        assert 0 == daemon.process.wait(60)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_second_signal_during_a_stop_ends_cleanly(tmp_path: Path, second: signal.Signals) -> None:
    """Whoever asks twice gets the same clean end."""
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", f"unix:{tmp_path}/kms.sock") as daemon:
        daemon.wait_for("serving")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for("Stopping")
        daemon.process.send_signal(second)
        assert 0 == daemon.process.wait(60)
        assert "Traceback" not in daemon.log


@pytest.mark.parametrize("place", ["begin", "end"])
async def test_defect_of_an_observer_is_not_the_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A call is answered although it cannot be observed; the defect is logged once, and its text stays in the log."""

    def broken(*arguments: Any, **more: Any) -> Any:
        raise AttributeError("secret-ish internal text")

    monkeypatch.setattr(CallObserver, place, broken)
    monkeypatch.setattr(interceptors, "_logged", set())
    with capture_logs() as logs:
        async with (
            running(tmp_path, kms_audit_file=str(tmp_path / "audit.log")) as daemon,
            AsyncKmsClient(daemon.addresses[0]) as client,
        ):
            for _ in range(3):
                assert (await client.encrypt("acme", b"x")).ciphertext_blob
    assert [place] == [line["where"] for line in logs if "could not be observed" in line["event"]]


async def test_line_of_a_batch_names_its_key(tmp_path: Path) -> None:
    """The audit line of SignSpans has the id of the key that signed, and the number of spans."""
    spans = [ComplianceSpan(trace_id=b"t" * 16, span_id=bytes([number + 1]) * 8) for number in range(3)]
    file = tmp_path / "audit.log"
    async with (
        running(tmp_path / "daemon", kms_audit_file=str(file)) as daemon,
        AsyncKmsClient(daemon.addresses[0]) as client,
    ):
        signed = await client.sign_spans("acme", spans)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    (line,) = [line for line in lines if line["operation"] == "SignSpans"]
    assert ({result.key_id for result in signed}, 3) == ({line["keyId"]}, line["items"])  # type: ignore[union-attr]
