"""The chain of the audit trail: its lines, what is found in one that was changed, and what the document says of it."""

# tests look at small files while nothing else runs

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from betrace_kms_server.audit.chain import (
    MAX_LINE_BYTES,
    START,
    ChainVerifier,
    Finding,
    Head,
    format_line,
    parse_line,
)
from betrace_kms_server.core.key_event import KeyEvent

from tests.unit.trails import CHANGED, EVENT, TIME, chain, head_of, verified

DOCUMENT = (Path(__file__).parents[2] / "docs" / "audit-trail.md").read_text("utf-8")
OF_AN_EARLIER_VERSION = (
    b'{"seq":42,"time":"2024-01-02T03:04:05.006Z","operation":"SignSpan","tenant":"acme","keyId"'
    b':"00112233445566778899aabbccddeeff","caller":"unix: grpc-java-netty/1.75","result":"OK","c'
    b'acheHit":false,"kmsRequestIds":["7a3c2c1e-6c1e-4f0e-9d0d-3a5d0c1d2e3f"],"requestId":"01234'
    b'56789abcdef","traceId":"0af7651916cd43dd8448eb211c80319c","items":1,"prev":"5d8c1ab1a1b1ad'
    b'8b6a0c6c0b9d2a7e3f4e5a6b7c8d9e0f1a2b3c4d5e6f708192","hash":"8de731781994c6d2d37dfd2e6be5a9'
    b'8a2b3c35a3ea952d9b481f653a7a04f0b3"}'
    b"\n"
)
NO_LINE = "no line of an audit trail"
BROKEN = "broken link: the line before it is not the one that it was chained to"
TORN = "torn: the file ends before the line does"


def found_in(*lines: bytes) -> list[tuple[int, str]]:
    """Verify one file, and give line and problem of each finding."""
    return [(finding.line, finding.problem) for finding in verified(b"".join(lines))]


# --- the chain


def test_a_line() -> None:
    """A line is compact JSON, its members in a fixed order, and SHA-256 over all of it but the hash."""
    line, head = format_line(EVENT, TIME, Head(41, "ab" * 32))
    content = (
        b'{"seq":42,"time":"2024-01-02T03:04:05.006Z","operation":"SignSpan","tenant":"acme",'
        b'"keyId":"00112233445566778899aabbccddeeff","caller":"unix: betrace-backend/2.1",'
        b'"identity":"backend","rule":"sign","result":"OK",'
        b'"cacheHit":false,"kmsRequestIds":["7a3c2c1e-6c1e-4f0e-9d0d-3a5d0c1d2e3f"],'
        b'"requestId":"0123456789abcdef","traceId":"0af7651916cd43dd8448eb211c80319c","items":1,'
        b'"prev":"abababababababababababababababababababababababababababababababab"'
    )
    digest = sha256(content + b"}").hexdigest()
    assert content + b',"hash":"' + digest.encode() + b'"}\n' == line
    assert Head(42, digest) == head


def test_a_chain_of_an_earlier_version_goes_on() -> None:
    """Its lines have no identity and no rule; they verify, and so does a line that is chained to them."""
    old = parse_line(OF_AN_EARLIER_VERSION)
    assert old is not None
    new, _ = format_line(EVENT, TIME, old.head)
    assert [] == found_in(OF_AN_EARLIER_VERSION, new)


def test_no_cache_is_null() -> None:
    """Where no cache was asked, there was neither a hit nor a miss."""
    line, _ = format_line(KeyEvent("Decrypt", "acme"), TIME, START)
    assert json.loads(line)["cacheHit"] is None


@pytest.mark.parametrize(
    "tenant",
    ['"},\n{"seq":', "\x00\x1b[31m\r\n\x7f\x85\u2028", "\ud800 half a pair \udfff", "\U0001f600" * 300, "\0" * 300],
    ids=["JSON", "control characters", "surrogates", "emojis", "zeros"],
)
def test_whatever_a_tenant_is_called(tenant: str) -> None:
    """A tenant's name comes as it is from the wire, and makes neither a second line, nor a bad one, nor a long one."""
    line, head = format_line(KeyEvent("Encrypt", tenant), TIME, START)
    assert (1, True) == (line.count(b"\n"), line.endswith(b"\n"))
    expected = tenant[:128].encode("utf-8", "replace").decode()
    assert expected == json.loads(line)["tenant"]
    assert head == head_of(line)
    assert [] == verified(line)


