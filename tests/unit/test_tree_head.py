"""Signed tree heads: frozen batches, and everything that a head binds."""

import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from betrace.kms.v1 import span_pb2 as pb
from betrace_kms_evidence import (
    TREE_HEAD_TYPE,
    KeySet,
    PublicKey,
    SpanVerifier,
    canonical_span,
    proved_root,
    sign,
    sign_tree,
    span_from_json,
    tree_head,
    verify,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.timestamp_pb2 import Timestamp

from tests.unit.test_merkle import path, tree_hash

Vector = Mapping[str, Any]

TREES: Sequence[Vector] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "spans" / "trees.json").read_text("utf-8")
)["vectors"]
each_tree = pytest.mark.parametrize("vector", TREES, ids=lambda vector: vector["name"])

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC_KEY = KEY.public_key()
TENANT, KEY_ID = "acme", "00112233445566778899aabbccddeeff"
TIME = Timestamp(seconds=1_700_000_000, nanos=5)


def key_set(tenant_id: str = TENANT, *key_ids: str) -> KeySet:
    """Give a key set where every id is that of the one key."""
    ids = key_ids or (KEY_ID,)
    raw = PUBLIC_KEY.public_bytes_raw()
    return KeySet(tenant_id, {each: PublicKey(each, raw, "ACTIVE") for each in ids}, dict.fromkeys(ids, PUBLIC_KEY))


def spans_of(size: int) -> list[pb.ComplianceSpan]:
    return [
        pb.ComplianceSpan(trace_id=b"t" * 16, span_id=(index + 1).to_bytes(8, "big"), name=f"span {index}")
        for index in range(size)
    ]


def signed(spans: Sequence[pb.ComplianceSpan]) -> tuple[bytes, list[pb.InclusionProof]]:
    tree = sign_tree(KEY, TENANT, KEY_ID, [canonical_span(TENANT, KEY_ID, span) for span in spans], TIME)
    return tree.signature, [tree.proof(index) for index in range(len(spans))]


def time_of(text: str) -> Timestamp:
    time = Timestamp()
    time.FromJsonString(text)
    return time


def payloads_of(vector: Vector) -> list[bytes]:
    return [payload.encode() for payload in vector["payloads"]]


def test_there_are_trees() -> None:
    """The frozen batches are those of the format's description."""
    assert [1, 2, 3, 7, 100] == [len(vector["payloads"]) for vector in TREES]


@each_tree
def test_frozen_head_and_signature(vector: Vector) -> None:
    """The batch has exactly this head, and the key of the seed makes exactly this signature."""
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["seed"]))
    time, root = time_of(vector["sign_time"]), bytes.fromhex(vector["root_hash"])
    payloads = payloads_of(vector)
    assert vector["head"] == tree_head(vector["tenant_id"], vector["key_id"], root, len(payloads), time).decode()
    tree = sign_tree(key, vector["tenant_id"], vector["key_id"], payloads, time)
    assert vector["signature"] == tree.signature.hex()


@each_tree
def test_frozen_proofs(vector: Vector) -> None:
    """Each span has exactly this proof, and verifies with it."""
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["seed"]))
    tenant_id, key_id, payloads = vector["tenant_id"], vector["key_id"], payloads_of(vector)
    tree = sign_tree(key, tenant_id, key_id, payloads, time_of(vector["sign_time"]))
    public_key = PublicKey(key_id, bytes.fromhex(vector["public_key"]), "ACTIVE")
    verifier = SpanVerifier(KeySet(tenant_id, {key_id: public_key}, {key_id: key.public_key()}))
    for frozen in vector["proofs"]:
        proof = pb.InclusionProof(
            leaf_index=frozen["leaf_index"],
            tree_size=len(payloads),
            root_hash=bytes.fromhex(vector["root_hash"]),
            hashes=[bytes.fromhex(sibling) for sibling in frozen["hashes"]],
            sign_time=time_of(vector["sign_time"]),
        )
        assert proof == tree.proof(frozen["leaf_index"])
        members = json.loads(payloads[frozen["leaf_index"]])
        span = span_from_json({name: members[name] for name in members if name not in ("tenantId", "keyId")})
        assert payloads[frozen["leaf_index"]] == canonical_span(tenant_id, key_id, span)
        assert "VALID" == verifier.verify(span, bytes.fromhex(vector["signature"]), key_id, proof)


@each_tree
def test_trees_hold_without_us(vector: Vector) -> None:
    """The file is right by RFC 9162, RFC 8785, DSSE and RFC 8032 alone: nothing of ours computes what is expected."""
    payloads = payloads_of(vector)
    root = tree_hash(payloads)
    assert vector["root_hash"] == root.hex()
    for proof in vector["proofs"]:
        assert proof["hashes"] == [sibling.hex() for sibling in path(proof["leaf_index"], payloads)]
    time = time_of(vector["sign_time"])
    head = rfc8785.dumps(
        {
            "tenantId": vector["tenant_id"],
            "keyId": vector["key_id"],
            "rootHash": root.hex(),
            "treeSize": f"{len(payloads)}",
            "signTimeUnixNano": f"{time.ToNanoseconds()}",
        }
    )
    assert vector["head"] == head.decode()
    encoded = b"DSSEv1 41 application/vnd.betrace.tree-head.v1+json " + str(len(head)).encode() + b" " + head
    public_key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(vector["public_key"]))
    public_key.verify(bytes.fromhex(vector["signature"]), encoded)


