"""Signing and judging many spans of one tenant: pure and synchronous, so that it can run in any thread.

Ed25519 in OpenSSL releases the interpreter's lock, so two threads sign nearly twice as fast as one; making the
canonical spans does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1 import span_pb2
from betrace_kms_evidence import (
    ALGORITHM,
    PAYLOAD_TYPE,
    SIGNATURE_BYTES,
    TREE_HEAD_TYPE,
    InvalidSpan,
    SpanVerifier,
    canonical_span,
    sign,
    sign_tree,
)
from google.protobuf.timestamp_pb2 import Timestamp

from betrace_kms_server.core.errors import InvalidRequest
from betrace_kms_server.core.keys import SigningKey
from betrace_kms_server.rpc.status import item_status


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one span of a batch cannot be signed."""

    message: str


def payloads_of(
    tenant_id: str, key_id: str, spans: Sequence[span_pb2.ComplianceSpan], *, unknown_fields_checked: bool = False
) -> list[bytes | Refusal]:
    """Return the canonical span of each, or why there is none; `unknown_fields_checked` as in `canonical_span`."""
    payloads: list[bytes | Refusal] = []
    for span in spans:
        try:
            payloads.append(canonical_span(tenant_id, key_id, span, unknown_fields_checked=unknown_fields_checked))
        except InvalidSpan as error:
            payloads.append(Refusal(str(error)))
    return payloads


def signatures_of(key: SigningKey, payloads: Sequence[bytes | Refusal]) -> list[bytes]:
    """Return the signature of each payload, 64 bytes, and nothing for one that was refused."""
    private_key = key.private_key
    return [sign(private_key, payload) if isinstance(payload, bytes) else b"" for payload in payloads]


def each_response(
    key_id: str, payloads: Sequence[bytes | Refusal], signatures: Sequence[bytes], *, return_payload: bool
) -> pb.SignSpansResponse:
    """Return the response for spans that were signed one by one."""
    response = pb.SignSpansResponse()
    add = response.results.add
    alike = pb.SignSpanResult(key_id=key_id, algorithm=ALGORITHM, payload_type=PAYLOAD_TYPE)
    for payload, signature in zip(payloads, signatures, strict=True):
        result = add()
        if isinstance(payload, Refusal):
            result.status.CopyFrom(_refused(payload.message))
            continue
        result.CopyFrom(alike)  # cheaper than to set what all have in common again and again
        result.signature = signature
        if return_payload:
            result.payload = payload
    return response


def proof_response(
    key: SigningKey,
    tenant_id: str,
    payloads: Sequence[bytes | Refusal],
    sign_time: Timestamp,
    *,
    return_payload: bool,
) -> pb.SignSpansResponse:
    """Sign the batch as one tree, and return the response; spans that were refused are no part of the tree."""
    response = pb.SignSpansResponse()
    add = response.results.add
    good = [payload for payload in payloads if isinstance(payload, bytes)]
    tree = sign_tree(key.private_key, tenant_id, key.key_id, good, sign_time) if good else None
    alike = pb.SignSpanResult(key_id=key.key_id, algorithm=ALGORITHM, payload_type=TREE_HEAD_TYPE)
    if tree:
        alike.signature = tree.signature
        alike.proof.CopyFrom(tree.head)
    leaf = 0
    for payload in payloads:
        result = add()
        if isinstance(payload, Refusal):
            result.status.CopyFrom(_refused(payload.message))
        elif tree:
            result.CopyFrom(alike)
            tree.complete(result.proof, leaf)
            leaf += 1
            if return_payload:
                result.payload = payload
    return response


def verdicts_of(verifier: SpanVerifier, spans: Sequence[pb.SignedSpan]) -> list[pb.VerifySpanResult]:
    """Return the verdict on each signed span; one that is malformed is refused alone."""
    return [_verdict_of(verifier, signed) for signed in spans]


def _verdict_of(verifier: SpanVerifier, signed: pb.SignedSpan) -> pb.VerifySpanResult:
    if not signed.HasField("span"):
        return pb.VerifySpanResult(status=_refused("span is missing"))
    if len(signed.signature) != SIGNATURE_BYTES:
        message = f"signature must be {SIGNATURE_BYTES} bytes, not {len(signed.signature)}"
        return pb.VerifySpanResult(status=_refused(message))
    proof = signed.proof if signed.HasField("proof") else None
    try:
        reason = verifier.verify(signed.span, signed.signature, signed.key_id, proof)
    except InvalidSpan as error:
        return pb.VerifySpanResult(status=_refused(str(error)))
    return pb.VerifySpanResult(valid=reason == "VALID", reason=pb.VerifyReason.Value(reason))


def _refused(message: str) -> pb.ItemStatus:
    return item_status(InvalidRequest(message))
