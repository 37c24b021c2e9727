"""Who is let in: sockets, tokens and certificates, each against a real daemon. `refused` cases count, none may pass."""

import asyncio
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from betrace_kms_client import AsyncKmsClient, KmsClient, Unauthenticated
from betrace_kms_server.access.admission import Access
from betrace_kms_server.access.tokens import TokenAuthenticator
from betrace_kms_server.rpc.interceptors import ErrorInterceptor
from betrace_kms_server.telemetry.observers import UNOBSERVED
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests import raw_grpc
from tests.daemon import COMMAND, Process, running, spawned
from tests.integration.callers import (
    FIRST,
    OLD,
    REQUEST,
    SECOND,
    STRANGER,
    bearer,
    eventually,
    needs_root,
    refused_start,
    status_of,
    token_at,
)

METHODS = sorted(pb.DESCRIPTOR.services_by_name["KeyManagementService"].methods_by_name)
PATH = "/betrace.kms.v1.KeyManagementService/GenerateDataKey"


@dataclass(frozen=True)
class Guarded:
    """A daemon that wants a token on TCP, and has two sockets with identities and one without."""

    process: Process
    folder: Path

    @property
    def address(self) -> str:
        return self.process.address

    def socket(self, name: str) -> str:
        return f"unix:{self.folder}/{name}.sock"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    """Run one daemon for all tests that change nothing. Its folder can be entered by every user."""
    with tempfile.TemporaryDirectory(prefix="kms") as name:
        folder = Path(name)
        folder.chmod(0o711)
        (folder / "token").touch(0o600)
        (folder / "token").write_text(f"# tokens\n{FIRST}\n\nbatch {SECOND}\n")
        sockets = (
            f"unix:{folder}/plain.sock",
            f"unix:{folder}/own.sock;identity=own",
            f"unix:{folder}/shared.sock;identity=shared;mode=0660;group={STRANGER}",
        )
        options = ("--set", f"kms.server.token-file={folder}/token", "--set", f"kms.audit.file={folder}/audit.log")
        with spawned(
            "--data-dir", str(folder / "data"), "--listen", ",".join(("127.0.0.1:0", *sockets)), *options
        ) as process:
            process.wait_for("serving")
            yield Guarded(process, folder)


NO_TOKEN: dict[str, Any] = {
    "no metadata": None,
    "empty header": (("authorization", ""),),
    "scheme alone": (("authorization", "Bearer"),),
    "empty token": bearer(""),
    "wrong": bearer(secrets.token_urlsafe(32)),
    "first character differs": bearer(("A" if FIRST[0] != "A" else "B") + FIRST[1:]),
    "last character differs": bearer(FIRST[:-1] + ("A" if FIRST[-1] != "A" else "B")),
    "a prefix of the right one": bearer(FIRST[:-1]),
    "one character more": bearer(FIRST + "A"),
    "all upper case": bearer(FIRST.upper()),
    "right one twice in one header": bearer(f"{FIRST} {FIRST}"),
    "two right ones, comma": bearer(f"{FIRST},{SECOND}"),
    "long": bearer("a" * 4000),
    "right one behind 4,000 blanks": bearer(" " * 4000 + FIRST),
    "right one before 4,000 more": bearer(FIRST + "a" * 4000),
    "its name alone": bearer("batch"),
    "name and token": bearer(f"batch {SECOND}"),
    "the comment of the file": (("authorization", "# tokens"),),
    "without a scheme": (("authorization", FIRST),),
    "scheme Basic": bearer(FIRST, "Basic"),
    "scheme Token": bearer(FIRST, "Token"),
    "scheme with a colon": bearer(FIRST, "Bearer:"),
    "scheme without a blank": (("authorization", f"Bearer{FIRST}"),),
    "two headers, both right": bearer(FIRST) + bearer(FIRST),
    "two headers, right one first": bearer(FIRST) + bearer("wrong"),
    "two headers, right one last": bearer("wrong") + bearer(FIRST),
    "other header": (("x-authorization", f"Bearer {FIRST}"),),
    "proxy header": (("proxy-authorization", f"Bearer {FIRST}"),),
    "binary header": (("authorization-bin", f"Bearer {FIRST}".encode()),),
    "cookie": (("cookie", f"authorization=Bearer {FIRST}"),),
    "removed from the file": bearer(OLD),
    "an identity by name": (("x-identity", "own"), ("identity", "own")),
    "a client certificate by header": (("x-forwarded-client-cert", "URI=spiffe://example.org/backend"),),
    "an address by header": (("x-forwarded-for", "127.0.0.1"), ("forwarded", "for=unix:/own.sock")),
}


