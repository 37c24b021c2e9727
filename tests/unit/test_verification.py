"""SpanVerifier: every verdict, alone and in a batch, and what a batch costs."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
from betrace.kms.v1 import span_pb2 as pb
from betrace_kms_evidence import (
    InvalidSpan,
    KeySet,
    PublicKey,
    SpanVerifier,
    canonical_span,
    jwks_text,
    read_jwks,
    sign,
    sign_tree,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.timestamp_pb2 import Timestamp

TENANT = "acme"
KEYS = {
    key_id: (Ed25519PrivateKey.from_private_bytes(bytes([number] * 32)), status)
    for number, (key_id, status) in enumerate({"old": "ROTATED", "new": "ACTIVE", "lost": "REVOKED"}.items())
}
SPAN = pb.ComplianceSpan(
    trace_id=b"t" * 16,
    span_id=b"s" * 8,
    name="user.login",
    attributes={"user": pb.AttributeValue(string_value="ann"), "n": pb.AttributeValue(int_value=1)},
)
TIME = Timestamp(seconds=1_700_000_000)


class CountingKey:
    """A public key that counts what it is asked."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self.verified = 0

    def verify(self, signature: bytes, data: bytes) -> None:
        self.verified += 1
        self._key.verify(signature, data)


def public_keys() -> list[PublicKey]:
    return [PublicKey(name, key.public_key().public_bytes_raw(), status) for name, (key, status) in KEYS.items()]


@pytest.fixture
def verifier() -> SpanVerifier:
    """Build a verifier from the text of a key set, as an auditor does."""
    return SpanVerifier(read_jwks(jwks_text(TENANT, public_keys())))


def counting(key_id: str = "new") -> tuple[SpanVerifier, CountingKey]:
    key = CountingKey(KEYS[key_id][0].public_key())
    keys = {public.key_id: public for public in public_keys()}
    verifiers = cast(Mapping[str, Ed25519PublicKey], {key_id: key})
    return SpanVerifier(KeySet(TENANT, keys, verifiers)), key


def signature_of(span: pb.ComplianceSpan, key_id: str = "new", tenant_id: str = TENANT) -> bytes:
    return sign(KEYS[key_id][0], canonical_span(tenant_id, key_id, span))


def batch_of(
    spans: Sequence[pb.ComplianceSpan], key_id: str = "new", tenant_id: str = TENANT
) -> tuple[bytes, list[pb.InclusionProof]]:
    payloads = [canonical_span(tenant_id, key_id, span) for span in spans]
    tree = sign_tree(KEYS[key_id][0], tenant_id, key_id, payloads, TIME)
    return tree.signature, [tree.proof(index) for index in range(len(spans))]


def changed(span: pb.ComplianceSpan, **fields: Any) -> pb.ComplianceSpan:
    copy = pb.ComplianceSpan.FromString(span.SerializeToString())
    copy.MergeFrom(pb.ComplianceSpan(**fields))
    return copy


def spans_of(size: int) -> list[pb.ComplianceSpan]:
    return [changed(SPAN, span_id=(index + 1).to_bytes(8, "big")) for index in range(size)]


@pytest.mark.parametrize("key_id", ["new", "old"])
def test_valid(verifier: SpanVerifier, key_id: str) -> None:
    """A signature of an active or a rotated key is good."""
    assert "VALID" == verifier.verify(SPAN, signature_of(SPAN, key_id), key_id)


@pytest.mark.parametrize("key_id", ["new", "old"])
def test_valid_with_a_proof(verifier: SpanVerifier, key_id: str) -> None:
    """A proof in a batch of an active or a rotated key is good."""
    spans = spans_of(5)
    signature, proofs = batch_of(spans, key_id)
    verdicts = [verifier.verify(span, signature, key_id, proof) for span, proof in zip(spans, proofs, strict=True)]
    assert ["VALID"] * 5 == verdicts


