"""Traces and pushed metrics of a real daemon, before a real OTLP collector."""

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.collector import Collector, collecting
from tests.daemon import running, spawned
from tests.integration.test_aws_daemon import aws

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
REQUEST = pb.EncryptRequest(tenant_id="acme", plaintext=b"payload")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the daemon of this test sends to."""
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_on")
        yield collector


def attributes(span: Span) -> dict[str, Any]:
    """Return a span's attributes as plain values."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "") for pair in span.attributes}


async def test_a_sampled_call_is_a_span_with_its_kms_calls_below(
    tmp_path: Path, moto: "MotoServer", kms_key: str, collector: Collector
) -> None:
    """The span continues the caller's trace and tells hit, key type and latency; KMS's request id is in the child."""
    async with (
        running(tmp_path, **aws(moto.url, kms_key)) as daemon,
        grpc.aio.insecure_channel(daemon.addresses[0]) as channel,
    ):
        stub: Any = KeyManagementServiceStub(channel)
        for _ in range(2):
            await stub.Encrypt(REQUEST, metadata=[("traceparent", SAMPLED)])
    cold, warm = [span for span in collector.spans if span.name.endswith("/Encrypt")]
    [kms] = [span for span in collector.spans if span.name == "KMS GenerateDataKey"]
    assert {cold.trace_id.hex(), warm.trace_id.hex(), kms.trace_id.hex()} == {TRACE}
    assert (cold.parent_span_id.hex(), kms.parent_span_id) == (PARENT, cold.span_id)
    assert (cold.kind, kms.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT)
    assert (attributes(cold)["cache.hit"], attributes(warm)["cache.hit"]) == (False, True)
    assert attributes(cold)["key.type"] == "encryption"
    assert attributes(cold)["latency_ms"] > attributes(warm)["latency_ms"] > 0
    assert len(attributes(kms)["aws.request_id"]) >= 16


async def test_a_failed_call_is_a_failed_span_without_its_message(tmp_path: Path, collector: Collector) -> None:
    """A span tells the reason; messages are for callers."""
    async with running(tmp_path) as daemon, grpc.aio.insecure_channel(daemon.addresses[0]) as channel:
        stub: Any = KeyManagementServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Decrypt(
                pb.DecryptRequest(tenant_id="acme", ciphertext_blob=b"btl1 rubbish"),
                metadata=[("traceparent", SAMPLED)],
            )
    [span] = [span for span in collector.spans if span.name.endswith("/Decrypt")]
    assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, "CIPHERTEXT_DOES_NOT_OPEN")
    assert attributes(span)["rpc.grpc.status"] == "INVALID_ARGUMENT"


async def test_calls_that_are_not_sampled_leave_nothing(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a caller's decision against it nor the sampler's own leads to a span; nor does what is no traceparent."""
    async with running(tmp_path) as daemon, grpc.aio.insecure_channel(daemon.addresses[0]) as channel:
        await KeyManagementServiceStub(channel).Encrypt(REQUEST, metadata=[("traceparent", UNSAMPLED)])
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    async with running(tmp_path) as daemon, grpc.aio.insecure_channel(daemon.addresses[0]) as channel:
        for traceparent in (SAMPLED, "rubbish", "00-0-0-01", ""):
            await KeyManagementServiceStub(channel).Encrypt(REQUEST, metadata=[("traceparent", traceparent)])
    assert not collector.spans


@pytest.mark.parametrize(
    ("sampler", "argument", "low", "high"),
    [
        ("", "", 40, 160),
        ("parentbased_traceidratio", "0.5", 400, 600),
        ("parentbased_traceidratio", "", 1000, 1000),
        ("traceidratio", "0.5", 400, 600),
        ("parentbased_always_off", "", 0, 0),
        ("PARENTBASED_ALWAYS_ON", "", 1000, 1000),
    ],
)
async def test_calls_in_no_trace_are_sampled_by_their_share(
    tmp_path: Path,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
    argument: str,
    low: int,
    high: int,
) -> None:
    """A tenth by default, else as the sampler says; what is no traceparent does not change it. (bounds: 6 sigma)."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    async with running(tmp_path) as daemon, grpc.aio.insecure_channel(daemon.addresses[0]) as channel:
        stub: Any = KeyManagementServiceStub(channel)
        for number in range(1000):
            await stub.Encrypt(REQUEST, metadata=[("traceparent", "rubbish")] if number % 2 else [])
    assert low <= len([span for span in collector.spans if span.name.endswith("/Encrypt")]) <= high


async def test_metrics_are_pushed_with_their_histograms(tmp_path: Path, collector: Collector) -> None:
    """The last figures are pushed when the daemon stops."""
    async with running(tmp_path) as daemon, grpc.aio.insecure_channel(daemon.addresses[0]) as channel:
        for _ in range(3):
            await KeyManagementServiceStub(channel).Encrypt(REQUEST)
    hits = {
        point.attributes[0].value.string_value: point.as_int
        for point in collector.metrics["kms_cache_hit"].sum.data_points
    }
    [latency] = collector.metrics["kms_rpc_duration"].histogram.data_points
    assert hits["encryption"] == 2
    assert (latency.count, sum(latency.bucket_counts)) == (3, 3)
    assert latency.sum > 0


def test_a_dead_collector_holds_up_the_stop_for_two_seconds_at_most(tmp_path: Path) -> None:
    """A collector that takes connections and never answers, and spans and metrics that wait for it."""
    with socket.create_server(("127.0.0.1", 0)) as dead:
        endpoint = f"http://127.0.0.1:{dead.getsockname()[1]}"
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TRACES_SAMPLER": "parentbased_always_on"}
        arguments = ("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0")
        with spawned(*arguments, environ=environ) as daemon:
            daemon.wait_for("serving")
            with grpc.insecure_channel(daemon.address) as channel:
                KeyManagementServiceStub(channel).Encrypt(REQUEST, timeout=10)
            began = time.monotonic()
            daemon.process.terminate()
            assert daemon.process.wait(timeout=30) == 0
            took = time.monotonic() - began
    assert "does not answer: the last telemetry is lost" in daemon.log
    assert took < 10, "the exporters' own limits add up to half a minute"


async def test_a_span_is_of_the_call_that_loaded_and_those_who_waited_share_its_request_ids(
    tmp_path: Path, moto: "MotoServer", kms_key: str, collector: Collector
) -> None:
    """Ten callers miss at once: one call to KMS, below one of them."""
    async with (
        running(tmp_path, **aws(moto.url, kms_key)) as daemon,
        grpc.aio.insecure_channel(daemon.addresses[0]) as channel,
    ):
        stub: Any = KeyManagementServiceStub(channel)
        await asyncio.gather(*(stub.Encrypt(REQUEST, metadata=[("traceparent", SAMPLED)]) for _ in range(10)))
    calls = [span for span in collector.spans if span.name.endswith("/Encrypt")]
    kms = [span for span in collector.spans if span.name.startswith("KMS Gen")]
    assert (len(calls), len(kms)) == (10, 1)
    assert kms[0].parent_span_id in {span.span_id for span in calls}
