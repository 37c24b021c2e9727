"""Every RPC over a real connection: what it answers, and how it refuses."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog.testing
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_envelope import Message
from betrace_kms_server.data_keys.keyring import KeyRing
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.daemon import running

SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")
LIMIT = 4 * 1024 * 1024
OPTIONS = [("grpc.max_receive_message_length", -1)]


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[Any]:
    """A stub on a daemon with the local provider."""
    async with (
        running(tmp_path) as daemon,
        grpc.aio.insecure_channel(daemon.addresses[0], options=OPTIONS) as channel,
    ):
        yield KeyManagementServiceStub(channel)


async def refusal(call: Awaitable[Any]) -> tuple[str, str, str]:
    """Return status, reason and message of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    if status:
        status.details[0].Unpack(info)
    return caught.value.code().name, info.reason, caught.value.details() or ""


async def test_a_data_key_can_be_unwrapped_by_its_tenant_only(stub: Any) -> None:
    """GenerateDataKey's blob opens with Decrypt under the same tenant and context, and under no other."""
    context = {"table": "users"}
    key = await stub.GenerateDataKey(
        pb.GenerateDataKeyRequest(tenant_id="acme", key_spec=pb.AES_256, encryption_context=context)
    )
    request = pb.DecryptRequest(tenant_id="acme", ciphertext_blob=key.ciphertext_blob, encryption_context=context)
    assert len(key.plaintext) == 32
    assert (await stub.Decrypt(request)).plaintext == key.plaintext
    request.tenant_id = "rival"
    assert (await refusal(stub.Decrypt(request)))[:2] == ("INVALID_ARGUMENT", "CIPHERTEXT_DOES_NOT_OPEN")


async def test_data_keys_are_cached_unless_fresh(stub: Any) -> None:
    """Alike calls share a key; another length, context or tenant, and `fresh`, get one of their own."""

    async def key(**fields: Any) -> bytes:
        request = {"tenant_id": "acme", "number_of_bytes": 16, **fields}
        answer: bytes = (await stub.GenerateDataKey(pb.GenerateDataKeyRequest(**request))).plaintext
        return answer

    first = await key()
    others = [
        await key(fresh=True),
        await key(fresh=True),
        await key(number_of_bytes=17),
        await key(encryption_context={"a": "b"}),
        await key(tenant_id="rival"),
    ]
    assert await key() == first
    assert len({first, *others}) == 6
    assert (
        await stub.GenerateDataKey(pb.GenerateDataKeyRequest(tenant_id="acme", key_spec=pb.AES_128))
    ).plaintext == first


@pytest.mark.parametrize("size", [0, 1, 1024, 65_536, LIMIT])
async def test_payloads_round_trip_up_to_the_limit(stub: Any, size: int) -> None:
    """What Encrypt sealed, Decrypt opens, also at the largest size that Encrypt takes."""
    plaintext = b"p" * size
    sealed = await stub.Encrypt(pb.EncryptRequest(tenant_id="acme", plaintext=plaintext, encryption_context={"f": "é"}))
    opened = await stub.Decrypt(
        pb.DecryptRequest(tenant_id="acme", ciphertext_blob=sealed.ciphertext_blob, encryption_context={"f": "é"})
    )
    assert (opened.plaintext, opened.key_id) == (plaintext, sealed.key_id)


@pytest.mark.parametrize("destination", [{"a": "b"}, {"c": "d"}, {}])
async def test_re_encrypt_seals_again_for_the_destination_context(stub: Any, destination: dict[str, str]) -> None:
    """A message becomes a message, a wrapped data key a wrapped data key; only the destination context opens them."""
    source = {"a": "b"}
    sealed = await stub.Encrypt(pb.EncryptRequest(tenant_id="acme", plaintext=b"payload", encryption_context=source))
    key = await stub.GenerateDataKey(
        pb.GenerateDataKeyRequest(tenant_id="acme", key_spec=pb.AES_256, encryption_context=source)
    )
    for blob, plaintext in ((sealed.ciphertext_blob, b"payload"), (key.ciphertext_blob, key.plaintext)):
        again = await stub.ReEncrypt(
            pb.ReEncryptRequest(
                tenant_id="acme",
                ciphertext_blob=blob,
                encryption_context=source,
                destination_encryption_context=destination,
            )
        )
        request = pb.DecryptRequest(
            tenant_id="acme", ciphertext_blob=again.ciphertext_blob, encryption_context=destination
        )
        assert (await stub.Decrypt(request)).plaintext == plaintext
        assert again.ciphertext_blob != blob
        request.encryption_context["x"] = "y"
        assert (await refusal(stub.Decrypt(request)))[1] == "CIPHERTEXT_DOES_NOT_OPEN"


