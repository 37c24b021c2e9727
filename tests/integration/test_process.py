"""The daemon as a process: starts, refusals to start, signals, restarts."""

import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import KmsClient
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.daemon import COMMAND, spawned

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")
ANY_PORT = "127.0.0.1:0"


def refused(*arguments: str, environ: Mapping[str, str] | None = None) -> str:
    """Run a daemon that must not start, and return what it wrote to stderr. `environ` is added to our environment."""
    done = subprocess.run(
        [str(COMMAND), "serve", "--set", "kms.log.level=error", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **(environ or {})},
    )
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_the_start_tells_the_settings_and_where_each_came_from(tmp_path: Path) -> None:
    """Settings with their sources, the provider in the seed's words, and a warning for the local one."""
    with spawned(
        "--data-dir", str(tmp_path / "data"), "--listen", ANY_PORT, environ={"KMS_CACHE_MAX_SIZE": "7"}
    ) as daemon:
        assert "source=environment" in daemon.wait_for("kms.cache.max-size = 7")
        assert "source=default" in daemon.wait_for("kms.cache.private-key-ttl-minutes = 60")
        assert "source='command line'" in daemon.wait_for("kms.data-dir")
        daemon.wait_for("Initializing KMS provider: local")
        daemon.wait_for("NOT FOR PRODUCTION USE")
        daemon.wait_for("KMS is usable, serving")


def test_the_data_folder_is_its_owners_alone(tmp_path: Path) -> None:
    """Folder 0700, files 0600, also where the umask would allow more."""
    data = tmp_path / "data"
    with spawned("--data-dir", str(data), "--listen", ANY_PORT) as daemon:
        daemon.wait_for("serving")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (data, *data.iterdir())}
    files = ("keystore.db", "local-master.key", "daemon.lock", "admin.sock", "admin.sock.lock")
    assert modes == {"data": 0o700} | dict.fromkeys(files, 0o600)


