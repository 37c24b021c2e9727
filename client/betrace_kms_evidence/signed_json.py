"""Signed spans as JSON documents: what ``betrace-kms sign`` writes and ``verify`` reads.

docs/signed-spans.md, section 5, has the members and the verdicts. Whatever is not in exactly this form is refused
before a key is looked up, so a reader of the document sees what was verified.
"""

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from betrace.kms.v1 import span_pb2 as pb

from betrace_kms_evidence.canonical import InvalidSpan
from betrace_kms_evidence.dsse import ALGORITHM, PAYLOAD_TYPE, SIGNATURE_BYTES
from betrace_kms_evidence.merkle import HASH_BYTES
from betrace_kms_evidence.span_json import span_from_json
from betrace_kms_evidence.strict_json import (
    InvalidDocument,
    base64_bytes,
    decimal,
    members_of,
    required,
    strict_json,
    typed,
)
from betrace_kms_evidence.tree_head import TREE_HEAD_TYPE

_MEMBERS = frozenset({"span", "signature", "keyId", "algorithm", "payloadType", "payload", "proof"})
_PROOF_MEMBERS = frozenset({"leafIndex", "treeSize", "rootHash", "hashes", "signTime"})
_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?Z", re.ASCII)
_EPOCH = datetime(1970, 1, 1)
MAX_HASHES = 64
"""A tree of 2^64 leaves has no longer proof."""


@dataclass(frozen=True, slots=True)
class SignedDocument:
    """A span, what signing it gave, and the id of the key."""

    span: pb.ComplianceSpan
    signature: bytes
    key_id: str
    proof: pb.InclusionProof | None = field(default=None, repr=False)


def read_signed_span(document: Any) -> SignedDocument:
    """Read a document that strict_json parsed. Raises InvalidDocument, or InvalidSpan about the span."""
    members = members_of(document, _MEMBERS, "the document")
    signature = base64_bytes(required(members, "signature", str), "signature", size=SIGNATURE_BYTES)
    key_id = required(members, "keyId", str)
    proof = proof_from_json(members["proof"]) if "proof" in members else None
    expected = {"algorithm": ALGORITHM, "payloadType": PAYLOAD_TYPE if proof is None else TREE_HEAD_TYPE}
    for name, value in expected.items():
        if members.get(name, value) != value:
            raise InvalidDocument(f"{name} must be {value}: this version knows no other")
    if "payload" in members:
        base64_bytes(members["payload"], "payload")
    return SignedDocument(span_from_json(required(members, "span", dict)), signature, key_id, proof)


def proof_from_json(value: Any) -> pb.InclusionProof:
    """Read a proof. Raises InvalidDocument."""
    members = members_of(value, _PROOF_MEMBERS, "proof")
    hashes = typed(members.get("hashes", []), list, "hashes")
    if len(hashes) > MAX_HASHES:
        raise InvalidDocument(f"hashes must be at most {MAX_HASHES}")
    proof = pb.InclusionProof(
        leaf_index=decimal(members.get("leafIndex", "0"), "leafIndex"),
        tree_size=decimal(required(members, "treeSize", str), "treeSize"),
        root_hash=base64_bytes(required(members, "rootHash", str), "rootHash", size=HASH_BYTES),
        hashes=[base64_bytes(each, "an item of hashes", size=HASH_BYTES) for each in hashes],
    )
    _read_time(required(members, "signTime", str), proof)
    return proof


def proof_from_text(text: str) -> pb.InclusionProof:
    """Read the JSON text of a proof, as an attribute of an OTLP span holds it. Raises InvalidSpan."""
    try:
        return proof_from_json(strict_json(text))
    except ValueError as cause:
        raise InvalidSpan(f"the proof is not as sign writes it: {cause}") from cause


def _read_time(text: str, proof: pb.InclusionProof) -> None:
    found = _TIME.fullmatch(text)
    try:
        since = datetime.fromisoformat(found[1]) - _EPOCH if found else None
    except ValueError:
        since = None
    if found is None or since is None:
        raise InvalidDocument("signTime must be RFC 3339 in UTC, such as 2024-01-02T03:04:05.600Z")
    proof.sign_time.seconds = since.days * 86_400 + since.seconds
    proof.sign_time.nanos = int((found[2] or "").ljust(9, "0"))
