"""Signing and verifying spans, against bare Ed25519 loops: `make bench-sign`.

All contenders take turns in every round, so that a machine that slows down slows all of them; printed are medians with
the 10th and 90th percentile, and the ratio of medians to the bare loop. Library figures go from the request message to
the response message in one thread. RPC figures count the CPU seconds of a daemon that is a process of its own.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import KmsClient, SignedSpan, SpanSignature
from betrace_kms_evidence import KeySet, PublicKey, SpanVerifier, canonical_span, has_unknown_fields
from betrace_kms_server.core.keys import SigningKey
from betrace_kms_server.rpc import batches
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.timestamp_pb2 import Timestamp

from tests.daemon import spawned

TENANT, KEY_ID = "acme", "0123456789abcdef" * 2
BATCH = 100


def span(number: int) -> ComplianceSpan:
    """Return a span with 17 fields: ten of its own and seven attributes."""
    made = ComplianceSpan(
        trace_id=os.urandom(16),
        span_id=(number + 1).to_bytes(8, "big"),
        parent_span_id=os.urandom(8),
        name="user.login",
        framework="soc2",
        control="CC6_1",
        evidence_type="audit_trail",
        result="success",
    )
    made.start_time.FromNanoseconds(1_700_000_000_123_456_789 + number)
    made.duration.FromNanoseconds(1_500_000)
    for name in ("enduser.id", "http.method", "http.route", "server.address", "service.name"):
        made.attributes[name].string_value = f"{name} value"
    made.attributes["http.status_code"].int_value = 200
    made.attributes["sampling.probability"].double_value = 0.25
    return made


def measured(rounds: int, contenders: Mapping[str, tuple[int, Callable[[], object]]]) -> dict[str, list[float]]:
    """Return microseconds a span of each contender, round by round; each is (spans in one call, the call)."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (count, call) in contenders.items():
            began = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - began) / count * 1e6)
    return times


def show(times: Mapping[str, Sequence[float]], base: str) -> None:
    """Print a table of one group."""
    reference = statistics.median(times[base])
    click.echo(f"{'microseconds a span':44}{'median':>9}{'p10-p90':>17}{'rate / bare':>13}")
    for name, values in times.items():
        deciles = statistics.quantiles(values, n=10)
        median = statistics.median(values)
        click.echo(f"{name:44}{median:9.2f}{f'{deciles[0]:.2f}-{deciles[-1]:.2f}':>17}{reference / median:12.2f}x")


def library(rounds: int) -> None:
    """Measure signing and verifying without gRPC, in one thread."""
    private = Ed25519PrivateKey.generate()
    key = SigningKey(KEY_ID, private)
    request = pb.SignSpansRequest(tenant_id=TENANT, spans=[span(number) for number in range(BATCH)])
    wire = request.SerializeToString()
    payloads = [canonical_span(TENANT, KEY_ID, each) for each in request.spans]

    def each() -> pb.SignSpansResponse:
        fresh = pb.SignSpansRequest.FromString(wire)
        made = batches.payloads_of(TENANT, KEY_ID, fresh.spans, unknown_fields_checked=not has_unknown_fields(fresh))
        return batches.each_response(KEY_ID, made, batches.signatures_of(key, made), return_payload=False)

    def proofs() -> pb.SignSpansResponse:
        fresh = pb.SignSpansRequest.FromString(wire)
        now = Timestamp()
        now.GetCurrentTime()
        made = batches.payloads_of(TENANT, KEY_ID, fresh.spans, unknown_fields_checked=not has_unknown_fields(fresh))
        return batches.proof_response(key, TENANT, made, now, return_payload=False)

    signing = measured(
        rounds,
        {
            "bare loop, sign": (BATCH, lambda: [private.sign(payload) for payload in payloads]),
            "SignSpans, EACH": (BATCH, each),
            "SignSpans, BATCH_PROOF of 100": (BATCH, proofs),
        },
    )
    show(signing, "bare loop, sign")

    public = private.public_key()
    keys = KeySet(TENANT, {KEY_ID: PublicKey(KEY_ID, public.public_bytes_raw(), "ACTIVE")}, {KEY_ID: public})
    signatures = [private.sign(payload) for payload in payloads]
    singles, proved = each().results, proofs().results

    def offline(results: Any) -> None:
        verifier = SpanVerifier(keys)
        for signed, result in zip(request.spans, results, strict=True):
            proof = result.proof if result.HasField("proof") else None
            if verifier.verify(signed, result.signature, KEY_ID, proof) != "VALID":
                raise RuntimeError("a good signature does not verify")

    def bare() -> None:
        for signature, payload in zip(signatures, payloads, strict=True):
            public.verify(signature, payload)

    verifying = measured(
        rounds,
        {
            "bare loop, verify": (BATCH, bare),
            "offline, single signatures": (BATCH, lambda: offline(singles)),
            "offline, batch proofs of 100": (BATCH, lambda: offline(proved)),
        },
    )
    click.echo()
    show(verifying, "bare loop, verify")