@pytest.mark.parametrize("case", NO_TOKEN)
def test_refused_without_a_valid_token(guarded: Guarded, case: str) -> None:
    """Whatever is sent in the place of a token, there is no key."""
    assert grpc.StatusCode.UNAUTHENTICATED == status_of(guarded.address, NO_TOKEN[case])


@pytest.mark.parametrize("method", METHODS)
def test_refused_on_every_method(guarded: Guarded, method: str) -> None:
    """No method of the service is without a guard, on TCP and on a socket without an identity."""
    assert grpc.StatusCode.UNAUTHENTICATED == status_of(guarded.address, None, method)
    assert grpc.StatusCode.UNAUTHENTICATED == status_of(guarded.socket("plain"), None, method)


NO_ASCII = {
    "UTF-8": f"Bearer {FIRST[:-1]}é".encode(),
    "Latin-1": f"Bearer {FIRST[:-1]}é".encode("latin-1"),
    "no encoding at all": b"Bearer \xff\xfe" + FIRST.encode(),
    "tab for a blank": b"Bearer\t" + FIRST.encode(),
    "zero byte": b"Bearer " + FIRST.encode() + b"\0",
    "no-break space": b"Bearer\xa0" + FIRST.encode(),
    "line break": b"Bearer " + FIRST.encode() + b"\r\nx: y",
}


@pytest.mark.parametrize("case", NO_ASCII)
def test_refused_non_ascii_token(guarded: Guarded, case: str) -> None:
    """Bytes that are no ASCII text get no answer with a key, whether gRPC or the daemon refuses them."""
    received = raw_grpc.call(guarded.address, PATH, REQUEST.SerializeToString(), [(b"authorization", NO_ASCII[case])])
    assert b"arn:betrace:kms" not in received


def test_let_in_byte_by_byte(guarded: Guarded) -> None:
    """The raw call is let in with the right token, so what it shows about wrong ones counts."""
    value = f"Bearer {FIRST}".encode()
    received = raw_grpc.call(guarded.address, PATH, REQUEST.SerializeToString(), [(b"authorization", value)])
    assert b"arn:betrace:kms" in received


@pytest.mark.parametrize(
    "metadata",
    [bearer(FIRST), bearer(SECOND), bearer(FIRST, "bearer"), bearer(FIRST, "BEARER"), bearer(" " + FIRST)],
    ids=["first", "second", "lower case", "upper case", "two blanks"],
)
def test_let_in_by_a_token(guarded: Guarded, metadata: Any) -> None:
    """Every token of the file is accepted, and the scheme is written as one likes (RFC 9110, section 11.1)."""
    assert grpc.StatusCode.OK == status_of(guarded.address, metadata)
    assert grpc.StatusCode.OK == status_of(guarded.socket("plain"), metadata)


def test_a_message_that_cannot_be_read_is_not_judged_for_strangers(guarded: Guarded) -> None:
    """Who is not authenticated does not learn whether a message was well formed."""
    received = raw_grpc.call(guarded.address, PATH, b"\xff\xff\xff", [])
    assert b"not authenticated" in received
    assert b"no valid message" not in received


