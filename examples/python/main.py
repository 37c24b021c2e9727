"""Makes the main calls of a betrace-kms daemon: `python main.py TENANT TARGET...`, with the package betrace-kms.

A target is host:port or unix:/path. KMS_TOKEN_FILE names the file of a bearer token, where the daemon wants one: the
client reads it. Limits, deadlines, retries of what is UNAVAILABLE and the details of errors are the client's, too.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import grpc
from betrace.kms.v1.span_pb2 import AttributeValue, ComplianceSpan
from betrace_kms_client import (
    AsyncKmsClient,
    InvalidRequest,
    KmsClient,
    ResourceExhausted,
    SignedSpan,
    SpanSignature,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc

DEADLINE = 10.0
"""Seconds that a call may take, its repetitions included."""
PAYLOAD_BYTES = 4 << 20
"""The most that a daemon takes unless configured otherwise."""
EMAIL = {"field": "email"}

_outcomes: list[bool] = []


def call(name: str, make: Callable[[], str]) -> None:
    """Make a call, and print what came of it."""
    try:
        found, good = make(), True
    except Exception as error:  # noqa: BLE001  # also what a call lacks because one before it failed
        found, good = f"FAILED: {getattr(error, 'reason', '')} {error}", False
    _outcomes.append(good)
    print(f"  {name:16} {found}")


def pauses(delay: float, end: float, reason: str) -> bool:
    """Wait, unless the deadline comes first."""
    if time.monotonic() + delay > end:
        return False
    print(f"  waits {delay:.3f} s: {reason}")
    time.sleep(delay)
    return True


def repeated(make: Callable[..., Any], *arguments: Any) -> Any:
    """Repeat what is RESOURCE_EXHAUSTED: as long after as RetryInfo says, and twice as long each further time."""
    end, factor = time.monotonic() + DEADLINE, 1
    while True:
        try:
            return make(*arguments)
        except ResourceExhausted as error:
            if error.retry_after is None or not pauses(error.retry_after * factor, end, error.reason):
                raise
            factor *= 2


def in_batch(make: Callable[[str, Sequence[Any]], Sequence[Any]], tenant: str, items: Sequence[Any]) -> list[Any]:
    """Send items, and again those that were refused with a retry delay: not the whole batch."""
    end, factor = time.monotonic() + DEADLINE, 1
    results: dict[int, Any] = {}
    waiting = list(range(len(items)))
    while True:
        answers = repeated(make, tenant, [items[index] for index in waiting])
        results.update(zip(waiting, answers, strict=True))
        waiting = [index for index in waiting if getattr(results[index], "retry_after", None) is not None]
        refused = [results[index] for index in waiting]
        if not refused or not pauses(max(each.retry_after for each in refused) * factor, end, refused[0].reason):
            return [results[index] for index in range(len(items))]
        factor *= 2


def encryption(kms: KmsClient, tenant: str) -> None:
    """Data keys, and payloads of the largest size."""
    payload = os.urandom(PAYLOAD_BYTES)
    key: Any = None
    sealed = b""

    def generate_data_key() -> str:
        nonlocal key
        key = repeated(kms.generate_data_key, tenant)
        return f"{len(key.plaintext)} bytes, and {len(key.ciphertext_blob)} wrapped"

    def unwrap() -> str:
        assert key.plaintext == repeated(kms.decrypt, tenant, key.ciphertext_blob).plaintext
        return "the data key"

    def encrypt() -> str:
        nonlocal sealed
        sealed = repeated(kms.encrypt, tenant, payload, EMAIL).ciphertext_blob
        return f"{len(payload)} bytes in {len(sealed)}"

    def decrypt() -> str:
        assert payload == repeated(kms.decrypt, tenant, sealed, EMAIL).plaintext
        return "the payload"

    def decrypt_without_context() -> str:
        reason = "it was opened without its context"
        try:
            repeated(kms.decrypt, tenant, sealed)
        except InvalidRequest as error:
            reason = error.reason
        assert reason == "CIPHERTEXT_DOES_NOT_OPEN", reason
        return f"refused without its context: {reason}"

    def re_encrypt() -> str:
        again = repeated(kms.re_encrypt, tenant, key.ciphertext_blob, None, EMAIL)
        return f"{len(again.ciphertext_blob)} bytes"

    call("GenerateDataKey", generate_data_key)
    call("Decrypt", unwrap)
    call("Encrypt", encrypt)
    call("Decrypt", decrypt)
    call("Decrypt", decrypt_without_context)
    call("ReEncrypt", re_encrypt)


def batches(kms: KmsClient, tenant: str) -> None:
    """Ten payloads, each with a context of its own."""
    items = [(f"payload {number}".encode(), {"record": str(number)}) for number in range(10)]
    sealed: list[Any] = []

    def encrypt_batch() -> str:
        sealed.extend(in_batch(kms.encrypt_batch, tenant, items))
        assert all(hasattr(each, "ciphertext_blob") for each in sealed), sealed
        return f"{len(sealed)} payloads"

    def decrypt_batch() -> str:
        ciphertexts = [(each.ciphertext_blob, context) for each, (_, context) in zip(sealed, items, strict=True)]
        opened = in_batch(kms.decrypt_batch, tenant, ciphertexts)
        assert [payload for payload, _ in items] == [getattr(each, "plaintext", each) for each in opened]
        return f"{len(opened)} payloads"

    call("EncryptBatch", encrypt_batch)
    call("DecryptBatch", decrypt_batch)


def new_span(name: str) -> ComplianceSpan:
    """Return a span with new ids."""
    user = {"user": AttributeValue(string_value="alice")}
    return ComplianceSpan(trace_id=os.urandom(16), span_id=os.urandom(8), name=name, framework="soc2", attributes=user)


def verify(kms: KmsClient, tenant: str, spans: Sequence[ComplianceSpan], signed: Sequence[SpanSignature]) -> None:
    """Ask for the verdicts on spans."""

    def verify_spans() -> str:
        pairs = zip(spans, signed, strict=True)
        batch = [SignedSpan(span, each.signature, each.key_id, each.proof) for span, each in pairs]
        verdicts = repeated(kms.verify_spans, tenant, batch)
        assert all(getattr(verdict, "valid", False) for verdict in verdicts), verdicts
        return f"{len(verdicts)} VALID"

    call("VerifySpans", verify_spans)


def signatures(kms: KmsClient, tenant: str) -> None:
    """One span, and a batch with proofs."""
    span, spans = new_span("user.login"), [new_span(name) for name in ("one", "two", "three")]
    signed: list[Any] = []
    proved: list[Any] = []

    def sign_span() -> str:
        signed.append(repeated(kms.sign_span, tenant, span))
        return f"by key {signed[0].key_id}"

    def verify_span() -> str:
        verdict = repeated(kms.verify_span, tenant, span, signed[0].signature, signed[0].key_id)
        assert verdict.valid, verdict
        return str(verdict.reason)

    def sign_spans() -> str:
        proved.extend(repeated(lambda: kms.sign_spans(tenant, spans, proofs=True)))
        assert all(hasattr(each, "signature") for each in proved), proved
        return "one signature, and proofs"

    call("SignSpan", sign_span)
    call("VerifySpan", verify_span)
    call("SignSpans", sign_spans)
    verify(kms, tenant, spans, proved)
    call("GetPublicKeys", lambda: str(len(repeated(kms.get_public_keys, tenant).keys)))


def hashes(kms: KmsClient, tenant: str) -> None:
    """A blind index."""
    mac = b""

    def generate_mac() -> str:
        nonlocal mac
        mac = repeated(kms.generate_mac, tenant, "users.email", b"alice@example.com").mac
        return f"{len(mac)} bytes"

    def verify_mac() -> str:
        assert repeated(kms.verify_mac, tenant, "users.email", b"alice@example.com", mac)
        return "valid"

    call("GenerateMac", generate_mac)
    call("VerifyMac", verify_mac)


def coalesced(kms: KmsClient, tenant: str, target: str) -> None:
    """Make a hundred calls at once: they travel as a few batches, and each gets its own result."""
    spans = [new_span(f"span {number}") for number in range(100)]
    signed: list[SpanSignature] = []

    async def sign(client: AsyncKmsClient, span: ComplianceSpan) -> SpanSignature:
        end, factor = time.monotonic() + DEADLINE, 1
        while True:
            try:
                return await client.sign_span(tenant, span)
            except ResourceExhausted as error:
                if error.retry_after is None or time.monotonic() + error.retry_after * factor > end:
                    raise
                await asyncio.sleep(error.retry_after * factor)
                factor *= 2

    async def sign_all() -> list[SpanSignature]:
        async with AsyncKmsClient(target, coalesce=True) as client:
            return await asyncio.gather(*(sign(client, span) for span in spans))

    def sign_span() -> str:
        signed.extend(asyncio.run(sign_all()))
        return "by a client that coalesces"

    call("SignSpan x 100", sign_span)
    verify(kms, tenant, spans, signed)


def health(target: str) -> str:
    """Return the state of the service."""
    with grpc.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest(service="betrace.kms.v1.KeyManagementService")
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(request, timeout=DEADLINE)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def main(tenant: str, *targets: str) -> int:
    """Make all calls at each target; return 0 if none failed."""
    for target in targets:
        print(target)
        call("Health.Check", partial(health, target))
        with KmsClient(target) as kms:
            for part in (encryption, batches, signatures, hashes):
                part(kms, tenant)
            coalesced(kms, tenant, target)
    failed = _outcomes.count(False)
    print(f"{len(_outcomes)} calls made, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python main.py TENANT TARGET...")
    sys.exit(main(*sys.argv[1:]))
