"""Calls that travel together: each gets its own outcome, whatever its neighbours do. The daemon is played by an oracle.

What a payload is says what becomes of it, alone and in a batch; so the outcome of each coalesced call is known.
"""

import asyncio
import gc
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import key_management_pb2 as pb
from betrace_kms_client import coalescing, errors
from betrace_kms_client.async_coalescer import AsyncCoalescer
from betrace_kms_client.coalescing import (
    ALONE,
    AVOIDED_SECONDS,
    MAX_BYTES,
    MAX_ITEM_BYTES,
    MAX_ITEMS,
    Alone,
    Entry,
    Key,
    Terms,
    batches_of,
    last,
    pause_before,
)
from betrace_kms_client.errors import EXCEPTIONS, KmsClientError
from betrace_kms_client.sync_coalescer import Coalescer
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st

TARGET, SECONDS = "127.0.0.1:1", 30.0
KEY = Key("EncryptBatch", "acme")
SPOILS = {
    b"denied": errors.PermissionDenied("no", reason="CALLER_NOT_ALLOWED"),
    b"invalid": errors.InvalidRequest("too many attributes", reason="INVALID_REQUEST"),
    b"defect": errors.InternalError("internal error", reason="INTERNAL"),
    b"large": errors.ResourceExhausted("too large"),
    b"quota": errors.ResourceExhausted("quota", reason="QUOTA_EXCEEDED", retry_after=2.0),
    b"damaged": errors.KeyDataLoss("damaged", reason="KEY_DAMAGED"),
    b"unknown": errors.Unimplemented("what?"),
}
"""Payloads that fail their whole batch, and succeed alone."""
REFUSED = {
    b"bad": pb.ItemStatus(code=grpc.StatusCode.INVALID_ARGUMENT.value[0], message="bad", reason="INVALID_REQUEST"),
    b"slow down": pb.ItemStatus(
        code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],
        message="x",
        reason="KMS_THROTTLED",
        retry_delay=Duration(seconds=1, nanos=500_000_000),
    ),
    b"away": pb.ItemStatus(code=grpc.StatusCode.UNAVAILABLE.value[0], message="x", reason="KMS_UNREACHABLE"),
}
"""Payloads that fail, alone and in a batch."""


@dataclass
class Daemon:
    """An oracle: it seals by writing the tenant before the payload. Payloads that begin with `once` fail at first."""

    batches: list[list[bytes]] = field(default_factory=list)
    alone: list[bytes] = field(default_factory=list)
    tries: Counter[bytes] = field(default_factory=Counter)

    def answer(self, method: str, request: Any) -> Any:
        """Return a response, or raise what a client's call raises."""
        if method == "Encrypt":
            self.alone.append(request.plaintext)
            status = self._status(request.plaintext)
            if status is not None and status.code == grpc.StatusCode.UNAVAILABLE.value[0]:
                status = self._status(request.plaintext)  # gRPC itself tries again
            if status is not None:
                raise errors.from_item_status(status)
            return pb.EncryptResponse(ciphertext_blob=sealed(request.tenant_id, request.plaintext))
        assert method == "EncryptBatch"
        payloads = [item.plaintext for item in request.items]
        assert 2 <= len(payloads) <= MAX_ITEMS
        self.batches.append(payloads)
        for payload in payloads:
            if (error := SPOILS.get(payload.partition(b"/")[0])) is not None:
                raise error
        response = pb.EncryptBatchResponse()
        for payload in payloads:
            status = self._status(payload)
            response.results.add(status=status, ciphertext_blob=b"" if status else sealed(request.tenant_id, payload))
        return response

    def _status(self, payload: bytes) -> pb.ItemStatus | None:
        self.tries[payload] += 1
        kind = payload.partition(b"/")[0]
        if kind == b"once":
            return REFUSED[b"away"] if self.tries[payload] == 1 else None
        return REFUSED.get(kind)


def sealed(tenant_id: str, payload: bytes) -> bytes:
    """Return what the oracle makes of a payload."""
    return tenant_id.encode() + b":" + payload


