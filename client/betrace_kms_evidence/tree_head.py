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
from betrace_kms_evidence.canonical import InvalidSpan, has_unknown_fields, nanoseconds
from betrace_kms_evidence.merkle import MerkleTree, root_from_proof

TREE_HEAD_TYPE = "application/vnd.betrace.tree-head.v1+json"


@dataclass(frozen=True, slots=True)
class SignedTree:
    """A batch under one signature (64 bytes)."""

    signature: bytes
    tree: MerkleTree
    head: pb.InclusionProof
    """What the proofs of all its spans have in common: tree size, root hash and time."""

    def complete(self, proof: pb.InclusionProof, index: int) -> None:
        """Make a copy of `head` the proof of one span."""
        proof.leaf_index = index
        proof.hashes.extend(self.tree.inclusion_proof(index))

    def proof(self, index: int) -> pb.InclusionProof:
        """Return the proof of one span."""
        proof = pb.InclusionProof()
        proof.CopyFrom(self.head)
        self.complete(proof, index)
        return proof


def tree_head(tenant_id: str, key_id: str, root_hash: bytes, tree_size: int, sign_time: Timestamp) -> bytes:
    """Return the canonical JSON of a tree head."""
    return orjson.dumps(
        {
            "keyId": key_id,
            "rootHash": root_hash.hex(),
            "signTimeUnixNano": nanoseconds(sign_time, "proof.sign_time"),
            "tenantId": tenant_id,
            "treeSize": str(tree_size),
        }
    )


def sign_tree(
    key: Ed25519PrivateKey, tenant_id: str, key_id: str, payloads: Sequence[bytes], sign_time: Timestamp
) -> SignedTree:
    """Sign a batch of one or more canonical spans."""
    tree, size = MerkleTree(payloads), len(payloads)
    head = pb.InclusionProof(tree_size=size, root_hash=tree.root_hash, sign_time=sign_time)
    signature = dsse.sign(key, tree_head(tenant_id, key_id, tree.root_hash, size, sign_time), TREE_HEAD_TYPE)
    return SignedTree(signature, tree, head)


def proved_root(payload: bytes, proof: pb.InclusionProof) -> bytes | None:
    """Return the root hash that a canonical span and its proof lead to, or None if they do not fit together.

    The span is proved if the signature of that root's tree head verifies. Raises InvalidSpan for a proof that holds
    more than that signature covers, or its time in another form than the one that a reader of JSON would see.
    """
    if has_unknown_fields(proof):
        raise InvalidSpan("proof holds fields that this version does not know; upgrade betrace-kms")
    nanoseconds(proof.sign_time, "proof.sign_time")
    root = root_from_proof(payload, proof.leaf_index, proof.tree_size, proof.hashes)
    return root if root == proof.root_hash else None
