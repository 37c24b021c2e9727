"""The soak in short form: its machinery. Whether something grows, `make drill-soak` says."""

import asyncio
from collections import Counter

import pytest
from click.testing import CliRunner

from tests.drills import soak
from tests.drills.calls import LEFT, SHARES
from tests.drills.slope import slope
from tests.drills.soak import Sample, Soak, soaked

GOOD = {"OK", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", LEFT}
EXPECTED = {kind: "OK" for kind in SHARES} | {
    "refused": "INVALID_ARGUMENT",
    "left": LEFT,
    "too late": "DEADLINE_EXCEEDED",
}


@pytest.mark.parametrize("mode", ["data-key", "branch-key"])
def test_a_soak_makes_calls_of_every_kind_and_measures_the_daemon(mode: str) -> None:
    """Each kind of call ends as it should, in the daemon too; none meets a defect; the daemon is sampled."""
    soak = asyncio.run(soaked(60, 3000, 0.2, tenants=30, mode=mode))
    assert set(EXPECTED.items()) <= set(soak.outcomes)
    assert not set(soak.ended()) - GOOD
    assert soak.calls == sum(soak.ended().values()) >= 3000
    assert min(soak.served[status] for status in ("OK", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "CANCELLED")) >= 1
    assert soak.served["OK"] >= soak.ended()["OK"] + 2 * 30  # and the two first calls of each tenant
    assert len(soak.samples) >= 2
    assert all(min(sample.rss_kib, sample.files, sample.threads) > 0 for sample in soak.samples)


@pytest.mark.parametrize(
    ("kib", "left", "verdict"), [(400.0, 0, "grows"), (0.0, 0, "no growth"), (400.0, 30_000, "no growth")]
)
def test_a_soak_tells_growth_from_noise(kib: float, left: int, verdict: str) -> None:
    """Memory that goes up and down by more than it grows with each sample still grows, unless gRPC keeps as much."""
    memory, files, threads = soak_of(101, kib, left).trends()
    assert (verdict, verdict == "no growth") == (str(memory).rpartition(": ")[2], memory.steady)
    assert [True, True] == [files.steady, threads.steady]


@pytest.mark.parametrize(("samples", "kib", "code"), [(101, 0.0, 0), (101, 400.0, 1), (9, 0.0, 1)])
def test_a_soak_ends_with_its_verdict(samples: int, kib: float, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs it in a script learns of growth, and of a soak that was too short to show any."""

    async def measured(*_: object, **__: object) -> Soak:
        return soak_of(samples, kib)

    monkeypatch.setattr(soak, "soaked", measured)
    assert code == CliRunner().invoke(soak.main).exit_code


@pytest.mark.parametrize(("files", "steady"), [(1, True), (4, False)])
def test_one_more_open_file_is_no_growth(files: int, steady: bool) -> None:
    """A connection that is open from the middle on is a step; several more, one after the other, are growth."""
    made = soak_of(101, 0.0)
    for number, sample in enumerate(made.samples):
        sample.files += files * number // 101 if files > 1 else number // 60
    _, found, _ = made.trends()
    assert steady == found.steady


def soak_of(samples: int, kib: float, left: int = 0) -> Soak:
    """Return a soak of 1,000,000 calls, in which memory grows by so much for each 100,000."""
    made = Soak(Counter({("sealed", "OK"): 1_000_000 - left, ("left", LEFT): left}))
    for number in range(samples):
        noise = -400 if number % 2 else 400
        calls = 1_000_000 * (number + 1) // samples
        made.samples.append(Sample(calls, int(90_000 + kib * calls / 100_000 + noise), 20, 10))
    return made


def test_slope_is_that_of_the_line() -> None:
    """On a line without noise there is no margin."""
    found = slope([0.0, 1.0, 2.0, 3.0], [5.0, 7.0, 9.0, 11.0])
    assert found.value == pytest.approx(2.0)
    assert found.margin == pytest.approx(0.0)
