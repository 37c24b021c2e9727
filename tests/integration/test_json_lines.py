"""encrypt --jsonl and decrypt --jsonl: against a daemon, with inputs and outputs of every kind."""

import json
import os
import signal
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import COMMAND, Process, spawned
from tests.integration.conftest import Run

SEAL = ("encrypt", "--tenant", "acme", "--jsonl", "--fields")
OPEN = ("decrypt", "--tenant", "acme", "--jsonl", "--fields")
RECORD = ("--context", "record=@id")
LINES = b"".join(
    (
        b'{"id":"a","email":"x@example.org","n":1e400}\n',
        b"\r\n",
        b'{"email":["y",null],"id":7,"user":{"ssn":123456789012345678901234567890}}\r\n',
        b'{"id":"c"}',
    )
)
GOOD = b'{"id":1}\n{"id":2,"email":null}\n'


def test_records_come_back_byte_for_byte(run: Run) -> None:
    """Blank lines, other line ends and a last line without one included; nothing of the fields is left between."""
    sealed = run(*SEAL, "email,user.ssn", *RECORD, stdin=LINES)
    opened = run(*OPEN, "email,user.ssn", *RECORD, stdin=sealed.stdout)
    assert (sealed.returncode, sealed.stderr) == (0, b"")
    assert not any(plain in sealed.stdout for plain in (b"example.org", b'"y"', b"789"))
    assert (opened.returncode, opened.stderr, opened.stdout) == (0, b"", LINES)


def test_a_sealed_value_is_a_message_that_decrypt_opens(run: Run) -> None:
    """With the context that the documents name."""
    line = json.loads(run(*SEAL, "email", *RECORD, stdin=LINES).stdout.splitlines()[0])
    message = b64decode(line["email"].removeprefix("sealed:v1:"))
    done = run("decrypt", "--tenant", "acme", "--context", "field=email", "--context", "record=a", stdin=message)
    assert done.stdout == b'"x@example.org"'


def swapped_records(lines: list[dict[str, Any]]) -> None:
    """Exchange the values of two records."""
    lines[0]["a"], lines[1]["a"] = lines[1]["a"], lines[0]["a"]


def swapped_fields(lines: list[dict[str, Any]]) -> None:
    """Exchange the values of two fields."""
    lines[0]["a"], lines[0]["b"] = lines[0]["b"], lines[0]["a"]


@pytest.mark.parametrize("swap", [swapped_records, swapped_fields])
def test_a_value_opens_in_its_own_place_only(run: Run, swap: Any) -> None:
    """The one line says which; the exit code is 1, and nothing comes out."""
    plain = b'{"id":1,"a":"p","b":"q"}\n{"id":2,"a":"r","b":"s"}\n'
    lines = [json.loads(line) for line in run(*SEAL, "a,b", *RECORD, stdin=plain).stdout.splitlines()]
    swap(lines)
    done = run(*OPEN, "a,b", *RECORD, stdin=b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"betrace-kms: line 1: a: ")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b'{"id":3,"email":"cut', b"not JSON"),
        (b'{"id":3,"email":"sealed:v1:AgR4"}\n', b"email is sealed already"),
        (b'{"id":"' + b"x" * 5000 + b'","email":"a"}\n', b"email: encryption_context"),
        (b'{"id":3,"email":"' + b"x" * (16 << 20) + b'"}\n', b"longer than 16 MiB"),
    ],
)
def test_a_bad_line_is_named_and_ends_the_output(run: Run, bad: bytes, words: bytes) -> None:
    """What was before it is written, and nothing of it or after it."""
    done = run(*SEAL, "email", *RECORD, stdin=GOOD + bad + b'{"id":4,"email":"after"}\n' * 3000)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, GOOD, 1)
    assert done.stderr.startswith(b"betrace-kms: line 3: " + words)


def test_a_file_appears_only_when_all_lines_are_good(run: Run, tmp_path: Path) -> None:
    """A part of the records could be taken for all of them."""
    assert run(*SEAL, "email", "-o", "out.jsonl", stdin=GOOD + b"{").returncode == 1
    assert list(tmp_path.iterdir()) == []
    assert run(*SEAL, "email", "-o", "out.jsonl", stdin=GOOD).returncode == 0
    assert (tmp_path / "out.jsonl").read_bytes() == GOOD


def test_a_line_may_be_longer_than_a_message(run: Run) -> None:
    """Only its fields travel; a field that is too large is refused by the daemon's limit."""
    fields = (b"x" * (5 << 20), b"y" * (3 << 20), b"z" * (3 << 20))
    line = b'{"id":1,"other":"%s","a":"%s","b":"%s"}\n' % fields
    sealed = run(*SEAL, "a,b", *RECORD, stdin=line)
    assert run(*OPEN, "a,b", *RECORD, stdin=sealed.stdout).stdout == line
    refused = run(*SEAL, "other", stdin=line)
    assert (refused.returncode, refused.stdout) == (3, b"")
    assert b"kms.server.max-message-bytes" in refused.stderr


