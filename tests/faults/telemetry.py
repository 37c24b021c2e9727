"""The OTLP collector of a daemon that sends each call's span fails: it hangs, refuses, or ends connections.

The daemon knows the collector by the address of a relay, which fails; behind it is a real one. In the end the daemon is
stopped while the collector is away.
"""

import asyncio
import secrets
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import grpc
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from betrace_kms_client import AsyncKmsClient

from tests.collector import Collector, collecting
from tests.daemon import spawned
from tests.faults.outcome import Outcome
from tests.faults.warm import Warm

_PROMISE = "warm calls served, spans of later calls sent when it is back; it does not hold up the stop"
_MODES: dict[str, "Mode"] = {
    "the OTLP collector hangs": "hang",
    "the OTLP collector cannot be reached": "refuse",
    "the OTLP collector ends connections": "reset",
}
FAULTS = dict.fromkeys(_MODES, _PROMISE)
SHORT = tuple(FAULTS)[:1]
Mode = Literal["pass", "hang", "refuse", "reset"]
_STOP_SECONDS = 12.0
"""How long a stop may take: far beyond the second that a collector is given, and less than its exporters would take."""
_BACK_SECONDS, _AWAY_SECONDS = 60.0, 1.0


class _Relay:
    """A way to a collector: connections to it pass, hang, are refused, or end when something is sent."""

    def __init__(self, target: str) -> None:
        self.port = 0
        self._target = int(target.rpartition(":")[2])
        self._mode: Mode = "pass"
        self._server: asyncio.Server | None = None
        self._open = set[asyncio.Task[None]]()

    async def listen(self) -> None:
        """Take connections, at the same port each time."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, reuse_address=True)
        self.port = self._server.sockets[0].getsockname()[1]

    async def become(self, mode: Mode) -> None:
        """Be so from now on, for connections that are open too."""
        self._mode = mode
        if mode in ("refuse", "reset"):
            self.close()
        if mode == "refuse" or self._server is not None:
            return
        await self.listen()

    def close(self) -> None:
        """Refuse connections, and end those that are open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._open:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        onward: asyncio.StreamWriter | None = None
        try:
            answers, onward = await asyncio.open_connection("127.0.0.1", self._target)
            ways = [asyncio.create_task(self._pass(*way)) for way in ((reader, onward), (answers, writer))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            for each in (writer, onward):
                if each is not None:
                    each.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(65_536):
                if self._mode == "reset":
                    return
                if self._mode == "pass":  # a relay that hangs swallows what comes
                    writer.write(piece)
                    await writer.drain()


@asynccontextmanager
async def _relay(collector: Collector) -> AsyncIterator[_Relay]:
    relay = _Relay(collector.url)
    await relay.listen()
    try:
        yield relay
    finally:
        relay.close()


async def run(folder: Path, faults: Sequence[str], seconds: float) -> AsyncIterator[Outcome]:
    """Inject each fault into a daemon of its own."""
    for number, fault in enumerate(faults):
        own = folder / str(number)
        own.mkdir(0o700)
        with collecting() as collector:
            async with _relay(collector) as relay:
                yield await _injected(own, fault, collector, relay, seconds)


async def _injected(folder: Path, fault: str, collector: Collector, relay: _Relay, seconds: float) -> Outcome:
    listen = f"unix:{folder}/kms.sock"
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{relay.port}",
        "OTEL_TRACES_SAMPLER": "parentbased_always_on",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "OTEL_METRIC_EXPORT_INTERVAL": "500",
    }
    with spawned("--data-dir", f"{folder}/data", "--listen", listen, environ=environ) as daemon:
        await asyncio.to_thread(daemon.wait_for, "serving", 60)
        async with AsyncKmsClient(listen, timeout=10) as client:
            warm = Warm(client)
            await warm.begin()
            async with warm.calling():
                await warm.alternate(partial(relay.become, _MODES[fault]), partial(relay.become, "pass"), seconds)
                began = time.monotonic()
                back = await _sent_again(listen, collector)
                returned = time.monotonic() - began
                await relay.become(_MODES[fault])
                await asyncio.sleep(_AWAY_SECONDS)
            problems = [*warm.problems, *await warm.lost()]
        began = time.monotonic()
        daemon.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(daemon.process.wait, _STOP_SECONDS)
        stopped = time.monotonic() - began
        if daemon.process.poll() != 0:
            problems.append(f"the daemon did not stop within {_STOP_SECONDS:.0f} s: {daemon.process.poll()}")
    if not back:
        problems.append(f"no span came within {_BACK_SECONDS:.0f} s of the collector's return")
    figure = f"{warm}; spans {returned:.1f} s after it was back; stopped in {stopped:.1f} s while it was away"
    return Outcome(fault, figure, problems)


async def _sent_again(address: str, collector: Collector) -> bool:
    """Return whether a span arrives of calls that are made from now on. Some are dropped while older ones wait."""
    trace, ends = secrets.token_bytes(16), time.monotonic() + _BACK_SECONDS
    parent = [("traceparent", f"00-{trace.hex()}-b7ad6b7169203331-01")]
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = KeyManagementServiceStub(channel)
        while time.monotonic() < ends:
            await stub.Encrypt(pb.EncryptRequest(tenant_id="warm-0", plaintext=b"payload"), metadata=parent)
            await asyncio.sleep(0.2)
            if any(span.trace_id == trace for span in list(collector.spans)):
                return True
    return False