def test_unknown_key(verifier: SpanVerifier) -> None:
    """A key that the set does not have is unknown, with and without a proof, even if another key made the signature."""
    signature, (proof,) = batch_of([SPAN])
    assert "UNKNOWN_KEY" == verifier.verify(SPAN, signature_of(SPAN), "none")
    assert "UNKNOWN_KEY" == verifier.verify(SPAN, signature, "none", proof)
    assert "UNKNOWN_KEY" == verifier.verify(SPAN, signature, "", proof)


def test_revoked_key(verifier: SpanVerifier) -> None:
    """A revoked key is told as such, whether or not the signature is good."""
    signature, (proof,) = batch_of([SPAN], "lost")
    assert "KEY_REVOKED" == verifier.verify(SPAN, signature_of(SPAN, "lost"), "lost")
    assert "KEY_REVOKED" == verifier.verify(SPAN, signature, "lost", proof)
    assert "KEY_REVOKED" == verifier.verify(SPAN, bytes(64), "lost")


@pytest.mark.parametrize(
    "fields",
    [
        {"trace_id": b"T" * 16},
        {"span_id": b"S" * 8},
        {"parent_span_id": b"p" * 8},
        {"name": "user.logout"},
        {"framework": ""},
        {"attributes": {"user": pb.AttributeValue(string_value="bob")}},
        {"attributes": {"n": pb.AttributeValue(string_value="1")}},
        {"attributes": {"more": pb.AttributeValue()}},
    ],
    ids=str,
)
def test_altered_span(verifier: SpanVerifier, fields: Mapping[str, Any]) -> None:
    """A changed field makes the signature bad, and the proof too."""
    altered = changed(SPAN, **fields)
    signature, proofs = batch_of([SPAN, *spans_of(2)])
    assert "BAD_SIGNATURE" == verifier.verify(altered, signature_of(SPAN), "new")
    assert "BAD_SIGNATURE" == verifier.verify(altered, signature, "new", proofs[0])