def test_the_longest_line_is_bounded() -> None:
    """Whatever comes over the wire, a line is not too long to be verified."""
    text = "\0" * 100_000
    event = KeyEvent(text, text, text, text, text, None, [text] * 1000, text, text, identity=text, rule=text)
    line, _ = format_line(event, TIME, START)
    assert len(line) < MAX_LINE_BYTES
    assert [] == verified(line)


def test_an_intact_chain() -> None:
    """A chain is intact in one file and over several, and also where its first files are gone."""
    lines = chain(6)
    verifier = ChainVerifier()
    assert [] == list(verifier.read("audit.log", io.BytesIO(b"".join(lines))))
    assert (6, 1, head_of(lines[-1])) == (verifier.lines, verifier.first, verifier.last)
    assert [] == verified(b"".join(lines[:2]), b"", b"".join(lines[2:5]), lines[5])
    assert [] == found_in(*lines[3:])
    assert [] == verified()


def test_every_changed_byte_is_found() -> None:
    """Whichever byte changes, and whichever bits of it, there is a finding on its line."""
    lines = chain(3)
    trail, ends = b"".join(lines), [sum(map(len, lines[: count + 1])) for count in range(3)]
    for place in range(len(trail)):
        line = 1 + sum(end <= place for end in ends)
        for change in (0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xFF):
            damaged = bytearray(trail)
            damaged[place] ^= change
            found = verified(bytes(damaged))
            assert [line] == [finding.line for finding in found[:1]], (place, change)


def test_every_byte_put_in_or_taken_out_is_found() -> None:
    """A byte that is left out, doubled or becomes the end of a line does not pass."""
    trail = b"".join(chain(2))
    for place in range(len(trail)):
        for other in (b"", trail[place : place + 1] * 2, b"\n"):
            damaged = trail[:place] + other + trail[place + 1 :]
            assert damaged == trail or verified(damaged), (place, other)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        pytest.param(lambda line: line.replace(b'"acme"', b'"evil"'), CHANGED, id="another tenant"),
        pytest.param(lambda line: line.replace(b'{"seq":20', b'{"seq":99'), CHANGED, id="another number"),
        pytest.param(lambda line: b"garbage\n", NO_LINE, id="no JSON"),
        pytest.param(lambda line: b"\xff" * (3 * MAX_LINE_BYTES) + line, NO_LINE, id="far too long"),
    ],
)
def test_one_changed_line_is_one_finding(damage: Callable[[bytes], bytes], problem: str) -> None:
    """A damaged line makes none of the others suspect."""
    lines = chain(50)
    lines[19] = damage(lines[19])
    assert [(20, problem)] == found_in(*lines)


def test_a_finding_says_where() -> None:
    """A finding has the file, the line in that file, and the number in the chain."""
    lines = chain(6)
    second = b"".join(lines[3:]).replace(b'"seq":5,"time":"2024', b'"seq":5,"time":"2023')
    assert [Finding("file1", 2, 5, CHANGED)] == verified(b"".join(lines[:3]), second)


def test_a_line_rewritten_with_a_new_hash() -> None:
    """Whoever gives a changed line a fitting hash breaks the link of the next line."""
    lines = chain(6)
    lines[2], _ = format_line(KeyEvent("Encrypt", "evil"), TIME, head_of(lines[1]))
    assert [(4, BROKEN)] == found_in(*lines)


def test_a_first_line_that_is_none() -> None:
    """A chain that begins with 1 begins with nothing before it."""
    assert [(1, BROKEN)] == found_in(*chain(3, Head(0, "ab" * 32)))


def test_missing_lines_are_counted() -> None:
    """Lines that were taken out are counted, at the line that follows."""
    one, two, _, four, five, six = chain(6)
    assert [(3, "1 line is missing between seq 2 and 4")] == found_in(one, two, four, five, six)
    assert [(2, "4 lines are missing between seq 1 and 6")] == found_in(one, six)
    assert [(2, NO_LINE), (3, "3 lines are missing between seq 1 and 6")] == found_in(one, b"?\n", six)


