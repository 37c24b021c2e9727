"""The command when its streams are full, closed, endless or broken, when it is interrupted, and where it writes to."""

import gzip
import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.daemon import COMMAND, Process
from tests.integration.conftest import Run

SPAN = {"traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "b7ad6b7169203331", "name": "work"}
TRACES = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [SPAN]}]}]}).encode() + b"\n"
Shell = Callable[[str], "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def folder(daemon: Process, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs for every verb."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "plain").write_bytes(b"hello")
    (folder / "span.json").write_bytes(json.dumps(SPAN).encode())
    (folder / "traces.jsonl").write_bytes(TRACES * 2000)
    for arguments in (
        "encrypt --tenant acme plain -o sealed",
        "sign --tenant acme span.json -o signed.json",
        "sign --tenant acme traces.jsonl -o signed.jsonl",
        "keys --tenant acme --jwks -o jwks.json",
    ):
        assert shell_in(folder, daemon)(f"betrace-kms {arguments}").returncode == 0
    return folder


def shell_in(folder: Path, daemon: Process) -> Shell:
    """Return what runs a line of shell, in which betrace-kms is the command and talks to the daemon."""
    environ = {
        **os.environ,
        "PATH": f"{COMMAND.parent}:{os.environ['PATH']}",
        "BETRACE_KMS_ADDR": daemon.address,
        "BETRACE_KMS_ADMIN_ADDR": f"unix:{data_dir(daemon) / 'admin.sock'}",
    }

    def run(line: str) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            ["/bin/bash", "-c", line], capture_output=True, timeout=120, cwd=folder, env=environ, check=False
        )

    return run


def data_dir(daemon: Process) -> Path:
    """Return the folder of the daemon."""
    arguments = daemon.process.args
    assert isinstance(arguments, list)
    return Path(str(arguments[arguments.index("--data-dir") + 1]))


@pytest.fixture
def shell(folder: Path, daemon: Process) -> Shell:
    """Run a line of shell among the inputs."""
    return shell_in(folder, daemon)


def one_line(done: "subprocess.CompletedProcess[bytes]", code: int) -> str:
    """Return the one line that the command says, if that is all it says; else everything."""
    text = done.stderr.decode()
    assert (code, 1) == (done.returncode, text.count("\n")), text
    assert text.startswith("betrace-kms: ")
    return text


VERBS = [
    "audit verify --help",
    "audit verify plain",
    "cost --rps 5 --hit-rate 0.5",
    "cost --live --rps 5 --hit-rate 0.5 --json",
    "data-key --tenant acme",
    "decrypt --tenant acme sealed",
    "encrypt --tenant acme plain",
    "encrypt --tenant acme --jsonl --fields name span.json",
    "encrypt --help",
    "health",
    "invalidate --tenant acme",
    "keys --tenant acme",
    "keys --tenant acme --jwks",
    "keystore --help",
    "reencrypt --tenant acme sealed",
    "rotate --tenant acme",
    "serve --help",
    "sign --tenant acme span.json",
    "sign --tenant acme --raw span.json",
    "sign --tenant acme traces.jsonl",
    "status",
    "status --json",
    "validate",
    "validate --json",
    "verify --tenant acme signed.json",
    "verify --jwks jwks.json traces.jsonl",
    "version",
    "--help",
    "--version",
]


@pytest.mark.parametrize("verb", VERBS)
def test_a_full_output_is_one_line(shell: Shell, verb: str) -> None:
    """And exit code 2: the answer did not arrive, whatever it was."""
    assert "no space is left" in one_line(shell(f"betrace-kms {verb} > /dev/full"), 2)


@pytest.mark.parametrize("verb", VERBS)
def test_a_closed_output_is_one_line(shell: Shell, verb: str) -> None:
    """No socket or file of the command takes the place of stdout."""
    assert "stdin or stdout is closed" in one_line(shell(f"betrace-kms {verb} >&-"), 2)


@pytest.mark.parametrize("verb", VERBS)
def test_a_broken_pipe_is_one_line(shell: Shell, verb: str) -> None:
    """Whose reader went away before the first byte."""
    done = shell(f"exec 3> >(exec true); wait $!; betrace-kms {verb} >&3")
    assert "the output was closed" in one_line(done, 2)


