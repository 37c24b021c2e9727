"""The end of the servers: no call that reached the daemon is cancelled or left without an answer.

`grpc.aio.Server.stop` alone cancels what waits in gRPC's queue, and what arrives until each client knows of the stop.
So it comes last, when there is nothing left to cancel:

1. For a short time every call is served as usual, those in gRPC's queue included.
2. New calls are refused with UNAVAILABLE, RetryInfo and retry pushback (gRFC A6); those in flight get their time.
3. New connections are refused, and each client gets a GOAWAY, so that it opens no more streams here.
4. When nothing arrives any more, connections are closed and the servers stop.

Without calls, 1 and 3 take a tenth of a second together, whatever streams and idle connections there are.
"""

import asyncio
from collections.abc import Callable, Sequence

import grpc
import structlog

from betrace_kms_server.host.connections import Callers
from betrace_kms_server.rpc.gate import CallGate

log = structlog.get_logger()

SERVING_SECONDS = 0.5
"""How long calls are served after the stop began, while more of them come."""
LEAVING_SECONDS = 1.0
"""How long clients have to read their answers and to leave after the GOAWAY."""
_STEP_SECONDS = 0.01
_QUIET_STEPS = 5
"""A queue of gRPC hands out a call in each turn of the event loop: after this many turns without one it is empty."""


async def drain(
    servers: Sequence[grpc.aio.Server], callers: Callers, gate: CallGate, seconds: float, hurry: asyncio.Event
) -> None:
    """Answer what was received, within `seconds` or until `hurry` is set, then stop the servers."""
    clock = asyncio.get_running_loop().time
    end = clock() + seconds

    def over(last: float) -> bool:
        return hurry.is_set() or clock() >= min(last, end)

    await _quiet(gate, over, clock() + SERVING_SECONDS)
    gate.refusing = True
    while gate.in_flight and not over(end):  # noqa: ASYNC110  # two counters are all that a call should cost
        await asyncio.sleep(_STEP_SECONDS)
    callers.stop_listening()
    if gate.in_flight:
        log.warning("Calls in flight are ended", calls=gate.in_flight)
    else:
        await _quiet(gate, over, clock() + LEAVING_SECONDS, callers.announce_end)
    callers.close()
    await asyncio.gather(*(server.stop(None) for server in servers))
    if gate.refused:
        log.info("New calls were answered UNAVAILABLE during the stop", calls=gate.refused)


async def _quiet(
    gate: CallGate, over: Callable[[float], bool], last: float, step: Callable[[], bool] = lambda: True
) -> None:
    """Wait until `step` returns true and no call has come for a while, but at most until `last`."""
    quiet, seen = 0, -1
    while quiet < _QUIET_STEPS and not over(last):
        ready = step()
        quiet = quiet + 1 if ready and not gate.in_flight and seen == gate.received else 0
        seen = gate.received
        await asyncio.sleep(_STEP_SECONDS)