def expected(tenant_id: str, payload: bytes) -> object:
    """Return what a call gets: a ciphertext, or the type of an error, its reason and its delay."""
    status = REFUSED.get(payload.partition(b"/")[0])
    if status is None:
        return sealed(tenant_id, payload)
    error = {b"bad": errors.InvalidRequest, b"slow down": errors.ResourceExhausted, b"away": errors.Unavailable}
    kind = payload.partition(b"/")[0]
    return error[kind], status.reason, 1.5 if kind == b"slow down" else None


def request_of(tenant_id: str, payload: bytes) -> pb.EncryptRequest:
    """Return the request of a single call."""
    return pb.EncryptRequest(tenant_id=tenant_id, plaintext=payload)


def coalescing_with(daemon: Daemon, delay: float = 0.0) -> AsyncCoalescer:
    """Return a coalescer for asyncio before the oracle."""

    async def send(method: Any, request: Any, seconds: float) -> Any:
        assert seconds <= SECONDS
        await asyncio.sleep(0)
        return daemon.answer(method, request)

    return AsyncCoalescer(send, str, TARGET, delay)


def in_threads_with(daemon: Daemon, delay: float = 0.0) -> Coalescer:
    """Return a coalescer for threads before the oracle, which works on one call at a time."""
    lock = threading.Lock()

    def send(method: Any, request: Any, seconds: float) -> Any:
        assert seconds <= SECONDS
        with lock:
            return daemon.answer(method, request)

    return Coalescer(send, str, TARGET, delay)


async def outcome_of(call: Awaitable[Any]) -> object:
    """Return a ciphertext, or the type, reason and delay of an error."""
    try:
        return (await call).ciphertext_blob
    except KmsClientError as error:
        return type(error), error.reason, error.retry_after


