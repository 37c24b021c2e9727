"""The soak in short form: its machinery. Whether something grows, `make drill-soak` says."""

import asyncio

import pytest

from tests.drills.slope import slope
from tests.drills.soak import Sample, Soak, soaked


def test_a_soak_makes_calls_of_every_kind_and_measures_the_daemon() -> None:
    """Calls end well, are refused, pass their deadline and are left; none meets a defect; the daemon is sampled."""
    soak = asyncio.run(soaked(60, 3000, 0.2))
    assert {"OK", "INVALID_ARGUMENT", "left by the caller"} <= set(soak.outcomes)
    assert not {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "UNIMPLEMENTED"} & set(soak.outcomes)
    assert soak.calls == soak.outcomes.total() >= 3000
    assert all(min(sample.rss_kib, sample.files, sample.threads) > 0 for sample in soak.samples)


@pytest.mark.parametrize(("kib", "verdict"), [(200.0, "grows"), (0.0, "no growth")])
def test_a_soak_tells_growth_from_noise(kib: float, verdict: str) -> None:
    """Memory that goes up and down by more than it grows with each sample still grows, or does not."""
    soak = Soak(calls=1_000_000)
    for number in range(101):
        noise = -400 if number % 2 else 400
        soak.samples.append(Sample(number * 10_000, int(90_000 + kib * number / 10 + noise), 20, 10))
    memory, files, threads = list(soak.lines())[1:]
    assert memory.endswith(verdict)
    assert files.endswith("no growth")
    assert threads.endswith("no growth")


def test_slope_is_that_of_the_line() -> None:
    """On a line without noise there is no margin."""
    found = slope([0.0, 1.0, 2.0, 3.0], [5.0, 7.0, 9.0, 11.0])
    assert found.value == pytest.approx(2.0)
    assert found.margin == pytest.approx(0.0)
