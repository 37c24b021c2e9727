"""The guide of `make demo`: how steps end, and what is printed of them."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from betrace_kms_client import Unavailable

from demo.stage import Skipped, Stage, StepFailed, check
from demo.tour import Guide, Step, main


def raising(error: Exception) -> Callable[[Stage], None]:
    """Return a step that ends with an error."""

    def take(stage: Stage) -> None:
        raise error

    return take


def nothing(stage: Stage) -> None:
    """Be a step that ends well."""


def led(guide: Guide, take: Callable[[Stage], None]) -> None:
    """Lead through a step."""
    guide.lead(Step("Do it", take), Stage(Path(), guide.say, ExitStack()))


@pytest.mark.parametrize(
    ("take", "line", "summary"),
    [
        (lambda stage: stage.say("done"), "ok, 0.0 s", "1 steps green, 0 skipped, 0 failed"),
        (raising(Skipped("no tool here")), "skipped: no tool here", "0 steps green, 1 skipped, 0 failed"),
        (raising(StepFailed("it broke")), "failed: it broke", "0 steps green, 0 skipped, 1 failed"),
        (raising(Unavailable("no answer")), "failed: no answer", "0 steps green, 0 skipped, 1 failed"),
        (raising(KeyError("x")), "failed: KeyError: 'x'", "0 steps green, 0 skipped, 1 failed"),
        (lambda stage: check(False, "not so"), "failed: not so", "0 steps green, 0 skipped, 1 failed"),
    ],
)
def test_a_step_is_green_skipped_or_failed(
    take: Callable[[Stage], None], line: str, summary: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only a step that ended well is green, and the others say why."""
    guide = Guide()
    led(guide, take)
    assert (line, summary) == (capsys.readouterr().out.splitlines()[-1].strip(), guide.summary())


@pytest.mark.parametrize(("color", "escapes"), [(None, False), (False, False), (True, True)])
def test_no_escapes_where_they_are_not_wanted(
    color: bool | None, escapes: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is no terminal gets plain text."""
    led(Guide(color=color), nothing)
    assert escapes is ("\x1b[" in capsys.readouterr().out)


@pytest.fixture
def signals() -> Iterator[None]:
    """Put back what a tour makes of signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(
    ("steps", "code", "summary"),
    [
        ((nothing, nothing), 0, "2 steps green, 0 skipped, 0 failed"),
        ((nothing, raising(Skipped("no tool")), nothing), 0, "2 steps green, 1 skipped, 0 failed"),
        ((nothing, raising(StepFailed("it broke")), nothing), 1, "2 steps green, 0 skipped, 1 failed"),
        ((raising(StepFailed("it broke")), nothing), 1, "0 steps green, 0 skipped, 1 failed"),
    ],
)
def test_a_failed_step_fails_the_demo(
    steps: Sequence[Callable[[Stage], None]], code: int, summary: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 1; without the first step the others are not taken."""
    assert code == main([Step("Do it", take) for take in steps])
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{summary}, ")
