"""`make demo`: a tour of what betrace-kms does, by real processes on an emulator of AWS, with a backend that calls it.

Each step does something, checks what came of it, and is green, skipped (a tool is not here) or failed. The exit code is
0 if none failed. DEMO_KEEP=1 keeps everything running before the last step, until Ctrl-C.
"""

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import click
from betrace_kms_client import KmsClientError

from demo import callers, failures, operators, telemetry
from demo.stage import Skipped, Stage, StepFailed, staged

Outcome = Literal["green", "skipped", "failed"]
_LOG_LINES = 5
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Step:
    """A step by its title, and what it does."""

    title: str
    take: Callable[[Stage], None]


def start(stage: Stage) -> None:
    """Start what the tour stands on."""
    stage.start()
    stage.say(f"AWS is an emulator (moto) at {stage.aws.url}, with a master key in two Regions")
    stage.say(f"the daemon answers gRPC at {stage.daemon.address}, and people at {stage.page}")
    stage.say("a backend signs, seals and opens for eight tenants, about 80 calls a second")


STEPS = (
    Step("Start AWS, the daemon and a backend", start),
    Step("Sign a span", callers.sign),
    Step("Tamper with it", callers.tamper),
    Step("Verify, by the daemon and offline", callers.verify),
    Step("Encrypt a field", callers.encrypt),
    Step("Open it with the official AWS Encryption SDK", callers.open_with_official_sdk),
    Step("Make warm calls", callers.call_warm),
    Step("See the daemon live", operators.show_page),
    Step("Monitor it with Prometheus", telemetry.scrape),
    Step("Send a trace to an OpenTelemetry collector", telemetry.collect),
    Step("Rotate the signing key", operators.rotate),
    Step("Revoke the old key", operators.revoke),
    Step("Shred a tenant, and cancel it", operators.shred),
    Step("Lose a Region", failures.fail_over),
    Step("Lose KMS", failures.lose_kms),
    Step("Verify the audit trail", operators.audit),
    Step("Stop", operators.stop),
)


class Guide:
    """Prints what happens, and counts how steps end."""

    def __init__(self, *, color: bool | None = None) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self._color = color
        self._number = 0

    def say(self, text: str) -> None:
        """Print what a step has to say."""
        for line in text.splitlines():
            shown = click.style(line, bold=True) if line.startswith("$ ") else line
            click.echo(f"     {shown}", color=self._color)

    def lead(self, step: Step, stage: Stage) -> None:
        """Take a step."""
        self._number += 1
        click.echo(f"\n{self._number:>3}  " + click.style(step.title, fg="cyan", bold=True), color=self._color)
        began = time.monotonic()
        try:
            step.take(stage)
        except Skipped as reason:
            self._end("skipped", f"skipped: {reason}", "yellow")
        except Exception as error:  # noqa: BLE001  # a defect fails its step, and the others are still taken
            self._end("failed", f"failed: {_sentence(error)}", "red")
            if lines := stage.log_lines()[-_LOG_LINES:]:
                self.say(f"the daemon's log ends with:\n{''.join(lines)}")
        else:
            self._end("green", f"ok, {time.monotonic() - began:.1f} s", "green")

    def summary(self) -> str:
        """Return how the steps ended."""
        green, skipped, failed = (self.outcomes[name] for name in ("green", "skipped", "failed"))
        return f"{green} steps green, {skipped} skipped, {failed} failed"

    def _end(self, outcome: Outcome, text: str, color: str) -> None:
        self.outcomes[outcome] += 1
        self.say(click.style(text, fg=color))


def _sentence(error: Exception) -> str:
    known = isinstance(error, StepFailed | KmsClientError)
    return str(error) if known else f"{type(error).__name__}: {error}"


def tour(steps: Sequence[Step], guide: Guide, *, keep: bool) -> None:
    """Take steps on a stage of their own; without the first one there is nothing for the others to stand on.

    With `keep` the last one waits for Ctrl-C.
    """
    with staged(guide.say) as stage:
        try:
            for step in steps:
                if keep and step is steps[-1]:
                    click.echo(f"\nEverything stays up: {stage.page} shows it. Ctrl-C ends it.")
                    with suppress(KeyboardInterrupt):
                        threading.Event().wait()
                guide.lead(step, stage)
                if step is steps[0] and guide.outcomes["failed"]:
                    return
        finally:
            for number in _ENDS:  # what was started is ended whole, whoever is in a hurry
                signal.signal(number, signal.SIG_IGN)


def main(steps: Sequence[Step] = STEPS) -> int:
    """Lead through steps; return the exit code."""
    for number in _ENDS:
        signal.signal(number, signal.default_int_handler)
    guide = Guide(color=False if os.environ.get("NO_COLOR") else None)
    began = time.monotonic()
    try:
        tour(steps, guide, keep=os.environ.get("DEMO_KEEP") == "1")
    except KeyboardInterrupt:
        click.echo("\nInterrupted. What was started has ended, and the temporary folder is gone.")
        return INTERRUPTED
    click.echo(f"\n{guide.summary()}, {time.monotonic() - began:.0f} s")
    return 1 if guide.outcomes["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
