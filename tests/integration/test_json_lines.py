"""`encrypt --jsonl` and `decrypt --jsonl` as a shell runs them, on a real daemon."""

import base64
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from betrace_kms_client import KmsClient

from tests.daemon import COMMAND, Process, spawned
from tests.integration.conftest import Run

LINES = (
    b'{"id": 1, "email": "alice@example.com", "ssn": 123456789012345678901234567890, "note": 1e400, "x": "\\u00e9"}\r\n'
    b"\n"
    b'{ "id":"b" ,"email":null,"tags":["a",{"b":1.0}]}\n'
    b'{"id": 3}'
)
SEAL = ("encrypt", "--tenant", "acme", "--jsonl", "--fields", "email,ssn,tags")
OPEN = ("decrypt", "--tenant", "acme", "--jsonl", "--fields", "email,ssn,tags")


def test_lines_come_back_byte_for_byte(run: Run, daemon: Process) -> None:
    """And what is sealed is a message that Decrypt opens, bound to the field and the record."""
    sealed = run(*SEAL, "--bind", "id", "--context", "app=crm", stdin=LINES)
    assert (0, b"") == (sealed.returncode, sealed.stderr)
    assert b"alice" not in sealed.stdout
    first = json.loads(sealed.stdout.splitlines()[0])
    assert (1, "é") == (first["id"], first["x"])
    with KmsClient(daemon.address) as client:
        context = {"app": "crm", "field": "email", "id": "1"}
        message = base64.b64decode(first["email"])
        assert b'"alice@example.com"' == client.decrypt("acme", message, context).plaintext
    opened = run(*OPEN, "--bind", "id", "--context", "app=crm", stdin=sealed.stdout)
    assert (0, LINES, b"") == (opened.returncode, opened.stdout, opened.stderr)


def test_fields_that_were_exchanged_do_not_open(run: Run) -> None:
    """Neither between records nor between members of one."""
    lines = b'{"id": 1, "email": "a", "ssn": "b"}\n{"id": 2, "email": "c", "ssn": "d"}\n'
    sealed = [json.loads(line) for line in run(*SEAL, "--bind", "id", stdin=lines).stdout.splitlines()]
    for exchanged in (
        [{**sealed[0], "email": sealed[1]["email"]}],
        [sealed[1], {**sealed[0], "email": sealed[0]["ssn"]}],
    ):
        given = b"".join(json.dumps(line).encode() + b"\n" for line in exchanged)
        opened = run(*OPEN, "--bind", "id", stdin=given)
        assert 3 == opened.returncode
        assert opened.stderr.startswith(b"betrace-kms: line %d: field email: the ciphertext does not" % len(exchanged))
        assert len(exchanged) - 1 == len(opened.stdout.splitlines())


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"email": 1', b"line 3: is no JSON object"),
        (b'{"email": 1, "email": 2}', b"line 3: has email twice"),
        (b'{"email": "\xff"}', b"line 3: is not UTF-8"),
        (b'{"email": "' + b"x" * (4 * 1024 * 1024) + b'"}', b"line 3: is longer than 4,194,304 bytes"),
    ],
)
def test_bad_line_ends_it_after_those_before(run: Run, tmp_path: Path, line: bytes, problem: bytes) -> None:
    """No line from there on is written, and with --output there is no file."""
    lines = b'{"email": "a"}\n{"email": "b"}\n' + line + b'\n{"email": "c"}\n'
    sealed = run(*SEAL, stdin=lines)
    assert (2, 2) == (sealed.returncode, len(sealed.stdout.splitlines()))
    assert problem in sealed.stderr
    assert 2 == run(*SEAL, "--output", "out", stdin=lines).returncode
    assert not (tmp_path / "out").exists()


