"""Clients that coalesce, against real daemons: what each call gets is what it would get alone."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import (
    KeyManagementServiceServicer,
    KeyManagementServiceStub,
    add_KeyManagementServiceServicer_to_server,
)
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import (
    AsyncKmsClient,
    DeadlineExceeded,
    KmsClient,
    KmsClientError,
    PermissionDenied,
    ResourceExhausted,
    SpanSignature,
    Unavailable,
)

from tests.daemon import Process, running, spawned
from tests.integration.test_aws_daemon import aws
from tests.moto_server import MotoServer

METHODS = pb.DESCRIPTOR.services_by_name["KeyManagementService"].methods_by_name
CONTEXT = {"field": "email"}
POLICY = '[[rule]]\nname = "one"\nidentities = ["app"]\ntenants = ["acme"]\noperations = ["SignSpan", "Encrypt"]\n'
Calls = Sequence[Callable[[Any], Any]]


def span(number: int, attributes: int = 0) -> ComplianceSpan:
    """Return a span that differs from others."""
    made = ComplianceSpan(trace_id=b"t" * 16, span_id=(number + 1).to_bytes(8, "big"), name="n")
    for at in range(attributes):
        made.attributes[f"attribute {at}"].int_value = at
    return made


def operations(audit: Path) -> Counter[tuple[str, int]]:
    """Return how often each call was made, with the number of its items."""
    lines = map(json.loads, audit.read_text().splitlines())
    return Counter((line["operation"], line["items"]) for line in lines if line["operation"] in METHODS)


def shown(outcome: object) -> object:
    """Return what can be compared: of an error, all that a caller sees but the id of its request."""
    if isinstance(outcome, KmsClientError):
        return type(outcome), outcome.message, outcome.reason, outcome.retry_after
    return outcome


async def raised(call: Awaitable[object]) -> object:
    """Return what a call returns or raises."""
    try:
        return await call
    except KmsClientError as error:
        return error


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Process]:
    """A daemon as a process of its own, with an audit trail."""
    audit = ("--set", f"kms.audit.file={tmp_path}/audit.jsonl", "--set", "kms.audit.required=true")
    with spawned("--data-dir", f"{tmp_path}/data", "--listen", "127.0.0.1:0", *audit) as process:
        process.wait_for("serving")
        yield process


def calls_of(client: KmsClient) -> dict[str, Calls]:
    """Return calls by the name of their batch call: some fail, and results do not differ from time to time."""
    sealed = client.encrypt("acme", b"secret", CONTEXT).ciphertext_blob
    bare = client.generate_data_key("acme").ciphertext_blob
    signed = client.sign_span("acme", span(0))
    proven = client.sign_spans("acme", [span(0), span(1)], proofs=True)[0]
    assert isinstance(proven, SpanSignature)

    def verifying(changed: ComplianceSpan, signature: bytes, key_id: str) -> Callable[[Any], Any]:
        return lambda kms: kms.verify_span("acme", changed, signature, key_id)

    return {
        "SignSpans": [
            *(lambda kms, number=number: kms.sign_span("acme", span(number)) for number in range(5)),
            lambda kms: kms.sign_span("acme", ComplianceSpan(name="n")),
            lambda kms: kms.sign_span("acme", ComplianceSpan(trace_id=b"short")),
        ],
        "VerifySpans": [
            verifying(span(0), signed.signature, signed.key_id),
            verifying(span(1), signed.signature, signed.key_id),
            verifying(span(0), b"short", signed.key_id),
            verifying(ComplianceSpan(), signed.signature, signed.key_id),
            lambda kms: kms.verify_span("acme", span(0), proven.signature, proven.key_id, proven.proof),
            lambda kms: kms.verify_span("acme", span(1), proven.signature, proven.key_id, proven.proof),
            verifying(span(0), signed.signature, signed.key_id),
        ],
        "DecryptBatch": [
            lambda kms: kms.decrypt("acme", sealed, CONTEXT),
            lambda kms: kms.decrypt("acme", sealed),
            lambda kms: kms.decrypt("acme", sealed, {"tenantId": "x"}),
            lambda kms: kms.decrypt("acme", bare),
            lambda kms: kms.decrypt("acme", b""),
            lambda kms: kms.decrypt("acme", sealed[:-1], CONTEXT),
        ],
        "GenerateMacBatch": [
            lambda kms: kms.generate_mac("acme", "email", b"alice"),
            lambda kms: kms.generate_mac("acme", "name", b"alice", 16),
            lambda kms: kms.generate_mac("acme", "No Purpose", b"alice"),
            lambda kms: kms.generate_mac("acme", "email", b"alice", 5),
        ],
        "GenerateDataKeys": [
            lambda kms: kms.generate_data_key("acme"),
            lambda kms: kms.generate_data_key("acme", 16, CONTEXT),
            lambda kms: kms.generate_data_key("acme", 0),
            lambda kms: kms.generate_data_key("acme", 32, {"aws-crypto-x": "y"}),
        ],
    }


@pytest.mark.parametrize("batch", ["SignSpans", "VerifySpans", "DecryptBatch", "GenerateMacBatch", "GenerateDataKeys"])
async def test_each_call_gets_what_it_gets_alone(daemon: Process, tmp_path: Path, batch: str) -> None:
    """Result, or class, text, reason and delay of the error; and they travelled as one call."""
    with KmsClient(daemon.address) as client:
        calls = calls_of(client)[batch]
    async with AsyncKmsClient(daemon.address) as plain, AsyncKmsClient(daemon.address, coalesce=True) as client:
        alone = [await raised(call(plain)) for call in calls]
        assert 1 <= sum(isinstance(outcome, KmsClientError) for outcome in alone) < len(calls)
        together = await asyncio.gather(*(raised(call(client)) for call in calls))
    assert list(map(shown, alone)) == list(map(shown, together))
    assert 1 == operations(tmp_path / "audit.jsonl")[batch, len(calls)]


async def test_a_key_id_that_is_none_is_refused_as_alone(daemon: Process) -> None:
    """VerifySpans judges it, as every reader of evidence does, and VerifySpan refuses it: such calls travel alone."""
    async with AsyncKmsClient(daemon.address) as plain, AsyncKmsClient(daemon.address, coalesce=True) as client:

        async def judged(kms: AsyncKmsClient, at: int) -> object:
            return await raised(kms.verify_span("acme", span(at), bytes(64), "nonsense"))

        alone = [await judged(plain, at) for at in range(3)]
        together = await asyncio.gather(*(judged(client, at) for at in range(3)))
    assert list(map(shown, alone)) == list(map(shown, together))
    assert all(isinstance(outcome, KmsClientError) for outcome in alone)


async def test_what_differs_each_time(daemon: Process, tmp_path: Path) -> None:
    """Ciphertexts open, in order; fresh keys are fresh, and cached ones do not wait for them; payloads are returned."""
    contexts = [{"field": str(number % 3)} for number in range(30)]
    async with AsyncKmsClient(daemon.address, coalesce=True) as client:
        sealed = await asyncio.gather(
            *(client.encrypt("acme", b"%d" % number, context) for number, context in enumerate(contexts)),
        )
        opened = await asyncio.gather(
            *(
                client.decrypt("acme", each.ciphertext_blob, context)
                for each, context in zip(sealed, contexts, strict=True)
            )
        )
        keys = await asyncio.gather(*(client.generate_data_key("acme", fresh=number < 4) for number in range(6)))
        signed = await asyncio.gather(
            *(client.sign_span("acme", span(number), return_payload=number % 2 == 0) for number in range(8))
        )
    assert [b"%d" % number for number in range(30)] == [each.plaintext for each in opened]
    assert 5 == len({key.plaintext for key in keys})
    assert [True, False] * 4 == [bool(each.payload) for each in signed]
    found = operations(tmp_path / "audit.jsonl")
    expected = {
        ("EncryptBatch", 30): 1,
        ("DecryptBatch", 30): 1,
        ("GenerateDataKeys", 4): 1,
        ("GenerateDataKeys", 2): 1,
    }
    assert expected | {("SignSpans", 4): 2} == found


def test_threads_get_what_they_get_alone(daemon: Process, tmp_path: Path) -> None:
    """The same by the client for threads; most calls travel in batches."""
    with KmsClient(daemon.address) as plain, KmsClient(daemon.address, coalesce=True) as client:
        calls = [call for each in calls_of(plain).values() for call in each] * 20

        def outcome(call: Callable[[KmsClient], object], of: KmsClient) -> object:
            try:
                return shown(call(of))
            except KmsClientError as error:
                return shown(error)

        alone = [outcome(call, plain) for call in calls]
        before = operations(tmp_path / "audit.jsonl").total()
        with ThreadPoolExecutor(32) as threads:
            together = list(threads.map(lambda call: outcome(call, client), calls))
    assert alone == together
    made = operations(tmp_path / "audit.jsonl").total() - before
    assert made < len(calls) / 2


async def test_tenants_do_not_travel_together(daemon: Process, tmp_path: Path) -> None:
    """A batch is one tenant's; one call of a tenant travels alone."""
    async with AsyncKmsClient(daemon.address, coalesce=True) as client:
        await asyncio.gather(*(client.sign_span(f"tenant{number % 3}", span(number)) for number in range(10)))
        await client.sign_span("acme", span(0))
    found = operations(tmp_path / "audit.jsonl")
    assert {("SignSpans", 4): 1, ("SignSpans", 3): 2, ("SignSpan", 1): 1} == found


