"""Signals: what stops the daemon, what hurries it, and what does neither.

SIGTERM and SIGINT let the daemon drain and stop. Supervisors repeat SIGTERM, so a second one changes nothing; a second
SIGINT (somebody presses Ctrl-C again) ends the wait for the calls that are still in flight. SIGHUP reloads what can be
reloaded: it never stops the daemon, except that a daemon whose terminal is gone stops as by SIGTERM.
Without that, each terminal that is closed on `make run` would leave a daemon behind that holds port and data folder.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from betrace_kms_server.core.errors import StartRefused

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class StopSignals:
    """What the process was asked for."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Drain and stop."""
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    """Do not wait for the calls in flight any longer."""
    _reloads: list[Callable[[], None]] = field(default_factory=list)

    def on_reload(self, reload: Callable[[], None]) -> None:
        """Call this at each SIGHUP, in the event loop. What it raises is logged, and the others are still called."""
        self._reloads.append(reload)

    def reload(self) -> None:
        """Reload everything that can be reloaded."""
        for reload in self._reloads:
            try:
                reload()
            except StartRefused as cause:
                log.error(f"Not reloaded, what was in force stays: {cause}")  # noqa: G004
            except Exception as cause:  # one that fails must stop neither the daemon nor the others
                log.error("Not reloaded, what was in force stays", exc_info=cause)


def outlive_hang_ups() -> None:
    """Let SIGHUP do nothing until `handle_signals`, also while modules and settings are read."""
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)


def handle_signals() -> StopSignals:
    """Handle signals in the running event loop, for the rest of the process."""
    signals = StopSignals()
    had_terminal = _has_terminal()

    def on_term() -> None:
        if signals.stop.is_set():
            log.info("Already stopping: calls in flight get their time, SIGINT ends them")
        signals.stop.set()

    def on_interrupt() -> None:
        if signals.stop.is_set():
            signals.hurry.set()
        signals.stop.set()

    def on_hang_up() -> None:
        if had_terminal and not _has_terminal():
            signals.stop.set()
        else:
            log.info("SIGHUP: the daemon goes on, and reloads what can be reloaded")
            signals.reload()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, on_term)
    loop.add_signal_handler(signal.SIGINT, on_interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup asks to outlive the terminal
        loop.add_signal_handler(signal.SIGHUP, on_hang_up)
    return signals


def ignore_signals() -> None:
    """Let the process end in peace: from now on only SIGKILL stops it earlier. Call it last in the event loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.remove_signal_handler(number)  # else the loop, when it closes, would restore what kills the process
        signal.signal(number, signal.SIG_IGN)


def _has_terminal() -> bool:
    """Whether the process has a controlling terminal that is still there."""
    try:
        os.close(os.open(os.ctermid(), os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
