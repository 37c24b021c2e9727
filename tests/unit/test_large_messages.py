"""The room for large messages: who gets it, who waits, who is refused, and when it is free again."""

import asyncio

import pytest
from betrace_kms_server.core.errors import Overloaded
from betrace_kms_server.rpc import large_messages
from betrace_kms_server.rpc.large_messages import LARGE_BYTES, LargeMessages

SIZE = 100_000


def call(room: LargeMessages, ends: asyncio.Event, request: int = SIZE, answer: int = SIZE) -> "asyncio.Task[None]":
    """Run a call whose answer has been sent when it is let go."""

    async def run() -> None:
        await room.admit(request)
        room.answer(answer, lambda: "unix:")
        await ends.wait()

    return asyncio.create_task(run())


async def turns() -> None:
    """Let all calls go on as far as they can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_answer_holds_its_room_until_it_was_sent() -> None:
    """Small messages take none."""
    room, ends = LargeMessages(10 * SIZE), asyncio.Event()
    calls = [
        call(room, ends),
        call(room, ends, 10, SIZE),
        call(room, ends, LARGE_BYTES, 20),
        call(room, ends, SIZE, 20),
    ]
    await turns()
    assert 2 * SIZE == room.used
    ends.set()
    await asyncio.gather(*calls)
    await turns()
    assert 0 == room.used


async def test_a_call_waits_for_room() -> None:
    """It goes on when another call's answer has been sent, and a call that is cancelled leaves no trace."""
    room, first, then = LargeMessages(2 * SIZE), asyncio.Event(), asyncio.Event()
    begun = call(room, first)
    await turns()
    cancelled = call(room, then)
    await turns()
    cancelled.cancel()
    await turns()
    waiting = call(room, then)
    await turns()
    assert SIZE == room.used
    first.set()
    await begun
    await turns()
    assert (SIZE, False) == (room.used, waiting.done())
    then.set()
    await waiting
    await turns()
    assert 0 == room.used


async def test_a_call_is_refused_when_too_many_wait_or_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request of the room's size may wait; the next is refused at once, and the first after a while."""
    monkeypatch.setattr(large_messages, "WAIT_SECONDS", 0.01)
    room, never = LargeMessages(2 * SIZE), asyncio.Event()
    begun, waiting, refused = call(room, never), call(room, never), call(room, never)
    await turns()
    assert [False, False, True] == [each.done() for each in (begun, waiting, refused)]
    for each in (waiting, refused):
        with pytest.raises(Overloaded):
            await each
    assert SIZE == room.used
    begun.cancel()


async def test_an_answer_that_finds_no_room_is_refused() -> None:
    """A small request may have a large answer."""
    room, never = LargeMessages(2 * SIZE), asyncio.Event()
    begun = call(room, never)
    await turns()
    with pytest.raises(Overloaded):
        await call(room, never, 10, 2 * SIZE)
    begun.cancel()


async def test_unread_answers_name_their_peers() -> None:
    """An answer counts as unread after a while."""
    now = 100.0
    room, ends = LargeMessages(10 * SIZE, clock=lambda: now), asyncio.Event()
    held = call(room, ends)
    await turns()
    assert set() == room.unread(1.0)
    now += 1.5
    assert {"unix:"} == room.unread(1.0)
    ends.set()
    await held
    await turns()
    assert set() == room.unread(1.0)
