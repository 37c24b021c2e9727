"""What the daemon does automatically goes on, whatever a run of it meets."""

import asyncio
from pathlib import Path

import pytest
from betrace_kms_server import jobs
from betrace_kms_server.cache.key_caches import KeyCaches
from betrace_kms_server.operations.emergency_stop import EmergencyStop
from betrace_kms_server.stores.sqlite.store import open_sqlite
from structlog.testing import capture_logs


async def test_job_that_fails_begins_again_and_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect is logged with what it was, and the job runs on; one that has ended stays so."""
    monkeypatch.setattr(jobs, "RESTART_SECONDS", 0.01)
    runs = {"failing": 0, "steady": 0, "once": 0}
    twice = asyncio.Event()

    async def failing() -> None:
        runs["failing"] += 1
        if runs["failing"] > 2:
            twice.set()
            await asyncio.Event().wait()
        raise ZeroDivisionError

    async def steady() -> None:
        runs["steady"] += 1
        await asyncio.Event().wait()

    async def once() -> None:
        runs["once"] += 1

    with capture_logs() as logs:
        async with jobs.background(failing, steady, once):
            await asyncio.wait_for(twice.wait(), 5.0)
    assert {"failing": 3, "steady": 1, "once": 1} == runs
    assert 2 == len(logs)
    assert all(isinstance(line["exc_info"], ZeroDivisionError) for line in logs)
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_an_emergency_stop_ends_what_uses_keys_until_it_is_over(tmp_path: Path) -> None:
    """The job does not begin before the stop's state is known, is cancelled by a stop, and begins again after it."""
    began, cancelled, over = asyncio.Event(), asyncio.Event(), asyncio.Event()
    runs = 0

    async def job() -> None:
        nonlocal runs
        runs += 1
        began.set()
        try:
            await over.wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with open_sqlite(tmp_path / "keystore.db") as store:
        caches = KeyCaches(
            store, encryption_ttl=60, signing_ttl=60, public_ttl=60, max_size=10, version_check_seconds=60
        )
        stop = EmergencyStop(store, caches, lambda refusing: None)
        running = asyncio.create_task(jobs.while_permitted(stop, job))
        await asyncio.sleep(0)
        assert runs == 0
        await stop.check()
        await asyncio.wait_for(began.wait(), 5)
        began.clear()
        await stop.lock("INC-1")
        await asyncio.wait_for(cancelled.wait(), 5)
        assert (runs, running.done()) == (1, False)
        await stop.unlock()
        await asyncio.wait_for(began.wait(), 5)
        over.set()
        await asyncio.wait_for(running, 5)
        await caches.close()
    assert runs == 2