PAYLOADS = st.sampled_from([b"fine", b"fine", b"fine", b"once", *REFUSED, *SPOILS])
CALLS = st.lists(
    st.tuples(st.sampled_from(["acme", "globex"]), PAYLOADS, st.integers(0, 3), st.sampled_from([-1, -1, -1, 0, 1, 3])),
    min_size=1,
    max_size=40,
)
"""Tenant, payload, the turns of the loop before the call, and those before it is cancelled (-1: never)."""


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let items be tried again without a pause."""
    monkeypatch.setattr(coalescing, "INITIAL_BACKOFF", 0.0)


@given(calls=CALLS)
@settings(max_examples=300, deadline=None)
def test_each_call_gets_its_own_outcome(calls: Sequence[tuple[str, bytes, int, int]]) -> None:
    """As alone, in any mix of failures, failed batches and cancellations; nothing is left behind."""
    daemon = Daemon()

    async def call(coalescer: AsyncCoalescer, tenant_id: str, payload: bytes, turns: int) -> object:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await outcome_of(coalescer.call("Encrypt", request_of(tenant_id, payload), SECONDS))

    async def run() -> list[object]:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        coalescer = coalescing_with(daemon)
        tasks = [
            asyncio.ensure_future(call(coalescer, tenant_id, b"%s/%d" % (payload, at), turns))
            for at, (tenant_id, payload, turns, _) in enumerate(calls)
        ]
        for turn in range(5):
            for task, (*_, cancelled_at) in zip(tasks, calls, strict=True):
                if cancelled_at == turn:
                    task.cancel()
            await asyncio.sleep(0)
        async with asyncio.timeout(SECONDS):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)
        assert not coalescer._tasks
        assert not coalescer._waiting
        del tasks, coalescer
        gc.collect(0)
        assert [] == complaints
        return outcomes

    for at, (outcome, (tenant_id, payload, _, cancelled_at)) in enumerate(zip(asyncio.run(run()), calls, strict=True)):
        if cancelled_at >= 0 and isinstance(outcome, asyncio.CancelledError):
            continue
        assert expected(tenant_id, b"%s/%d" % (payload, at)) == outcome


@given(calls=st.lists(st.tuples(st.sampled_from(["acme", "globex"]), PAYLOADS), min_size=1, max_size=24))
@settings(max_examples=60, deadline=None)
def test_each_call_of_a_thread_gets_its_own_outcome(calls: Sequence[tuple[str, bytes]]) -> None:
    """The same for threads; no lane is left behind."""
    coalescer = in_threads_with(Daemon())

    def call(at: int) -> object:
        tenant_id, payload = calls[at]
        try:
            return coalescer.call("Encrypt", request_of(tenant_id, b"%s/%d" % (payload, at)), SECONDS).ciphertext_blob
        except KmsClientError as error:
            return type(error), error.reason, error.retry_after

    with ThreadPoolExecutor(len(calls)) as threads:
        outcomes = list(threads.map(call, range(len(calls))))
    assert [expected(tenant_id, b"%s/%d" % (payload, at)) for at, (tenant_id, payload) in enumerate(calls)] == outcomes
    assert {} == coalescer._lanes


@given(sizes=st.lists(st.integers(0, MAX_ITEM_BYTES), max_size=300), limit=st.integers(2 * MAX_ITEM_BYTES, MAX_BYTES))
def test_batches_keep_their_bounds(sizes: Sequence[int], limit: int) -> None:
    """Nothing is lost, doubled or moved, and two neighbours are only parted where they must be."""
    entries = [Entry(None, size, 0.0, None) for size in sizes]
    batches = list(batches_of(entries, limit))
    assert entries == [entry for batch in batches for entry in batch]
    used = [sum(entry.size for entry in batch) for batch in batches]
    assert all(size <= limit for size in used)
    for size, after in zip(used, batches[1:], strict=False):
        assert size + after[0].size + 16 * (MAX_ITEMS + 1) > limit


def test_a_batch_has_at_most_a_thousand_items() -> None:
    """However small they are."""
    assert [1000, 1000, 500] == [len(batch) for batch in batches_of([Entry(None, 1, 0.0, None)] * 2500, MAX_BYTES)]


def test_the_call_that_waits_longest_leads() -> None:
    """The first one of those whose deadlines are as good as the same."""
    entries = [Entry(None, 1, deadline, None) for deadline in (1.0, 9.999, 10.0, 5.0)]
    assert entries[1] is last(entries)


async def test_calls_of_one_turn_travel_together() -> None:
    """And those of the next turn in a batch of theirs; a call that is the only one of its tenant travels alone."""
    daemon = Daemon()
    coalescer = coalescing_with(daemon)

    def call(tenant_id: str, number: int) -> Awaitable[Any]:
        return coalescer.call("Encrypt", request_of(tenant_id, b"%d" % number), SECONDS)

    await asyncio.gather(*(call("acme", number) for number in range(50)), call("globex", 50))
    await asyncio.gather(*(call("acme", number) for number in range(3)))
    assert ([50, 3], [b"50"]) == (list(map(len, daemon.batches)), daemon.alone)


async def test_a_delay_gathers_more_turns() -> None:
    """With one, calls of some turns travel together."""
    daemon = Daemon()
    coalescer = coalescing_with(daemon, delay=1.0)

    async def call(number: int) -> None:
        for _ in range(number):
            await asyncio.sleep(0)
        await coalescer.call("Encrypt", request_of("acme", b"%d" % number), SECONDS)

    await asyncio.gather(*(call(number) for number in range(20)))
    assert [20] == list(map(len, daemon.batches))


@pytest.mark.parametrize("client", [AsyncCoalescer, Coalescer])
def test_a_delay_is_not_negative(client: Callable[..., object]) -> None:
    """A thread could not wait for so long."""
    with pytest.raises(ValueError, match="coalesce_delay"):
        client(None, str, TARGET, -0.001)


async def test_a_batch_lasts_as_long_as_the_longest_of_its_calls() -> None:
    """Whoever has less time raises DeadlineExceeded by then, and the others get their results."""
    seconds: list[float] = []
    ends = asyncio.Event()

    async def send(method: Any, request: Any, left: float) -> Any:
        seconds.append(left)
        await ends.wait()
        return Daemon().answer(method, request)

    coalescer = AsyncCoalescer(send, str, TARGET, 0.0)
    times = (0.01, SECONDS, 0.02, SECONDS / 2)
    hurried, longest, also_hurried, other = (
        asyncio.ensure_future(outcome_of(coalescer.call("Encrypt", request_of("acme", b"x"), left))) for left in times
    )
    late = (errors.DeadlineExceeded, "", None)
    assert [late, late] == [await hurried, await also_hurried]
    other.cancel()
    ends.set()
    assert sealed("acme", b"x") == await longest
    assert 1 == len(seconds)
    assert SECONDS / 2 < seconds[0] <= SECONDS


async def test_a_batch_without_callers_is_cancelled() -> None:
    """But not before the last one has left."""
    sending, cancelled = asyncio.Event(), asyncio.Event()

    async def send(method: Any, request: Any, left: float) -> Any:
        try:
            sending.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    coalescer = AsyncCoalescer(send, str, TARGET, 0.0)
    hurried, *calls = (
        asyncio.ensure_future(coalescer.call("Encrypt", request_of("acme", b"x"), left))
        for left in (1.0, SECONDS, SECONDS)
    )
    await sending.wait()
    asyncio.get_running_loop().call_later(1.0, hurried.cancel)
    time.sleep(1.1)  # noqa: ASYNC251  # so that it is cancelled in the very turn in which its time is over
    await asyncio.wait([hurried])
    for call in calls:
        assert not cancelled.is_set()
        call.cancel()
        await asyncio.wait([call])
        await asyncio.sleep(0)
    assert cancelled.is_set()
    assert all(call.cancelled() for call in (hurried, *calls))


async def test_what_is_large_or_has_no_batch_travels_alone() -> None:
    """And does not wait for others."""
    sent: list[str] = []

    async def send(method: Any, request: Any, seconds: float) -> Any:
        sent.append(method)

    coalescer = AsyncCoalescer(send, str, TARGET, 0.0)
    await asyncio.gather(
        *(coalescer.call("Encrypt", request_of("acme", bytes(MAX_ITEM_BYTES)), SECONDS) for _ in range(2)),
        *(coalescer.call("ReEncrypt", pb.ReEncryptRequest(tenant_id="acme"), SECONDS) for _ in range(2)),
    )
    assert ["Encrypt"] * 2 + ["ReEncrypt"] * 2 == sent


@pytest.mark.parametrize("spoil", SPOILS, ids=bytes.decode)
async def test_a_batch_that_fails_is_made_one_by_one(spoil: bytes) -> None:
    """Where its calls may have more luck; where they would not, each raises an error of its own."""
    daemon = Daemon()
    coalescer = coalescing_with(daemon)
    calls = (outcome_of(coalescer.call("Encrypt", request_of("acme", payload), SECONDS)) for payload in (b"a", spoil))
    assert [sealed("acme", b"a"), sealed("acme", spoil)] == await asyncio.gather(*calls)
    assert ([[b"a", spoil]], [b"a", spoil]) == (daemon.batches, daemon.alone)


@pytest.mark.parametrize("kind", [errors.Unavailable, errors.FailedPrecondition, errors.DeadlineExceeded])
async def test_an_error_of_all_is_raised_by_each(kind: type[KmsClientError]) -> None:
    """With reason and delay, and as an exception of its own, so that no traceback grows."""

    async def send(method: Any, request: Any, seconds: float) -> Any:
        raise kind("no", reason="R", retry_after=3.0, request_id="id", metadata={"a": "b"})

    coalescer = AsyncCoalescer(send, str, TARGET, 0.0)
    calls = (coalescer.call("Encrypt", request_of("acme", b"%d" % number), SECONDS) for number in range(5))
    raised = await asyncio.gather(*calls, return_exceptions=True)
    assert {kind} == set(map(type, raised))
    assert 5 == len(set(map(id, raised)))
    assert {("R", 3.0, "id", "b")} == {
        (each.reason, each.retry_after, each.request_id, each.metadata["a"])
        for each in raised
        if isinstance(each, KmsClientError)
    }


async def test_a_wrong_number_of_results_is_no_one_elses_result() -> None:
    """All calls are made again, alone."""

    async def send(method: Any, request: Any, seconds: float) -> Any:
        if method == "Encrypt":
            return pb.EncryptResponse(ciphertext_blob=request.plaintext)
        return pb.EncryptBatchResponse(results=[pb.EncryptBatchResult(ciphertext_blob=b"whose?")])

    coalescer = AsyncCoalescer(send, str, TARGET, 0.0)
    calls = (coalescer.call("Encrypt", request_of("acme", payload), SECONDS) for payload in (b"a", b"b"))
    assert [b"a", b"b"] == [each.ciphertext_blob for each in await asyncio.gather(*calls)]


async def test_a_failure_of_the_channel_is_raised_by_each() -> None:
    """grpc.aio raises a UsageError once it is closed."""

    async def send(method: Any, request: Any, seconds: float) -> Any:
        raise grpc.aio.UsageError("Channel is closed.")

    coalescer = AsyncCoalescer(send, str, TARGET, 0.0)
    calls = (coalescer.call("Encrypt", request_of("acme", payload), SECONDS) for payload in (b"a", b"b"))
    assert [grpc.aio.UsageError] * 2 == list(map(type, await asyncio.gather(*calls, return_exceptions=True)))


def test_terms_remember_a_refused_batch_call() -> None:
    """A policy's refusal for its tenant, an old daemon's for all tenants; for a while."""
    rival = Key(KEY.batch, "rival")
    terms = Terms()
    assert ALONE is terms.outcome(KEY, SPOILS[b"denied"], 100.0)
    assert [False, True, True] == [
        terms.allow(KEY, 1, 100.0 + AVOIDED_SECONDS / 2),
        *(terms.allow(rival, 1, 100.0),) * 2,
    ]
    assert terms.allow(KEY, 1, 100.0 + AVOIDED_SECONDS)
    assert ALONE is terms.outcome(KEY, SPOILS[b"unknown"], 100.0)
    assert [False, False] == [terms.allow(KEY, 1, 101.0), terms.allow(rival, 1, 101.0)]
    assert terms.allow(Key("SignSpans", "acme"), 1, 101.0)
    assert terms.allow(rival, 1, 100.0 + AVOIDED_SECONDS)


def test_terms_do_not_grow() -> None:
    """However many tenants a policy refuses."""
    terms = Terms()
    for number in range(25_000):
        terms.outcome(Key("EncryptBatch", str(number)), SPOILS[b"denied"], 0.0)
    assert len(terms._avoided) <= 10_000


def test_terms_learn_the_limit_of_a_message() -> None:
    """Batches get smaller when gRPC refuses one, down to two calls of the largest size."""
    terms = Terms()
    assert ALONE is terms.outcome(KEY, SPOILS[b"large"], 0.0)
    assert MAX_BYTES // 2 == terms.max_bytes
    for _ in range(20):
        terms.outcome(KEY, SPOILS[b"large"], 0.0)
    assert 2 * MAX_ITEM_BYTES == terms.max_bytes


@pytest.mark.parametrize("kind", [*EXCEPTIONS.values(), errors.InternalError])
def test_every_error_has_an_outcome(kind: type[KmsClientError]) -> None:
    """The error itself where it is of all calls; a throttled KMS and a spent budget are of a tenant, a quota is not."""
    outcomes: list[KmsClientError | Alone] = [Terms().outcome(KEY, kind("no", reason="REASON"), 0.0)]
    assert (outcomes[0] is not ALONE) == (kind in coalescing._OF_ALL)
    for reason in ("KMS_THROTTLED", "BUDGET_EXCEEDED", "KMS_ACCESS_DENIED"):
        error = kind("no", reason=reason)
        assert (Terms().outcome(KEY, error, 0.0) is error) == (kind is not errors.Unimplemented)


def test_items_are_tried_as_often_as_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times, for UNAVAILABLE only, with gRPC's pauses."""
    monkeypatch.undo()
    away = errors.Unavailable("away")
    second, third = pause_before(2, away), pause_before(3, away)
    assert second is not None and 0.08 <= second <= 0.12  # noqa: PT018
    assert third is not None and 0.16 <= third <= 0.24  # noqa: PT018
    assert pause_before(4, away) is None
    for kind in set(EXCEPTIONS.values()) - {errors.Unavailable}:
        assert pause_before(2, kind("no")) is None