async def test_a_signature_verifies_for_its_span_tenant_and_key(stub: Any) -> None:
    """VerifySpan answers OK with a reason, whatever was altered."""
    signed = await stub.SignSpan(pb.SignSpanRequest(tenant_id="acme", span=SPAN, return_payload=True))
    good = pb.VerifySpanRequest(tenant_id="acme", span=SPAN, signature=signed.signature, key_id=signed.key_id)
    await stub.SignSpan(pb.SignSpanRequest(tenant_id="rival", span=SPAN))

    async def verdict(**fields: Any) -> tuple[bool, str]:
        request = pb.VerifySpanRequest()
        request.CopyFrom(good)
        request.MergeFrom(pb.VerifySpanRequest(**fields))
        answer = await stub.VerifySpan(request)
        return answer.valid, pb.VerifyReason.Name(answer.reason)

    assert await verdict() == (True, "VALID")
    assert await verdict(span=ComplianceSpan(name="user.logout")) == (False, "BAD_SIGNATURE")
    assert await verdict(signature=bytes(64)) == (False, "BAD_SIGNATURE")
    assert await verdict(tenant_id="rival") == (False, "UNKNOWN_KEY")
    assert await verdict(key_id="0" * 32) == (False, "UNKNOWN_KEY")
    assert b'"keyId":"' + signed.key_id.encode() in signed.payload
    assert (signed.algorithm, signed.payload_type) == ("Ed25519", "application/vnd.betrace.span.v1+json")


BAD_REQUESTS: list[tuple[str, Any, str]] = [
    ("GenerateDataKey", pb.GenerateDataKeyRequest(key_spec=pb.AES_256), "tenant_id must be"),
    ("GenerateDataKey", pb.GenerateDataKeyRequest(tenant_id="a b", key_spec=pb.AES_256), "tenant_id must be"),
    ("GenerateDataKey", pb.GenerateDataKeyRequest(tenant_id="a\n", key_spec=pb.AES_256), "tenant_id must be"),
    ("GenerateDataKey", pb.GenerateDataKeyRequest(tenant_id="a" * 129, key_spec=pb.AES_256), "tenant_id must be"),
    ("GenerateDataKey", pb.GenerateDataKeyRequest(tenant_id="a"), "give either key_spec"),
    ("GenerateDataKey", pb.GenerateDataKeyRequest(tenant_id="a", key_spec=pb.AES_256, number_of_bytes=32), "either"),
    ("GenerateDataKey", pb.GenerateDataKeyRequest(tenant_id="a", key_spec=9), "AES_256 or AES_128"),  # type: ignore[arg-type]
    ("GenerateDataKey", pb.GenerateDataKeyRequest(tenant_id="a", number_of_bytes=1025), "1 to 1024"),
    ("Encrypt", pb.EncryptRequest(plaintext=b"p"), "tenant_id must be"),
    ("Encrypt", pb.EncryptRequest(tenant_id="a", plaintext=bytes(LIMIT + 1)), "kms.server.max-message-bytes"),
    ("Encrypt", pb.EncryptRequest(tenant_id="a", encryption_context={"tenantId": "b"}), "the server does"),
    ("Encrypt", pb.EncryptRequest(tenant_id="a", encryption_context={"keyType": "signing"}), "the server does"),
    ("Encrypt", pb.EncryptRequest(tenant_id="a", encryption_context={"aws-crypto-x": "b"}), "the server does"),
    ("Encrypt", pb.EncryptRequest(tenant_id="a", encryption_context={"": "b"}), "empty name"),
    ("Encrypt", pb.EncryptRequest(tenant_id="a", encryption_context={"a": "b" * 5000}), "5008 bytes as JSON"),
    ("Decrypt", pb.DecryptRequest(tenant_id="a"), "ciphertext_blob is empty"),
    ("Decrypt", pb.DecryptRequest(tenant_id="a", ciphertext_blob=b"rubbish"), "does not open"),
    ("Decrypt", pb.DecryptRequest(tenant_id="a", ciphertext_blob=b"\x01\x80" + bytes(500)), "does not open"),
    ("Decrypt", pb.DecryptRequest(tenant_id="a", ciphertext_blob=b"\x02\x04\x78"), "does not open"),
    ("Decrypt", pb.DecryptRequest(tenant_id="a", ciphertext_blob=bytes(6145)), "does not open"),
    ("ReEncrypt", pb.ReEncryptRequest(tenant_id="a"), "ciphertext_blob is empty"),
    ("ReEncrypt", pb.ReEncryptRequest(tenant_id="a", ciphertext_blob=b"rubbish"), "does not open"),
    (
        "ReEncrypt",
        pb.ReEncryptRequest(
            tenant_id="a", ciphertext_blob=b"rubbish", destination_encryption_context={"keyType": "signing"}
        ),
        "destination_encryption_context may not set",
    ),
    ("SignSpan", pb.SignSpanRequest(tenant_id="a"), "span is missing"),
    (
        "SignSpan",
        pb.SignSpanRequest(tenant_id="a", span=ComplianceSpan(span_id=b"12345678")),
        "span.trace_id must be 16",
    ),
    ("VerifySpan", pb.VerifySpanRequest(tenant_id="a", span=SPAN, key_id="0" * 32), "signature must be 64 bytes"),
    (
        "VerifySpan",
        pb.VerifySpanRequest(tenant_id="a", span=SPAN, signature=bytes(64), key_id="short"),
        "key_id must be the 32",
    ),
    ("VerifySpan", pb.VerifySpanRequest(tenant_id="a", signature=bytes(64), key_id="0" * 32), "span is missing"),
]


