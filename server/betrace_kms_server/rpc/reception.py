"""Receives requests, and ends calls whose request does not come.

gRPC holds what has come of a request until the rest is there: as much as a window (64 KiB) at first, and up to the
size limit once the daemon asks for it. So the daemon asks for a few at a time, and connections take turns. Of these
only some may take long to arrive; the one that began first gives way.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc

from betrace_kms_server.core.errors import Overloaded
from betrace_kms_server.rpc.gate import CallGate
from betrace_kms_server.rpc.status import of_error

MAX_SLOW = 8
"""Requests that may be under way while there are more of them than that."""
_TURNS, _TURN_SECONDS = 4, 0.05
"""A request whose bytes are there has been taken after these turns of the loop, even on a machine without a free core:
gRPC takes it from the socket in a thread of its own, and the caller may be descheduled before its last bytes."""
LATEST_SECONDS = 120.0
"""When a request must be there: 4 MiB have come by then at 35 KiB a second."""
_IDLE_SECONDS = 5.0
_LATE = "the request did not arrive in time: send it again, as a whole"

_Context = grpc.aio.ServicerContext[Any, Any]


async def receive(context: _Context, gate: CallGate) -> bytes:
    """Return the bytes of a call's request. Raises CancelledError if none comes."""
    receiving, turns = gate.receiving, gate.turns
    if turns.free:
        turns.free -= 1
    else:
        await turns.wait(context.peer())
    receiving[context] = time.monotonic()
    if len(receiving) > MAX_SLOW:
        gate.is_crowded.set()
    try:
        wire = await context.read()
    finally:
        del receiving[context]
        turns.give_back()
    if wire is grpc.aio.EOF:
        raise asyncio.CancelledError
    return wire  # type: ignore[no-any-return]


async def end_slow_requests(gate: CallGate, clock: Callable[[], float] = time.monotonic) -> None:
    """Abort calls whose request is late, again and again."""
    aborts = dict[_Context, asyncio.Task[None]]()
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(gate.is_crowded.wait(), _IDLE_SECONDS)
        before = list(gate.receiving)
        for _ in range(_TURNS):
            await asyncio.sleep(_TURN_SECONDS)
        aborts = {context: task for context, task in aborts.items() if context in gate.receiving}
        slow = [context for context in before if context in gate.receiving and context not in aborts]
        if len(gate.receiving) <= MAX_SLOW:
            gate.is_crowded.clear()
        for at, context in enumerate(slow):
            if len(slow) - at > MAX_SLOW or gate.receiving[context] < clock() - LATEST_SECONDS:
                aborts[context] = asyncio.create_task(_abort(context))


async def _abort(context: _Context) -> None:
    with suppress(grpc.aio.AbortError, grpc.aio.InternalError):
        await context.abort_with_status(of_error(Overloaded(_LATE), ""))
