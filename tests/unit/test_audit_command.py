"""`betrace-kms audit verify`: what it prints, and its exit codes."""

import json
from pathlib import Path

import pytest
from betrace_kms_server.audit.chain import START
from betrace_kms_server.cli.audit import audit
from click.testing import CliRunner, Result

from tests.unit.trails import CHANGED, chain, head_of

LINES = chain(1204)
HEAD = head_of(LINES[-1]).hash


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "audit.log"
    path.write_bytes(b"".join(LINES))
    return path


def verify(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(audit, ["verify", *map(str, arguments)], input=stdin)


def test_intact(file: Path) -> None:
    """An intact trail is one line that says how far it goes, and exit code 0."""
    result = verify(file)
    assert (0, f"audit: 1,204 lines, seq 1 to 1204, head {HEAD}: intact\n") == (result.exit_code, result.output)


def test_findings(file: Path) -> None:
    """Each finding is a line with its place, the summary counts them, and the exit code is 1."""
    older = file.with_suffix(".1")
    older.write_bytes(b"".join(LINES[:10]).replace(b'{"seq":3,', b'{"seq":4,'))
    file.write_bytes(b"".join(LINES[12:]))
    result = verify(older, file)
    assert (
        1,
        f"{older}:3: {CHANGED}\n"
        f"{file}:1: 2 lines are missing between seq 10 and 13\n"
        f"audit: 1,202 lines, seq 1 to 1204, head {HEAD}: 2 findings\n",
    ) == (result.exit_code, result.output)


def test_json(file: Path) -> None:
    """With --json each finding is an object on a line, and so is the summary at the end."""
    file.write_bytes(b"".join(LINES[:3]).replace(b'{"seq":2,', b'{"seq":4,'))
    result = verify("--json", file)
    assert 1 == result.exit_code
    assert [
        {"file": str(file), "line": 2, "seq": 4, "problem": CHANGED},
        {
            "lines": 3,
            "firstSeq": 1,
            "head": {"seq": 3, "hash": head_of(LINES[2]).hash},
            "findings": 1,
            "intact": False,
        },
    ] == [json.loads(line) for line in result.output.splitlines()]


def test_json_of_an_intact_trail(file: Path) -> None:
    """The summary says in one word that nothing was found."""
    result = verify("--json", file)
    assert (0, True) == (result.exit_code, json.loads(result.output)["intact"])


def test_lines_from_a_pipe() -> None:
    """A trail may come from stdin, unpacked by another program."""
    result = verify("-", stdin=b"".join(LINES[5:]))
    assert (0, f"audit: 1,199 lines, seq 6 to 1204, head {HEAD}: intact\n") == (result.exit_code, result.output)


def test_one_line(file: Path) -> None:
    """One line is one line, and one finding is one finding."""
    file.write_bytes(LINES[0])
    assert f"audit: 1 line, seq 1 to 1, head {head_of(LINES[0]).hash}: intact\n" == verify(file).output
    file.write_bytes(b"?\n")
    assert f"{file}:1: no line of an audit trail\naudit: 1 line: 1 finding\n" == verify(file).output


def test_a_head_that_was_noted(file: Path) -> None:
    """With a head that was noted before, lines that were cut off at the end are found."""
    assert 0 == verify("--head", HEAD, file).exit_code
    file.write_bytes(b"".join(LINES[:-1]))
    result = verify("--head", HEAD, file)
    assert 1 == result.exit_code
    assert result.output.startswith(f"{file}:1203: the line with hash {HEAD} is not there: lines were cut off")


@pytest.mark.parametrize("head", ["4be1", HEAD.upper(), HEAD + "0", "x" * 64])
def test_a_head_that_is_none(file: Path, head: str) -> None:
    """A head that cannot be one is a mistake of the command, not of the trail."""
    result = verify("--head", head, file)
    assert 2 == result.exit_code
    assert "--head: give 64 lower-case hexadecimal digits" in result.output


def test_no_lines(file: Path) -> None:
    """An empty trail proves nothing: the daemon writes a line when it starts."""
    file.write_bytes(b"")
    result = verify(file)
    assert (1, "audit: 0 lines: no lines\n") == (result.exit_code, result.output)
    assert START.hash not in result.output


def test_a_file_that_is_not_there(file: Path) -> None:
    """A file that cannot be read is exit code 2, whatever the others are."""
    result = verify(file, file.with_suffix(".missing"))
    assert 2 == result.exit_code
    assert "does not exist" in result.output


def test_a_file_that_cannot_be_read() -> None:
    """An error in the middle of reading is exit code 2, too."""
    result = verify("/proc/self/mem")
    assert (2, "betrace-kms: /proc/self/mem cannot be read: Input/output error\n") == (result.exit_code, result.output)


def test_no_file() -> None:
    """A trail must be given."""
    assert 2 == verify().exit_code
