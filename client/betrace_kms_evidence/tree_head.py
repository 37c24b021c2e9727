"""Signed tree heads: one signature for a batch of spans, and a proof for each that verifies alone.

The leaves of the tree are canonical spans (canonical.py). Its head is a DSSE payload of a type of its own, the
canonical JSON (RFC 8785) of an object with, in order:

====================  ==============================================================
``keyId``             string: id of the signing key
``rootHash``          string: 64 lower-case hexadecimal digits
``signTimeUnixNano``  string: decimal nanoseconds since the Unix epoch
``tenantId``          string
``treeSize``          string: decimal
====================  ==============================================================

A span is proved by its proof (index, size, siblings), the head's time and the head's signature: the root follows from
the span and the proof, so a proof for another span, tenant, key or place gives another root, and the signature fails.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from betrace.kms.v1 import span_pb2 as pb
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.timestamp_pb2 import Timestamp

from betrace_kms_evidence import dsse
from betrace_kms_evidence.merkle import MerkleTree, root_from_proof

TREE_HEAD_TYPE = "application/vnd.betrace.tree-head.v1+json"
_NANOS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class SignedTree:
    """A batch under one signature (64 bytes), with the proof of each span, in order."""

    signature: bytes
    proofs: Sequence[pb.InclusionProof]


def tree_head(tenant_id: str, key_id: str, root_hash: bytes, tree_size: int, sign_time: Timestamp) -> bytes:
    """Return the canonical JSON of a tree head."""
    return orjson.dumps(
        {
            "keyId": key_id,
            "rootHash": root_hash.hex(),
            "signTimeUnixNano": str(sign_time.seconds * _NANOS + sign_time.nanos),
            "tenantId": tenant_id,
            "treeSize": str(tree_size),
        }
    )


def sign_tree(
    key: Ed25519PrivateKey, tenant_id: str, key_id: str, payloads: Sequence[bytes], sign_time: Timestamp
) -> SignedTree:
    """Sign a batch of one or more canonical spans."""
    tree, size = MerkleTree(payloads), len(payloads)
    root = tree.root_hash
    signature = dsse.sign(key, tree_head(tenant_id, key_id, root, size, sign_time), TREE_HEAD_TYPE)
    proofs = [
        pb.InclusionProof(
            leaf_index=index,
            tree_size=size,
            root_hash=root,
            hashes=tree.inclusion_proof(index),
            sign_time=sign_time,
        )
        for index in range(size)
    ]
    return SignedTree(signature, proofs)


def proved_head(tenant_id: str, key_id: str, payload: bytes, proof: pb.InclusionProof) -> bytes | None:
    """Return the tree head that a span and its proof lead to, or None if they do not fit together.

    The span is proved if the head's signature verifies; heads are alike for all spans of a batch.
    """
    root = root_from_proof(payload, proof.leaf_index, proof.tree_size, proof.hashes)
    if root is None or root != proof.root_hash:
        return None
    return tree_head(tenant_id, key_id, root, proof.tree_size, proof.sign_time)