def test_lines_put_in() -> None:
    """A line of somebody else is found, and costs none of ours."""
    one, two, three = chain(3)
    assert [(2, NO_LINE)] == found_in(one, b"\n", two, three)
    assert [(3, NO_LINE)] == found_in(one, two, b'{"seq":3}\n', three)


def test_lines_that_changed_places() -> None:
    """Where two lines are swapped, one is missing at its place and out of order where it is."""
    one, two, three, four, five = chain(5)
    assert [
        (2, "1 line is missing between seq 1 and 3"),
        (3, "out of order or repeated: seq 2 comes after seq 3"),
    ] == found_in(one, three, two, four, five)


def test_a_piece_that_is_out_of_order() -> None:
    """A piece that moved is one finding at its old place and one at its new, however long it is."""
    lines = chain(100)
    assert [
        (41, "20 lines are missing between seq 40 and 61"),
        (71, "out of order or repeated: seq 41 comes after seq 90"),
    ] == found_in(*lines[:40], *lines[60:90], *lines[40:60], *lines[90:])


@pytest.mark.parametrize("repeated", [1, 20])
def test_repeated_lines(repeated: int) -> None:
    """Lines that are there twice are one finding."""
    lines = chain(50)
    problem = f"out of order or repeated: seq {31 - repeated} comes after seq 30"
    assert [(31, problem)] == found_in(*lines[:30], *lines[30 - repeated : 30], *lines[30:])


def test_a_chain_that_begins_anew() -> None:
    """Where a chain begins anew, or goes on from an older line, that is one finding, and the rest is checked."""
    old, new = chain(10), chain(20, operation="Decrypt")
    assert [(11, "out of order or repeated: seq 1 comes after seq 10")] == found_in(*old, *new)
    fork = chain(20, head_of(old[4]), "Decrypt")
    fork[15] = fork[15].replace(b"acme", b"evil")
    assert [(11, "out of order or repeated: seq 6 comes after seq 10"), (26, CHANGED)] == found_in(*old, *fork)


def test_a_torn_last_line() -> None:
    """A file that ends inside a line is found, be it only the line's end that is missing."""
    one, two, three = chain(3)
    assert [(2, TORN)] == found_in(one, two[:100])
    assert [Finding("file0", 2, 2, TORN)] == verified(one + two[:-1], three)


def test_lines_cut_off_at_the_end() -> None:
    """Only a head that was noted before tells that the last lines are gone; it may be any line that is there."""
    lines = chain(5)
    trail, head = b"".join(lines), head_of(lines[3]).hash
    assert [] == verified(trail, head=head)
    assert [] == verified(b"".join(lines[:4]), head=head)
    problem = f"the line with hash {head} is not there: lines were cut off, or all was rewritten"
    assert [Finding("file0", 3, None, problem)] == verified(b"".join(lines[:3]), head=head)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\b[^\n]*\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


def test_documented_fields() -> None:
    """The document lists the members of a line, in their order."""
    line, _ = format_line(replace(EVENT, unrecoverable_after="2024-02-03T04:05:06Z"), TIME, START)
    documented = re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE)
    assert list(json.loads(line)) == documented
    ordinary, _ = format_line(EVENT, TIME, START)
    assert {"unrecoverableAfter"} == set(documented) - set(json.loads(ordinary))


def test_the_documented_example() -> None:
    """The line in the document is a line as we write it."""
    (example,) = blocks("json")
    assert [] == verified(example.encode())


def test_the_documented_script(tmp_path: Path) -> None:
    """The script in the document accepts what we write, and names the first line that does not fit."""
    (script,) = blocks("python")
    assert len(script.splitlines()) <= 15

    def run(*lines: bytes) -> tuple[int, str]:
        (tmp_path / "audit.log").write_bytes(b"".join(lines))
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "audit.log")], capture_output=True, text=True, check=False
        )
        return done.returncode, (done.stdout + done.stderr).strip()

    one, two, three = chain(3)
    assert (0, f"intact, head {head_of(three).hash}") == run(one, two, three)
    assert (0, f"intact, head {head_of(three).hash}") == run(two, three)
    assert (1, "line 2 was changed, or lines before it are missing") == run(one, two.replace(b"acme", b"evil"), three)
    assert (1, "line 2 was changed, or lines before it are missing") == run(one, three)
