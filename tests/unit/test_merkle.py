"""Merkle trees: the recursive definition of the RFC, published answers, and proofs that do not verify."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_evidence.merkle import MerkleTree, leaf_hash, root_from_proof
from hypothesis import given, settings
from hypothesis import strategies as st

KNOWN: Mapping[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "merkle_rfc6962.json").read_text("utf-8")
)
KNOWN_LEAVES = [bytes.fromhex(leaf) for leaf in KNOWN["leaves"]]
SIZES = range(1, 131)
FORGED_SIZES = (1, 2, 3, 4, 5, 7, 8, 100)


def leaves_of(size: int) -> list[bytes]:
    return [b"leaf %d" % index for index in range(size)]


def split(size: int) -> int:
    """Give the largest power of two below a size."""
    return 1 << (size - 1).bit_length() - 1


def tree_hash(leaves: Sequence[bytes]) -> bytes:
    """Hash by the definition of MTH in RFC 9162, section 2.1.1."""
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    k = split(len(leaves))
    return sha256(b"\x01" + tree_hash(leaves[:k]) + tree_hash(leaves[k:])).digest()


def path(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    """Give the siblings by the definition of PATH in RFC 9162, section 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if index < k:
        return [*path(index, leaves[:k]), tree_hash(leaves[k:])]
    return [*path(index - k, leaves[k:]), tree_hash(leaves[:k])]


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_definition(size: int) -> None:
    """Root and every proof are what the recursive definitions of the RFC give, and every proof leads to the root."""
    leaves = leaves_of(size)
    tree, root = MerkleTree(leaves), tree_hash(leaves)
    assert root == tree.root_hash
    for index, leaf in enumerate(leaves):
        proof = tree.inclusion_proof(index)
        assert path(index, leaves) == proof
        assert root == root_from_proof(leaf, index, size, proof)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=70), st.data())
def test_any_leaves(leaves: Sequence[bytes], data: st.DataObject) -> None:
    """Leaves may be any bytes, equal ones included."""
    index = data.draw(st.integers(0, len(leaves) - 1))
    tree = MerkleTree(leaves)
    assert tree_hash(leaves) == tree.root_hash
    assert tree.root_hash == root_from_proof(leaves[index], index, len(leaves), tree.inclusion_proof(index))


def test_a_large_tree() -> None:
    """A tree of a thousand leaves, the largest batch, has the root of the definition."""
    leaves = leaves_of(1000)
    assert tree_hash(leaves) == MerkleTree(leaves).root_hash


@pytest.mark.parametrize("size", range(1, 9))
def test_known_roots(size: int) -> None:
    """Roots are those of the Certificate Transparency test suites."""
    assert KNOWN["roots"][size - 1] == MerkleTree(KNOWN_LEAVES[:size]).root_hash.hex()


@pytest.mark.parametrize("proof", KNOWN["proofs"], ids=lambda proof: f"{proof['leaf_index']} of {proof['tree_size']}")
def test_known_proofs(proof: Mapping[str, Any]) -> None:
    """Proofs are the published ones, and lead to the published roots."""
    index, size = proof["leaf_index"], proof["tree_size"]
    hashes = MerkleTree(KNOWN_LEAVES[:size]).inclusion_proof(index)
    assert proof["hashes"] == [sibling.hex() for sibling in hashes]
    root = root_from_proof(KNOWN_LEAVES[index], index, size, hashes)
    assert bytes.fromhex(KNOWN["roots"][size - 1]) == root


def test_leaf_and_node_hashes_are_apart() -> None:
    """What is hashed for a node is no leaf with the same bytes, so no inner node passes for a span."""
    left, right = leaf_hash(b"left"), leaf_hash(b"right")
    node = MerkleTree([b"left", b"right"]).root_hash
    assert sha256(b"\x01" + left + right).digest() == node
    assert leaf_hash(left + right) != node
    assert leaf_hash(b"\x01" + left + right) != node


def test_an_empty_tree_is_none() -> None:
    """Nothing cannot be proved, so there is no tree of no leaves."""
    with pytest.raises(ValueError, match="at least one leaf"):
        MerkleTree([])