def offline_total(count: int) -> None:
    """Verify many batch-proof spans in one go, against a bare loop over a part of them."""
    private = Ed25519PrivateKey.generate()
    key, public = SigningKey(KEY_ID, private), private.public_key()
    keys = KeySet(TENANT, {KEY_ID: PublicKey(KEY_ID, public.public_bytes_raw(), "ACTIVE")}, {KEY_ID: public})
    now = Timestamp()
    now.GetCurrentTime()
    message = b"m" * 700
    signature = private.sign(message)
    verifier, bare, took, verdicts = SpanVerifier(keys), 0.0, 0.0, set()
    for first in range(0, count, BATCH):
        spans = [span(number) for number in range(first, first + BATCH)]
        made = batches.payloads_of(TENANT, KEY_ID, spans)
        results = batches.proof_response(key, TENANT, made, now, return_payload=False).results
        began = time.perf_counter()
        for each, result in zip(spans, results, strict=True):
            verdicts.add(verifier.verify(each, result.signature, KEY_ID, result.proof))
        took += time.perf_counter() - began
        if first % (20 * BATCH) == 0:
            began = time.perf_counter()
            for _ in range(BATCH):
                public.verify(signature, message)
            bare += (time.perf_counter() - began) * 20
    click.echo(
        f"\n{count:,} batch-proof spans offline: {took:.2f} s, {verdicts}; bare verify loop of as many:"
        f" {bare:.2f} s; {bare / took:.2f}x"
    )


def cpu_seconds(process_id: int) -> float:
    """Return user and system time of a process so far (proc_pid_stat(5))."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rpc(rounds: int) -> None:
    """Measure spans for each CPU second of the daemon, unary against batches."""
    spans = [span(number) for number in range(BATCH)]
    used: dict[str, list[float]] = {"SignSpan": [], "SignSpans of 100": [], "SignSpans of 100, proofs": []}
    with tempfile.TemporaryDirectory() as folder:
        listen = f"unix:{folder}/kms.sock"
        with spawned("--data-dir", f"{folder}/data", "--listen", listen) as daemon, KmsClient(listen) as client:
            daemon.wait_for("serving")

            def unary() -> None:
                for each in spans[:BATCH]:
                    client.sign_span(TENANT, each)

            calls: dict[str, tuple[int, Callable[[], object]]] = {
                "SignSpan": (5, unary),
                "SignSpans of 100": (30, lambda: client.sign_spans(TENANT, spans)),
                "SignSpans of 100, proofs": (30, lambda: client.sign_spans(TENANT, spans, proofs=True)),
            }
            for _, call in calls.values():
                call()
            for _ in range(rounds):
                for name, (repeats, call) in calls.items():
                    before = cpu_seconds(daemon.process.pid)
                    for _ in range(repeats):
                        call()
                    used[name].append((cpu_seconds(daemon.process.pid) - before) / (repeats * BATCH) * 1e6)
            results = client.sign_spans(TENANT, spans, proofs=True)
            judged = client.verify_spans(
                TENANT,
                [
                    SignedSpan(each, result.signature, result.key_id, result.proof)
                    for each, result in zip(spans, results, strict=True)
                    if isinstance(result, SpanSignature)
                ],
            )
            if len(judged) != BATCH or not all(getattr(verdict, "valid", False) for verdict in judged):
                raise RuntimeError("a good signature does not verify")
    unary_cost = statistics.median(used["SignSpan"])
    click.echo(f"\n{'daemon CPU microseconds a span, over gRPC':44}{'median':>9}{'p10-p90':>17}{'/ SignSpan':>13}")
    for name, values in used.items():
        deciles, median = statistics.quantiles(values, n=10), statistics.median(values)
        click.echo(f"{name:44}{median:9.2f}{f'{deciles[0]:.2f}-{deciles[-1]:.2f}':>17}{unary_cost / median:12.2f}x")


@click.command()
@click.option("--rounds", default=200, show_default=True, help="Rounds of the library figures.")
@click.option("--rpc-rounds", default=10, show_default=True, help="Rounds of the RPC figures.")
@click.option("--spans", default=100_000, show_default=True, help="Spans of the offline total.")
def main(rounds: int, rpc_rounds: int, spans: int) -> None:
    """Print how signing and verifying compare with bare Ed25519 loops."""
    click.echo(f"17-field span, {rounds} rounds, batches of {BATCH}, Python {sys.version.split()[0]}\n")
    library(rounds)
    offline_total(spans)
    rpc(rpc_rounds)


if __name__ == "__main__":
    main()
