"""What a daemon gives to callers who keep it: messages, a wrapped key, and signatures of every status, as JSON.

Every later version must open and verify all of it.
"""

import base64
from collections.abc import Mapping
from typing import Any

import grpc
from betrace.kms.v1 import admin_pb2 as pb
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace.kms.v1.span_pb2 import ComplianceSpan, InclusionProof
from betrace_kms_client import KmsClient
from betrace_kms_client.results import SignedSpan, SpanSignature

PLAINTEXTS = {"message": b"alice@example.com", "empty": b""}
CONTEXT = {"field": "email"}
SPANS = [
    ComplianceSpan(trace_id=b"t" * 16, span_id=bytes([number]) * 8, name="user.login", framework="soc2")
    for number in range(1, 4)
]
Evidence = Mapping[str, Any]


def made(address: str, admin: str, tenant: str) -> Evidence:
    """Let a daemon seal and sign for a new tenant, rotate its key, and revoke one."""
    with KmsClient(address) as client, grpc.insecure_channel(admin) as channel:
        operator: Any = KmsAdminServiceStub(channel)
        revoked = client.sign_span(tenant, SPANS[0])
        operator.RevokeKey(pb.RevokeKeyRequest(tenant_id=tenant, key_id=revoked.key_id))
        rotated = client.sign_span(tenant, SPANS[0])
        operator.RotateKeys(pb.RotateKeysRequest(tenant_id=tenant))
        active = client.sign_span(tenant, SPANS[0])
        proved = [each for each in client.sign_spans(tenant, SPANS, proofs=True) if isinstance(each, SpanSignature)]
        key = client.generate_data_key(tenant, context=CONTEXT)
        return {
            "tenant": tenant,
            "messages": {
                name: _text(client.encrypt(tenant, plaintext, CONTEXT).ciphertext_blob)
                for name, plaintext in PLAINTEXTS.items()
            },
            "data_key": {"plaintext": _text(key.plaintext), "ciphertext_blob": _text(key.ciphertext_blob)},
            "signatures": {"KEY_REVOKED": _signed(revoked), "VALID": _signed(active), "rotated": _signed(rotated)},
            "proved": [_signed(each) for each in proved],
            "active_key_id": active.key_id,
        }


def check(address: str, kept: Evidence) -> None:
    """Fail unless a daemon opens and verifies what was kept, signs with the same key, and takes no other tenant."""
    tenant = kept["tenant"]
    with KmsClient(address) as client:
        for name, message in kept["messages"].items():
            assert PLAINTEXTS[name] == client.decrypt(tenant, _bytes(message), CONTEXT).plaintext
        wrapped = _bytes(kept["data_key"]["ciphertext_blob"])
        assert _bytes(kept["data_key"]["plaintext"]) == client.decrypt(tenant, wrapped, CONTEXT).plaintext
        for reason, signed in kept["signatures"].items():
            verdict = client.verify_span(tenant, SPANS[0], _bytes(signed["signature"]), signed["key_id"])
            assert (reason if reason == "KEY_REVOKED" else "VALID") == verdict.reason
        spans = [_span(span, signed) for span, signed in zip(SPANS, kept["proved"], strict=True)]
        assert ["VALID"] * len(SPANS) == [getattr(each, "reason", each) for each in client.verify_spans(tenant, spans)]
        assert kept["active_key_id"] == client.sign_span(tenant, SPANS[0]).key_id


def _signed(signature: SpanSignature) -> Mapping[str, str]:
    signed = {"signature": _text(signature.signature), "key_id": signature.key_id}
    return signed | ({"proof": _text(signature.proof.SerializeToString())} if signature.proof else {})


def _span(span: ComplianceSpan, signed: Mapping[str, str]) -> SignedSpan:
    proof = InclusionProof.FromString(_bytes(signed["proof"]))
    return SignedSpan(span, _bytes(signed["signature"]), signed["key_id"], proof)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
