"""Signals to real daemons: what drains, what hurries, what does neither, and a stop during the start."""

import os
import pty
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import key_management_pb2 as pb
from betrace_kms_client import KmsClient
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from tests.daemon import COMMAND, Process, spawned

KEY = "arn:aws:kms:us-east-1:123456789012:key/abcd1234-5678-90ab-cdef-1234567890ab"
LONG_DRAIN = ("--set", "kms.server.drain-seconds=600")
REFLECTIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
ENDS = [signal.SIGTERM, signal.SIGINT]


@contextmanager
def local(data_dir: Path, *arguments: str) -> Iterator[Process]:
    """Run a daemon with the local provider that would drain for ten minutes."""
    with spawned("--data-dir", str(data_dir), "--listen", "127.0.0.1:0", *LONG_DRAIN, *arguments) as daemon:
        daemon.wait_for("serving")
        yield daemon


@pytest.fixture
def hanging() -> Iterator[str]:
    """Give the URL of something that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        taken: list[socket.socket] = []

        def take() -> None:
            with suppress(OSError):
                while True:
                    taken.append(server.accept()[0])

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in taken:
            connection.close()


@pytest.fixture
def dropping() -> Iterator[str]:
    """Give the URL of something whose kernel drops what comes, as behind a firewall: its queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        waiting = [socket.socket() for _ in range(3)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection in waiting:
            connection.close()


def aws(data_dir: Path, url: str) -> tuple[str, ...]:
    """Return arguments for a daemon whose KMS never answers."""
    return (
        *("--data-dir", str(data_dir), "--listen", "127.0.0.1:0", *LONG_DRAIN),
        *("--set", "betrace.kms.provider=aws", "--set", f"aws.kms.master-key-id={KEY}"),
        *("--set", f"aws.kms.endpoint={url}", "--set", "kms.store.allow-ephemeral=true"),
        *("--set", "aws.kms.call-timeout-ms=60000"),
    )


CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}


def ended(daemon: Process) -> tuple[int, bool]:
    """Return the exit code of a daemon that was asked to stop, and whether its log has no traceback."""
    code = daemon.process.wait(timeout=30)
    daemon.wait_for("Stopped")
    return code, "Traceback" not in daemon.log


def reflecting(channel: grpc.Channel, service: str) -> Any:
    """Open a reflection stream that stays open, and get the answer to its first request."""
    method = channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    idle = threading.Event()

    def requests() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="*")
        idle.wait(60)

    call = method(requests())
    assert next(call).HasField("list_services_response")
    call.add_callback(idle.set)
    return call


@pytest.mark.parametrize("end", ENDS)
def test_idle_streams_do_not_hold_up_the_stop(tmp_path: Path, end: signal.Signals) -> None:
    """Streams of both reflections and health, on the port and on the admin socket, end, and so does the daemon."""
    with local(tmp_path) as daemon:
        addresses = (daemon.address, f"unix:{tmp_path / 'admin.sock'}")
        channels = [grpc.insecure_channel(address) for address in addresses]
        streams = [reflecting(channel, service) for channel in channels for service in REFLECTIONS]
        for channel in channels:
            health: Any = health_pb2_grpc.HealthStub(channel)
            streams.append(health.Watch(health_pb2.HealthCheckRequest(service="")))
            next(streams[-1])
        daemon.process.send_signal(end)
        rest = [list(stream) for stream in streams]
        assert (0, True) == ended(daemon)
        for channel in channels:
            channel.close()
    assert [0, 0, 0, 0, 1, 1] == [len(answers) for answers in rest]
    assert {grpc.StatusCode.OK} == {stream.code() for stream in streams}


def test_sighup_without_a_terminal_changes_nothing(tmp_path: Path) -> None:
    """The daemon says that settings are read at start only, serves on, and still stops by SIGTERM."""
    with spawned(
        "--data-dir", str(tmp_path), "--listen", "127.0.0.1:0", command=("setsid", str(COMMAND), "serve")
    ) as daemon:
        daemon.wait_for("serving")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("SIGHUP: the daemon goes on")
        with KmsClient(daemon.address) as client:
            assert 32 == len(client.generate_data_key("acme").plaintext)
        daemon.process.send_signal(signal.SIGTERM)
        assert (0, True) == ended(daemon)


@contextmanager
def on_a_terminal(data_dir: Path, *before: str) -> Iterator[tuple[Process, int]]:
    """Run a daemon whose controlling terminal is ours; give it and the terminal's other end. stderr is a pipe."""
    master, slave = pty.openpty()
    serve = (*before, str(COMMAND), "serve", "--data-dir", str(data_dir), "--listen", "127.0.0.1:0", *LONG_DRAIN)
    process = subprocess.Popen(
        ["setsid", "--ctty", *serve],
        stdin=slave,
        stdout=subprocess.DEVNULL,  # nohup would make a file instead of a terminal
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KMS_OPS_LISTEN": "127.0.0.1:0"},
    )
    os.close(slave)
    daemon = Process(process)
    reader = threading.Thread(target=daemon.read)
    reader.start()
    try:
        daemon.wait_for("serving")
        yield daemon, master
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def test_a_daemon_whose_terminal_is_closed_drains_and_stops(tmp_path: Path) -> None:
    """`make run` in a terminal that is closed leaves no daemon behind."""
    with on_a_terminal(tmp_path) as (daemon, terminal):
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("SIGHUP: the daemon goes on")  # the terminal is still there
        os.close(terminal)
        assert (0, True) == ended(daemon)


