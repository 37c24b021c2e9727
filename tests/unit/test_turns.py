"""Turns of connections: a few at a time, each connection in its turn, and none is lost."""

import asyncio
from contextlib import suppress

from betrace_kms_server.rpc.turns import Turns


async def _settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_connections_take_turns() -> None:
    """A connection with one call is next after the first call of one with many."""
    turns, served = Turns(0), list[str]()

    async def call(connection: str, name: str) -> None:
        await turns.wait(connection)
        served.append(name)
        turns.give_back()

    calls = [asyncio.create_task(call("many", f"many {number}")) for number in range(3)]
    calls.append(asyncio.create_task(call("one", "one")))
    await _settled()
    assert 4 == turns.waiting
    turns.give_back()
    await asyncio.gather(*calls)
    assert ["many 0", "one", "many 1", "many 2"] == served
    assert (1, 0) == (turns.free, turns.waiting)


async def test_caller_that_leaves_takes_no_turn_along() -> None:
    """Whether it leaves while it waits, or just when it is let in."""
    turns = Turns(0)
    waiting, let_in, last = (asyncio.create_task(turns.wait("a")) for _ in range(3))
    await _settled()
    waiting.cancel()
    await _settled()
    turns.give_back()
    let_in.cancel()
    with suppress(asyncio.CancelledError):
        await let_in
    await asyncio.wait_for(last, 5)
    assert 0 == turns.free
    turns.give_back()
    assert 1 == turns.free
