"""Mixed calls for minutes: does the daemon's memory grow, do files or threads stay behind? `make drill-soak`.

Every RPC of tests/drills/calls.py, well and badly: warm and cold tenants (a new one again and again, in a cache that is
full), batches, callers that leave, deadlines that pass, requests that are refused, rotations and revocations. The key
store grows with what is made; that is on the disk. The daemon runs by itself, and is measured from outside.

What has a bound grows until it is there, and that is no leak: before anything is measured, there are more tenants than
any map of the daemon keeps, and more rows than SQLite's page cache holds (2,000 KiB,
https://www.sqlite.org/pragma.html#pragma_cache_size).

One thing has none: gRPC keeps 96 bytes of a call that is cancelled before its request was read (grpc/grpc#43360), which
are 150 KiB of the 1,560 callers that leave in 100,000 calls. Growth by so much is no finding. `--without left`
shows what the daemon itself does.

Exits with 1 if something grows by more than one step, or if there were too few samples to know. Memory that a peak of
large calls takes once stays taken: the longer the soak, the slower the growth that it tells from such a step.
"""

import asyncio
import json
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import grpc
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub

from tests.daemon import Process, spawned
from tests.drills.calls import LEFT, SHARES, Caller
from tests.drills.slope import Slope, slope

CALLERS = 16
CACHE = 200
TENANTS = 10_500
"""Tenants that are there before anything is measured: more than have a bucket or a cached branch key (10,000 each)."""
KEPT_BYTES = 96
"""What gRPC keeps of a call whose caller left."""
PEAK_KIB = 1024
"""By how much memory may rise once and stay so, when more large calls are in flight than ever before."""
STEEPEST = 1.5
"""The line through a step that is in the middle rises by one and a half steps from end to end."""
WARM_UP = 0.25
"""The share of the calls before which nothing is measured: caches and arenas fill up."""
ENOUGH_SAMPLES = 10
"""Fewer show no slope."""


@dataclass
class Sample:
    """The daemon after a number of calls."""

    calls: int
    rss_kib: int
    files: int
    threads: int


@dataclass(frozen=True, slots=True)
class Trend:
    """How something went on while calls were made, and by how much it may have grown for each 100,000 of them."""

    name: str
    unit: str
    first: int
    last: int
    samples: int
    slope: Slope | None
    known: float = 0.0
    coarse: float = 0.0
    """How steep a line gets by one step in the whole soak, which is no growth: the longer the soak, the less."""

    @property
    def steady(self) -> bool:
        """Whether it is known not to grow."""
        return self.slope is not None and not self.slope.grows(self.known + self.coarse)

    def __str__(self) -> str:
        went = f"{self.name}: {self.first:,} to {self.last:,} {self.unit}"
        if self.slope is None:
            return f"{went}; too few samples for a slope"
        known = f", of which gRPC keeps {self.known:,.1f}" if self.known else ""
        return (
            f"{went}, {self.slope.value:+,.1f} +/- {self.slope.margin:,.1f} {self.unit} for each 100,000 calls{known}"
            f" (95 %, {self.samples} samples; one step makes {self.coarse:,.1f}):"
            f" {'no growth' if self.steady else 'grows'}"
        )


@dataclass
class Soak:
    """What was called, how it ended, and what the daemon looked like meanwhile."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How calls ended for their callers, by kind of call and outcome."""
    served: Counter[str] = field(default_factory=Counter)
    """How all calls ended for the daemon, by status."""
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def calls(self) -> int:
        """How many calls there were."""
        return self.outcomes.total()

    def measured(self) -> list[Sample]:
        """Return the samples after the warm-up."""
        return [sample for sample in self.samples if sample.calls >= WARM_UP * self.calls]

    def ended(self) -> Mapping[str, int]:
        """Return how many calls ended for their callers in each way."""
        found = Counter[str]()
        for (_, outcome), count in sorted(self.outcomes.items()):
            found[outcome] += count
        return found

    def trends(self) -> Iterator[Trend]:
        """Yield how memory, open files and threads went on."""
        samples = self.measured()
        x = [sample.calls / 100_000 for sample in samples]
        left = self.outcomes["left", LEFT] / self.calls * 100_000
        for name, unit, values, known, step in (
            ("memory (RSS)", "KiB", [sample.rss_kib for sample in samples], left * KEPT_BYTES / 1024, PEAK_KIB),
            ("open files", "files", [sample.files for sample in samples], 0.0, 1),
            ("threads", "threads", [sample.threads for sample in samples], 0.0, 1),
        ):
            found = slope(x, values) if len(samples) >= ENOUGH_SAMPLES else None
            coarse = STEEPEST * step / (x[-1] - x[0]) if found else 0.0
            yield Trend(name, unit, values[0], values[-1], len(samples), found, known, coarse)


def sample(daemon: Process, calls: int) -> Sample:
    """Look at a daemon from outside, and let it answer its HTTP port meanwhile."""
    for page in ("/q/metrics", "/api/admin/kms/status"):
        with urllib.request.urlopen(f"http://{daemon.ops_address}{page}", timeout=30) as answer:
            answer.read()
    process = Path(f"/proc/{daemon.process.pid}")
    fields = dict(line.split(":", 1) for line in (process / "status").read_text("ascii").splitlines())
    files = len(list((process / "fd").iterdir()))
    return Sample(calls, int(fields["VmRSS"].split()[0]), files, int(fields["Threads"]))