async def test_policy_that_allows_single_calls_only(tmp_path: Path) -> None:
    """They are made one by one after one refusal of the batch; what is not allowed either way says so."""
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "policy.toml").chmod(0o600)
    values = {
        "kms.data-dir": f"{tmp_path}/data",
        "kms.server.listen": f"unix:{tmp_path}/kms.sock;identity=app",
        "kms.policy.file": f"{tmp_path}/policy.toml",
        "kms.audit.file": f"{tmp_path}/audit.jsonl",
        "kms.audit.required": "true",
    }
    with spawned(*(part for name, value in values.items() for part in ("--set", f"{name}={value}"))) as daemon:
        daemon.wait_for("serving")
        async with AsyncKmsClient(f"unix:{tmp_path}/kms.sock", coalesce=True) as client:
            for _ in range(3):
                signed = await asyncio.gather(*(client.sign_span("acme", span(number)) for number in range(4)))
                assert 4 == len({each.signature for each in signed})
            refused = await asyncio.gather(*(raised(client.decrypt("acme", b"x")) for _ in range(3)))
            assert {(PermissionDenied, "CALLER_NOT_ALLOWED")} == {
                (type(each), each.reason) for each in refused if isinstance(each, KmsClientError)
            }
    found = operations(tmp_path / "audit.jsonl")
    assert {("SignSpans", 4): 1, ("SignSpan", 1): 12, ("DecryptBatch", 3): 1, ("Decrypt", 1): 3} == found