@pytest.mark.parametrize(("method", "request_", "text"), BAD_REQUESTS)
async def test_a_bad_request_is_told_what_to_mend(stub: Any, method: str, request_: Any, text: str) -> None:
    """Bad input gets INVALID_ARGUMENT, a reason for programs and a sentence for people."""
    code, reason, message = await refusal(getattr(stub, method)(request_))
    assert code == "INVALID_ARGUMENT"
    assert reason in ("INVALID_REQUEST", "CIPHERTEXT_DOES_NOT_OPEN")
    assert text in message


async def test_every_ciphertext_that_does_not_open_gets_one_text(stub: Any) -> None:
    """Truncated, altered, another tenant's, another context's: nobody learns which."""
    sealed = (await stub.Encrypt(pb.EncryptRequest(tenant_id="acme", plaintext=b"secret"))).ciphertext_blob
    altered = sealed[:-1] + bytes([sealed[-1] ^ 1])
    answers = {
        await refusal(stub.Decrypt(request))
        for request in (
            pb.DecryptRequest(tenant_id="acme", ciphertext_blob=sealed[:-1]),
            pb.DecryptRequest(tenant_id="acme", ciphertext_blob=altered),
            pb.DecryptRequest(tenant_id="rival", ciphertext_blob=sealed),
            pb.DecryptRequest(tenant_id="acme", ciphertext_blob=sealed, encryption_context={"a": "b"}),
            pb.DecryptRequest(tenant_id="acme", ciphertext_blob=b"rubbish"),
        )
    }
    assert len(answers) == 1


@pytest.mark.parametrize("wire", [b"\x0a\x02\xff\xfe", b"\xff\xff\xff"])
async def test_bytes_that_are_no_message_are_an_invalid_argument(tmp_path: Path, wire: bytes) -> None:
    """Text that is not UTF-8, and plain rubbish, get the status and the reason of any other bad request."""
    async with running(tmp_path) as daemon, grpc.aio.insecure_channel(daemon.addresses[0]) as channel:
        call: Any = channel.unary_unary("/betrace.kms.v1.KeyManagementService/Encrypt")
        assert (await refusal(call(wire)))[:2] == ("INVALID_ARGUMENT", "INVALID_REQUEST")


async def test_a_wrapped_key_that_is_cut_out_of_a_message_is_told_from_the_message(stub: Any) -> None:
    """What a message is cached under is no ciphertext: the answer to the same bytes does not depend on the cache."""
    sealed = (await stub.Encrypt(pb.EncryptRequest(tenant_id="acme", plaintext=b"secret"))).ciphertext_blob
    fields = Message.parse(sealed).fields
    await stub.Decrypt(pb.DecryptRequest(tenant_id="acme", ciphertext_blob=sealed))
    answer = await refusal(stub.Decrypt(pb.DecryptRequest(tenant_id="acme", ciphertext_blob=fields)))
    assert answer[:2] == ("INVALID_ARGUMENT", "CIPHERTEXT_DOES_NOT_OPEN")


async def test_a_message_over_the_transport_limit_is_refused(stub: Any) -> None:
    """gRPC itself refuses what is far too large."""
    request = pb.EncryptRequest(tenant_id="a", plaintext=bytes(LIMIT + 200_000))
    assert (await refusal(stub.Encrypt(request)))[0] == "RESOURCE_EXHAUSTED"


async def test_a_tenant_without_a_key_is_not_found_where_none_may_be_made(tmp_path: Path) -> None:
    """With kms.signing.auto-create off, SignSpan answers NOT_FOUND."""
    async with (
        running(tmp_path, kms_signing_auto_create="false") as daemon,
        grpc.aio.insecure_channel(daemon.addresses[0]) as channel,
    ):
        stub: Any = KeyManagementServiceStub(channel)
        answer = await refusal(stub.SignSpan(pb.SignSpanRequest(tenant_id="acme", span=SPAN)))
    assert answer[:2] == ("NOT_FOUND", "NO_SIGNING_KEY")


async def test_a_defect_shows_nothing_to_the_caller(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception becomes "internal error" with the caller's request id, and is logged once under it."""

    async def broken(*args: Any) -> None:
        raise RuntimeError("canary")

    monkeypatch.setattr(KeyRing, "seal", broken)
    call: Callable[..., Any] = stub.Encrypt
    with structlog.testing.capture_logs() as logged, pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(pb.EncryptRequest(tenant_id="acme"), metadata=(("x-request-id", "req-1"),))
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    request_info = error_details_pb2.RequestInfo()
    assert status is not None
    status.details[1].Unpack(request_info)
    assert (caught.value.code().name, caught.value.details()) == ("INTERNAL", "internal error")
    assert request_info.request_id == "req-1"
    assert "canary" not in str(caught.value.trailing_metadata())
    assert [line["request_id"] for line in logged if line["log_level"] == "error"] == ["req-1"]
