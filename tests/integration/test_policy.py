"""A policy in a real daemon: every pair of caller, call and tenant that no rule allows is refused."""

import json
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.daemon import COMMAND, Process, spawned

BACKEND, IMPORTER = (secrets.token_urlsafe(32) for _ in range(2))
POLICY = """
[[rule]]
name = "signs for everyone"
identities = ["backend"]
tenants = ["*"]
operations = ["SignSpan", "GetPublicKeys"]
[[rule]]
name = "imports for some"
identities = ["importer", "local*"]
tenants = ["acme", "eu-*"]
operations = ["Encrypt", "GenerateDataKey"]
"""
METHODS = sorted(pb.DESCRIPTOR.services_by_name["KeyManagementService"].methods_by_name)
TENANTS = ("acme", "eu-west", "globex", "acme2")
ALLOWED = {
    *product(("backend",), ("SignSpan", "GetPublicKeys"), TENANTS),
    *product(("importer", "localjob"), ("Encrypt", "GenerateDataKey"), ("acme", "eu-west")),
}


@contextmanager
def guarded(folder: Path) -> Iterator[tuple[Process, Path]]:
    """Run a daemon with tokens on TCP, two sockets, an audit trail and the policy."""
    folder.joinpath("token").touch(0o600)
    folder.joinpath("token").write_text(f"backend {BACKEND}\nimporter {IMPORTER}\n")
    policy = folder / "policy.toml"
    policy.write_text(POLICY)
    sockets = f"unix:{folder}/job.sock;identity=localjob,unix:{folder}/other.sock;identity=other"
    listen = f"127.0.0.1:0,{sockets}"
    values = {"kms.server.token-file": folder / "token", "kms.policy.file": policy, "kms.audit.file": folder / "audit"}
    options = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    with spawned("--data-dir", str(folder / "data"), "--listen", listen, *options) as process:
        process.wait_for("serving")
        yield process, folder


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Path]]:
    """Give one daemon for all tests that change nothing."""
    with guarded(tmp_path_factory.mktemp("guarded")) as found:
        yield found


def call(daemon: tuple[Process, Path], caller: str, method: str, tenant: str) -> grpc.RpcError | None:
    """Make a call as one of the callers, and return its error."""
    process, folder = daemon
    sockets = {"localjob": f"unix:{folder}/job.sock", "other": f"unix:{folder}/other.sock"}
    token = {"backend": BACKEND, "importer": IMPORTER}.get(caller)
    request = getattr(pb, f"{method}Request")(tenant_id=tenant)
    if method == "GenerateDataKey":
        request.number_of_bytes = 32
    with grpc.insecure_channel(sockets.get(caller, process.address)) as channel:
        metadata = [("authorization", f"Bearer {token}")] if token else None
        try:
            getattr(KeyManagementServiceStub(channel), method)(request, metadata=metadata, timeout=20)
        except grpc.RpcError as error:
            return error
    return None


def code(error: Any) -> grpc.StatusCode:
    return grpc.StatusCode.OK if error is None else error.code()


MATRIX = list(product(("backend", "importer", "localjob", "other"), METHODS, TENANTS))


@pytest.mark.parametrize(("caller", "method", "tenant"), [case for case in MATRIX if case not in ALLOWED])
def test_refused(daemon: tuple[Process, Path], caller: str, method: str, tenant: str) -> None:
    """With one status and reason, in words that do not say whether there is such a tenant or rule."""
    error: Any = call(daemon, caller, method, tenant)
    assert grpc.StatusCode.PERMISSION_DENIED == code(error)
    assert {caller, method} <= set(re.findall(r"[A-Za-z]+", error.details()))
    assert not re.search("acme|eu-|globex|signs|imports", error.details())
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)
    assert status is not None
    assert any(detail.Unpack(info) for detail in status.details)
    assert ("CALLER_NOT_ALLOWED", caller, method) == (
        info.reason,
        info.metadata["identity"],
        info.metadata["operation"],
    )


@pytest.mark.parametrize(("caller", "method", "tenant"), sorted(ALLOWED))
def test_let_in(daemon: tuple[Process, Path], caller: str, method: str, tenant: str) -> None:
    """The call reaches its handler: it succeeds, or is told what is wrong with its request."""
    assert code(call(daemon, caller, method, tenant)) in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)