async def test_bounds_of_a_request_are_not_those_of_a_call(tmp_path: Path) -> None:
    """Calls that are within the bounds, and together would not be, are made one by one or in smaller batches."""
    audit = tmp_path / "audit.jsonl"
    async with (
        running(
            tmp_path / "data",
            kms_audit_file=str(audit),
            kms_audit_required="true",
            kms_server_max_message_bytes="200000",
        ) as daemon,
        AsyncKmsClient(daemon.addresses[0], coalesce=True) as client,
    ):
        signed = await asyncio.gather(*(client.sign_span("acme", span(number, 1_000)) for number in range(20)))
        assert 20 == len({each.signature for each in signed})
        for _ in range(10):
            sealed = await asyncio.gather(*(client.encrypt("acme", bytes(20_000)) for _ in range(40)))
            assert 40 == len({each.ciphertext_blob for each in sealed})
    assert operations(audit)["EncryptBatch", 6] > 0


async def test_items_past_the_budget_raise_as_calls(tmp_path: Path, moto: MotoServer, kms_key: str) -> None:
    """RESOURCE_EXHAUSTED with its reason and delay; their neighbours are served."""
    settings = aws(moto.url, kms_key) | {"kms_budget_tenant_per_second": "1", "kms_budget_tenant_burst": "5"}
    async with (
        running(tmp_path, **settings) as daemon,
        AsyncKmsClient(daemon.addresses[0], coalesce=True) as client,
    ):
        outcomes = await asyncio.gather(
            *(raised(client.encrypt("acme", b"x", {"record": str(number)})) for number in range(20))
        )
    refused = [outcome for outcome in outcomes if isinstance(outcome, KmsClientError)]
    assert {(ResourceExhausted, "BUDGET_EXCEEDED")} == {(type(each), each.reason) for each in refused}
    assert all(each.retry_after for each in refused)
    assert 10 <= len(refused) <= 16