def test_sealed_lines_are_not_sealed_again(run: Run) -> None:
    """Nor plain ones opened."""
    sealed = run(*SEAL, stdin=LINES).stdout
    again = run(*SEAL, stdin=sealed)
    assert (2, b"") == (again.returncode, again.stdout)
    assert b"line 1: field email is sealed already" in again.stderr
    opened = run(*OPEN, stdin=LINES)
    assert (2, b"") == (opened.returncode, opened.stdout)
    assert b"line 1: field email is not sealed" in opened.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--fields", "a"), b"add --jsonl"),
        (("--bind", "a"), b"add --jsonl"),
        (("--jsonl",), b"--jsonl needs --fields"),
        (("--jsonl", "--fields", "a,,b"), b"--jsonl needs --fields"),
        (("--jsonl", "--fields", "a,a"), b"a is given twice"),
        (("--jsonl", "--fields", "a,b", "--bind", "b"), b"b is given twice"),
        (("--jsonl", "--fields", "a", "--bind", "field"), b"--bind field is not possible"),
        (("--jsonl", "--fields", "a", "--context", "field=x"), b"--context may not give field"),
        (("--jsonl", "--fields", "a", "--bind", "id", "--context", "id=x"), b"--context may not give id"),
        (("--jsonl", "--fields", "a", "--json"), b"leave --json out"),
    ],
)
def test_options_that_contradict_are_refused(run: Run, arguments: tuple[str, ...], problem: bytes) -> None:
    """Before anything is read."""
    for verb in ("encrypt", "decrypt"):
        refused = run(verb, "--tenant", "acme", *arguments, stdin=b'{"a": 1}\n')
        assert (2, b"") == (refused.returncode, refused.stdout)
        assert problem in refused.stderr


def test_memory_stays(daemon: Process, tmp_path: Path) -> None:
    """However many lines there are, also where no field is."""
    line = b'{"id": 1, "note": "' + b"x" * 1000 + b'"%s}\n'
    peaks = []
    for count in (1_000, 20_000):
        (tmp_path / "in").write_bytes(b"".join(line % (b', "email": 1' if n % 10 == 0 else b"") for n in range(count)))
        measured = subprocess.run(
            ["/usr/bin/env", "python3", "-c", _MEASURE, str(COMMAND), *SEAL, "in", "--output", "out"],
            cwd=tmp_path,
            env={**os.environ, "BETRACE_KMS_ADDR": daemon.address},
            capture_output=True,
            timeout=100,
            check=True,
        )
        assert count == len((tmp_path / "out").read_bytes().splitlines())
        peaks.append(int(measured.stdout))
    assert peaks[1] - peaks[0] < 12 * 1024


_MEASURE = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


def test_fields_beyond_the_budget_are_sent_again(tmp_path: Path) -> None:
    """A context of its own for each record costs a data key each; what the quota refuses comes later."""
    values = {"KMS_QUOTA_TENANT_PER_SECOND": "400", "KMS_QUOTA_TENANT_BURST": "400"}
    lines = b"".join(b'{"id": %d, "email": "a"}\n' % number for number in range(1_200))
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", environ=values) as daemon:
        daemon.wait_for("serving")
        seal = _piped(daemon, lines)
        sealed = seal(*SEAL, "--bind", "id", "--timeout", "30")
    assert (0, 1_200) == (sealed.returncode, len(sealed.stdout.splitlines()))


def test_daemon_that_dies_is_told(tmp_path: Path) -> None:
    """No plain line takes the place of a sealed one, and no file appears."""
    lines = b"".join(b'{"id": %d, "email": "alice"}\n' % number for number in range(30_000))
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0") as daemon:
        daemon.wait_for("serving")
        (tmp_path / "in").write_bytes(lines)
        with subprocess.Popen(
            [str(COMMAND), *SEAL, "in", "--timeout", "2"],
            cwd=tmp_path,
            env={**os.environ, "BETRACE_KMS_ADDR": daemon.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as command:
            assert command.stdout is not None
            first = command.stdout.readline()
            daemon.process.kill()
            out, said = command.communicate(timeout=60)
    assert 3 == command.returncode
    assert said.startswith(b"betrace-kms: ")
    assert b"alice" not in first + out
    assert b"}" == (first + out).rstrip()[-1:]


def _piped(daemon: Process, stdin: bytes) -> Callable[..., "subprocess.CompletedProcess[bytes]"]:
    def run(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [str(COMMAND), *arguments],
            input=stdin,
            capture_output=True,
            timeout=100,
            env={**os.environ, "BETRACE_KMS_ADDR": daemon.address},
            check=False,
        )

    return run
