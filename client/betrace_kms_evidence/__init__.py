"""The signed-span format: canonical bytes, DSSE encoding, Ed25519, Merkle proofs, key sets, the JSON form of a span.

Server and client share this package so that what one signs is, byte for byte, what the other verifies. It is pure: it
opens no file and no socket.
"""

from betrace_kms_evidence.canonical import InvalidSpan, canonical_span, has_unknown_fields
from betrace_kms_evidence.dsse import (
    ALGORITHM,
    PAYLOAD_TYPE,
    SIGNATURE_BYTES,
    pre_authentication_encoding,
    sign,
    verify,
)
from betrace_kms_evidence.jwks import InvalidKeySet, KeySet, PublicKey, jwks_text, read_jwks
from betrace_kms_evidence.signed_json import SignedDocument, proof_from_json, proof_from_text, read_signed_span
from betrace_kms_evidence.span_json import span_from_json, span_to_json
from betrace_kms_evidence.strict_json import InvalidDocument, base64_bytes, strict_json
from betrace_kms_evidence.tree_head import TREE_HEAD_TYPE, SignedTree, proved_root, sign_tree, tree_head
from betrace_kms_evidence.verification import SpanVerifier

__all__ = [
    "ALGORITHM",
    "PAYLOAD_TYPE",
    "SIGNATURE_BYTES",
    "TREE_HEAD_TYPE",
    "InvalidDocument",
    "InvalidKeySet",
    "InvalidSpan",
    "KeySet",
    "PublicKey",
    "SignedDocument",
    "SignedTree",
    "SpanVerifier",
    "base64_bytes",
    "canonical_span",
    "has_unknown_fields",
    "jwks_text",
    "pre_authentication_encoding",
    "proof_from_json",
    "proof_from_text",
    "proved_root",
    "read_jwks",
    "read_signed_span",
    "sign",
    "sign_tree",
    "span_from_json",
    "span_to_json",
    "strict_json",
    "tree_head",
    "verify",
]
