"""Merkle trees and inclusion proofs as in Certificate Transparency (RFC 9162, section 2.1), with SHA-256.

A leaf is hashed as ``00 || data`` and a node as ``01 || left || right``, so that neither passes for the other. A tree
of n leaves splits at the largest power of two below n; built from the bottom that means: pair neighbours, and carry an
odd last one up as it is.
"""

from collections.abc import Sequence
from hashlib import sha256

HASH_BYTES = 32


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf, 32 bytes."""
    return sha256(b"\x00" + data).digest()


class MerkleTree:
    """The tree over one or more leaves, in order."""

    __slots__ = ("_levels",)

    def __init__(self, leaves: Sequence[bytes]) -> None:
        if not leaves:
            raise ValueError("a tree needs at least one leaf")
        level = [leaf_hash(leaf) for leaf in leaves]
        self._levels = [level]
        while len(level) > 1:
            above = [
                sha256(b"\x01" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)
            ]
            if len(level) % 2:
                above.append(level[-1])
            level = above
            self._levels.append(level)

    @property
    def root_hash(self) -> bytes:
        """The root, 32 bytes (RFC 9162, section 2.1.1, MTH)."""
        return self._levels[-1][0]

    def inclusion_proof(self, index: int) -> list[bytes]:
        """Return the siblings of a leaf on the way to the root (RFC 9162, section 2.1.3.1, PATH)."""
        proof = []
        for level in self._levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                proof.append(level[sibling])
            index >>= 1
        return proof


def root_from_proof(leaf: bytes, index: int, tree_size: int, proof: Sequence[bytes]) -> bytes | None:
    """Return the root that a leaf's data and its proof give, or None if the proof does not fit index and size.

    RFC 9162, section 2.1.3.2. Comparing the root with a signed one is left to the caller.
    """
    if not 0 <= index < tree_size:
        return None
    node, last, digest = index, tree_size - 1, leaf_hash(leaf)
    for sibling in proof:
        if last == 0 or len(sibling) != HASH_BYTES:
            return None
        if node & 1 or node == last:
            digest = sha256(b"\x01" + sibling + digest).digest()
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            digest = sha256(b"\x01" + digest + sibling).digest()
        node >>= 1
        last >>= 1
    return digest if last == 0 else None
