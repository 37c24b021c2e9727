"""CircuitBreaker: its transitions on a clock that the test moves, and against a naive model."""

import pytest
from betrace_kms_server.providers.breaker import CircuitBreaker, Permit
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

OPEN_SECONDS = 5.0


class Clock:
    """Time that stands still unless the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Calls:
    """A breaker, and calls through it."""

    def __init__(self, *, window: int = 10, failure_rate: float = 0.5, successes_to_close: int = 3) -> None:
        self.clock = Clock()
        self.breaker = CircuitBreaker(
            "kms",
            window=window,
            failure_rate=failure_rate,
            successes_to_close=successes_to_close,
            open_seconds=OPEN_SECONDS,
            clock=self.clock,
        )

    @property
    def state(self) -> str:
        """Widened to str: mypy does not know that calls change it."""
        return self.breaker.state

    def begin(self) -> Permit:
        permit = self.breaker.acquire()
        assert permit is not None
        return permit

    def run(self, script: str) -> None:
        """Play a script: s a success, f a failure, c a cancelled call, w waits as long as it stays open."""
        for step in script:
            if step == "w":
                self.clock.now += OPEN_SECONDS
                continue
            with self.begin() as permit:
                if step == "s":
                    permit.success()
                if step == "f":
                    permit.failure()


@pytest.mark.parametrize(
    ("script", "state"),
    [
        pytest.param("", "closed", id="it begins closed"),
        pytest.param("fffffffff", "closed", id="nine failures do not fill the window"),
        pytest.param("fffffffffc", "closed", id="a cancelled call does not count"),
        pytest.param("ffffffffff", "open", id="ten failures open it"),
        pytest.param("sssssfffff", "open", id="half of ten opens it"),
        pytest.param("fffffsssss", "open", id="half of ten opens it, though the last succeed"),
        pytest.param("ssssssffff", "closed", id="four of ten do not"),
        pytest.param("ssssssfffff", "open", id="the window slides: five of the last ten"),
        pytest.param("ffffssssssf", "closed", id="the window slides: the first failure has left"),
        pytest.param("ffffffffffw", "half_open", id="it is half open after five seconds"),
        pytest.param("ffffffffffwss", "half_open", id="two successes do not close it"),
        pytest.param("ffffffffffwsss", "closed", id="three successes close it"),
        pytest.param("ffffffffffwssf", "open", id="a failure opens it again"),
        pytest.param("ffffffffffwssfw", "half_open", id="and for five seconds again"),
        pytest.param("ffffffffffwssfwss", "half_open", id="successes of an earlier trial period do not count"),
        pytest.param("ffffffffffwsccccs", "half_open", id="a cancelled trial is no success"),
        pytest.param("ffffffffffwsccccss", "closed", id="and it gives its permit back"),
        pytest.param("ffffffffffwsssfffffffff", "closed", id="closing clears the window"),
        pytest.param("ffffffffffwsssffffffffff", "open", id="it opens after ten new calls"),
    ],
)
def test_transitions(script: str, state: str) -> None:
    """Each script of calls leads to one state."""
    calls = Calls()
    calls.run(script)
    assert state == calls.state


def test_open_for_its_time() -> None:
    """While it is open nothing passes; when the time is over, a call passes."""
    calls = Calls()
    calls.run("f" * 10)
    calls.clock.now += OPEN_SECONDS - 0.001
    assert ("open", None) == (calls.state, calls.breaker.acquire())
    calls.clock.now += 0.001
    assert calls.breaker.acquire() is not None


def test_three_trials() -> None:
    """Half open, three calls pass at a time and in all; a fourth waits until one is given back."""
    calls = Calls()
    calls.run("f" * 10 + "w")
    first, second, third = calls.begin(), calls.begin(), calls.begin()
    assert calls.breaker.acquire() is None
    first.success()
    assert calls.breaker.acquire() is None
    with second:
        pass
    fourth = calls.begin()
    assert calls.breaker.acquire() is None
    third.success()
    fourth.success()
    assert calls.state == "closed"


def test_exception_gives_permit_back() -> None:
    """A trial that ends by an exception, without a report, counts as neither and gives its permit back."""
    calls = Calls(successes_to_close=1)
    calls.run("f" * 10 + "w")
    with pytest.raises(TimeoutError), calls.begin():
        raise TimeoutError
    assert calls.state == "half_open"
    calls.run("s")
    assert calls.state == "closed"


@pytest.mark.parametrize("waits", ["", "w", "wss", "wsss"])
@pytest.mark.parametrize("late", ["success", "failure", "__exit__"])
def test_late_outcomes(waits: str, late: str) -> None:
    """Calls that began before it opened change nothing, however they end and whatever state it has by then."""
    calls = Calls()
    begun = [calls.begin() for _ in range(20)]
    calls.run("f" * 10 + waits)
    state = calls.state
    for permit in begun:
        getattr(permit, late)()
    assert state == calls.state
    if state == "half_open":
        calls.run("s" * (3 - waits.count("s")))
        assert calls.state == "closed"


def test_late_trials() -> None:
    """Trials that outlive the failure of another neither open it longer nor close it the next time."""
    calls = Calls()
    calls.run("f" * 10 + "w")
    begun = [calls.begin(), calls.begin()]
    calls.run("f")
    calls.clock.now += OPEN_SECONDS - 1
    begun[0].failure()
    calls.clock.now += 1
    assert calls.state == "half_open"
    begun[1].success()
    calls.run("ss")
    assert calls.state == "half_open"


def test_first_report_counts() -> None:
    """Of several reports of one call only the first counts."""
    calls = Calls(window=2, failure_rate=1.0)
    with calls.begin() as permit:
        permit.success()
        permit.failure()
        permit.failure()
    assert calls.state == "closed"


@pytest.mark.parametrize("failures", [7, 14, 28, 56, 100])
def test_rate_is_exact(failures: int) -> None:
    """A rate of k in a hundred opens at k failures, though 0.07 * 100 > 7 in binary fractions."""
    calls = Calls(window=100, failure_rate=failures / 100)
    calls.run("s" * (100 - failures + 1) + "f" * (failures - 1))
    assert calls.state == "closed"
    calls.run("f")
    assert calls.state == "open"


def test_more_trials_than_window() -> None:
    """More successes may be asked for than the window holds."""
    calls = Calls(window=2, successes_to_close=4)
    calls.run("ffwsss")
    assert calls.state == "half_open"
    calls.run("s")
    assert calls.state == "closed"


class Model(RuleBasedStateMachine):
    """A breaker beside a model that keeps every outcome since the last transition and counts anew each time."""

    permits: Bundle[tuple[Permit, int]] = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.calls = Calls(window=4, successes_to_close=2)
        self.state = "closed"
        self.left = 0.0
        self.period = 0
        self.history: list[bool] = []
        self.under_way: set[Permit] = set()

    def enter(self, state: str) -> None:
        self.state, self.left = state, OPEN_SECONDS
        self.period += 1
        self.history, self.under_way = [], set()

    @rule(target=permits)
    def begin_call(self) -> tuple[Permit, int]:
        permit = self.calls.breaker.acquire()
        half = self.state == "half_open" and len(self.history) + len(self.under_way) < 2
        assert (self.state == "closed" or half) == (permit is not None)
        if permit is None:
            return (Permit(lambda _: None), -1)
        self.under_way.add(permit)
        return (permit, self.period)

    @rule(begun=consumes(permits), outcome=st.sampled_from([True, False, False, None]))
    def end(self, begun: tuple[Permit, int], outcome: bool | None) -> None:
        permit, period = begun
        with permit:
            if outcome is not None:
                (permit.success if outcome else permit.failure)()
        if period != self.period:
            return
        self.under_way.remove(permit)
        if outcome is None:
            return
        self.history.append(outcome)
        last = self.history[-4:]
        if self.state == "half_open" and not outcome:
            self.enter("open")
        elif self.state == "half_open" and self.history == [True, True]:
            self.enter("closed")
        elif self.state == "closed" and len(last) == 4 and 2 * last.count(False) >= 4:
            self.enter("open")

    @rule(seconds=st.sampled_from([1.0, 4.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.calls.clock.now += seconds
        self.left -= seconds
        if self.state == "open" and self.left <= 0:
            self.enter("half_open")

    @invariant()
    def same_state(self) -> None:
        assert self.state == self.calls.state


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