@pytest.mark.parametrize("verb", ["sign --tenant acme traces.jsonl", "verify --jwks jwks.json traces.jsonl"])
def test_a_reader_that_stops_early_is_one_line(shell: Shell, verb: str) -> None:
    """As `head` does."""
    done = shell(f"betrace-kms {verb} | head -1 > /dev/null; exit ${{PIPESTATUS[0]}}")
    assert "the output was closed" in one_line(done, 2)


@pytest.mark.parametrize(
    "verb",
    [
        *(f"{verb} --tenant acme" for verb in ("reencrypt", "sign", "verify")),
        "audit verify -",
        "verify --jwks - signed.json",
        "revoke --tenant acme --key-id 00000000000000000000000000000000",
    ],
)
def test_a_closed_input_is_one_line(shell: Shell, verb: str) -> None:
    """Nothing was read, so nothing is empty."""
    assert one_line(shell(f"betrace-kms {verb} <&-"), 2)


def test_a_closed_input_stops_an_import(shell: Shell, tmp_path: Path) -> None:
    """An export comes by pipe, too."""
    done = shell(f"betrace-kms keystore import --data-dir {tmp_path} - <&-")
    assert (2, b"betrace-kms: - cannot be read: Bad file descriptor") == (done.returncode, done.stderr.splitlines()[-1])


def test_what_goes_to_files_needs_no_stream(shell: Shell, tmp_path: Path) -> None:
    """All three may be closed, and no file gets their numbers."""
    done = shell(f"betrace-kms encrypt --tenant acme plain -o {tmp_path / 'sealed'} <&- >&- 2>&-")
    opened = shell(f"betrace-kms decrypt --tenant acme {tmp_path / 'sealed'}")
    assert (0, b"hello") == (done.returncode, opened.stdout)


@pytest.mark.parametrize("verb", ["encrypt --tenant 'a b' plain", "sign --tenant acme sealed", "nonsense"])
@pytest.mark.parametrize("stream", ["2> /dev/full", "2>&-"])
def test_without_stderr_the_exit_code_remains(shell: Shell, verb: str, stream: str) -> None:
    """There is nothing to say it on."""
    done = shell(f"betrace-kms {verb} {stream}")
    assert (done.returncode in {2, 3}, b"", b"") == (True, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "verb",
    [
        *(f"{verb} --tenant acme" for verb in ("reencrypt", "sign", "verify")),
        "verify --jwks /dev/zero signed.json",
    ],
)
def test_an_endless_input_is_refused(shell: Shell, verb: str) -> None:
    """In bounded memory: less than a gigabyte of addresses beyond what the libraries take."""
    assert "longer than 64 MiB" in one_line(shell(f"ulimit -v 3000000; betrace-kms {verb} < /dev/zero"), 2)


def test_an_endless_input_is_no_message(shell: Shell) -> None:
    """Its first bytes say so, and the rest is not read."""
    assert "does not open" in one_line(shell("betrace-kms decrypt --tenant acme < /dev/zero"), 3)


def test_an_endless_input_is_sealed_in_bounded_memory(shell: Shell) -> None:
    """Until somebody closes the output: less than a gigabyte of addresses beyond what the libraries take."""
    done = shell("ulimit -v 3000000; betrace-kms encrypt --tenant acme < /dev/zero | head -c 500000000 | wc -c")
    assert b"500000000" == done.stdout.strip()


def test_an_endless_export_is_refused(shell: Shell, tmp_path: Path) -> None:
    """It has no line that long."""
    done = shell(f"betrace-kms keystore import --data-dir {tmp_path} /dev/zero")
    assert (2, b"line 1 is longer than" in done.stderr.splitlines()[-1]) == (done.returncode, True)


@pytest.mark.parametrize("levels", [300, 5000, 200_000])
@pytest.mark.parametrize(
    "shape", ['{"resourceSpans":%s}', '{"span":{},"signature":"","keyId":"","proof":{"a":%s}}', "%s"]
)
@pytest.mark.parametrize("verb", ["sign --tenant acme", "verify --tenant acme", "verify --jwks jwks.json"])
def test_deep_json_is_refused_with_its_depth(shell: Shell, tmp_path: Path, verb: str, shape: str, levels: int) -> None:
    """Trace files, single spans and what is neither."""
    (tmp_path / "deep.json").write_text(shape % ("[" * levels + "]" * levels))
    done = shell(f"betrace-kms {verb} {tmp_path / 'deep.json'}")
    shown = (done.stderr + done.stdout).decode()
    depth = levels + shape.count("{") - shape.count("{}")
    assert (True, False) == (f"nested {depth:,} levels deep" in shown, "Traceback" in shown), shown
    assert done.returncode in {1, 2}


