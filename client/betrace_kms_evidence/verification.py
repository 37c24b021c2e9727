"""Verification without the daemon: a key set, a span and what signing it gave."""

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Literal

from betrace.kms.v1 import span_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from betrace_kms_evidence import dsse
from betrace_kms_evidence.canonical import canonical_span
from betrace_kms_evidence.jwks import KeySet
from betrace_kms_evidence.tree_head import TREE_HEAD_TYPE, proved_root, tree_head

Reason = Literal["VALID", "UNKNOWN_KEY", "BAD_SIGNATURE", "KEY_REVOKED"]
_REMEMBERED_HEADS = 1024


class SpanVerifier:
    """Verifies spans of one tenant. A tree head that verified is remembered, so a batch costs one signature check."""

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys

    @cached_property
    def _signed(self) -> Callable[[str, bytes, bytes, int, int, int], bool]:
        return lru_cache(maxsize=_REMEMBERED_HEADS)(self._verify_head)

    def verify(
        self, span: pb.ComplianceSpan, signature: bytes, key_id: str, proof: pb.InclusionProof | None = None
    ) -> Reason:
        """Return whether the key signed this span, alone or with a proof in a batch.

        Raises InvalidSpan for a span or a proof that is not in the one form of evidence, whichever key is named.
        """
        payload = canonical_span(self._keys.tenant_id, key_id, span)
        root = None if proof is None else proved_root(payload, proof)
        key = self._keys.keys.get(key_id)
        if key is None:
            return "UNKNOWN_KEY"
        if key.status == "REVOKED":
            return "KEY_REVOKED"
        if proof is None:
            good = dsse.verify(self._keys.verifiers[key_id], signature, payload)
        else:
            time = proof.sign_time
            good = root is not None and self._signed(key_id, signature, root, proof.tree_size, time.seconds, time.nanos)
        return "VALID" if good else "BAD_SIGNATURE"

    def _verify_head(
        self, key_id: str, signature: bytes, root_hash: bytes, tree_size: int, seconds: int, nanos: int
    ) -> bool:
        time = Timestamp(seconds=seconds, nanos=nanos)
        head = tree_head(self._keys.tenant_id, key_id, root_hash, tree_size, time)
        return dsse.verify(self._keys.verifiers[key_id], signature, head, TREE_HEAD_TYPE)