def test_altered_signature(verifier: SpanVerifier) -> None:
    """Any flipped bit, and any other length, makes a signature bad."""
    batch, (proof,) = batch_of([SPAN])
    for good, its_proof in ((signature_of(SPAN), None), (batch, proof)):
        flipped = [bytes(byte ^ (bit // 8 == at) << bit % 8 for at, byte in enumerate(good)) for bit in range(512)]
        for bad in (*flipped, b"", good[:-1], good + b"\x00", good * 2):
            assert "BAD_SIGNATURE" == verifier.verify(SPAN, bad, "new", its_proof)


def test_another_keys_signature(verifier: SpanVerifier) -> None:
    """A signature of one key of the tenant is not that of another."""
    assert "BAD_SIGNATURE" == verifier.verify(SPAN, signature_of(SPAN, "old"), "new")


def test_another_tenants_signature(verifier: SpanVerifier) -> None:
    """A signature made for another tenant, with the very same key and id, is bad here."""
    signature, (proof,) = batch_of([SPAN], tenant_id="other")
    assert "BAD_SIGNATURE" == verifier.verify(SPAN, signature_of(SPAN, tenant_id="other"), "new")
    assert "BAD_SIGNATURE" == verifier.verify(SPAN, signature, "new", proof)


def test_another_spans_proof(verifier: SpanVerifier) -> None:
    """A proof proves its own span, and no other of the batch."""
    spans = spans_of(4)
    signature, proofs = batch_of(spans)
    verdicts = [[verifier.verify(span, signature, "new", proof) for proof in proofs] for span in spans]
    assert [["VALID" if row == column else "BAD_SIGNATURE" for column in range(4)] for row in range(4)] == verdicts


def test_a_proof_needs_its_own_batch(verifier: SpanVerifier) -> None:
    """A proof does not go with the signature of another batch, nor with a span's own."""
    signature, (proof, _) = batch_of([SPAN, *spans_of(1)])
    other, _ = batch_of([SPAN, *spans_of(2)])
    assert "VALID" == verifier.verify(SPAN, signature, "new", proof)
    assert "BAD_SIGNATURE" == verifier.verify(SPAN, other, "new", proof)
    assert "BAD_SIGNATURE" == verifier.verify(SPAN, signature_of(SPAN), "new", proof)


def test_a_batch_needs_its_proofs(verifier: SpanVerifier) -> None:
    """The signature of a batch alone says nothing about a span, not even of a batch of one."""
    signature, _ = batch_of([SPAN])
    assert "BAD_SIGNATURE" == verifier.verify(SPAN, signature, "new")
    assert "BAD_SIGNATURE" == verifier.verify(SPAN, signature, "new", pb.InclusionProof())


def test_a_span_without_canonical_form(verifier: SpanVerifier) -> None:
    """What could never have been signed is told as such, not as a bad signature."""
    for key_id in ("new", "lost"):
        with pytest.raises(InvalidSpan):
            verifier.verify(pb.ComplianceSpan(), bytes(64), key_id)


def test_a_batch_costs_one_signature_check() -> None:
    """A thousand spans of a batch take one Ed25519 verification."""
    verifier, key = counting()
    spans = spans_of(1000)
    signature, proofs = batch_of(spans)
    verdicts = {verifier.verify(span, signature, "new", proof) for span, proof in zip(spans, proofs, strict=True)}
    assert ({"VALID"}, 1) == (verdicts, key.verified)


def test_single_signatures_cost_one_check_each() -> None:
    """What is not in a batch is verified every time."""
    verifier, key = counting()
    for _ in range(3):
        assert "VALID" == verifier.verify(SPAN, signature_of(SPAN), "new")
    assert 3 == key.verified


def test_nothing_is_verified_for_a_proof_that_does_not_fit() -> None:
    """A span that is not in the tree costs hashes only."""
    verifier, key = counting()
    signature, (proof, _) = batch_of(spans_of(2))
    assert "BAD_SIGNATURE" == verifier.verify(SPAN, signature, "new", proof)
    assert 0 == key.verified


@pytest.mark.parametrize(
    ("seconds", "nanos", "unknown"),
    [(-1, 1_000_000_000, b""), (1, -1_000_000_000, b""), (0, 0, b"\x9a\x06\x01x"), (0, 0, b"\x2a\x04\x9a\x06\x01x")],
)
@pytest.mark.parametrize("key_id", ["new", "lost", "never"])
def test_a_proof_has_one_form(seconds: int, nanos: int, unknown: bytes, key_id: str) -> None:
    """Another form of the same time, and fields that no signature covers, are refused whichever key is named."""
    verifier, key = counting()
    signature, (proof, _) = batch_of([SPAN, *spans_of(1)])
    other = pb.InclusionProof.FromString(proof.SerializeToString() + unknown)
    other.sign_time.seconds += seconds
    other.sign_time.nanos += nanos
    with pytest.raises(InvalidSpan, match=r"^proof"):
        verifier.verify(SPAN, signature, key_id, other)
    assert 0 == key.verified


def test_a_remembered_head_serves_no_other() -> None:
    """After a good batch, a proof with another signature, key or time is still bad: memory is of exact heads."""
    verifier, key = counting()
    signature, (proof, _) = batch_of([SPAN, *spans_of(1)])
    assert "VALID" == verifier.verify(SPAN, signature, "new", proof)
    late = pb.InclusionProof.FromString(proof.SerializeToString())
    late.sign_time.seconds += 1
    for bad, its_proof in ((bytes(64), proof), (signature[::-1], proof), (signature, late)):
        for _ in range(2):
            assert "BAD_SIGNATURE" == verifier.verify(SPAN, bad, "new", its_proof)
    assert "VALID" == verifier.verify(SPAN, signature, "new", proof)
    assert 4 == key.verified