def test_a_deep_key_set_is_refused(shell: Shell, tmp_path: Path) -> None:
    """The key set is somebody else's file."""
    (tmp_path / "deep.json").write_text('{"keys":' + "[" * 5000 + "]" * 5000 + "}")
    done = shell(f"betrace-kms verify --jwks {tmp_path / 'deep.json'} signed.json")
    assert (2, False) == (done.returncode, b"Traceback" in done.stderr)


@pytest.mark.parametrize(
    "verb",
    [
        *(f"{verb} --tenant acme -" for verb in ("decrypt", "encrypt", "reencrypt", "sign", "verify")),
        "audit verify -",
        "keystore import --data-dir {tmp} -",
        "revoke --tenant acme --key-id 00000000000000000000000000000000",
        "health --addr {silent} --timeout 60",
        "data-key --tenant acme --addr {silent} --timeout 60",
        "status --admin-addr {silent} --timeout 60",
        "rotate --all --admin-addr {silent}",
        "sign --tenant acme --addr {silent} --timeout 60 span.json",
    ],
)
def test_ctrl_c_is_one_line(folder: Path, daemon: Process, tmp_path: Path, verb: str) -> None:
    """Exit code 130, while it reads, asks or waits."""
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as accepted:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        arguments = verb.format(silent=address, tmp=tmp_path).split()
        process = subprocess.Popen(
            [str(COMMAND), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={**os.environ, "BETRACE_KMS_ADDR": daemon.address},
        )
        with process:
            if address in arguments:
                accepted.enter_context(silent.accept()[0])
            else:
                wait_until_it_reads(process.pid)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
    last = said.strip().rpartition(b"betrace-kms: ")[2]
    assert (130, b"interrupted", False) == (process.returncode, last, b"Traceback" in said), said


def wait_until_it_reads(pid: int) -> None:
    """Wait until the main thread of a process waits for its stdin, which is a pipe."""
    while True:
        with open(f"/proc/{pid}/syscall") as file:
            call = file.read().split()
        if call[:2] == ["0", "0x0"]:
            return
        os.sched_yield()


OUTPUTS: Sequence[str] = (
    "data-key --tenant acme --plaintext-out {output}",
    "data-key --tenant acme --wrapped-out {output}",
    "decrypt --tenant acme sealed -o {output}",
    "encrypt --tenant acme plain -o {output}",
    "keys --tenant acme -o {output}",
    "reencrypt --tenant acme sealed -o {output}",
    "sign --tenant acme span.json -o {output}",
    "sign --tenant acme --raw span.json -o {output}",
    "sign --tenant acme traces.jsonl -o {output}",
)


@pytest.mark.parametrize("verb", OUTPUTS)
def test_no_output_goes_through_a_link(shell: Shell, tmp_path: Path, verb: str) -> None:
    """Neither one that leads nowhere, which would make a file, nor one that leads to a file."""
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    (tmp_path / "theirs").write_bytes(b"before")
    (tmp_path / "link").symlink_to("theirs")
    for name in ("dangling", "link"):
        done = shell(f"betrace-kms {verb.format(output=tmp_path / name)}")
        assert "is a symbolic link" in one_line(done, 2)
    left = {path.name: path.is_symlink() for path in tmp_path.iterdir()}
    assert ({"dangling": True, "theirs": False, "link": True}, b"before") == (left, (tmp_path / "theirs").read_bytes())


@pytest.mark.parametrize("verb", OUTPUTS)
def test_an_output_is_a_new_file_of_its_owner(shell: Shell, tmp_path: Path, verb: str) -> None:
    """What had the name, mode and other names is replaced, not written into."""
    (tmp_path / "out").write_bytes(b"before")
    (tmp_path / "out").chmod(0o666)
    (tmp_path / "other").hardlink_to(tmp_path / "out")
    assert shell(f"umask 0; betrace-kms {verb.format(output=tmp_path / 'out')}").returncode == 0
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert ({"out": 0o600, "other": 0o666}, b"before") == (modes, (tmp_path / "other").read_bytes())


@pytest.mark.parametrize("verb", OUTPUTS)
@pytest.mark.parametrize("output", ["/dev/full", ".", "absent/out", "plain/out"])
def test_an_output_that_cannot_be_is_named(shell: Shell, verb: str, output: str) -> None:
    """Devices that are full, folders, and names in folders that are none."""
    done = shell(f"betrace-kms {verb.format(output=output)}")
    assert (2, False) == (done.returncode, b"Traceback" in done.stderr)


@pytest.mark.parametrize("verb", OUTPUTS)
def test_devices_and_pipes_are_written_as_they_are(shell: Shell, tmp_path: Path, verb: str) -> None:
    """A named pipe, and a link to stdout."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    named = shell(f"cat {pipe} & betrace-kms {verb.format(output=pipe)} > /dev/null && wait")
    stdout = shell(f"betrace-kms {verb.format(output='/dev/stdout')}")
    assert (0, 0) == (named.returncode, stdout.returncode)
    assert (True, True, True) == (len(named.stdout) > 0, len(stdout.stdout) > 0, stat.S_ISFIFO(pipe.stat().st_mode))


@pytest.mark.parametrize("text", [b"\n", b"   \n  \n", b"", b"\xef\xbb\xbf"])
def test_an_empty_trace_file_has_no_spans(run: Run, tmp_path: Path, text: bytes) -> None:
    """As a file and by stdin: sign has done all there was, and verify has seen nothing valid."""
    (tmp_path / "empty").write_bytes(text)
    for arguments in (["empty"], ["-"]):
        signed = run("sign", "--tenant", "acme", *arguments, stdin=text)
        judged = run("verify", "--tenant", "acme", *arguments, stdin=text)
        assert (0, text, b"betrace-kms: no spans\n") == (signed.returncode, signed.stdout, signed.stderr)
        assert (1, b"no spans\n", b"") == (judged.returncode, judged.stdout, judged.stderr)


def test_gzip_is_read_from_files_and_pipes(run: Run, tmp_path: Path) -> None:
    """Trace files and single spans; what is written is text."""
    for text, valid in ((TRACES, b"1 spans: 1 VALID\n"), (json.dumps(SPAN).encode(), b"VALID\n")):
        (tmp_path / "in.gz").write_bytes(gzip.compress(text))
        assert run("sign", "--tenant", "acme", "in.gz", "-o", "signed").returncode == 0
        piped = run("sign", "--tenant", "acme", stdin=gzip.compress(text))
        for signed in ((tmp_path / "signed").read_bytes(), piped.stdout):
            assert valid == run("verify", "--tenant", "acme", stdin=gzip.compress(signed)).stdout


@pytest.mark.parametrize("verb", ["sign", "verify"])
@pytest.mark.parametrize("byte", [b"\0", b"\n", b" "])
def test_a_gzip_bomb_is_refused(run: Run, tmp_path: Path, verb: str, byte: bytes) -> None:
    """And leaves no output."""
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(byte * 200_000_000))
    done = run(verb, "--tenant", "acme", "bomb.gz", *(["-o", "out"] if verb == "sign" else []))
    text = one_line(done, 2)
    assert any(words in text for words in ("longer than 64 MiB", "inflates to more than", "no trace document")), text
    assert ["bomb.gz"] == [path.name for path in tmp_path.iterdir()]


def test_a_damaged_first_line_is_named_and_the_others_are_signed(run: Run) -> None:
    """Exit code 1 for both, and the line is written as it is."""
    signed = run("sign", "--tenant", "acme", stdin=b"\0\0\0\n" + TRACES * 2)
    judged = run("verify", "--tenant", "acme", stdin=signed.stdout)
    assert (1, 1, b"\0\0\0") == (signed.returncode, judged.returncode, signed.stdout.splitlines()[0])
    assert one_line(signed, 1).startswith("betrace-kms: line 1: not JSON")
    assert judged.stdout.startswith(b"line 1: REFUSED (not JSON")
    assert judged.stdout.endswith(b"\n3 spans: 2 VALID, 1 REFUSED\n")
