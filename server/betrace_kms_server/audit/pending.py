"""Events that wait to become lines of the audit trail, and the calls that wait for theirs."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from betrace_kms_server.audit.chain import Head, format_line
from betrace_kms_server.core.key_event import KeyEvent

log = structlog.get_logger()

_LINES_IN_A_ROW = 50
"""How many lines are made before calls get their turn: some 0.2 ms of work."""


@dataclass(slots=True)
class Group:
    """Lines that are written together, the head that they lead to, and who waits for them."""

    lines: bytes
    head: Head
    waiters: "list[asyncio.Future[bool]]" = field(repr=False)

    def settle(self, written: bool) -> None:
        """Let the calls that wait go on."""
        _settle(self.waiters, written)
        self.waiters = []


class Pending:
    """Takes events in the event loop's thread, at most `max_waiting`, and makes lines of them.

    A waiter is set to whether its line was written: no exception, because a cancelled call never retrieves one.
    """

    def __init__(self, max_waiting: int, clock: Callable[[], int]) -> None:
        self.lost = 0
        """Events since the start that found more than `max_waiting` waiting, or of which no line could be made."""
        self._max_waiting, self._clock = max_waiting, clock
        self._untold = 0
        """Lost events that no line reports yet."""
        self._waiting: list[tuple[int, KeyEvent, asyncio.Future[bool] | None]] = []

    def __bool__(self) -> bool:
        return bool(self._waiting or self._untold)

    @property
    def events(self) -> int:
        """How many events wait."""
        return len(self._waiting)

    def add(self, event: KeyEvent, waiter: "asyncio.Future[bool] | None" = None) -> bool:
        """Take an event that is over. False if there is no room: then it is lost, and counted."""
        if len(self._waiting) < self._max_waiting:
            self._waiting.append((self._clock(), event, waiter))
            return True
        self.lost += 1
        self._untold += 1
        return False

    def give_up_waiters(self) -> None:
        """Let the calls that wait know that their lines are not written. The events stay."""
        _settle([waiter for _, _, waiter in self._waiting if waiter is not None], False)

    async def take(self, head: Head) -> Group:
        """Make lines of all that waits, and count behind them what was lost. An event that cannot be one is lost."""
        events, lines, waiters = self._waiting[:], [], []
        for number, (time_ns, event, waiter) in enumerate(events, 1):
            try:
                line, head = format_line(event, time_ns, head)
            except Exception as error:  # a defect, which must not keep all others from being written
                log.error("An event cannot be a line of the audit trail, it is lost", exc_info=error)
                self.lost += 1
                self._untold += 1
                if waiter is not None:
                    _settle([waiter], False)
            else:
                lines.append(line)
                if waiter is not None:
                    waiters.append(waiter)
            if number % _LINES_IN_A_ROW == 0:
                await asyncio.sleep(0)
        del self._waiting[: len(events)]
        if self._untold:
            line, head = format_line(KeyEvent("LinesLost", "", items=self._untold), self._clock(), head)
            lines.append(line)
            self._untold = 0
        return Group(b"".join(lines), head, waiters)


def _settle(waiters: "list[asyncio.Future[bool]]", written: bool) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(written)