@pytest.mark.parametrize("size", FORGED_SIZES)
def test_no_altered_bit_leads_to_the_root(size: int) -> None:
    """Flipping any bit of the leaf or of a sibling leads elsewhere."""
    leaves = leaves_of(size)
    tree = MerkleTree(leaves)
    for index in sorted({0, size // 2, size - 1}):
        leaf, proof = leaves[index], tree.inclusion_proof(index)
        for changed in flipped(leaf):
            assert tree.root_hash != root_from_proof(changed, index, size, proof)
        for place, sibling in enumerate(proof):
            for changed in flipped(sibling):
                forged = [*proof[:place], changed, *proof[place + 1 :]]
                assert tree.root_hash != root_from_proof(leaf, index, size, forged)


@pytest.mark.parametrize("size", range(1, 66))
def test_no_other_index_leads_to_the_root(size: int) -> None:
    """A proof holds for its own place only, and for none outside the tree."""
    leaves = leaves_of(size)
    tree = MerkleTree(leaves)
    for index, leaf in enumerate(leaves):
        proof = tree.inclusion_proof(index)
        places = [
            other
            for other in (*range(-2, size + 2), 2**63, 2**64 - 1, *(index ^ 1 << bit for bit in range(64)))
            if tree.root_hash == root_from_proof(leaf, other, size, proof)
        ]
        assert [index] * len(places) == places
        assert tree.root_hash == root_from_proof(leaf, index, size, proof)


@pytest.mark.parametrize("size", FORGED_SIZES)
def test_proofs_of_a_wrong_length(size: int) -> None:
    """A proof that is too short or too long, or whose siblings are no hashes, leads nowhere."""
    leaves = leaves_of(size)
    tree = MerkleTree(leaves)
    for index, leaf in enumerate(leaves):
        proof = tree.inclusion_proof(index)
        wrong = [
            *([*proof[:place], *proof[place + 1 :]] for place in range(len(proof))),
            *([*proof[:place], tree.root_hash, *proof[place:]] for place in range(len(proof) + 1)),
            *([*proof[:place], sibling[:-1], *proof[place + 1 :]] for place, sibling in enumerate(proof)),
            *([*proof[:place], sibling + b"\x00", *proof[place + 1 :]] for place, sibling in enumerate(proof)),
            *([*proof[:place], b"", *proof[place + 1 :]] for place in range(len(proof))),
        ]
        for forged in wrong:
            assert root_from_proof(leaf, index, size, forged) is None


@pytest.mark.parametrize("size", range(2, 40))
def test_another_size_needs_another_path(size: int) -> None:
    """A size that gives the leaf another way to the root does not lead to it.

    Sizes that give it the same way cannot be told apart here: the signed tree head binds the size.
    """
    leaves = leaves_of(size)
    tree = MerkleTree(leaves)
    for index, leaf in enumerate(leaves):
        proof = tree.inclusion_proof(index)
        for other in range(80):
            found = root_from_proof(leaf, index, other, proof)
            same = index < other and turns(index, other) == turns(index, size)
            assert same == (tree.root_hash == found)


def test_a_node_is_no_leaf() -> None:
    """A proof cut at an inner node does not prove that node's bytes as a span."""
    leaves = leaves_of(4)
    tree = MerkleTree(leaves)
    inner = tree.inclusion_proof(2)[1]
    assert inner == MerkleTree(leaves[:2]).root_hash
    for data in (inner, leaf_hash(leaves[0]) + leaf_hash(leaves[1])):
        assert tree.root_hash != root_from_proof(data, 0, 2, tree.inclusion_proof(0)[1:])


def turns(index: int, size: int) -> list[str]:
    """Tell on which side the siblings are, from the leaf to the root."""
    if size == 1:
        return []
    k = split(size)
    return [*turns(index, k), "right"] if index < k else [*turns(index - k, size - k), "left"]


def flipped(data: bytes) -> list[bytes]:
    """Give the data with each of its bits flipped, one at a time."""
    number = int.from_bytes(data, "big")
    return [(number ^ 1 << bit).to_bytes(len(data), "big") for bit in range(8 * len(data))]