def test_a_field_that_no_line_has_is_named(run: Run) -> None:
    """A misspelt name would leave plaintext without a word; null is there."""
    done = run(*SEAL, "email,emial", stdin=GOOD)
    assert (done.returncode, done.stdout) == (0, GOOD)
    assert done.stderr == b"betrace-kms: warning: no line has the field 'emial'\n"


@pytest.mark.parametrize("text", [b"", b"\xef\xbb\xbf \n\r\n"])
def test_an_empty_input_stays_empty(run: Run, text: bytes) -> None:
    """There was nothing to seal, and nothing went wrong."""
    done = run(*SEAL, "email", stdin=text)
    assert (done.returncode, done.stdout, done.stderr) == (0, text, b"")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--jsonl",),
        ("--jsonl", "--fields", "a", "--json"),
        ("--jsonl", "--fields", "a", "--context", "field=b"),
    ],
)
def test_options_that_do_not_fit_are_wrong_usage(run: Run, arguments: tuple[str, ...]) -> None:
    """Before anything is read."""
    assert run("encrypt", "--tenant", "acme", *arguments, stdin=LINES).returncode == 2


def many(count: int, size: int = 900) -> Iterator[bytes]:
    """Give lines of about a kilobyte, or another size."""
    for number in range(count):
        yield b'{"id":%d,"email":"user-%d@example.org","note":"%s"}\n' % (number, number, b"n" * size)


MEASURED = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr); sys.exit(code)"
)
"""Runs a command from a small process: a child's peak counts what its parent had when it was made."""


def peak(folder: Path, daemon: Process, verb: tuple[str, ...], source: str, output: str) -> int:
    """Run the command from a file to a file; return the most memory that it had, in KiB."""
    environ = {**os.environ, "BETRACE_KMS_ADDR": daemon.address}
    with (folder / source).open("rb") as stdin, (folder / output).open("wb") as stdout:
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(COMMAND), *verb],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=environ,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return int(done.stderr)


def test_memory_does_not_grow_with_the_input(daemon: Process, tmp_path: Path) -> None:
    """20,000 lines of three kilobytes need at most 30 MiB more than 4,000, which fill what is in flight."""
    (tmp_path / "some").write_bytes(b"".join(many(4_000, 3_000)))
    (tmp_path / "many").write_bytes(b"".join(many(20_000, 3_000)))
    few = peak(tmp_path, daemon, (*SEAL, "email"), "some", "some.sealed")
    lot = peak(tmp_path, daemon, (*SEAL, "email"), "many", "many.sealed")
    back = peak(tmp_path, daemon, (*OPEN, "email"), "many.sealed", "many.opened")
    assert (tmp_path / "many.opened").read_bytes() == (tmp_path / "many").read_bytes()
    assert max(lot, back) - few < 30 * 1024, (few, lot, back)


def test_a_quota_slows_the_command_down(tmp_path: Path) -> None:
    """It is over for the second batch already, and the daemon says when to come again."""
    (tmp_path / "plain").write_bytes(b"".join(many(4_000)))
    environ = {"KMS_QUOTA_TENANT_PER_SECOND": "4000", "KMS_QUOTA_TENANT_BURST": "1000"}
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", environ=environ) as daemon:
        daemon.wait_for("serving")
        peak(tmp_path, daemon, (*SEAL, "email"), "plain", "sealed")
    assert (tmp_path / "sealed").read_bytes().count(b'"sealed:v1:') == 4_000


def started(daemon: Process, environ: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """Begin to seal what is written to the command."""
    return subprocess.Popen(
        [str(COMMAND), *SEAL, "email", "--timeout", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "BETRACE_KMS_ADDR": daemon.address, **(environ or {})},
    )


def test_a_daemon_that_dies_leaves_whole_sealed_lines(tmp_path: Path) -> None:
    """One line says so, and how far the output goes; no plaintext is in it."""
    data = tmp_path / "data"
    with spawned("--data-dir", str(data), "--listen", "127.0.0.1:0") as daemon:
        daemon.wait_for("serving")
        with started(daemon) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.writelines(many(4_000))
            process.stdin.flush()
            first = os.read(process.stdout.fileno(), 1)
            daemon.process.kill()
            daemon.process.wait()
            rest, said = process.communicate(b"".join(many(8_000)), timeout=60)
    lines = (first + rest).splitlines(keepends=True)
    assert (process.returncode, said.count(b"\n")) == (3, 1), said
    assert f"(nothing is written after line {len(lines):,})".encode() in said
    assert all(line.endswith(b"}\n") for line in lines)
    assert {json.loads(line)["email"][:14] for line in lines} == {"sealed:v1:AgR4"}


def test_a_reader_that_stops_and_ctrl_c_are_one_line(daemon: Process) -> None:
    """As with every verb."""
    with started(daemon) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.writelines(many(4_000))
        process.stdin.flush()
        os.read(process.stdout.fileno(), 1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, b"betrace-kms: interrupted\n")
    with started(daemon) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, said = process.communicate(b"".join(many(3_000)), timeout=60)
    assert (process.returncode, said.count(b"\n"), b"the output was closed" in said) == (2, 1, True), said