def test_audit_line_names_the_rule_and_the_caller_does_not_see_it(daemon: tuple[Process, Path]) -> None:
    """For allowed calls; a refused one has caller and reason."""
    call(daemon, "importer", "GenerateDataKey", "eu-audit")
    call(daemon, "importer", "GenerateDataKey", "us-audit")
    lines = [json.loads(line) for line in audit(daemon[1], "us-audit")]
    [allowed] = [line for line in lines if line.get("tenant") == "eu-audit" or line.get("tenantId") == "eu-audit"]
    [refused] = [line for line in lines if "us-audit" in line.values()]
    assert ("importer", "imports for some") == (allowed["identity"], allowed["rule"])
    assert ("importer", "CALLER_NOT_ALLOWED") == (refused["identity"], refused["result"])


def test_refusals_are_counted_by_reason(daemon: tuple[Process, Path]) -> None:
    """And neither callers nor tenants are named."""

    def scraped() -> str:
        with urlopen(f"http://{daemon[0].ops_address}/q/metrics", timeout=20) as response:
            text: str = response.read().decode()
        return text

    def refused() -> float:
        found = re.search(r'^kms_rpc_failures_total{reason="CALLER_NOT_ALLOWED"} (.*)$', scraped(), re.MULTILINE)
        return float(found[1]) if found else 0

    before = refused()
    call(daemon, "importer", "SignSpan", "acme")
    call(daemon, "other", "GenerateDataKey", "globex")
    assert 2 == refused() - before
    assert not re.search("importer|globex|acme|imports for", scraped())


def audit(folder: Path, until: str) -> list[str]:
    """Return the lines of the trail once one of them holds a text."""
    while until not in (text := (folder / "audit").read_text()):
        pass
    return text.splitlines()


def test_reflection_is_off_beside_a_policy(daemon: tuple[Process, Path]) -> None:
    """It would list what the policy hides."""
    with grpc.insecure_channel(daemon[0].address) as channel:
        stream: Any = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        with pytest.raises(grpc.RpcError) as error:
            list(stream(iter([b""]), timeout=20))
    assert grpc.StatusCode.UNIMPLEMENTED == code(error.value)


def test_change_is_in_force_and_a_broken_one_is_not(tmp_path: Path) -> None:
    """Within seconds, without a restart; the log says which."""
    with guarded(tmp_path) as daemon:
        policy = tmp_path / "policy.toml"
        assert code(call(daemon, "importer", "GenerateDataKey", "acme")) is grpc.StatusCode.OK
        policy.write_text(POLICY.replace('"importer", ', ""))
        daemon[0].wait_for("The policy was read again")
        assert code(call(daemon, "importer", "GenerateDataKey", "acme")) is grpc.StatusCode.PERMISSION_DENIED
        assert code(call(daemon, "localjob", "GenerateDataKey", "acme")) is grpc.StatusCode.OK
        policy.write_text(POLICY.replace("tenants", "tenant"))
        assert "rule 1, tenant" in daemon[0].wait_for("The policy stays what it was")
        assert code(call(daemon, "importer", "GenerateDataKey", "acme")) is grpc.StatusCode.PERMISSION_DENIED
        assert code(call(daemon, "localjob", "GenerateDataKey", "acme")) is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("arguments", "status", "output"),
    [
        (
            ("explain", "--identity", "importer", "--tenant", "us", "--operation", "Encrypt"),
            1,
            "denied: no rule allows",
        ),
        (("explain", "--identity", "x", "--tenant", "acme", "--operation", "Encrypt"), 1, "denied"),
        (("explain", "--identity", "localx", "--tenant", "acme", "--operation", "Encrypt"), 0, "'imports for some'"),
        (("check",), 0, "policy: 2 rules, valid"),
    ],
)
def test_command(tmp_path: Path, arguments: tuple[str, ...], status: int, output: str) -> None:
    """Exit codes 0 and 1 are the answer; 2 is a file that is not good."""
    (tmp_path / "policy.toml").write_text(POLICY)
    verb, *options = arguments
    line = [str(COMMAND), "policy", verb, str(tmp_path / "policy.toml"), *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert status == done.returncode, done.stderr
    assert output in done.stdout
    (tmp_path / "policy.toml").write_text("[[rule]]\n")
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert (2, "") == (done.returncode, done.stdout)
    assert "rule 1, name: Field required" in done.stderr