async def test_a_request_of_a_stranger_is_not_parsed() -> None:
    """Who is not authenticated cannot make the daemon parse a large message."""
    parsed = []

    async def answer(request: Any, context: Any) -> bytes:
        return b""

    def parse(wire: bytes) -> bytes:
        parsed.append(wire)
        return wire

    with tempfile.TemporaryDirectory(prefix="kms") as folder:
        tokens = TokenAuthenticator(token_at(Path(folder) / "token"), None)
        server = grpc.aio.server(interceptors=[ErrorInterceptor(UNOBSERVED, None, Access(tokens))])
        handler: Any = grpc.unary_unary_rpc_method_handler(answer, parse)
        handlers = grpc.method_handlers_generic_handler("betrace.kms.v1.KeyManagementService", {"Encrypt": handler})
        server.add_generic_rpc_handlers((handlers,))
        server.add_insecure_port(f"unix:{folder}/kms.sock")
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{folder}/kms.sock") as channel:
            call: Any = channel.unary_unary("/betrace.kms.v1.KeyManagementService/Encrypt")
            for metadata in (None, bearer(OLD), bearer(FIRST)):
                with suppress(grpc.aio.AioRpcError):
                    await call(b"of " + str(metadata).encode(), metadata=metadata)
        await server.stop(None)
    assert [b"of " + str(bearer(FIRST)).encode()] == parsed