class Proxy(KeyManagementServiceServicer):
    """A daemon of an earlier version, which knows SignSpan only, or one that is slow, or whose KMS is away at times."""

    def __init__(self, daemon: str, *, old: bool = False, unavailable: int = 0, held: bool = False) -> None:
        self.calls: list[tuple[str, int]] = []
        self.begun, self.cancelled, self.go = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._old = old
        self._unavailable = unavailable
        self._channel = grpc.aio.insecure_channel(daemon)
        self._daemon = KeyManagementServiceStub(self._channel)
        if not held:
            self.go.set()

    async def SignSpan(self, request: Any, context: Any) -> Any:
        """Ask the daemon."""
        self.calls.append(("SignSpan", 1))
        return await self._daemon.SignSpan(request)

    async def SignSpans(self, request: Any, context: Any) -> Any:
        """Ask the daemon, and say of the first item that KMS is away if that is so."""
        self.calls.append(("SignSpans", len(request.spans)))
        self.begun.set()
        if self._old:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        response = await self._daemon.SignSpans(request)
        if self._unavailable:
            self._unavailable -= 1
            away = pb.ItemStatus(code=grpc.StatusCode.UNAVAILABLE.value[0], message="away", reason="KMS_UNREACHABLE")
            response.results[0].CopyFrom(pb.SignSpanResult(status=away))
            response.results[1].CopyFrom(pb.SignSpanResult(status=away))
        return response


