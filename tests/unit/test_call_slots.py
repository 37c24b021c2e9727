"""The queue before KMS: turns of tenants, their share, pacing, and what cancelled callers leave."""

import asyncio
from contextlib import AsyncExitStack, suppress

import pytest
from betrace_kms_server.core.call_slots import CallSlots
from betrace_kms_server.core.errors import Overloaded
from betrace_kms_server.core.pace import CALM_SECONDS, Pace
from betrace_kms_server.core.waiters import Waiters


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def run(slots: CallSlots, tenant: str, order: list[str]) -> None:
    async with slots.slot(tenant):
        order.append(tenant)
        await asyncio.sleep(0)


async def test_tenants_take_turns() -> None:
    """A tenant with a hundred waiting calls delays each other tenant by one call, not by a hundred."""
    slots, order = CallSlots("KMS", size=1), list[str]()
    calls = [run(slots, "many", order) for _ in range(100)] + [run(slots, tenant, order) for tenant in ("a", "b")]
    await asyncio.gather(*calls)
    assert {"many", "a", "b"} == set(order[:4])
    assert 102 == len(order)


async def test_tenant_never_holds_more_than_its_share() -> None:
    """The slots that one tenant may not have are free for others at once."""
    slots = CallSlots("KMS", size=4, per_tenant=2)
    async with AsyncExitStack() as held:
        for _ in range(2):
            await held.enter_async_context(slots.slot("many"))
        third = asyncio.create_task(run(slots, "many", []))
        await settle()
        assert not third.done()
        async with asyncio.timeout(5):
            await held.enter_async_context(slots.slot("other"))
    await third


async def test_cancelled_callers_leave_nothing() -> None:
    """Callers that are cancelled, before or after their turn came, take no slot and no memory with them."""
    slots = CallSlots("KMS", size=1)
    for wait_for_turn in (False, True):
        async with AsyncExitStack() as held:
            await held.enter_async_context(slots.slot("a"))
            waiting = [asyncio.create_task(run(slots, "b", [])) for _ in range(50)]
            await settle()
            if wait_for_turn:
                await held.aclose()
            for task in waiting:
                task.cancel()
            for task in waiting:
                with suppress(asyncio.CancelledError):
                    await task
    assert (0, 0, {}, {}) == (slots._total, slots._waiting, dict(slots._queues), dict(slots._running))


async def test_full_queue_and_slow_queue_refuse() -> None:
    """Beyond `max_waiting`, and after `max_wait_seconds`, a caller is refused."""
    slots = CallSlots("KMS", size=1, max_waiting=1, max_wait_seconds=0.01)
    async with slots.slot("a"):
        outcomes = await asyncio.gather(run(slots, "b", []), run(slots, "c", []), return_exceptions=True)
    assert [Overloaded, Overloaded] == [type(outcome) for outcome in outcomes]


def test_pace_falls_rises_and_ends() -> None:
    """Throttling leaves 70 % of the rate; it rises by a tenth of that a second, and half a minute of calm lifts it."""
    clock = Clock()
    pace = Pace(clock)
    for _ in range(100):
        pace.started()
    assert 0.0 == pace.delay()
    pace.slow_down()
    assert pytest.approx(1 / 70) == pace.delay()
    pace.slow_down()  # of calls that were under way
    assert pytest.approx(1 / 70) == pace.delay()
    clock.now += 1.0
    pace.started()
    assert pytest.approx(1 / 77) == pace.delay()
    clock.now += CALM_SECONDS
    assert 0.0 == pace.delay()


async def test_throttled_queue_starts_calls_one_after_the_other() -> None:
    """After a throttled call, free slots are not enough: the next call waits for its time."""
    slots, order = CallSlots("KMS", size=10), list[str]()
    await run(slots, "a", order)
    slots.throttled()
    waiting = asyncio.create_task(run(slots, "b", order))
    await settle()
    assert ["a"] == order
    async with asyncio.timeout(5):
        await waiting
    assert ["a", "b"] == order


async def test_load_that_no_one_waits_for_leaves_the_queue() -> None:
    """When the last of those who wait has left, before its turn or with it; not before, and nothing is left behind."""
    slots = CallSlots("KMS", size=1)
    for granted_too in (False, True):
        waiters = Waiters()
        for _ in range(2):
            waiters.join()
        async with AsyncExitStack() as held:
            await held.enter_async_context(slots.slot("a"))
            load = asyncio.create_task(run_load(slots, waiters))
            await settle()
            waiters.leave()
            await settle()
            assert not load.done()
            if granted_too:
                await held.aclose()
            waiters.leave()
            await settle()
            assert load.cancelled()
        assert (0, 0, {}, {}) == (slots._total, slots._waiting, dict(slots._queues), dict(slots._running))


async def test_load_that_no_one_waits_for_takes_no_free_slot() -> None:
    """It may have waited elsewhere meanwhile, for credentials or for another region."""
    with pytest.raises(asyncio.CancelledError):
        await run_load(CallSlots("KMS"), Waiters())


async def run_load(slots: CallSlots, waiters: Waiters) -> None:
    async with slots.slot("b", waiters):
        raise AssertionError("a call for no one")