def test_text_of_a_head() -> None:
    """A head has these members in this order; numbers are strings."""
    assert (
        '{"keyId":"00112233445566778899aabbccddeeff",'
        '"rootHash":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",'
        '"signTimeUnixNano":"1700000000000000005","tenantId":"acme","treeSize":"18446744073709551615"}'
    ) == tree_head(TENANT, KEY_ID, sha256().digest(), 2**64 - 1, TIME).decode()


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_every_span_of_a_batch_verifies_alone(size: int) -> None:
    """Each span is proved by its own proof and the one signature, with nothing of the others."""
    spans = spans_of(size)
    signature, proofs = signed(spans)
    for span, proof in zip(spans, proofs, strict=True):
        assert "VALID" == SpanVerifier(key_set()).verify(span, signature, KEY_ID, proof)


def altered(change: Callable[[pb.InclusionProof], object]) -> Callable[[pb.InclusionProof], pb.InclusionProof]:
    def apply(proof: pb.InclusionProof) -> pb.InclusionProof:
        changed = pb.InclusionProof.FromString(proof.SerializeToString())
        change(changed)
        assert proof != changed
        return changed

    return apply


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda proof: setattr(proof, "leaf_index", 1), id="index"),
        pytest.param(lambda proof: setattr(proof, "leaf_index", 2**64 - 1), id="greatest index"),
        pytest.param(lambda proof: setattr(proof, "tree_size", 4), id="size with the same path"),
        pytest.param(lambda proof: setattr(proof, "tree_size", 2), id="size with a shorter path"),
        pytest.param(lambda proof: setattr(proof, "tree_size", 0), id="no size"),
        pytest.param(lambda proof: setattr(proof, "root_hash", bytes(32)), id="root"),
        pytest.param(lambda proof: setattr(proof, "root_hash", b""), id="no root"),
        pytest.param(lambda proof: proof.hashes.pop(), id="a sibling less"),
        pytest.param(lambda proof: proof.hashes.append(bytes(32)), id="a sibling more"),
        pytest.param(lambda proof: proof.hashes.reverse(), id="siblings in another order"),
        pytest.param(lambda proof: setattr(proof.sign_time, "seconds", 1_700_000_001), id="seconds"),
        pytest.param(lambda proof: setattr(proof.sign_time, "nanos", 6), id="nanoseconds"),
        pytest.param(lambda proof: proof.ClearField("sign_time"), id="no time"),
    ],
)
def test_what_a_head_binds(change: Callable[[pb.InclusionProof], object]) -> None:
    """No member of a proof can be changed: the head that it leads to is another one, and was not signed."""
    spans = spans_of(3)
    signature, proofs = signed(spans)
    verifier = SpanVerifier(key_set())
    assert "BAD_SIGNATURE" == verifier.verify(spans[0], signature, KEY_ID, altered(change)(proofs[0]))
    assert "VALID" == verifier.verify(spans[0], signature, KEY_ID, proofs[0])


def test_a_head_binds_the_tenant() -> None:
    """The same key under the same id, but another tenant's: the batch is not that tenant's."""
    (span,) = spans_of(1)
    signature, (proof,) = signed([span])
    assert "BAD_SIGNATURE" == SpanVerifier(key_set("other")).verify(span, signature, KEY_ID, proof)


def test_a_head_binds_the_key_id() -> None:
    """The same key under another id: the batch is not that key's."""
    (span,) = spans_of(1)
    signature, (proof,) = signed([span])
    verifier = SpanVerifier(key_set(TENANT, KEY_ID, KEY_ID[::-1]))
    assert "BAD_SIGNATURE" == verifier.verify(span, signature, KEY_ID[::-1], proof)


@pytest.mark.parametrize("field", ["tenant_id", "key_id", "root_hash", "tree_size", "sign_time"])
def test_every_field_changes_the_head(field: str) -> None:
    """Heads that differ in one field are different documents, even where spans and proof would not tell."""
    fields: dict[str, Any] = {
        "tenant_id": TENANT,
        "key_id": KEY_ID,
        "root_hash": bytes(32),
        "tree_size": 1,
        "sign_time": TIME,
    }
    others: dict[str, Any] = {
        "tenant_id": "other",
        "key_id": KEY_ID[::-1],
        "root_hash": bytes(31) + b"\x01",
        "tree_size": 2,
        "sign_time": Timestamp(seconds=TIME.seconds, nanos=TIME.nanos + 1),
    }
    signature = sign(KEY, tree_head(**fields), TREE_HEAD_TYPE)
    assert verify(PUBLIC_KEY, signature, tree_head(**fields), TREE_HEAD_TYPE)
    assert not verify(PUBLIC_KEY, signature, tree_head(**{**fields, field: others[field]}), TREE_HEAD_TYPE)


def test_heads_and_spans_are_apart() -> None:
    """A head's signature does not verify as a span's over the same bytes, nor the other way round."""
    head = tree_head(TENANT, KEY_ID, bytes(32), 1, TIME)
    assert not verify(PUBLIC_KEY, sign(KEY, head, TREE_HEAD_TYPE), head)
    assert not verify(PUBLIC_KEY, sign(KEY, head), head, TREE_HEAD_TYPE)


def test_a_proof_leads_to_its_root() -> None:
    """What a proof proves is the root; a proof that does not fit the span proves none."""
    spans = spans_of(3)
    _, proofs = signed(spans)
    payloads = [canonical_span(TENANT, KEY_ID, span) for span in spans]
    for index, proof in enumerate(proofs):
        found = [proved_root(payload, proof) for payload in payloads]
        assert [proof.root_hash if index == other else None for other in range(3)] == found
