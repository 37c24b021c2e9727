"""Verification without the daemon: a key set, a span and what signing it gave."""

from functools import lru_cache
from typing import Literal

from betrace.kms.v1 import span_pb2 as pb

from betrace_kms_evidence import dsse
from betrace_kms_evidence.canonical import canonical_span
from betrace_kms_evidence.jwks import KeySet
from betrace_kms_evidence.tree_head import TREE_HEAD_TYPE, proved_head

Reason = Literal["VALID", "UNKNOWN_KEY", "BAD_SIGNATURE", "KEY_REVOKED"]
_REMEMBERED_HEADS = 1024


class SpanVerifier:
    """Verifies spans of one tenant. A tree head that verified is remembered, so a batch costs one signature check."""

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys
        self._signed = lru_cache(maxsize=_REMEMBERED_HEADS)(self._verify)

    def verify(
        self, span: pb.ComplianceSpan, signature: bytes, key_id: str, proof: pb.InclusionProof | None = None
    ) -> Reason:
        """Tell whether the key signed this span, alone or with a proof in a batch.

        Raises InvalidSpan for a span that has no canonical form.
        """
        tenant_id = self._keys.tenant_id
        key = self._keys.keys.get(key_id)
        if key is None:
            return "UNKNOWN_KEY"
        payload = canonical_span(tenant_id, key_id, span)
        if key.status == "REVOKED":
            return "KEY_REVOKED"
        if proof is None:
            good = self._verify(key_id, signature, payload, dsse.PAYLOAD_TYPE)
        else:
            head = proved_head(tenant_id, key_id, payload, proof)
            good = head is not None and self._signed(key_id, signature, head, TREE_HEAD_TYPE)
        return "VALID" if good else "BAD_SIGNATURE"

    def _verify(self, key_id: str, signature: bytes, payload: bytes, payload_type: str) -> bool:
        return dsse.verify(self._keys.verifiers[key_id], signature, payload, payload_type)
