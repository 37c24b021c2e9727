"""CircuitBreaker: stop asking what does not answer, as Resilience4j does with a count-based sliding window.

::

    closed ──── the last `window` calls failed at `failure_rate` or more ───► open
       ▲                                                                     │  ▲
       └── `successes_to_close` trials succeeded ── half_open ◄─ open_seconds ┘  │
                                                        └──── a trial failed ────┘

What it keeps:

- Nothing opens before `window` calls have ended since it last closed.
- Half open, at most `successes_to_close` calls are let through: together they close it, or the first failure opens it.
- A call counts in the period in which it began. If it ends in a later one, its outcome says nothing about that one.
- A trial that ends without an outcome, cancelled perhaps, gives its place to another.

What is a failure is the caller's business: a KMS that denies has answered, so only transient errors are failures. There
is no await in here, so one event loop needs no lock.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Literal, Self

State = Literal["closed", "open", "half_open"]


class Permit:
    """Leave for one call; a context manager, whose end gives it back if neither `success` nor `failure` was reported.

    The first report counts, later ones are ignored.
    """

    __slots__ = ("_report",)

    def __init__(self, report: Callable[[bool | None], None]) -> None:
        self._report: Callable[[bool | None], None] | None = report

    def success(self) -> None:
        """Report that there was an answer."""
        self._tell(True)

    def failure(self) -> None:
        """Report that there was none, or one that asks to try again later."""
        self._tell(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tell(None)

    def _tell(self, outcome: bool | None) -> None:
        report, self._report = self._report, None
        if report is not None:
            report(outcome)


class CircuitBreaker:
    """Decides whether a call may be tried.

    `name` is for logs and metrics. `window` counts calls, `failure_rate` is a share in (0, 1], `open_seconds` are
    seconds of `clock`, which is monotonic.

    ::

        if (permit := breaker.acquire()) is None:
            raise KmsUnreachable(...)
        with permit:
            ...
            permit.success()
    """

    def __init__(
        self,
        name: str,
        *,
        window: int = 10,
        failure_rate: float = 0.5,
        open_seconds: float = 5.0,
        successes_to_close: int = 3,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._failure_rate = failure_rate
        self._open_seconds = open_seconds
        self._successes_to_close = successes_to_close
        self._clock = clock
        self._outcomes: deque[bool] = deque(maxlen=window)
        self._enter("closed")

    @property
    def state(self) -> State:
        """What it is now. Half open begins when `open_seconds` are over, not with the call that follows."""
        if self._state == "open" and self._clock() - self._since >= self._open_seconds:
            self._enter("half_open")
        return self._state

    def acquire(self) -> Permit | None:
        """Return leave for one call, or None while it is open or, half open, has all its trials under way."""
        state = self.state
        if state == "open" or (state == "half_open" and self._trials == self._successes_to_close):
            return None
        self._trials += 1
        period = self._period

        def report(outcome: bool | None) -> None:
            if period == self._period:
                self._record(outcome)

        return Permit(report)

    def _record(self, outcome: bool | None) -> None:
        if outcome is None:
            self._trials -= 1
            return
        if self._state == "half_open":
            self._successes += outcome
            if not outcome:
                self._enter("open")
            elif self._successes == self._successes_to_close:
                self._enter("closed")
            return
        self._outcomes.append(outcome)
        calls = len(self._outcomes)
        if calls == self._outcomes.maxlen and self._outcomes.count(False) / calls >= self._failure_rate:
            self._enter("open")

    def _enter(self, state: State) -> None:
        self._state: State = state
        self._since = self._clock()
        self._period = object()
        self._trials = 0  # let through and not given back
        self._successes = 0
        self._outcomes.clear()