async def test_items_that_are_unavailable_are_tried_again() -> None:
    """An item that fails once succeeds; one that goes on failing raises its own error after three tries."""
    daemon = Daemon()
    coalescer = coalescing_with(daemon)
    payloads = (b"once/1", b"away/1", b"fine/1", b"away/2")
    calls = [outcome_of(coalescer.call("Encrypt", request_of("acme", payload), SECONDS)) for payload in payloads]
    assert [expected("acme", payload) for payload in payloads] == await asyncio.gather(*calls)
    assert (2, 3, 1) == (daemon.tries[b"once/1"], daemon.tries[b"away/1"], daemon.tries[b"fine/1"])


class Held:
    """An oracle for threads that holds its first call until it is let go, and counts those that wait."""

    def __init__(self, error: BaseException | None = None, patience: float = 2 * SECONDS) -> None:
        self.daemon, self.begun, self.go = Daemon(), threading.Event(), threading.Event()
        self._errors = [] if error is None else [error]
        self.coalescer = Coalescer(self._send, str, TARGET, 0.0, patience=patience)
        self.seconds: list[float] = []

    def _send(self, method: Any, request: Any, seconds: float) -> Any:
        if not self.begun.is_set():
            self.begun.set()
            assert self.go.wait(2 * SECONDS)
        else:
            self.seconds.append(seconds)
            if method == "EncryptBatch" and self._errors:
                raise self._errors.pop()
        return self.daemon.answer(method, request)

    def call(self, payload: bytes, seconds: float = SECONDS) -> object:
        """Make a call, and return its ciphertext or the type of what it raised."""
        try:
            return self.coalescer.call("Encrypt", request_of("acme", payload), seconds).ciphertext_blob
        except BaseException as error:  # noqa: BLE001
            return type(error)

    def wait_for(self, count: int) -> None:
        """Wait until so many calls wait for the first one."""
        spins = 0
        while (lane := self.coalescer._lanes.get(KEY)) is None or len(lane.waiting) != count:
            threading.Event().wait(0.001)
            spins += 1
            assert spins < 20_000


