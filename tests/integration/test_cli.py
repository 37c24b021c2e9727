"""The command `betrace-kms` against a real daemon, as a shell runs it."""

import base64
import json
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from betrace_kms_client.cli import main

from tests.daemon import COMMAND, Process, spawned
from tests.integration.conftest import Run

SPAN = {
    "traceId": "0af7651916cd43dd8448eb211c80319c",
    "spanId": "b7ad6b7169203331",
    "name": "user.login",
    "attributes": {"user": {"stringValue": "alice"}},
}
SIGNATURE = b"A" * 86 + b"=="
PROOF = b'{"span": {}, "signature": "%b", "keyId": "", "proof": {"leaf": 1}}' % SIGNATURE


def test_bytes_go_through_encrypt_and_decrypt_by_pipe(run: Run) -> None:
    """Raw bytes in, raw bytes out."""
    plaintext = bytes(range(256))
    sealed = run("encrypt", "--tenant", "acme", "--context", "a=b", stdin=plaintext)
    opened = run("decrypt", "--tenant", "acme", "--context", "a=b", stdin=sealed.stdout)
    assert (sealed.stdout[:3], opened.stdout) == (b"\x02\x04\x78", plaintext)


def test_files_and_json_work_too(run: Run, tmp_path: Path) -> None:
    """FILE, --output (0600) and --json."""
    (tmp_path / "plain").write_bytes(b"hello")
    run("encrypt", "--tenant", "acme", "plain", "--output", "sealed")
    opened = json.loads(run("decrypt", "--tenant", "acme", "sealed", "--json").stdout)
    as_json = json.loads(run("encrypt", "--tenant", "acme", "plain", "--json").stdout)
    assert stat.S_IMODE((tmp_path / "sealed").stat().st_mode) == 0o600
    assert (base64.b64decode(opened["plaintext"]), set(as_json)) == (b"hello", {"ciphertextBlob", "keyId"})


def test_reencrypt_keeps_the_context_or_changes_it(run: Run) -> None:
    """Without --destination-context the pairs stay."""
    sealed = run("encrypt", "--tenant", "acme", "--context", "a=b", stdin=b"hello").stdout
    same = run("reencrypt", "--tenant", "acme", "--context", "a=b", stdin=sealed).stdout
    other = run("reencrypt", "--tenant", "acme", "--context", "a=b", "--destination-context", "c=d", stdin=sealed)
    assert run("decrypt", "--tenant", "acme", "--context", "a=b", stdin=same).stdout == b"hello"
    assert run("decrypt", "--tenant", "acme", "--context", "c=d", stdin=other.stdout).stdout == b"hello"


def test_a_data_key_goes_to_files_or_to_json(run: Run, tmp_path: Path) -> None:
    """What goes to a file does not go to stdout."""
    shown = json.loads(run("data-key", "--tenant", "acme", "--bytes", "64", "--fresh").stdout)
    rest = json.loads(
        run("data-key", "--tenant", "acme", "--spec", "AES_128", "--plaintext-out", "k", "--wrapped-out", "w").stdout
    )
    unwrapped = run("decrypt", "--tenant", "acme", "w").stdout
    assert len(base64.b64decode(shown["plaintext"])) == 64
    assert set(rest) == {"keyId"}
    assert (tmp_path / "k").read_bytes() == unwrapped
    assert len(unwrapped) == 16


def test_a_signed_span_verifies_and_an_altered_one_does_not(run: Run, tmp_path: Path) -> None:
    """Exit code 0 for VALID, 1 for any other verdict."""
    signed = run("sign", "--tenant", "acme", "--payload", stdin=json.dumps(SPAN).encode()).stdout
    good = run("verify", "--tenant", "acme", stdin=signed)
    bad = run("verify", "--tenant", "acme", stdin=signed.replace(b"alice", b"mallory"))
    raw = run("sign", "--tenant", "acme", "--raw", stdin=json.dumps(SPAN).encode()).stdout
    assert (good.stdout, good.returncode) == (b"VALID\n", 0)
    assert (bad.stdout, bad.returncode) == (b"BAD_SIGNATURE\n", 1)
    assert raw == base64.b64decode(json.loads(signed)["signature"])


