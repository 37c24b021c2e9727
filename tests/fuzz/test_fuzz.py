"""Mutated bytes never bring down a reader or the daemon. `make fuzz MINUTES=n` does it for longer, and guided."""

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from tests.daemon import spawned
from tests.fuzz.findings import finding_of, minimised, report
from tests.fuzz.mutation import mutations
from tests.fuzz.requests import METHODS, request_targets
from tests.fuzz.targets import CORPUS, TARGETS, Target, kept

INPUTS, CALLS, SEED = 1500, 100, 20_261_126


def check_all(name: str, target: Target, inputs: int) -> None:
    """Check the inputs that are kept for a target, and as many mutated ones as are given."""
    seeds = [*target.seeds, *kept(name)]
    for number, data in enumerate(islice(mutations(seeds, seed=SEED), len(seeds) + inputs)):
        try:
            target.check(data)
        except Exception as cause:
            raise AssertionError(f"{name}, input {number}: {data[:400]!r}") from cause


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_refuses_what_it_cannot_read(name: str) -> None:
    """Former findings and 1,500 mutated inputs: each is read, or refused by a type that the reader documents."""
    check_all(name, TARGETS[name], INPUTS if name != "wire" else INPUTS // 10)


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_names_its_refusals(name: str) -> None:
    """A caller learns from the docstrings alone what to catch."""
    documented = " ".join(reader.__doc__ or "" for reader in TARGETS[name].readers)
    assert [] == [kind.__name__ for kind in TARGETS[name].refusals if kind.__name__ not in documented]


def test_a_daemon_answers_mutated_requests(tmp_path: Path) -> None:
    """100 mutated requests to each method: none is answered INTERNAL, and the daemon serves afterwards."""
    listen = f"unix:{tmp_path}/kms.sock"
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", listen) as daemon:
        daemon.wait_for("serving")
        with request_targets(listen, tmp_path / "data") as targets:
            for name, target in targets.items():
                check_all(name, target, CALLS)
            assert daemon.process.poll() is None
            targets["GetPublicKeys"].check(targets["GetPublicKeys"].seeds[0])
        assert "Traceback" not in daemon.log


def test_what_is_kept_belongs_to_a_target() -> None:
    """A folder with a wrong name would never be read."""
    assert set() == {folder.name for folder in CORPUS.iterdir()} - {*TARGETS, *METHODS}
    assert all(kept(folder.name) for folder in CORPUS.iterdir())


def test_a_finding_is_kept_as_small_as_it_can_be(tmp_path: Path) -> None:
    """Only what makes the reader fail in the same way is left of an input."""

    def read(data: bytes) -> None:
        if b"x" in data and b"y" in data:
            raise LookupError
        raise ValueError

    target = Target(read, (), (ValueError,))
    data = bytes(1000) + b"x" + bytes(300) + b"yy"
    cause = finding_of(target, data)
    assert isinstance(cause, LookupError)
    assert b"xy" == report(target, data, cause, tmp_path / "made").read_bytes()
    assert finding_of(target, b"x") is None
    assert b"" == minimised(b"z", lambda _: True)


def test_one_target_in_a_process_of_its_own(tmp_path: Path) -> None:
    """What `make fuzz` starts for each target ends well without a finding, with atheris and without."""
    command = [sys.executable, "-m", "tests.fuzz.one", "tokens", str(tmp_path), "1", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert 0 == done.returncode, done.stderr
    assert "Done " in done.stdout + done.stderr