def served(daemon: Process) -> Counter[str]:
    """Return how many calls the daemon ended with each status."""
    found = Counter[str]()
    for name, value in daemon.metrics().items():
        if name.startswith("kms_rpc_requests_total{"):
            found[name.split('status="')[1].split('"')[0]] += int(value)
    return found


@contextmanager
def subject(mode: str, command: Sequence[str] | None = None) -> Iterator[tuple[Process, str, str]]:
    """Run a daemon with a small cache; yield it, its address and its admin socket."""
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        listen = f"unix:{folder}/kms.sock"
        environ = {
            "KMS_CACHE_MAX_SIZE": str(CACHE),
            "KMS_ENCRYPTION_MODE": mode,
            "KMS_AUDIT_FILE": f"{folder}/audit.log",
            "KMS_PROCESS_DUMPABLE": "true",  # so that its files can be counted from outside
        }
        arguments = ("--data-dir", f"{folder}/data", "--listen", listen)
        with spawned(*arguments, environ=environ, command=command) as daemon:
            yield daemon, listen, f"unix:{folder}/data/admin.sock"


@asynccontextmanager
async def channels(listen: str, admin: str) -> AsyncIterator[tuple[grpc.aio.Channel, grpc.aio.Channel]]:
    """Open a channel to either socket."""
    async with grpc.aio.insecure_channel(listen) as channel, grpc.aio.insecure_channel(admin) as operator:
        request = pb.EncryptRequest(tenant_id="warm-0", plaintext=b"x")
        await KeyManagementServiceStub(channel).Encrypt(request, timeout=60, wait_for_ready=True)
        yield channel, operator


async def fill(channel: grpc.aio.Channel, operator: grpc.aio.Channel, tenants: int) -> None:
    """Make keys of so many tenants at least, which are not called again."""
    outcomes = Counter[tuple[str, str]]()

    async def work(seed: int) -> None:
        caller = Caller(channel, operator, outcomes, seed)
        while outcomes["", "OK"] < 2 * tenants:
            await caller.begin_tenant()

    await asyncio.gather(*(work(CALLERS + seed) for seed in range(CALLERS)))
    if defects := {outcome for _, outcome in outcomes} - {"OK", "RESOURCE_EXHAUSTED"}:
        raise RuntimeError(f"tenants could not be made: {defects}")


@asynccontextmanager
async def calling(
    channel: grpc.aio.Channel, operator: grpc.aio.Channel, soak: Soak, shares: Mapping[str, int]
) -> AsyncIterator[None]:
    """Call while the body runs."""
    over = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for seed in range(CALLERS):
            tasks.create_task(Caller(channel, operator, soak.outcomes, seed).run(over, shares))
        try:
            yield
        finally:
            over.set()


async def soaked(
    seconds: float,
    limit: int,
    pause: float,
    *,
    tenants: int = TENANTS,
    shares: Mapping[str, int] = SHARES,
    mode: str = "data-key",
    command: Sequence[str] | None = None,
) -> Soak:
    """Call for some time, or until there were so many calls; look at the daemon every `pause` seconds.

    `tenants` are made before that. `shares` are those of the kinds of calls; `command` runs the daemon.
    """
    soak = Soak()
    with subject(mode, command) as (daemon, listen, admin):
        await asyncio.to_thread(daemon.wait_for, "Listening", 60)
        async with channels(listen, admin) as (channel, operator):
            await fill(channel, operator, tenants)
            began = time.monotonic()
            async with calling(channel, operator, soak, shares):
                while time.monotonic() - began < seconds and soak.calls < limit:
                    await asyncio.sleep(pause)
                    soak.samples.append(await asyncio.to_thread(sample, daemon, soak.calls))
            soak.seconds = time.monotonic() - began
            soak.served = await asyncio.to_thread(served, daemon)
    return soak


@click.command()
@click.option("--minutes", default=10.0, show_default=True)
@click.option("--calls", default=1_000_000, show_default=True, help="End earlier, after so many.")
@click.option("--tenants", default=TENANTS, show_default=True, help="Tenants to make before that.")
@click.option("--without", multiple=True, type=click.Choice(list(SHARES)), help="Leave this kind of call out.")
@click.option("--only", multiple=True, type=click.Choice(list(SHARES)), help="This kind of call, and not all.")
@click.option("--mode", type=click.Choice(["data-key", "branch-key"]), default="data-key", show_default=True)
def main(minutes: float, calls: int, tenants: int, without: tuple[str, ...], only: tuple[str, ...], mode: str) -> None:
    """Call a daemon in every way, and print what it holds more and more of. Exits with 1 if it does."""
    shares = {kind: share for kind, share in SHARES.items() if kind in (only or SHARES) and kind not in without}
    soak = asyncio.run(soaked(minutes * 60, calls, 5.0, tenants=tenants, shares=shares, mode=mode))
    click.echo(f"{soak.calls:,} calls in {soak.seconds:.0f} s: {json.dumps(soak.ended(), sort_keys=True)}")
    trends = list(soak.trends())
    for trend in trends:
        click.echo(trend)
    sys.exit(not all(trend.steady for trend in trends))


if __name__ == "__main__":
    main()