def test_health_and_reflection_need_no_token(guarded: Guarded) -> None:
    """Probes and grpcurl work as before."""
    with grpc.insecure_channel(guarded.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert health_pb2.HealthCheckResponse.SERVING == stub.Check(health_pb2.HealthCheckRequest()).status


def test_the_refusal_says_how_to_identify_oneself_and_nothing_else(guarded: Guarded) -> None:
    """One text for every cause, with a reason for programs."""
    texts = set()
    for case in ("no metadata", "wrong", "removed from the file", "long", "scheme Basic"):
        with grpc.insecure_channel(guarded.address) as channel, pytest.raises(grpc.RpcError) as caught:
            KeyManagementServiceStub(channel).GenerateDataKey(REQUEST, metadata=NO_TOKEN[case])
        texts.add(caught.value.details())
    (text,) = texts
    assert "authorization: Bearer TOKEN" in str(text)
    with KmsClient(guarded.address) as client, pytest.raises(Unauthenticated) as refused:
        client.generate_data_key("acme")
    assert "UNAUTHENTICATED" == refused.value.reason


def test_no_token_is_in_the_log_or_the_audit_trail(guarded: Guarded) -> None:
    """Neither right nor wrong tokens are written down; identities are."""
    assert grpc.StatusCode.OK == status_of(guarded.address, bearer(SECOND))
    assert grpc.StatusCode.UNAUTHENTICATED == status_of(guarded.address, bearer(OLD))
    assert grpc.StatusCode.OK == status_of(guarded.socket("own"))
    deadline, trail = 50, ""
    while deadline and not ('"identity":"own"' in trail and '"identity":"batch"' in trail):
        deadline, trail = deadline - 1, (guarded.folder / "audit.log").read_text()
        subprocess.run(["sleep", "0.1"], check=True)
    assert '"identity":"own"' in trail
    assert '"identity":"batch"' in trail
    assert '"identity":"","rule":"","result":"UNAUTHENTICATED"' in trail
    for token in (FIRST, SECOND, OLD):
        assert token not in trail + guarded.process.log


def connects(path: Path, *, user: int, group: int) -> bool:
    """Return whether a process of another user and group can connect to a socket."""
    script = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
    done = subprocess.run(
        ["/usr/bin/env", "python3", "-c", script],
        user=user,
        group=group,
        extra_groups=[],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0 or b"PermissionError" in done.stderr, done.stderr
    return done.returncode == 0


@needs_root
@pytest.mark.parametrize(
    ("name", "group"),
    [("own", STRANGER), ("own", 12345), ("plain", STRANGER), ("shared", 12345), ("data/admin", STRANGER)],
)
def test_refused_by_the_kernel(guarded: Guarded, name: str, group: int) -> None:
    """Another user does not reach a socket of mode 0600, nor one whose group is not its own."""
    assert not connects(guarded.folder / f"{name}.sock", user=STRANGER, group=group)


@needs_root
def test_let_in_by_the_group_of_a_socket(guarded: Guarded) -> None:
    """A member of the group reaches a socket of mode 0660."""
    assert connects(guarded.folder / "shared.sock", user=STRANGER, group=STRANGER)
    status = (guarded.folder / "shared.sock").stat()
    assert (0o660, STRANGER) == (status.st_mode & 0o777, status.st_gid)


@pytest.mark.parametrize("name", ["own", "shared"])
def test_let_in_by_the_identity_of_a_socket(guarded: Guarded, name: str) -> None:
    """Whoever may connect is the socket's identity, with no token, and with one that some client sends anyway."""
    assert grpc.StatusCode.OK == status_of(guarded.socket(name))
    assert grpc.StatusCode.OK == status_of(guarded.socket(name), bearer("wrong"))


def test_a_missing_folder_of_a_shared_socket_can_be_entered_by_its_group(tmp_path: Path) -> None:
    """The daemon makes the folder, 0710 and the group's, so that the group reaches the socket in it."""
    path = tmp_path / "new" / "kms.sock"
    listen = f"unix:{path};identity=backend;mode=0660;group={os.getegid()}"
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", listen) as process:
        process.wait_for("serving")
        assert 0o710 == path.parent.stat().st_mode & 0o777
        assert grpc.StatusCode.OK == status_of(f"unix:{path}")


async def test_a_socket_is_never_open_to_others_before_its_mode_is_set(tmp_path: Path) -> None:
    """A socket is born 0600 whatever the umask is, and gets its group before its mode."""
    seen: list[tuple[str, int, int]] = []
    before = os.umask(0)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.chmod", "os.chown") and str(arguments[0]).endswith("kms.sock"):
            status = os.stat(arguments[0])
            seen.append((event, status.st_mode & 0o777, status.st_gid))

    sys.addaudithook(audit)
    try:
        listen = f"unix:{tmp_path}/kms.sock;identity=backend;mode=0660;group={os.getegid()}"
        async with running(tmp_path / "data", kms_server_listen=listen):
            pass
    finally:
        os.umask(before)
    assert [("os.chown", 0o600), ("os.chmod", 0o600)] == [each[:2] for each in seen]


async def test_a_second_daemon_takes_no_calls_of_a_guarded_one(guarded: Guarded, tmp_path: Path) -> None:
    """Another daemon, without a token, gets neither the port nor a socket of the guarded one."""
    for listen in (guarded.address, guarded.socket("own"), guarded.socket("shared") + ";identity=b"):
        assert "stop" in await refused_start(tmp_path, listen=listen)
    assert grpc.StatusCode.UNAUTHENTICATED == status_of(guarded.address)


def test_refused_port_sharing(guarded: Guarded) -> None:
    """SO_REUSEPORT lets no other process of the same user take calls from the daemon's port."""
    host, _, port = guarded.address.rpartition(":")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind((host, int(port)))


async def test_a_missing_token_file_is_made(tmp_path: Path) -> None:
    """It has one token of 256 bits, for its owner only, and a restart keeps it."""
    path = tmp_path / "auth" / "token"
    tokens = []
    for _ in range(2):
        async with running(tmp_path / "data", kms_server_token_file=str(path)) as daemon:
            async with AsyncKmsClient(daemon.addresses[0], token_file=path) as client:
                await client.generate_data_key("acme")
            tokens.append(path.read_text())
    assert tokens[0] == tokens[1]
    assert 43 == len(tokens[0].strip())
    assert (0o600, 0o700) == (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777)
    assert [path] == list(path.parent.iterdir())


async def test_a_token_file_for_a_group(tmp_path: Path) -> None:
    """With kms.server.token-group the file is 0640 and the group's, and so is a folder that was missing."""
    path, group = tmp_path / "auth" / "token", STRANGER if os.geteuid() == 0 else os.getegid()
    async with running(tmp_path / "data", kms_server_token_file=str(path), kms_server_token_group=str(group)) as daemon:
        async with AsyncKmsClient(daemon.addresses[0], token_file=path) as client:
            await client.generate_data_key("acme")
    found = [(each.stat().st_mode & 0o777, each.stat().st_gid) for each in (path, path.parent)]
    assert [(0o640, group), (0o750, group)] == found


async def test_tokens_are_replaced_without_a_call_that_fails(tmp_path: Path) -> None:
    """The new token behind the old one, then alone: clients that read the file never fail, and the old one ends."""
    path = token_at(tmp_path / "token", content=OLD)
    failures, stop = list[Exception](), asyncio.Event()
    async with running(tmp_path / "data", kms_server_token_file=str(path)) as daemon:
        address = daemon.addresses[0]

        async def calls() -> None:
            async with AsyncKmsClient(address, token_file=path) as client:
                while not stop.is_set():
                    try:
                        await client.generate_data_key("acme")
                    except Unauthenticated as error:
                        failures.append(error)

        async def is_status(token: str, expected: grpc.StatusCode) -> bool:
            return expected == await asyncio.to_thread(status_of, address, bearer(token))

        load = asyncio.create_task(calls())
        for content in (f"{OLD}\n{FIRST}", f"{FIRST}\n{OLD}", FIRST):
            token_at(tmp_path / "next", content=content).replace(path)
            last = content.splitlines()[-1]
            await eventually(lambda token=last: is_status(token, grpc.StatusCode.OK))  # type: ignore[misc]
        await eventually(lambda: is_status(OLD, grpc.StatusCode.UNAUTHENTICATED))
        stop.set()
        await load
    assert [] == failures


@pytest.mark.parametrize("case", ["removed", "empty", "loose", "link"])
async def test_a_bad_new_token_file_keeps_the_old_tokens(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not good is logged once, and neither locks callers out nor lets others in."""
    path = token_at(tmp_path / "token")
    async with running(tmp_path / "data", kms_server_token_file=str(path)) as daemon:
        other = token_at(tmp_path / "other", content=SECOND if case != "empty" else "")
        match case:
            case "removed":
                path.unlink()
            case "link":
                path.unlink()
                path.symlink_to(other)
            case _:
                other.chmod(0o644 if case == "loose" else 0o600)
                other.replace(path)
        await asyncio.sleep(2.5)
        said = capsys.readouterr().out
        assert grpc.StatusCode.OK == await asyncio.to_thread(status_of, daemon.addresses[0], bearer(FIRST))
        assert grpc.StatusCode.UNAUTHENTICATED == await asyncio.to_thread(
            status_of, daemon.addresses[0], bearer(SECOND)
        )
    assert 1 == said.count("The tokens stay what they were")


def command(data_dir: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a verb of the admin socket."""
    address = ("--admin-addr", f"unix:{data_dir}/admin.sock")
    return subprocess.run([COMMAND, *words, *address], capture_output=True, text=True, timeout=60, check=False)


def test_a_daemon_without_identities_says_so_and_is_refused_for_production(tmp_path: Path) -> None:
    """A newcomer's daemon starts; the log, status and validate name the addresses and the three ways out."""
    with spawned("--data-dir", str(tmp_path), "--listen", f"127.0.0.1:0,unix:{tmp_path}/a.sock;identity=a") as process:
        said = process.wait_for("CALLERS ARE NOT AUTHENTICATED")
        process.wait_for("serving")
        assert all(way in said for way in ("identity=NAME", "kms.server.token-file", "kms.server.tls.cert-file"))
        status = command(tmp_path, "status")
        assert "NOT AUTHENTICATED at 127.0.0.1:0" in status.stdout
        validate, production = command(tmp_path, "validate"), command(tmp_path, "validate", "--production")
        assert (0, 1) == (validate.returncode, production.returncode)
        assert "callers are not authenticated at 127.0.0.1:0" in validate.stdout
        [failed] = [line for line in production.stdout.splitlines() if "production_callers" in line]
        assert "callers are not authenticated at 127.0.0.1:0" in failed
        connection = http.client.HTTPConnection(process.ops_address, timeout=60)
        connection.request("POST", "/api/admin/kms/validate?production=true")
        assert "FAIL" == json.load(connection.getresponse())["overall"]
        connection.close()


def test_a_daemon_with_identities_says_nothing(guarded: Guarded) -> None:
    """Where every address has its way to identify callers, there is no warning."""
    assert "NOT AUTHENTICATED" not in guarded.process.log
    assert "callers       authenticated" in command(guarded.folder / "data", "status").stdout
    assert "not authenticated" not in command(guarded.folder / "data", "validate").stdout
