"""Rotation by the clock: a scheduled run gives every tenant whose signing key or branch key is too old a new one.

A run is about an instant of the schedule: due is what was too old then. So a run that was missed is caught up at start
simply by making it, and costs one read of the store if it was not missed. Daemons that share a store run at once, apart
by a random pause, and whoever comes second finds nothing to do.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from betrace_kms_server.core.errors import KmsError
from betrace_kms_server.core.key_event import KeyEvent, Recorder, ignore, part_of
from betrace_kms_server.core.schedule import Schedule
from betrace_kms_server.signing_keys.lifecycle import Lifecycle

log = structlog.get_logger()

JITTER_SECONDS = 60.0
"""Longest pause before a scheduled run, so that daemons do not all begin at the same second."""
RETRY_SECONDS = 600.0
"""How soon a run is made again in which a tenant failed."""
_AT_ONCE = 10
_NAP_SECONDS = 60.0
"""Longest sleep at a time: the clock of the wall may be set while we wait."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many tenants got a new key, and how many failed and have their old one still."""

    rotated: int = 0
    failed: int = 0


class Rotation:
    """Rotates the keys that a lifecycle changes. `batch_size` tenants are taken at a time.

    `failures` counts since the start, and `last_run` is when the last run without a failure was over, in seconds since
    the Unix epoch.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        *,
        batch_size: int,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        record: Recorder = ignore,
    ) -> None:
        self.failures = 0
        self.last_run: float | None = None
        self._lifecycle = lifecycle
        self._batch_size = batch_size
        self._now = now
        self._sleep = sleep
        self._jitter = jitter
        self._record = record
        self._for_all: asyncio.Task[Outcome] | None = None
        self._next_for_all: asyncio.Task[Outcome] | None = None

    async def follow(self, schedule: Schedule, max_age: timedelta) -> None:
        """Catch up the latest run, then make every run of the schedule."""
        due: datetime | None = schedule.last_before(self._time())
        while True:
            if due is not None:
                await self._run_until_done(schedule, due, max_age)
            due = schedule.next_after(self._time())
            if due is None:
                log.warning(
                    "kms.rotation.check-cron has no further instant: keys are not rotated automatically any more"
                )
                return
            pause = JITTER_SECONDS * self._jitter()
            seen = self._now()
            while (left := due.timestamp() + pause - seen) > 0:
                await self._sleep(min(left, _NAP_SECONDS))
                before, seen = seen, self._now()
                if seen < before:  # the clock was set back
                    due = min(due, schedule.next_after(self._time()) or due)

    async def run_for_all(self, event: KeyEvent | None = None) -> Outcome:
        """Rotate every tenant's key, however young. A caller that leaves does not end it.

        Who comes while such a run is under way shares the next one with others who come: keys that were made since it
        began are none of its.
        """
        if self._next_for_all is None:
            if self._for_all is None or self._for_all.done():
                self._for_all = asyncio.create_task(self.run(self._this_instant(), event), name="rotate all")
                return await asyncio.shield(self._for_all)
            self._next_for_all = asyncio.create_task(self._run_after(self._for_all, event), name="rotate all again")
        return await asyncio.shield(self._next_for_all)

    def _this_instant(self) -> int:
        return int(self._now() * 1000) + 1

    async def _run_after(self, former: asyncio.Task[Outcome], event: KeyEvent | None) -> Outcome:
        await asyncio.wait([former])
        self._for_all, self._next_for_all = self._next_for_all, None
        return await self.run(self._this_instant(), event)

    async def close(self) -> None:
        """End rotations of all that run or wait; what they have rotated stays so."""
        tasks = [task for task in (self._for_all, self._next_for_all) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def run(self, before_ms: int, event: KeyEvent | None = None) -> Outcome:
        """Rotate every key that was made before a time. One tenant's failure is not another's."""
        rotated = failed = 0
        async for batch in _batches(self._lifecycle.due(before_ms), self._batch_size):
            queue = iter(batch)

            async def work() -> None:
                nonlocal rotated, failed
                for tenant_id in queue:  # noqa: B023  # the workers are over before the next batch
                    asked = part_of(event, "RotateKey", tenant_id, "")
                    try:
                        made = await self._lifecycle.rotate(tenant_id, if_older_than_ms=before_ms, event=asked)
                        rotated += made  # not in one line: it would be read before the await
                    except KmsError as error:
                        failed += 1
                        asked.result = error.reason
                        self._record(asked)
                        log.error("A signing key could not be rotated", reason=error.reason, problem=error.message)
                    except Exception as error:  # a defect that one tenant's key meets must not stop the others
                        failed += 1
                        log.error("A signing key could not be rotated", exc_info=error)

            await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
        self.failures += failed
        return Outcome(rotated, failed)

    async def _run_until_done(self, schedule: Schedule, due: datetime, max_age: timedelta) -> None:
        """Make a run, and again while a tenant fails, until the next one takes over."""
        before_ms = int((due - max_age).timestamp() * 1000)
        while True:
            try:
                outcome = await self.run(before_ms)
            except KmsError as error:
                self.failures += 1
                log.error("Rotation is interrupted", reason=error.reason, problem=error.message)
            except Exception as error:  # a defect must not end the schedule for good
                self.failures += 1
                log.error("Rotation is interrupted", exc_info=error)
            else:
                if outcome.rotated or outcome.failed:
                    log.info("Signing keys were rotated", rotated=outcome.rotated, failed=outcome.failed)
                if not outcome.failed:
                    self.last_run = self._now()
                    return
            following = schedule.next_after(due)
            if following is not None and self._now() + RETRY_SECONDS >= following.timestamp():
                return
            await self._sleep(RETRY_SECONDS)

    def _time(self) -> datetime:
        return datetime.fromtimestamp(self._now(), UTC)


async def _batches(tenants: AsyncIterator[str], size: int) -> AsyncIterator[list[str]]:
    batch: list[str] = []
    async for tenant_id in tenants:
        batch.append(tenant_id)
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch
