"""The calls of KeyManagementService about spans and their keys.

A batch must not starve other calls: canonical spans are made in slices with a turn of the loop between them, and large
batches are signed and verified by two threads. Between slices the work ends if its caller has left, or if its deadline
is over: gRPC cancels the call then.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

import grpc
from betrace.kms.v1 import key_management_pb2 as pb
from betrace_kms_evidence import ALGORITHM, PAYLOAD_TYPE, SIGNATURE_BYTES, InvalidSpan, has_unknown_fields, jwks_text
from google.protobuf.timestamp_pb2 import Timestamp

from betrace_kms_server.core.errors import InvalidRequest
from betrace_kms_server.core.key_event import KeyEvent
from betrace_kms_server.core.keys import StoredKey
from betrace_kms_server.core.shedding import check_may_wait
from betrace_kms_server.core.tenancy import check_key_id, check_tenant_id
from betrace_kms_server.rpc import batches
from betrace_kms_server.rpc.batches import Refusal
from betrace_kms_server.rpc.wire import MAX_ITEMS
from betrace_kms_server.signing_keys.signer import Signer, public_key_of
from betrace_kms_server.telemetry.observers import MessageShape, observed_as

_Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")
R = TypeVar("R")

_SLICE = 25
"""Spans that are worked on between two turns of the loop: about a millisecond."""
_INLINE = 128
"""Spans up to which two threads, which contend for the interpreter's lock, cost more than they bring."""


class SpanCalls:
    """SignSpan, SignSpans, VerifySpan, VerifySpans, GetPublicKeys. `threads` runs two at a time."""

    _signer: Signer
    _threads: Executor

    @observed_as(MessageShape("signing", response_key_id=True))
    async def SignSpan(
        self, request: pb.SignSpanRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.SignSpanResponse:
        """Sign a span with the tenant's active key."""
        tenant_id = check_tenant_id(request.tenant_id)
        _check_span(request)
        signed = await self._signer.sign(tenant_id, request.span, event)
        return pb.SignSpanResponse(
            signature=signed.signature,
            key_id=signed.key_id,
            algorithm=ALGORITHM,
            payload_type=PAYLOAD_TYPE,
            payload=signed.payload if request.return_payload else b"",
        )

    @observed_as(MessageShape("signing", batch="spans", results=True))
    async def SignSpans(
        self, request: pb.SignSpansRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.SignSpansResponse:
        """Sign a batch, each span for itself or all under one tree head. A bad span fails alone."""
        tenant_id = check_tenant_id(request.tenant_id)
        _check_batch(request.spans)
        if request.mode not in pb.SignMode.values():
            raise InvalidRequest("mode must be EACH or BATCH_PROOF")
        try:
            key = await self._signer.signing_key(tenant_id, request.spans, event)
        except InvalidSpan:  # not one of them can be signed, so there is no need of a key
            payloads = await self._payloads(tenant_id, "", request)
            return batches.each_response("", payloads, [b""] * len(payloads), return_payload=False)
        payloads = await self._payloads(tenant_id, key.key_id, request)
        if request.mode == pb.BATCH_PROOF:
            now = Timestamp()
            now.GetCurrentTime()
            return batches.proof_response(key, tenant_id, payloads, now, return_payload=request.return_payload)
        signatures = await self._in_threads(lambda part: batches.signatures_of(key, part), payloads)
        return batches.each_response(key.key_id, payloads, signatures, return_payload=request.return_payload)

    @observed_as(MessageShape("public", request_key_id=True))
    async def VerifySpan(
        self, request: pb.VerifySpanRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.VerifySpanResponse:
        """Return whether a signature belongs to a span."""
        tenant_id = check_tenant_id(request.tenant_id)
        _check_span(request)
        if len(request.signature) != SIGNATURE_BYTES:
            raise InvalidRequest(f"signature must be {SIGNATURE_BYTES} bytes, not {len(request.signature)}")
        key_id = check_key_id(request.key_id)
        verifier = await self._signer.verifier(tenant_id, [key_id], event)
        proof = request.proof if request.HasField("proof") else None
        try:
            reason = verifier.verify(request.span, request.signature, key_id, proof)
        except InvalidSpan as cause:
            raise InvalidRequest(str(cause)) from cause
        return pb.VerifySpanResponse(valid=reason == "VALID", reason=pb.VerifyReason.Value(reason))

    @observed_as(MessageShape("public", batch="spans"))
    async def VerifySpans(
        self, request: pb.VerifySpansRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.VerifySpansResponse:
        """Judge a batch of signed spans. A malformed one fails alone."""
        tenant_id = check_tenant_id(request.tenant_id)
        _check_batch(request.spans)
        verifier = await self._signer.verifier(tenant_id, (signed.key_id for signed in request.spans), event)
        results = await self._in_threads(lambda part: batches.verdicts_of(verifier, part), request.spans)
        return pb.VerifySpansResponse(results=results)

    @observed_as(MessageShape())
    async def GetPublicKeys(
        self, request: pb.GetPublicKeysRequest, context: _Context, event: KeyEvent | None = None
    ) -> pb.GetPublicKeysResponse:
        """Return every public key that the tenant ever had."""
        tenant_id = check_tenant_id(request.tenant_id)
        check_may_wait()
        stored = await self._signer.public_keys(tenant_id)
        return pb.GetPublicKeysResponse(
            keys=map(_public_key, stored), jwks=jwks_text(tenant_id, map(public_key_of, stored))
        )

    async def _payloads(self, tenant_id: str, key_id: str, request: pb.SignSpansRequest) -> list[bytes | Refusal]:
        payloads: list[bytes | Refusal] = []
        checked = not has_unknown_fields(request)
        for start in range(0, len(request.spans), _SLICE):
            payloads += batches.payloads_of(
                tenant_id, key_id, request.spans[start : start + _SLICE], unknown_fields_checked=checked
            )
            await asyncio.sleep(0)
        return payloads

    async def _in_threads(self, work: Callable[[Sequence[T]], list[R]], items: Sequence[T]) -> list[R]:
        """Do the work here in slices if it is little, and else in two halves at once; results are in order."""
        if len(items) <= _INLINE:
            results: list[R] = []
            for start in range(0, len(items), _SLICE):
                results += work(items[start : start + _SLICE])
                await asyncio.sleep(0)
            return results
        ended = False

        def in_slices(half: Sequence[T]) -> list[R]:
            results: list[R] = []
            for start in range(0, len(half), _SLICE):
                if ended:
                    break
                results += work(half[start : start + _SLICE])
            return results

        loop, middle = asyncio.get_running_loop(), len(items) // 2
        halves = (items[:middle], items[middle:])
        try:
            first, second = await asyncio.gather(
                *(loop.run_in_executor(self._threads, in_slices, half) for half in halves)
            )
        finally:
            ended = True
        return first + second


def _public_key(stored: StoredKey) -> pb.PublicKey:
    return pb.PublicKey(
        key_id=stored.key_id,
        public_key=stored.public_key,
        algorithm=ALGORITHM,
        status=pb.KeyStatus.Value(stored.status.upper()),
        create_time=_timestamp(stored.create_time_ms),
        rotate_time=_timestamp(stored.rotate_time_ms),
        revoke_time=_timestamp(stored.revoke_time_ms),
    )


def _timestamp(milliseconds: int | None) -> Timestamp | None:
    if milliseconds is None:
        return None
    time = Timestamp()
    time.FromMilliseconds(milliseconds)
    return time


def _check_span(request: pb.SignSpanRequest | pb.VerifySpanRequest) -> None:
    if not request.HasField("span"):
        raise InvalidRequest("span is missing")


def _check_batch(spans: Sequence[Any]) -> None:
    if not 1 <= len(spans) <= MAX_ITEMS:
        raise InvalidRequest(f"spans must be 1 to {MAX_ITEMS}, not {len(spans)}")
    check_may_wait()  # for other calls, between its slices