def run_held(
    held: Held, payloads: Iterable[bytes], then: Callable[[], None] = lambda: None, seconds: Sequence[float] = ()
) -> list[object]:
    """Let the first call be under way, the others wait for it, and return their outcomes in order."""
    first, *others = payloads
    seconds = seconds or [SECONDS] * len(others)
    with ThreadPoolExecutor(len(others) + 1) as threads:
        calls = [threads.submit(held.call, first)]
        assert held.begun.wait(SECONDS)
        calls += [threads.submit(held.call, *each) for each in zip(others, seconds, strict=True)]
        held.wait_for(len(others))
        then()
        held.go.set()
        return [call.result(SECONDS) for call in calls]


def test_threads_that_find_a_call_on_its_way_travel_together() -> None:
    """After it, in one batch."""
    held = Held()
    payloads = [b"%d" % number for number in range(20)]
    assert [sealed("acme", payload) for payload in payloads] == run_held(held, payloads)
    assert ([b"0"], [19]) == (held.daemon.alone, list(map(len, held.daemon.batches)))
    assert {} == held.coalescer._lanes


def test_a_thread_does_not_wait_longer_than_its_deadline() -> None:
    """It raises DeadlineExceeded while the others go on; the batch lasts as long as the longest of those."""
    held = Held()

    def hurried() -> None:
        assert errors.DeadlineExceeded is held.call(b"hurried", 0.05)

    payloads = (b"a", b"b", b"c", b"d")
    outcomes = run_held(held, payloads, hurried, (SECONDS / 3, SECONDS, SECONDS / 3))
    assert [sealed("acme", payload) for payload in payloads] == outcomes
    assert [3] == list(map(len, held.daemon.batches))
    assert held.seconds[0] > SECONDS / 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()])
