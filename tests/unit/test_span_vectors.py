"""Frozen spans: their canonical form and their signatures may never change."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from betrace.kms.v1 import span_pb2 as pb
from betrace_kms_evidence import (
    InvalidSpan,
    canonical_span,
    pre_authentication_encoding,
    sign,
    span_from_json,
    span_to_json,
    verify,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

Vector = Mapping[str, Any]


def vectors(name: str) -> Sequence[Vector]:
    read: Sequence[Vector] = json.loads(
        (Path(__file__).parents[1] / "vectors" / "spans" / f"{name}.json").read_text("utf-8")
    )["vectors"]
    return read


VECTORS = [*vectors("spans"), *vectors("maximal")]
MEMBERS = (
    "control",
    "durationNano",
    "error",
    "evidenceType",
    "framework",
    "name",
    "parentSpanId",
    "result",
    "spanId",
    "startTimeUnixNano",
    "traceId",
)
each_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])


def with_sorted_pairs(value: Mapping[str, Any]) -> Mapping[str, Any]:
    match value:
        case {"arrayValue": {"values": items}}:
            return {"arrayValue": {"values": [with_sorted_pairs(item) for item in items]}}
        case {"kvlistValue": {"values": pairs}}:
            ordered = sorted(pairs, key=lambda pair: pair["key"].encode("utf-16-be"))
            return {
                "kvlistValue": {
                    "values": [{"key": pair["key"], "value": with_sorted_pairs(pair["value"])} for pair in ordered]
                }
            }
    return value


def test_there_are_vectors() -> None:
    """The files are the frozen ones: 24 spans, each with a name and a key of its own."""
    assert 24 == len({vector["name"] for vector in VECTORS}) == len({vector["seed"] for vector in VECTORS})


@each_vector
def test_canonical_form(vector: Vector) -> None:
    """The span has exactly these bytes."""
    span = span_from_json(vector["span"])
    assert vector["canonical"] == canonical_span(vector["tenant_id"], vector["key_id"], span).decode()


@each_vector
def test_signature(vector: Vector) -> None:
    """The key of the seed makes exactly this signature, and its public key verifies it."""
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["seed"]))
    payload = vector["canonical"].encode()
    assert vector["public_key"] == key.public_key().public_bytes_raw().hex()
    assert vector["signature"] == sign(key, payload).hex()
    assert verify(key.public_key(), bytes.fromhex(vector["signature"]), payload)


@each_vector
def test_json_form(vector: Vector) -> None:
    """Writing the span as JSON and reading it again keeps its bytes."""
    span = span_from_json(json.loads(json.dumps(span_to_json(span_from_json(vector["span"])))))
    assert vector["canonical"] == canonical_span(vector["tenant_id"], vector["key_id"], span).decode()


@each_vector
def test_vectors_hold_without_us(vector: Vector) -> None:
    """The file is right by RFC 8785, DSSE and RFC 8032 alone: nothing of ours computes what is expected here."""
    span = vector["span"]
    attributes = {name: with_sorted_pairs(value) for name, value in span.get("attributes", {}).items()}
    whole = {member: span.get(member) for member in MEMBERS} | {
        "attributes": attributes,
        "tenantId": vector["tenant_id"],
        "keyId": vector["key_id"],
    }
    payload = rfc8785.dumps(whole)
    assert vector["canonical"] == payload.decode()
    signed = b"DSSEv1 36 application/vnd.betrace.span.v1+json " + str(len(payload)).encode() + b" " + payload
    public_key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(vector["public_key"]))
    public_key.verify(bytes.fromhex(vector["signature"]), signed)
    assert signed == pre_authentication_encoding("application/vnd.betrace.span.v1+json", payload)


@each_vector
def test_no_other_vector_verifies(vector: Vector) -> None:
    """A signature verifies for its own span and key only."""
    public_key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(vector["public_key"]))
    signature = bytes.fromhex(vector["signature"])
    valid = [other["name"] for other in VECTORS if verify(public_key, signature, other["canonical"].encode())]
    assert [vector["name"]] == valid


@pytest.mark.parametrize("vector", vectors("refused"), ids=lambda vector: vector["name"])
def test_refused(vector: Vector) -> None:
    """A span that has no canonical form is refused."""
    span = pb.ComplianceSpan.FromString(bytes.fromhex(vector["wire"]))
    with pytest.raises(InvalidSpan):
        canonical_span("acme", "key", span)
