"""securesystemslib, an independent implementation of DSSE, verifies what a real daemon signed, from its key set."""

import json
from base64 import b64encode, urlsafe_b64decode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from betrace.kms.v1 import span_pb2 as pb
from betrace_kms_client import AsyncKmsClient, SpanSignature
from betrace_kms_evidence import tree_head
from google.protobuf.timestamp_pb2 import Timestamp
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]

from tests.daemon import running

TENANT = "acme"
SPAN = pb.ComplianceSpan(
    trace_id=bytes(range(1, 17)),
    span_id=bytes(range(1, 9)),
    parent_span_id=bytes(range(9, 17)),
    name="invoice.approve 😀",
    framework="soc2",
    control="CC6_1",
    evidence_type="audit_trail",
    start_time=Timestamp(seconds=1_700_000_000, nanos=5),
    result="success",
    attributes={"amount": pb.AttributeValue(double_value=1e21), "ﬁ": pb.AttributeValue(bytes_value=b"\x00\xff")},
)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncKmsClient]:
    """Run a daemon, and give a client of it."""
    async with running(tmp_path) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        yield client


def keys_of(jwks: str) -> list[SSlibKey]:
    """Read a key set by RFC 7517 and RFC 8037, without our code."""
    return [
        SSlibKey(jwk["kid"], "ed25519", "ed25519", {"public": urlsafe_b64decode(jwk["x"] + "=").hex()})
        for jwk in json.loads(jwks)["keys"]
        if (jwk["kty"], jwk["crv"], jwk["alg"], jwk["use"]) == ("OKP", "Ed25519", "EdDSA", "sig")
    ]


def envelope(payload: bytes, payload_type: str, signature: bytes, key_id: str) -> dict[str, Any]:
    """Give DSSE's JSON envelope."""
    return {
        "payload": b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": key_id, "sig": b64encode(signature).decode()}],
    }


def verified_by(document: dict[str, Any], keys: list[SSlibKey]) -> list[str]:
    """Give the ids of the keys that securesystemslib finds to have signed an envelope."""
    return list(Envelope.from_dict(document).verify(list(keys), 1))


def flipped(data: bytes) -> Iterator[bytes]:
    """Give the data with each byte changed, one at a time."""
    for at, byte in enumerate(data):
        yield data[:at] + bytes([byte ^ 1 << at % 8]) + data[at + 1 :]


def altered(signed: SpanSignature) -> Iterator[dict[str, Any]]:
    """Give the envelope with each byte of each field changed, one at a time."""
    payload, kind, signature, key_id = signed.payload, signed.payload_type, signed.signature, signed.key_id
    yield from (envelope(changed, kind, signature, key_id) for changed in flipped(payload))
    yield from (envelope(payload, changed.decode("latin-1"), signature, key_id) for changed in flipped(kind.encode()))
    yield from (envelope(payload, kind, changed, key_id) for changed in flipped(signature))
    yield from (envelope(payload, kind, signature, changed.decode("latin-1")) for changed in flipped(key_id.encode()))


async def test_a_signed_span(client: AsyncKmsClient) -> None:
    """An envelope made of a SignSpan result verifies with the key of the tenant's key set."""
    signed = await client.sign_span(TENANT, SPAN, return_payload=True)
    keys = keys_of((await client.get_public_keys(TENANT)).jwks)
    document = envelope(signed.payload, signed.payload_type, signed.signature, signed.key_id)
    assert [signed.key_id] == verified_by(document, keys)
    assert "invoice.approve 😀" == json.loads(Envelope.from_dict(document | {"signatures": []}).payload)["name"]


async def test_any_changed_byte_fails(client: AsyncKmsClient) -> None:
    """A changed byte of payload, payload type, signature or key id, wherever it is, fails."""
    signed = await client.sign_span(TENANT, SPAN, return_payload=True)
    keys = keys_of((await client.get_public_keys(TENANT)).jwks)
    documents = list(altered(signed))
    assert len(signed.payload) + len(signed.payload_type) + 64 + 32 == len(documents)
    for document in documents:
        with pytest.raises(VerificationError):
            verified_by(document, keys)


async def test_another_tenants_keys_fail(client: AsyncKmsClient) -> None:
    """The key set of another tenant does not verify the envelope, not even under the same key id."""
    signed = await client.sign_span(TENANT, SPAN, return_payload=True)
    await client.sign_span("other", SPAN)
    (other,) = keys_of((await client.get_public_keys("other")).jwks)
    document = envelope(signed.payload, signed.payload_type, signed.signature, signed.key_id)
    for key in (other, SSlibKey(signed.key_id, other.keytype, other.scheme, other.keyval)):
        with pytest.raises(VerificationError):
            Envelope.from_dict(json.loads(json.dumps(document))).verify([key], 1)


async def test_signed_batches(client: AsyncKmsClient) -> None:
    """So do the envelopes of SignSpans: of each span, or of the tree head that its proof leads to."""
    spans = [pb.ComplianceSpan(trace_id=b"t" * 16, span_id=bytes([number] * 8)) for number in (1, 2, 3)]
    each = await client.sign_spans(TENANT, spans, return_payload=True)
    batch = await client.sign_spans(TENANT, spans, proofs=True)
    keys = keys_of((await client.get_public_keys(TENANT)).jwks)
    for signed in each:
        assert isinstance(signed, SpanSignature)
        document = envelope(signed.payload, signed.payload_type, signed.signature, signed.key_id)
        assert [signed.key_id] == verified_by(document, keys)
    for signed in batch:
        assert isinstance(signed, SpanSignature)
        assert signed.proof is not None
        head = tree_head(TENANT, signed.key_id, signed.proof.root_hash, signed.proof.tree_size, signed.proof.sign_time)
        document = envelope(head, signed.payload_type, signed.signature, signed.key_id)
        assert [signed.key_id] == verified_by(document, keys)
        with pytest.raises(VerificationError):
            verified_by(envelope(head[:-3] + b'4"}', signed.payload_type, signed.signature, signed.key_id), keys)
