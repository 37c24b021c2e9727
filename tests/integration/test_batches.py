"""SignSpans, VerifySpans, proofs and GetPublicKeys over a real connection."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
from betrace.kms.v1.span_pb2 import ComplianceSpan, InclusionProof
from betrace_kms_client import (
    AsyncKmsClient,
    InvalidRequest,
    SignedSpan,
    SpanRefusal,
    SpanSignature,
    Verdict,
)
from betrace_kms_evidence import SpanVerifier, read_jwks

from tests.daemon import running

BAD = ComplianceSpan(trace_id=b"short", span_id=b"s" * 8)
VALID = Verdict(True, "VALID")


def spans(count: int, first: int = 1) -> list[ComplianceSpan]:
    """Return spans that differ in their ids."""
    return [
        ComplianceSpan(trace_id=b"t" * 16, span_id=number.to_bytes(8, "big"), name="user.login")
        for number in range(first, first + count)
    ]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncKmsClient]:
    """A client of a daemon with the local provider."""
    async with running(tmp_path) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        yield client


def signed(span: ComplianceSpan, result: SpanSignature | SpanRefusal) -> SignedSpan:
    """Put a span and its signature together."""
    assert isinstance(result, SpanSignature)
    return SignedSpan(span, result.signature, result.key_id, result.proof)


@pytest.mark.parametrize("proofs", [False, True])
@pytest.mark.parametrize("count", [1, 2, 33, 1000])
async def test_every_span_of_a_batch_verifies_in_order(client: AsyncKmsClient, count: int, proofs: bool) -> None:
    """One by one, as a batch, and offline with nothing but the tenant's key set."""
    batch = spans(count)
    results = await client.sign_spans("acme", batch, proofs=proofs, return_payload=True)
    together = [signed(span, result) for span, result in zip(batch, results, strict=True)]
    offline = SpanVerifier(read_jwks((await client.get_public_keys("acme")).jwks))
    assert await client.verify_spans("acme", together) == [VALID] * count
    for each in (together[0], together[-1]):
        assert await client.verify_span("acme", each.span, each.signature, each.key_id, each.proof) == VALID
    assert {offline.verify(each.span, each.signature, each.key_id, each.proof) for each in together} == {"VALID"}
    assert len({each.signature for each in together}) == (1 if proofs else count)
    payloads = [result.payload for result in results if isinstance(result, SpanSignature)]
    assert [orjson.loads(payload)["spanId"] for payload in payloads] == [span.span_id.hex() for span in batch]


async def test_each_is_what_sign_span_gives(client: AsyncKmsClient) -> None:
    """Ed25519 is deterministic: a batch without proofs is as many single signatures."""
    batch = spans(40)
    results = await client.sign_spans("acme", batch)
    assert results == [await client.sign_span("acme", span) for span in batch]


@pytest.mark.parametrize("proofs", [False, True])
async def test_a_bad_span_fails_alone(client: AsyncKmsClient, proofs: bool) -> None:
    """Its result names what to mend; its neighbours are signed and verify."""
    batch = [*spans(2), BAD, *spans(2, first=3)]
    results = await client.sign_spans("acme", batch, proofs=proofs)
    refusal = SpanRefusal("INVALID_ARGUMENT", "span.trace_id must be 16 bytes, not 5", "INVALID_REQUEST")
    good = [signed(span, result) for span, result in zip(batch, results, strict=True) if span is not BAD]
    assert results[2] == refusal
    assert await client.verify_spans("acme", good) == [VALID] * 4
    assert await client.verify_spans("acme", [good[0], SignedSpan(BAD, bytes(64), good[0].key_id)]) == [VALID, refusal]


async def test_a_batch_of_bad_spans_makes_no_key(client: AsyncKmsClient) -> None:
    """Nothing to sign is no reason for a tenant to get a key."""
    results = await client.sign_spans("acme", [BAD, BAD], proofs=True)
    assert {result.status for result in results if isinstance(result, SpanRefusal)} == {"INVALID_ARGUMENT"}
    assert (await client.get_public_keys("acme")).keys == ()