def test_a_leader_that_is_interrupted_hands_on(error: BaseException) -> None:
    """It raises what interrupted it, and the others get their results by another leader."""
    held = Held(error)
    outcomes = run_held(held, (b"a", b"b", b"c", b"d"))
    assert 1 == outcomes.count(type(error))
    assert {sealed("acme", payload) for payload in (b"a", b"b", b"c", b"d")} > set(outcomes) - {type(error)}
    assert {} == held.coalescer._lanes


def test_a_lane_whose_leader_is_gone_is_taken_over() -> None:
    """A thread that died with a call on its way holds up no one for longer than its deadline."""
    held = Held()
    with ThreadPoolExecutor(1) as threads:
        stuck = threads.submit(held.call, b"stuck", 1.0)
        assert held.begun.wait(SECONDS)
        assert sealed("acme", b"waits") == held.call(b"waits")
        held.go.set()
        stuck.result(SECONDS)
    assert sealed("acme", b"later") == held.call(b"later")
    assert {} == held.coalescer._lanes


def test_a_call_that_takes_long_holds_up_no_other() -> None:
    """What waits for it travels beside it: KMS may hang for a key that only the first one needs."""
    held = Held(patience=0.05)
    payloads = [b"%d" % number for number in range(8)]
    with ThreadPoolExecutor(9) as threads:
        slow = threads.submit(held.call, b"slow")
        assert held.begun.wait(SECONDS)
        quick = [threads.submit(held.call, payload) for payload in payloads]
        assert [sealed("acme", payload) for payload in payloads] == [call.result(SECONDS) for call in quick]
        assert not slow.done()
        held.go.set()
        assert sealed("acme", b"slow") == slow.result(SECONDS)
    assert {} == held.coalescer._lanes


