"""CallSlots: a bounded queue before the connection pool of one client, fair between tenants.

Without it a burst waits inside the SDK for a connection, and that wait counts as the service's own slowness. Whoever
waits here has no timeout of a call running and no permit of a circuit breaker. A queue that is full, or that does not
move, refuses at once: more memory would only make every caller wait longer.

Tenants take turns, and none holds more than `per_tenant` slots, so whoever asks for much waits behind those who ask for
little. When the service throttles, starts are paced, and the turns decide who gets the few there are.

A load that no one waits for any more leaves the queue: see core/waiters.py.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from betrace_kms_server.core.errors import Overloaded
from betrace_kms_server.core.pace import Pace
from betrace_kms_server.core.waiters import Waiters

POOL_SIZE = 50
"""Calls that one client makes at a time."""
RESERVED_CONNECTIONS = 5
"""Connections beyond those, for health checks, which do not queue: an overload is no outage."""
MAX_WAITING = 5_000
"""Calls that wait. At 100 ms a call, the last of them begins after 10 s."""
MAX_WAIT_SECONDS = 30.0

_Queue = OrderedDict["asyncio.Future[None]", None]


class CallSlots:
    """Lets `size` calls of `service` run at a time, of which one tenant has `per_tenant` at most (by default, all).

    Each tenant's calls run first come, first served. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        service: str,
        *,
        size: int = POOL_SIZE,
        per_tenant: int | None = None,
        max_waiting: int = MAX_WAITING,
        max_wait_seconds: float = MAX_WAIT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._size = size
        self._per_tenant = per_tenant or size
        self._max_waiting = max_waiting
        self._max_wait_seconds = max_wait_seconds
        self._pace = Pace(clock)
        self._timer: asyncio.TimerHandle | None = None
        self._running: Counter[str] = Counter()
        self._total = 0
        self._waiting = 0
        self._queues: OrderedDict[str, _Queue] = OrderedDict()  # in the order of their turns; none is empty

    @asynccontextmanager
    async def slot(self, tenant: str = "", waiters: Waiters | None = None) -> AsyncIterator[None]:
        """Wait for a slot, and hold it. Raises Overloaded if too many wait, or if the wait takes too long.

        `waiters` are those of the load that needs the slot, if it is a load: CancelledError if they are gone.
        """
        if waiters is not None:
            waiters.check()
        await self._take(tenant, waiters)
        try:
            yield
        finally:
            self._release(tenant)

    def throttled(self) -> None:
        """Report that the service throttled a call: what starts from now on is paced."""
        self._pace.slow_down()

    async def _take(self, tenant: str, waiters: Waiters | None) -> None:
        if self._has_room(tenant) and tenant not in self._queues and self._pace.delay() == 0:
            self._start(tenant)  # does not suspend
            return
        if self._waiting >= self._max_waiting:
            raise self._overloaded()
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(tenant, OrderedDict())[granted] = None
        self._waiting += 1
        self._grant()
        try:
            async with asyncio.timeout(self._max_wait_seconds):
                await (granted if waiters is None else waiters.turn(granted))
        except BaseException as cause:
            if granted.done() and not granted.cancelled():
                self._release(tenant)
            else:
                self._forget(tenant, granted)
            if isinstance(cause, TimeoutError):
                raise self._overloaded() from cause
            raise

    def _has_room(self, tenant: str) -> bool:
        return self._total < self._size and self._running[tenant] < self._per_tenant

    def _start(self, tenant: str) -> None:
        self._pace.started()
        self._total += 1
        self._running[tenant] += 1

    def _release(self, tenant: str) -> None:
        self._total -= 1
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]
        self._grant()

    def _grant(self) -> None:
        """Start what may start. Few queues are passed over: only a tenant that holds its full share is."""
        while (tenant := next(filter(self._has_room, self._queues), None)) is not None:
            if (delay := self._pace.delay()) > 0:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(delay, self._resume)
                return
            granted = next(iter(self._queues[tenant]))
            self._forget(tenant, granted)
            if not granted.done():
                if tenant in self._queues:
                    self._queues.move_to_end(tenant)
                self._start(tenant)
                granted.set_result(None)

    def _resume(self) -> None:
        self._timer = None
        self._grant()

    def _forget(self, tenant: str, granted: "asyncio.Future[None]") -> None:
        queue = self._queues.get(tenant)
        if queue is None or granted not in queue:
            return
        del queue[granted]
        self._waiting -= 1
        if not queue:
            del self._queues[tenant]

    def _overloaded(self) -> Overloaded:
        return Overloaded(
            f"too many calls wait for {self._service}: try again later; if it stays, add daemons or let callers share"
            " data keys and encryption contexts"
        )
