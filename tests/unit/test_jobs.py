"""What the daemon does automatically goes on, whatever a run of it meets."""

import asyncio

import pytest
from betrace_kms_server import jobs
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
