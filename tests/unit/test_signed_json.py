"""Signed documents and proofs: what is read, and that everything beside it is refused."""

import json
from base64 import b64encode
from typing import Any

import pytest
from betrace_kms_evidence import InvalidDocument, InvalidSpan, proof_from_json, proof_from_text, read_signed_span
from google.protobuf.timestamp_pb2 import Timestamp

HASH = b64encode(bytes(range(32))).decode()
OTHER = b64encode(bytes(range(1, 33))).decode()
PROOF = {
    "leafIndex": "2",
    "treeSize": "3",
    "rootHash": HASH,
    "hashes": [OTHER],
    "signTime": "2024-01-02T03:04:05.600000001Z",
}
SPAN = {"traceId": "01" * 16, "spanId": "02" * 8}
DOCUMENT = {"span": SPAN, "signature": b64encode(bytes(64)).decode(), "keyId": "k"}
TREE, ALONE = "application/vnd.betrace.tree-head.v1+json", "application/vnd.betrace.span.v1+json"


def test_proof() -> None:
    """Each member arrives where it belongs."""
    proof = proof_from_json(PROOF)
    assert (2, 3, bytes(range(32)), [bytes(range(1, 33))]) == (
        proof.leaf_index,
        proof.tree_size,
        proof.root_hash,
        list(proof.hashes),
    )
    assert Timestamp(seconds=1704164645, nanos=600000001) == proof.sign_time
    assert proof == proof_from_text(json.dumps(PROOF))


def test_proof_may_leave_out_zero_and_no_hashes() -> None:
    """As protobuf's JSON mapping writes a proof of the only leaf."""
    proof = proof_from_json({"treeSize": "1", "rootHash": HASH, "signTime": "1969-12-31T23:59:59Z"})
    assert (0, [], -1, 0) == (proof.leaf_index, list(proof.hashes), proof.sign_time.seconds, proof.sign_time.nanos)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"leafIndex": 2}, "leafIndex must be a JSON string"),
        ({"leafIndex": "02"}, "leafIndex must be a"),
        ({"leafIndex": "-1"}, "leafIndex must be a"),
        ({"leafIndex": str(2**64)}, "leafIndex must be a"),
        ({"treeSize": "3.0"}, "treeSize must be a"),
        ({"treeSize": ...}, "treeSize is missing"),
        ({"rootHash": ...}, "rootHash is missing"),
        ({"rootHash": HASH.rstrip("=")}, "rootHash must be base64 with padding"),
        ({"rootHash": b64encode(bytes(31)).decode()}, "rootHash must be 32 bytes, not 31"),
        ({"hashes": None}, "hashes must be a JSON array"),
        ({"hashes": [HASH, "!"]}, "an item of hashes must be base64 with padding"),
        ({"hashes": [b64encode(bytes(33)).decode()]}, "an item of hashes must be 32 bytes, not 33"),
        ({"hashes": [HASH] * 65}, "hashes must be at most 64"),
        ({"signTime": ...}, "signTime is missing"),
        ({"signTime": "2024-01-02T03:04:05"}, "signTime must be RFC 3339"),
        ({"signTime": "2024-02-30T03:04:05Z"}, "signTime must be RFC 3339"),
        ({"signTime": "2024-01-02T03:04:05.0000000001Z"}, "signTime must be RFC 3339"),
        ({"sign_time": PROOF["signTime"]}, "proof has no member 'sign_time'; it may have hashes, leafIndex"),
    ],
)
def test_proof_in_another_form(change: dict[str, Any], words: str) -> None:
    """Each refusal names the member."""
    members = {name: value for name, value in {**PROOF, **change}.items() if value is not ...}
    with pytest.raises(InvalidDocument, match=words):
        proof_from_json(members)
    with pytest.raises(InvalidSpan, match=f"the proof is not as sign writes it: {words}"):
        proof_from_text(json.dumps(members))


def test_64_hashes_are_read() -> None:
    """A tree of 2^64 leaves has a proof of that length."""
    assert 64 == len(proof_from_json({**PROOF, "hashes": [HASH] * 64}).hashes)


def test_documents() -> None:
    """With all members and with the needed ones only, alone and in a batch."""
    read = read_signed_span(DOCUMENT)
    assert (bytes(64), "k", None, bytes([1]) * 16) == (read.signature, read.key_id, read.proof, read.span.trace_id)
    more = {"algorithm": "Ed25519", "payload": "AA=="}
    assert read == read_signed_span({**DOCUMENT, **more, "payloadType": ALONE})
    proved = read_signed_span({**DOCUMENT, **more, "payloadType": TREE, "proof": PROOF})
    assert proof_from_json(PROOF) == proved.proof


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"signature": ...}, "signature is missing"),
        ({"signature": 7}, "signature must be a JSON string"),
        ({"signature": "AA=="}, "signature must be 64 bytes, not 1"),
        ({"keyId": ...}, "keyId is missing"),
        ({"keyId": 7}, "keyId must be a JSON string"),
        ({"span": ...}, "span is missing"),
        ({"span": []}, "span must be a JSON object"),
        ({"algorithm": "EdDSA"}, "algorithm must be Ed25519"),
        ({"payloadType": TREE}, f"payloadType must be {ALONE}"),
        ({"payloadType": ALONE, "proof": PROOF}, f"payloadType must be {TREE}"),
        ({"payload": "AA"}, "payload must be base64"),
        ({"proof": None}, "proof must be a JSON object"),
        ({"key_id": "k"}, "the document has no member 'key_id'"),
    ],
)
def test_document_in_another_form(change: dict[str, Any], words: str) -> None:
    """Each refusal names the member, before a key is looked up."""
    with pytest.raises(InvalidDocument, match=words.replace("+", r"\+")):
        read_signed_span({name: value for name, value in {**DOCUMENT, **change}.items() if value is not ...})