def test_keys_verify_without_the_daemon(run: Run, tmp_path: Path) -> None:
    """What keys --jwks wrote judges what sign wrote, with a proof or without."""
    listed = json.loads(run("keys", "--tenant", "offline").stdout)
    spans = [
        run("sign", "--tenant", "offline", *mode, stdin=json.dumps(SPAN).encode()).stdout for mode in ([], ["--proofs"])
    ]
    run("keys", "--tenant", "offline", "--jwks", "-o", "jwks.json")
    (key,) = json.loads(run("keys", "--tenant", "offline").stdout)["keys"]
    (jwk,) = json.loads((tmp_path / "jwks.json").read_bytes())["keys"]
    assert listed == {"tenantId": "offline", "keys": []}
    assert ["proof" in json.loads(span) for span in spans] == [False, True]
    assert (key["keyId"], base64.b64decode(key["publicKey"])) == (jwk["kid"], base64.urlsafe_b64decode(jwk["x"] + "="))
    for span in spans:
        for way in (["--jwks", "jwks.json"], ["--tenant", "offline"]):
            good = run("verify", *way, stdin=span, addr="127.0.0.1:1" if "--jwks" in way else "")
            bad = run("verify", *way, stdin=span.replace(b"alice", b"mallory"))
            assert (good.stdout, good.returncode) == (b"VALID\n", 0)
            assert (bad.stdout, bad.returncode) == (b"BAD_SIGNATURE\n", 1)


def test_health_is_an_exit_code(run: Run) -> None:
    """0 serving, 3 nobody there or no such service."""
    serving, unknown = run("health"), run("health", "--service", "nobody")
    absent = run("health", addr="127.0.0.1:1")
    assert (serving.stdout, serving.returncode) == (b"SERVING\n", 0)
    assert (unknown.returncode, b"ask for one of" in unknown.stderr) == (3, True)
    assert (absent.returncode, b"no daemon answers at 127.0.0.1:1" in absent.stderr) == (3, True)


def test_health_says_not_serving_with_exit_code_one(run: Run, tmp_path: Path) -> None:
    """A daemon that cannot reach KMS is alive and not ready."""
    key = "arn:aws:kms:us-east-1:123456789012:key/abcd1234-5678-90ab-cdef-1234567890ab"
    aws = {
        "BETRACE_KMS_PROVIDER": "aws",
        "AWS_KMS_MASTER_KEY_ID": key,
        "AWS_KMS_ENDPOINT": "http://127.0.0.1:1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "KMS_STORE_ALLOW_EPHEMERAL": "true",
    }
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", environ=aws) as other:
        address = other.address
        alive, ready = run("health", "--service", "", addr=address), run("health", addr=address)
    assert (alive.stdout, ready.stdout, ready.returncode) == (b"SERVING\n", b"NOT_SERVING\n", 1)


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "text"),
    [
        (["decrypt", "--tenant", "acme"], b"rubbish", 3, "the ciphertext does not open"),
        (["encrypt"], b"", 2, "--tenant"),
        (["encrypt", "--tenant", "acme", "--context", "novalue"], b"", 2, "write it as NAME=VALUE"),
        (["encrypt", "--tenant", "a b"], b"", 3, "tenant_id must be"),
        (["sign", "--tenant", "acme"], b"{", 2, "the input is not JSON"),
        (["sign", "--tenant", "acme"], b"[]", 2, "must be one JSON object"),
        (["sign", "--tenant", "acme"], b'{"traceId": "xyz"}', 2, "traceId must be lower-case hexadecimal"),
        (["sign", "--tenant", "acme"], b'{"trace": "00"}', 2, "span has no member 'trace'"),
        (["sign", "--tenant", "acme"], b'{"traceId": "00"}', 3, "span.span_id must be 8 bytes"),
        (["verify", "--tenant", "acme"], b"{}", 2, "signature is missing"),
        (["verify", "--tenant", "acme"], b'{"span": {}, "signature": "!", "keyId": ""}', 2, "must be base64"),
        (
            ["verify", "--tenant", "acme"],
            b'{"span": {"x": 1}, "signature": "%b", "keyId": ""}' % SIGNATURE,
            2,
            "no member 'x'",
        ),
        (["verify"], b"{}", 2, "give --tenant to ask the daemon, or --jwks"),
        (["verify", "--jwks", "absent"], b"{}", 2, "No such file"),
        (["verify", "--jwks", "-"], b"{}", 2, "no key set"),
        (["verify", "--tenant", "acme"], PROOF, 2, "proof has no member 'leaf'"),
        (["sign", "--tenant", "acme", "--proofs"], b'{"traceId": "00"}', 3, "span.span_id must be 8 bytes"),
        (["sign", "--tenant", "acme", "--proofs", "--raw"], b"{}", 2, "--raw writes no proof"),
        (["sign", "--tenant", "acme", "--raw"], b'{"resourceSpans": []}', 2, "are for a single span"),
        (["sign", "--tenant", "acme", "-o", "no/where"], b'{"resourceSpans": []}', 2, "cannot write to the folder"),
        (["nonsense"], b"", 2, "No such command"),
    ],
)
def test_a_mistake_gets_one_clear_line(run: Run, arguments: list[str], stdin: bytes, code: int, text: str) -> None:
    """2 for wrong usage, 3 for a call that failed; no traceback."""
    done = run(*arguments, stdin=stdin)
    shown = done.stderr.decode()
    assert (done.returncode, text in shown, "Traceback" in shown) == (code, True, False)