@asynccontextmanager
async def behind(daemon: Process, **how: Any) -> AsyncIterator[tuple[Proxy, str]]:
    """Serve a proxy before a daemon."""
    server, proxy = grpc.aio.server(), Proxy(daemon.address, **how)  # type: ignore[abstract]
    add_KeyManagementServiceServicer_to_server(proxy, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield proxy, f"127.0.0.1:{port}"
    await server.stop(None)
    await proxy._channel.close()


async def test_old_daemon_is_called_one_by_one(daemon: Process) -> None:
    """After one batch that it does not know."""
    async with behind(daemon, old=True) as (proxy, address), AsyncKmsClient(address, coalesce=True) as client:
        for _ in range(3):
            await asyncio.gather(*(client.sign_span("acme", span(number)) for number in range(5)))
    assert {("SignSpans", 5): 1, ("SignSpan", 1): 15} == Counter(proxy.calls)


async def test_item_that_is_unavailable_is_tried_again(daemon: Process) -> None:
    """Up to three times, as gRPC tries a call; then it raises its own error, and the others have theirs for long."""
    async with behind(daemon, unavailable=1) as (proxy, address), AsyncKmsClient(address, coalesce=True) as client:
        signed = await asyncio.gather(*(client.sign_span("acme", span(number)) for number in range(5)))
        assert 5 == len({each.signature for each in signed})
    assert ("SignSpans", 5) == proxy.calls[0]
    async with behind(daemon, unavailable=9) as (proxy, address), AsyncKmsClient(address, coalesce=True) as client:
        outcomes = await asyncio.gather(*(raised(client.sign_span("acme", span(number))) for number in range(5)))
        short = await asyncio.gather(
            *(raised(client.sign_span("acme", span(number), timeout=0.05)) for number in range(2))
        )
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds.count(Unavailable) <= 2
    assert {"KMS_UNREACHABLE"} >= {each.reason for each in outcomes if isinstance(each, KmsClientError)}
    assert all(isinstance(each, Unavailable | DeadlineExceeded) for each in short)


async def test_each_call_has_its_own_deadline_and_cancellation(daemon: Process) -> None:
    """While the batch is on its way, one ends by its deadline, one is cancelled, and the others are signed."""
    async with (
        behind(daemon, held=True) as (proxy, address),
        AsyncKmsClient(address, coalesce=True) as client,
    ):
        tasks = [
            asyncio.ensure_future(client.sign_span("acme", span(number), timeout=timeout))
            for number, timeout in enumerate((0.1, 30.0, 20.0, 20.0))
        ]
        with pytest.raises(DeadlineExceeded, match=f"no answer from {address} in time"):
            await tasks[0]
        tasks[1].cancel()
        proxy.go.set()
        signed = await asyncio.gather(*tasks[2:])
        assert tasks[1].cancelled()
    async with AsyncKmsClient(daemon.address) as plain:
        assert [await plain.sign_span("acme", span(number)) for number in (2, 3)] == signed
    assert [("SignSpans", 4)] == proxy.calls


async def test_batch_of_callers_that_left_is_cancelled(daemon: Process) -> None:
    """The daemon need not work for no one."""
    async with (
        behind(daemon, held=True) as (proxy, address),
        AsyncKmsClient(address, coalesce=True, timeout=120) as client,
    ):
        tasks = [asyncio.ensure_future(client.sign_span("acme", span(number))) for number in range(3)]
        await proxy.begun.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait_for(proxy.cancelled.wait(), 20)


async def test_closed_client_leaves_no_call_waiting(daemon: Process) -> None:
    """Calls that are under way end as those of a client that does not coalesce."""
    async with behind(daemon, held=True) as (proxy, address):
        client = AsyncKmsClient(address, coalesce=True)
        tasks = [asyncio.ensure_future(client.sign_span("acme", span(number))) for number in range(3)]
        await proxy.begun.wait()
        await client.close()
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
    assert all(isinstance(outcome, asyncio.CancelledError | KmsClientError) for outcome in outcomes)


def test_thread_ends_by_its_own_deadline(daemon: Process) -> None:
    """While others of its batch wait for a daemon that hangs, and later calls are not held up by that."""
    loop = asyncio.new_event_loop()
    started, ended = threading.Event(), threading.Event()
    found: list[Any] = []

    async def serve() -> None:
        async with behind(daemon, held=True) as each:
            found.extend(each)
            started.set()
            await asyncio.to_thread(ended.wait)

    with ThreadPoolExecutor(8) as threads:
        serving = threads.submit(loop.run_until_complete, serve())
        assert started.wait(20)
        proxy, address = found
        with KmsClient(address, coalesce=True, coalesce_delay=0.2) as client:
            timeouts = (2.0, 10.0, 10.0)
            slow = [
                threads.submit(client.sign_span, "acme", span(at), timeout=each) for at, each in enumerate(timeouts)
            ]
            while ("SignSpans", 3) not in proxy.calls:
                threading.Event().wait(0.001)
            with pytest.raises(DeadlineExceeded, match="in time"):
                slow.pop(0).result(20)
            assert client.sign_span("acme", span(9)).signature
            assert [False, False] == [each.done() for each in slow]
            loop.call_soon_threadsafe(proxy.go.set)
            assert 2 == len({each.result(20).signature for each in slow})
        ended.set()
        serving.result(20)
    loop.close()