def test_sigterm_drains_and_exits_with_zero(tmp_path: Path) -> None:
    """An open health watch ends, and the daemon does not wait out its grace of ten minutes."""
    with spawned("--data-dir", str(tmp_path), "--listen", ANY_PORT, "--set", "kms.server.drain-seconds=600") as daemon:
        with grpc.insecure_channel(daemon.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
            states = [next(watch).status]
            daemon.process.send_signal(signal.SIGTERM)
            states += [answer.status for answer in watch]
        assert daemon.process.wait(timeout=20) == 0
        daemon.wait_for("Stopped")
    assert states == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_tenant_signs_with_the_same_key_after_a_restart(tmp_path: Path, end: signal.Signals) -> None:
    """The key of the first signature outlives the process, however it ended; so does what Encrypt sealed."""
    arguments = ("--data-dir", str(tmp_path), "--listen", ANY_PORT)
    with spawned(*arguments) as daemon:
        with KmsClient(daemon.address) as client:
            first = client.sign_span("acme", SPAN)
            sealed = client.encrypt("acme", b"payload")
        daemon.process.send_signal(end)
        daemon.process.wait()
    with spawned(*arguments) as daemon, KmsClient(daemon.address) as client:
        second = client.sign_span("acme", SPAN)
        opened = client.decrypt("acme", sealed.ciphertext_blob)
    assert (second.key_id, second.signature) == (first.key_id, first.signature)
    assert opened.plaintext == b"payload"


def test_a_unix_socket_is_its_owners_alone_and_goes_with_the_daemon(tmp_path: Path) -> None:
    """The socket is born 0600, calls go through it, and it is removed at the end."""
    path = tmp_path / "run" / "kms.sock"
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", f"unix:{path}") as daemon:
        daemon.wait_for("serving")
        mode = stat.S_IMODE(path.stat().st_mode)
        with KmsClient(f"unix:{path}") as client:
            assert len(client.generate_data_key("acme").plaintext) == 32
        daemon.process.terminate()
        daemon.process.wait()
    assert (mode, path.exists()) == (0o600, False)


def test_a_socket_that_a_killed_daemon_left_is_replaced(tmp_path: Path) -> None:
    """kill -9 leaves a socket behind; the next start takes it over."""
    arguments = ("--data-dir", str(tmp_path / "data"), "--listen", f"unix:{tmp_path / 'kms.sock'}")
    with spawned(*arguments) as daemon:
        daemon.wait_for("serving")
        daemon.process.kill()
        daemon.process.wait()
        assert (tmp_path / "kms.sock").is_socket()
    with spawned(*arguments) as daemon:
        daemon.wait_for("serving")


def test_a_second_daemon_is_refused_whatever_it_shares(tmp_path: Path) -> None:
    """The same data folder, socket or port: one line, exit code 2, and the first daemon serves on."""
    path = tmp_path / "kms.sock"
    with spawned("--data-dir", str(tmp_path / "one"), "--listen", f"{ANY_PORT},unix:{path}") as daemon:
        address = daemon.address
        other = ("--data-dir", str(tmp_path / "two"))
        refusals = [
            refused("--data-dir", str(tmp_path / "one"), "--listen", ANY_PORT),
            refused(*other, "--listen", f"unix:{path}"),
            refused(*other, "--listen", address),
        ]
        with KmsClient(address) as client, KmsClient(f"unix:{path}") as by_socket:
            assert client.generate_data_key("acme") == by_socket.generate_data_key("acme")
    assert [text.count("\n") for text in refusals] == [1, 1, 1]
    assert "another daemon uses kms.data-dir" in refusals[0]
    assert "another daemon holds" in refusals[1]
    assert f"cannot listen on {address}" in refusals[2]


def test_a_foreign_socket_that_answers_is_left_alone(tmp_path: Path) -> None:
    """Something that is not a daemon of ours may hold the path too."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "kms.sock"))
        other.listen()
        text = refused("--data-dir", str(tmp_path / "data"), "--listen", f"unix:{tmp_path / 'kms.sock'}")
        assert (tmp_path / "kms.sock").is_socket()
    assert "something answers on" in text


def _loosen(data: Path) -> None:
    (data / "local-master.key").chmod(0o640)


def _cut(data: Path) -> None:
    key = data / "local-master.key"
    key.write_bytes(key.read_bytes()[:-20])


def _remove(data: Path) -> None:
    (data / "local-master.key").unlink()


def _lose_the_store(data: Path) -> None:
    (data / "keystore.db").unlink()


def _exchange(data: Path) -> None:
    with spawned("--data-dir", str(data / "other"), "--listen", ANY_PORT) as daemon:
        daemon.wait_for("serving")
    (data / "other" / "local-master.key").replace(data / "local-master.key")


def _scribble(data: Path) -> None:
    store = data / "keystore.db"
    content = bytearray(store.read_bytes())
    content[5000:9000] = b"\xff" * 4000
    store.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_loosen, "run chmod 600 on it"),
        (_cut, "is damaged or cut short: restore it from a backup"),
        (_remove, "is missing, and the key store holds keys that it wrapped"),
        (_lose_the_store, "is missing beside local-master.key: restore it from a backup"),
        (_exchange, "another local-master.key wrapped"),
        (_scribble, "is damaged"),
    ],
)
def test_a_damaged_data_folder_is_refused_and_left_as_it_is(
    tmp_path: Path, damage: Callable[[Path], None], text: str
) -> None:
    """One line that says what to do, exit code 2, and not a byte of key store or master key is changed."""
    with spawned("--data-dir", str(tmp_path), "--listen", ANY_PORT) as daemon, KmsClient(daemon.address) as client:
        client.sign_span("acme", SPAN)
    damage(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*") if path.is_file()}
    refusal = refused("--data-dir", str(tmp_path), "--listen", ANY_PORT)
    after = {path.name: path.read_bytes() for path in tmp_path.glob("*") if path.is_file()}
    assert text in refusal
    assert refusal.count("\n") == 1
    assert after == before


AWS_KEY = "arn:aws:kms:us-east-1:123456789012:key/abcd1234-5678-90ab-cdef-1234567890ab"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--listen", "0.0.0.0:50051"], "can be reached from other machines"),
        (["--listen", "nonsense"], "is no address"),
        (["--set", "kms.cache.max-sise=5"], "kms.cache.max-sise (from command line): no such setting"),
        (["--set", "kms.cache.max-size=many"], "kms.cache.max-size (from command line)"),
        (["--set", "kms.cache.max-size"], "write it as NAME=VALUE"),
        (["--set", "betrace.kms.provider=keepass"], "betrace.kms.provider (from command line)"),
        (["--set", "betrace.kms.provider=aws"], "aws.kms.master-key-id is missing"),
        (["--config", "no-such-file"], "cannot be read"),
        (["--set", "aws.kms.endpoint=http://localhost:notaport"], "aws.kms.endpoint (from command line)"),
        (["--set", "aws.kms.region=not a region"], "aws.kms.region (from command line)"),
        (["--config-dir", "no-such-folder"], "cannot be read"),
        (
            [
                *("--set", "betrace.kms.provider=aws", "--set", f"aws.kms.master-key-id={AWS_KEY}"),
                *("--set", "aws.kms.region=eu-west-1"),
            ],
            "make them equal",
        ),
    ],
)
def test_an_impossible_setting_is_refused_with_one_line(tmp_path: Path, arguments: list[str], text: str) -> None:
    """The line names the setting, where it came from and what it may be."""
    refusal = refused("--data-dir", str(tmp_path), *arguments)
    assert text in refusal
    assert refusal.count("\n") == 1


def test_a_store_of_another_provider_is_refused(tmp_path: Path) -> None:
    """A daemon with provider aws does not start on keys that the local provider wrapped."""
    with spawned("--data-dir", str(tmp_path), "--listen", ANY_PORT) as daemon, KmsClient(daemon.address) as client:
        client.sign_span("acme", SPAN)
    refusal = refused(
        *("--data-dir", str(tmp_path), "--listen", ANY_PORT, "--set", "kms.store.allow-ephemeral=true"),
        *("--set", "betrace.kms.provider=aws", "--set", f"aws.kms.master-key-id={AWS_KEY}"),
        *("--set", "aws.kms.endpoint=http://127.0.0.1:1"),
    )
    assert "wrapped by provider local, which aws cannot use" in refusal


def test_a_store_of_aws_is_not_taken_for_a_lost_master_key(tmp_path: Path, moto: "MotoServer", kms_key: str) -> None:
    """Who forgets betrace.kms.provider=aws is told so, and no file is missed that never was."""
    given = {
        "BETRACE_KMS_PROVIDER": "aws",
        "AWS_KMS_MASTER_KEY_ID": kms_key,
        "AWS_KMS_ENDPOINT": moto.url,
        "KMS_STORE_ALLOW_EPHEMERAL": "true",
    }
    arguments = ("--data-dir", str(tmp_path), "--listen", ANY_PORT)
    with spawned(*arguments, environ=given) as daemon, KmsClient(daemon.address) as client:
        client.sign_span("acme", SPAN)
    assert "wrapped by provider aws, which local cannot use: set betrace.kms.provider=aws" in refused(*arguments)


def test_no_core_is_dumped(tmp_path: Path) -> None:
    """A core file would hold the keys."""
    with spawned("--data-dir", str(tmp_path), "--listen", ANY_PORT) as daemon:
        daemon.wait_for("serving")
        limits = Path(f"/proc/{daemon.process.pid}/limits").read_text()
    (core,) = [line.split() for line in limits.splitlines() if line.startswith("Max core file size")]
    assert core[4:6] == ["0", "0"]


def test_a_folder_that_is_open_to_others_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    """A folder that was made by hand may be somebody else's too: its mode is not the daemon's to change."""
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    refusal = refused("--data-dir", str(data), "--listen", ANY_PORT)
    assert refusal == f"betrace-kms: {data} is open to others (mode 0755): run chmod 700 on it\n"
    assert (stat.S_IMODE(data.stat().st_mode), list(data.iterdir())) == (0o755, [])
    data.chmod(0o700)
    with spawned("--data-dir", str(data), "--listen", ANY_PORT) as daemon:
        daemon.wait_for("serving")


@pytest.mark.parametrize(("name", "option"), [("keystore.db", ""), ("audit.jsonl", "kms.audit.file")])
def test_a_file_that_is_open_to_others_is_refused(tmp_path: Path, name: str, option: str) -> None:
    """Key store and audit trail, and with them whoever opened them, have the owner's mode; then the daemon starts."""
    data, file = tmp_path / "data", tmp_path / "data" / name
    arguments = ["--data-dir", str(data), "--listen", ANY_PORT, *(["--set", f"{option}={file}"] if option else [])]
    with spawned(*arguments) as daemon:
        daemon.wait_for("serving")
        with KmsClient(daemon.address) as client:
            client.sign_span("acme", SPAN)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(20) == 0
    file.chmod(0o640)
    assert f"{file} is open to others (mode 0640): run chmod 600 on it" in refused(*arguments)
    file.chmod(0o600)
    with spawned(*arguments) as daemon:
        daemon.wait_for("serving")


def test_a_volume_of_the_daemons_group_is_used_as_it_is(tmp_path: Path) -> None:
    """Kubernetes gives a volume to an fsGroup: folder 2770, and files 0660 after the next mount."""
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o2770)
    arguments = ("--data-dir", str(data), "--listen", ANY_PORT)
    with spawned(*arguments) as daemon:
        daemon.wait_for("serving")
    (data / "keystore.db").chmod(0o660)
    with spawned(*arguments) as daemon:
        daemon.wait_for("serving")
    assert stat.S_IMODE(data.stat().st_mode) == 0o2770


def test_a_data_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "file").touch()
    refusal = refused("--data-dir", str(tmp_path / "file" / "data"), "--listen", ANY_PORT)
    assert "cannot be made" in refusal