def test_binary_is_not_thrown_at_a_terminal(daemon: Process) -> None:
    """encrypt on a terminal asks for --output or --json."""
    leader, follower = pty.openpty()
    done = subprocess.run(
        [str(COMMAND), "encrypt", "--tenant", "acme", "--addr", daemon.address],
        input=b"hello",
        stdout=follower,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    os.close(leader)
    os.close(follower)
    assert (done.returncode, b"add --output FILE, or --json" in done.stderr) == (2, True)


def test_help_lists_every_verb_with_examples(run: Run) -> None:
    """The group lists what there is; each verb shows how it is used."""
    listed = run("--help").stdout.decode()
    verbs = (
        "audit cost data-key decrypt encrypt health invalidate keys keystore lock mac policy reencrypt revoke rotate"
        " serve shred sign status unlock validate verify verify-mac version"
    ).split()
    assert [line.split()[0] for line in listed.partition("Commands:\n")[2].splitlines()] == verbs
    for verb in set(verbs) - {"audit", "keystore", "policy", "version"}:
        assert "Examples:" in run(verb, "--help").stdout.decode()
    assert run("version").stdout.decode().startswith("betrace-kms 0.")


@pytest.mark.parametrize(
    ("module", "verb", "arguments"),
    [("betrace_kms_client", (), ("health", "--help")), ("betrace_kms_server", ("serve",), ("--help",))],
    ids=["client", "server"],
)
def test_modules_are_the_command_too(run: Run, module: str, verb: Sequence[str], arguments: Sequence[str]) -> None:
    """`python -m` needs no script on the PATH, and speaks of the command by its own name."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert run(*verb, *arguments).stdout == done.stdout


def test_a_shell_completes_as_help_says() -> None:
    """Bash, with the line that --help gives for it, completes verbs, options and their values."""
    expected = {
        "key": "keys keystore",
        "encrypt --ten": "--tenant",
        "data-key --spec ": "AES_256 AES_128",
        "keystore ex": "export",
        "serve --list": "--listen",
    }
    (setup,) = [line.strip().removeprefix("bash  ") for line in str(main.help).splitlines() if "bash_source" in line]
    script = f"""{setup}
      function=$(complete -p betrace-kms | cut -d ' ' -f 5)  # complete -o nosort -F FUNCTION betrace-kms
      while IFS= read -r line; do
        mapfile -d ' ' -t COMP_WORDS < <(printf 'betrace-kms %s' "$line")
        [[ $line != *' ' ]] || COMP_WORDS+=('')
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMPREPLY=()
        $function betrace-kms
        echo "${{COMPREPLY[*]}}"
      done
    """
    done = subprocess.run(
        ["bash", "-euc", script],
        input="".join(f"{line}\n" for line in expected),
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PATH": f"{COMMAND.parent}:{os.environ['PATH']}"},
        check=False,
    )
    assert (0, list(expected.values())) == (done.returncode, done.stdout.splitlines()), done.stderr


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda signed: signed.replace(b"\n", b"") + b"\n" + signed.replace(b"alice", b"mallory"),
            b"goes on after its first",
        ),
        (
            lambda signed: signed.replace(b'"name": "user.login"', b'"name": "x", "name": "user.login"'),
            b"one name twice",
        ),
        (lambda signed: signed.replace(b"span.v1+json", b"span.v9+json"), b"payloadType must be"),
        (lambda signed: signed.replace(b'"signature": "', b'"signature": "\xc3\xa9'), b"must be base64"),
    ],
    ids=["second document", "name twice", "payload type", "signature"],
)
def test_verify_passes_over_nothing(run: Run, change: Callable[[bytes], bytes], text: bytes) -> None:
    """A document that could show a reader something else than what was verified is refused."""
    signed = run("sign", "--tenant", "acme", stdin=json.dumps(SPAN).encode()).stdout
    done = run("verify", "--tenant", "acme", stdin=change(signed))
    assert (done.returncode, text in done.stderr, done.stdout) == (2, True, b"")