def test_nohup_outlives_the_terminal(tmp_path: Path) -> None:
    """Whoever ignores SIGHUP for the daemon has it ignored."""
    with on_a_terminal(tmp_path, "nohup") as (daemon, terminal):
        os.close(terminal)
        daemon.process.send_signal(signal.SIGHUP)
        with KmsClient(daemon.address) as client:
            assert 32 == len(client.generate_data_key("acme").plaintext)
        daemon.process.send_signal(signal.SIGTERM)
        assert (0, True) == ended(daemon)
    assert "SIGHUP" not in daemon.log


@pytest.mark.parametrize("first", ENDS)
def test_a_second_interrupt_ends_calls_in_flight(tmp_path: Path, hanging: str, first: signal.Signals) -> None:
    """Repeated SIGTERM and SIGHUP wait on; SIGINT in the drain ends the calls, and the daemon stops in order."""
    with (
        spawned(*aws(tmp_path, hanging), environ=CREDENTIALS) as daemon,
        grpc.insecure_channel(daemon.address) as channel,
    ):
        call: Any = channel.unary_unary(
            "/betrace.kms.v1.KeyManagementService/GenerateDataKey",
            request_serializer=pb.GenerateDataKeyRequest.SerializeToString,
            response_deserializer=pb.GenerateDataKeyResponse.FromString,
        )
        watch: Any = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer = call.future(pb.GenerateDataKeyRequest(tenant_id="acme", key_spec=pb.AES_256))
        next(watch(health_pb2.HealthCheckRequest(service="")))  # the call before it has arrived
        daemon.process.send_signal(first)
        daemon.wait_for("Stopping")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for("Already stopping")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("SIGHUP: the daemon goes on")
        assert (False, None) == (answer.done(), daemon.process.poll())
        daemon.process.send_signal(signal.SIGINT)
        assert (0, True) == ended(daemon)
        assert grpc.StatusCode.UNAVAILABLE == answer.code()


@pytest.mark.parametrize("end", ENDS)
def test_a_daemon_whose_kms_never_answered_stops(tmp_path: Path, hanging: str, end: signal.Signals) -> None:
    """Before the first answer of KMS the daemon is NOT_SERVING, and stops at once."""
    with spawned(*aws(tmp_path, hanging), environ=CREDENTIALS) as daemon:
        daemon.wait_for("Listening")
        daemon.process.send_signal(end)
        assert (0, True) == ended(daemon)
    assert "serving" not in daemon.log


@pytest.mark.parametrize("end", ENDS)
def test_a_stop_during_the_start(tmp_path: Path, hanging: str, end: signal.Signals) -> None:
    """While the key store does not answer there is nothing to drain: the daemon ends, and leaves no socket behind."""
    store = ("--set", "kms.store=dynamodb", "--set", "kms.store.table=keys", "--set", f"kms.store.endpoint={hanging}")
    sockets = f"127.0.0.1:0,unix:{tmp_path / 'kms.sock'}"
    with spawned(*aws(tmp_path, hanging), *store, "--listen", sockets, environ=CREDENTIALS) as daemon:
        daemon.wait_for("kms.store.endpoint")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("SIGHUP: the daemon goes on")
        daemon.process.send_signal(end)
        daemon.wait_for("Stopping during the start")
        for again in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            daemon.process.send_signal(again)
        assert (0, True) == ended(daemon)
    assert ("Listening" in daemon.log, (tmp_path / "kms.sock").exists()) == (False, False)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("dead", ["hanging", "dropping"])
def test_a_dead_collector_does_not_hold_up_the_stop(
    tmp_path: Path, request: pytest.FixtureRequest, dead: str, protocol: str
) -> None:
    """Traces and metrics are given up after a second together; one after the other they took four."""
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": request.getfixturevalue(dead),
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_TRACES_SAMPLER": "always_on",
    }
    with (
        spawned("--data-dir", str(tmp_path), "--listen", "127.0.0.1:0", *LONG_DRAIN, environ=environ) as daemon,
        KmsClient(daemon.address) as client,
    ):
        daemon.wait_for("serving")
        client.encrypt("acme", b"x")
        daemon.process.send_signal(signal.SIGTERM)
        assert (0, True) == ended(daemon)
    assert "does not answer: the last telemetry is lost" in daemon.log
    began, end = (
        datetime.fromisoformat(daemon.wait_for(text).split()[0]) for text in ("[info     ] Stopping", "Stopped")
    )
    assert end - began < timedelta(seconds=3.5)


def test_signals_after_the_drain_change_nothing(tmp_path: Path, hanging: str) -> None:
    """Neither while the last telemetry is sent, nor while Python ends."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": hanging, "OTEL_TRACES_SAMPLER": "parentbased_always_on"}
    with spawned("--data-dir", str(tmp_path), "--listen", f"unix:{tmp_path}/kms.sock", environ=environ) as daemon:
        daemon.wait_for("serving")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for("Stopping")
        while accepts(tmp_path / "kms.sock"):
            pass
        while daemon.process.poll() is None:
            for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
                daemon.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                daemon.process.wait(0.02)
        assert (0, True) == ended(daemon)


def accepts(path: Path) -> bool:
    """Whether something listens on a unix socket."""
    with socket.socket(socket.AF_UNIX) as caller:
        return caller.connect_ex(str(path)) == 0


@pytest.mark.parametrize("module", ["grpc", "click", "uvloop", "pydantic"])
def test_ctrl_c_during_the_imports(tmp_path: Path, module: str) -> None:
    """Whatever is being imported, by the command or by the daemon: one line, and the exit code of shells."""
    (tmp_path / f"{module}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        [str(COMMAND), "serve", "--data-dir", str(tmp_path / "data")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (130, "betrace-kms: interrupted\n") == (done.returncode, done.stderr)