def test_a_slow_batch_holds_up_no_other_call() -> None:
    """Its own calls wait for it; what comes later does not."""
    held = Held(patience=0.05)
    held.begun.set()  # the first batch is held, and not the first call
    hold, begun = threading.Event(), threading.Event()
    answer = held.daemon.answer

    def slowly(method: Any, request: Any) -> Any:
        if method == "EncryptBatch" and not begun.is_set():
            begun.set()
            assert hold.wait(SECONDS)
        return answer(method, request)

    held.daemon.answer = slowly  # type: ignore[method-assign]
    coalescer = Coalescer(held._send, str, TARGET, 0.1, patience=0.05)
    held.coalescer = coalescer
    with ThreadPoolExecutor(4) as threads:
        slow = [threads.submit(held.call, payload) for payload in (b"a", b"b")]
        assert begun.wait(SECONDS)
        quick = [threads.submit(held.call, payload) for payload in (b"c", b"d")]
        assert [sealed("acme", b"c"), sealed("acme", b"d")] == [call.result(SECONDS) for call in quick]
        assert [False, False] == [call.done() for call in slow]
        hold.set()
        assert [sealed("acme", b"a"), sealed("acme", b"b")] == [call.result(SECONDS) for call in slow]
    assert {} == coalescer._lanes


def test_a_delay_gathers_calls_of_threads() -> None:
    """The first one waits for others."""
    daemon = Daemon()
    coalescer = in_threads_with(daemon, delay=1.0)
    with ThreadPoolExecutor(8) as threads:
        calls = threads.map(lambda at: coalescer.call("Encrypt", request_of("acme", b"%d" % at), SECONDS), range(8))
        assert [sealed("acme", b"%d" % at) for at in range(8)] == [each.ciphertext_blob for each in calls]
    assert ([], [8]) == (daemon.alone, list(map(len, daemon.batches)))


@pytest.mark.parametrize("delay", [-0.001, float("nan"), float("inf")])
def test_a_delay_that_is_none_is_refused(delay: float) -> None:
    """At once, and not by the first call that would wait."""
    for make in (coalescing_with, in_threads_with):
        with pytest.raises(ValueError, match="coalesce_delay must be 0 or more seconds"):
            make(Daemon(), delay)