async def test_verdicts_tell_what_is_wrong(client: AsyncKmsClient) -> None:
    """Altered spans, other tenants' keys, proofs of other spans, signatures of a wrong length."""
    batch = spans(3)
    results = await client.sign_spans("acme", batch, proofs=True)
    first, second, third = (signed(span, result) for span, result in zip(batch, results, strict=True))
    await client.sign_span("rival", batch[0])
    assert first.proof is not None
    later = InclusionProof()
    later.CopyFrom(first.proof)
    later.sign_time.seconds += 1
    judged = await client.verify_spans(
        "acme",
        [
            first,
            SignedSpan(second.span, first.signature, first.key_id, first.proof),
            SignedSpan(first.span, first.signature, first.key_id),
            SignedSpan(first.span, first.signature, first.key_id, later),
            SignedSpan(first.span, first.signature, "0" * 32, first.proof),
            SignedSpan(first.span, b"short", first.key_id, first.proof),
            SignedSpan(first.span, first.signature, "nonsense", first.proof),
            third,
        ],
    )
    bad, unknown = Verdict(False, "BAD_SIGNATURE"), Verdict(False, "UNKNOWN_KEY")
    refusal = SpanRefusal("INVALID_ARGUMENT", "signature must be 64 bytes, not 5", "INVALID_REQUEST")
    assert judged == [VALID, bad, bad, bad, unknown, refusal, unknown, VALID]
    assert await client.verify_spans("rival", [first]) == [unknown]


@pytest.mark.parametrize(("count", "text"), [(0, "spans must be 1 to 1000, not 0"), (1001, "more than 1,000 spans")])
async def test_a_batch_has_one_to_a_thousand_spans(client: AsyncKmsClient, count: int, text: str) -> None:
    """More go into another call; a large request is refused before it is parsed."""
    with pytest.raises(InvalidRequest, match=text):
        await client.sign_spans("acme", spans(count))
    with pytest.raises(InvalidRequest, match=text):
        await client.verify_spans("acme", [SignedSpan(span, bytes(64), "0" * 32) for span in spans(count)])


async def test_public_keys_are_the_tenants_own(client: AsyncKmsClient) -> None:
    """Raw and as JWKS, with status and time; nothing of another tenant."""
    signature = await client.sign_span("acme", spans(1)[0])
    await client.sign_span("rival", spans(1)[0])
    found = await client.get_public_keys("acme")
    (key,) = found.keys
    (jwk,) = orjson.loads(found.jwks)["keys"]
    assert (key.key_id, key.status, len(key.raw)) == (signature.key_id, "ACTIVE", 32)
    assert key.create_time.endswith("Z")
    assert (jwk["kid"], jwk["kty"], jwk["crv"], jwk["use"]) == (signature.key_id, "OKP", "Ed25519", "sig")
    assert read_jwks(found.jwks).keys[key.key_id].raw == key.raw


async def test_a_large_batch_does_not_starve_other_calls(client: AsyncKmsClient) -> None:
    """While batches of a thousand are signed, single calls are answered between them."""
    await client.sign_span("acme", spans(1)[0])
    order: list[str] = []

    async def noted(name: str, call: object) -> None:
        await call  # type: ignore[misc]
        order.append(name)

    await asyncio.gather(
        *(noted("batch", client.sign_spans("acme", spans(1000))) for _ in range(4)),
        *(noted("single", client.sign_span("acme", spans(1)[0])) for _ in range(4)),
    )
    assert order.index("single") < len(order) - 1 - order[::-1].index("batch")


async def test_line_of_a_batch_names_its_key(tmp_path: Path) -> None:
    """The audit line of SignSpans has the id of the key that signed, and the number of spans."""
    file = tmp_path / "audit.log"
    async with (
        running(tmp_path / "daemon", kms_audit_file=str(file)) as daemon,
        AsyncKmsClient(daemon.addresses[0]) as client,
    ):
        signed = await client.sign_spans("acme", spans(3))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    (line,) = [line for line in lines if line["operation"] == "SignSpans"]
    assert ({result.key_id for result in signed}, 3) == ({line["keyId"]}, line["items"])  # type: ignore[union-attr]
