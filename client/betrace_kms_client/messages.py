"""Requests and results of each call, once for the sync and the async client."""

from collections.abc import Mapping, Sequence

import grpc
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1 import span_pb2
from betrace_kms_envelope import EncryptedDataKey, KeyMaterial
from betrace_kms_evidence import PublicKey
from google.protobuf.timestamp_pb2 import Timestamp

from betrace_kms_client.errors import retry_after_of
from betrace_kms_client.results import (
    Ciphertext,
    DataKey,
    ItemRefusal,
    Mac,
    MessageKey,
    Plaintext,
    PublicKeys,
    SignedSpan,
    SpanRefusal,
    SpanSignature,
    Verdict,
)

Context = Mapping[str, str]
Items = Sequence[tuple[bytes, Context | None]]
"""Payloads with their encryption contexts."""
DataKeyItems = Sequence[tuple[int, Context | None, bool]]
"""Lengths of data keys in bytes, their encryption contexts, and whether each is to be fresh."""
MacItems = Sequence[tuple[str, bytes, int]]
"""Purposes, messages, and the lengths of their MACs in bits."""


def data_key_request(
    tenant_id: str, number_of_bytes: int, context: Context | None, fresh: bool
) -> pb.GenerateDataKeyRequest:
    """Build a GenerateDataKeyRequest."""
    return pb.GenerateDataKeyRequest(
        tenant_id=tenant_id, number_of_bytes=number_of_bytes, encryption_context=context, fresh=fresh
    )


def data_key(response: pb.GenerateDataKeyResponse) -> DataKey:
    """Read a GenerateDataKeyResponse."""
    return DataKey(response.plaintext, response.ciphertext_blob, response.key_id)


def data_keys_request(tenant_id: str, items: DataKeyItems) -> pb.GenerateDataKeysRequest:
    """Build a GenerateDataKeysRequest."""
    return pb.GenerateDataKeysRequest(
        tenant_id=tenant_id,
        items=[
            pb.GenerateDataKeysItem(number_of_bytes=number_of_bytes, encryption_context=context, fresh=fresh)
            for number_of_bytes, context, fresh in items
        ],
    )


def data_keys(response: pb.GenerateDataKeysResponse) -> list[DataKey | ItemRefusal]:
    """Read a GenerateDataKeysResponse."""
    return [
        _item_refusal(result.status)
        if result.status.code
        else DataKey(result.plaintext, result.ciphertext_blob, result.key_id)
        for result in response.results
    ]


def encrypt_request(tenant_id: str, plaintext: bytes, context: Context | None) -> pb.EncryptRequest:
    """Build an EncryptRequest."""
    return pb.EncryptRequest(tenant_id=tenant_id, plaintext=plaintext, encryption_context=context)


def ciphertext(response: pb.EncryptResponse) -> Ciphertext:
    """Read an EncryptResponse."""
    return Ciphertext(response.ciphertext_blob, response.key_id)


def resealed(response: pb.ReEncryptResponse) -> Ciphertext:
    """Read a ReEncryptResponse."""
    return Ciphertext(response.ciphertext_blob, response.key_id)


def decrypt_request(tenant_id: str, ciphertext_blob: bytes, context: Context | None) -> pb.DecryptRequest:
    """Build a DecryptRequest."""
    return pb.DecryptRequest(tenant_id=tenant_id, ciphertext_blob=ciphertext_blob, encryption_context=context)


def plaintext(response: pb.DecryptResponse) -> Plaintext:
    """Read a DecryptResponse."""
    return Plaintext(response.plaintext, response.key_id)


def message_key_request(tenant_id: str, context: Context | None) -> pb.GenerateMessageKeyRequest:
    """Build a GenerateMessageKeyRequest."""
    return pb.GenerateMessageKeyRequest(tenant_id=tenant_id, encryption_context=context)


def message_key(response: pb.GenerateMessageKeyResponse) -> MessageKey:
    """Read a GenerateMessageKeyResponse."""
    encrypted = response.encrypted_data_key
    return MessageKey(
        KeyMaterial(response.plaintext),
        EncryptedDataKey(encrypted.provider_id, encrypted.provider_info, encrypted.ciphertext),
        dict(response.header_context),
        response.key_id,
    )


def open_key_request(tenant_id: str, header: bytes, context: Context | None) -> pb.OpenMessageKeyRequest:
    """Build an OpenMessageKeyRequest."""
    return pb.OpenMessageKeyRequest(tenant_id=tenant_id, message_header=header, encryption_context=context)


def opened_key(response: pb.OpenMessageKeyResponse) -> KeyMaterial:
    """Read an OpenMessageKeyResponse."""
    return KeyMaterial(response.plaintext)


def encrypt_batch_request(tenant_id: str, items: Items) -> pb.EncryptBatchRequest:
    """Build an EncryptBatchRequest."""
    return pb.EncryptBatchRequest(
        tenant_id=tenant_id,
        items=[pb.EncryptBatchItem(plaintext=payload, encryption_context=context) for payload, context in items],
    )


def ciphertexts(response: pb.EncryptBatchResponse) -> list[Ciphertext | ItemRefusal]:
    """Read an EncryptBatchResponse."""
    return [
        _item_refusal(result.status) if result.status.code else Ciphertext(result.ciphertext_blob, result.key_id)
        for result in response.results
    ]


def decrypt_batch_request(tenant_id: str, items: Items) -> pb.DecryptBatchRequest:
    """Build a DecryptBatchRequest."""
    return pb.DecryptBatchRequest(
        tenant_id=tenant_id,
        items=[pb.DecryptBatchItem(ciphertext_blob=payload, encryption_context=context) for payload, context in items],
    )


def plaintexts(response: pb.DecryptBatchResponse) -> list[Plaintext | ItemRefusal]:
    """Read a DecryptBatchResponse."""
    return [
        _item_refusal(result.status) if result.status.code else Plaintext(result.plaintext, result.key_id)
        for result in response.results
    ]


def re_encrypt_request(
    tenant_id: str, ciphertext_blob: bytes, context: Context | None, destination: Context | None
) -> pb.ReEncryptRequest:
    """Build a ReEncryptRequest; the destination context is the source's unless one is given."""
    return pb.ReEncryptRequest(
        tenant_id=tenant_id,
        ciphertext_blob=ciphertext_blob,
        encryption_context=context,
        destination_encryption_context=context if destination is None else destination,
    )


def mac_request(tenant_id: str, purpose: str, message: bytes, bits: int) -> pb.GenerateMacRequest:
    """Build a GenerateMacRequest."""
    return pb.GenerateMacRequest(tenant_id=tenant_id, purpose=purpose, message=message, bits=bits)


def mac(response: pb.GenerateMacResponse) -> Mac:
    """Read a GenerateMacResponse."""
    return Mac(response.mac, response.key_id)


def mac_batch_request(tenant_id: str, items: MacItems) -> pb.GenerateMacBatchRequest:
    """Build a GenerateMacBatchRequest."""
    return pb.GenerateMacBatchRequest(
        tenant_id=tenant_id,
        items=[
            pb.GenerateMacBatchItem(purpose=purpose, message=message, bits=bits) for purpose, message, bits in items
        ],
    )


def macs(response: pb.GenerateMacBatchResponse) -> list[Mac | ItemRefusal]:
    """Read a GenerateMacBatchResponse."""
    return [
        _item_refusal(result.status) if result.status.code else Mac(result.mac, result.key_id)
        for result in response.results
    ]


def verify_mac_request(tenant_id: str, purpose: str, message: bytes, mac: bytes, bits: int) -> pb.VerifyMacRequest:
    """Build a VerifyMacRequest."""
    return pb.VerifyMacRequest(tenant_id=tenant_id, purpose=purpose, message=message, mac=mac, bits=bits)


def sign_request(tenant_id: str, span: span_pb2.ComplianceSpan, return_payload: bool) -> pb.SignSpanRequest:
    """Build a SignSpanRequest."""
    return pb.SignSpanRequest(tenant_id=tenant_id, span=span, return_payload=return_payload)


def signature(response: pb.SignSpanResponse) -> SpanSignature:
    """Read a SignSpanResponse."""
    return SpanSignature(
        response.signature, response.key_id, response.algorithm, response.payload_type, response.payload
    )


def sign_batch_request(
    tenant_id: str, spans: Sequence[span_pb2.ComplianceSpan], proofs: bool, return_payload: bool
) -> pb.SignSpansRequest:
    """Build a SignSpansRequest."""
    mode = pb.BATCH_PROOF if proofs else pb.EACH
    return pb.SignSpansRequest(tenant_id=tenant_id, spans=spans, mode=mode, return_payload=return_payload)


def signatures(response: pb.SignSpansResponse) -> list[SpanSignature | SpanRefusal]:
    """Read a SignSpansResponse."""
    return [
        _refusal(result.status)
        or SpanSignature(
            result.signature,
            result.key_id,
            result.algorithm,
            result.payload_type,
            result.payload,
            result.proof if result.HasField("proof") else None,
        )
        for result in response.results
    ]


def verify_request(
    tenant_id: str,
    span: span_pb2.ComplianceSpan,
    signature: bytes,
    key_id: str,
    proof: span_pb2.InclusionProof | None,
) -> pb.VerifySpanRequest:
    """Build a VerifySpanRequest."""
    return pb.VerifySpanRequest(tenant_id=tenant_id, span=span, signature=signature, key_id=key_id, proof=proof)


def verdict(response: pb.VerifySpanResponse) -> Verdict:
    """Read a VerifySpanResponse."""
    return Verdict(response.valid, pb.VerifyReason.Name(response.reason))


def verify_batch_request(tenant_id: str, spans: Sequence[SignedSpan]) -> pb.VerifySpansRequest:
    """Build a VerifySpansRequest."""
    return pb.VerifySpansRequest(
        tenant_id=tenant_id,
        spans=[
            pb.SignedSpan(span=each.span, signature=each.signature, key_id=each.key_id, proof=each.proof)
            for each in spans
        ],
    )


def verdicts(response: pb.VerifySpansResponse) -> list[Verdict | SpanRefusal]:
    """Read a VerifySpansResponse."""
    return [
        _refusal(result.status) or Verdict(result.valid, pb.VerifyReason.Name(result.reason))
        for result in response.results
    ]


def public_keys_request(tenant_id: str) -> pb.GetPublicKeysRequest:
    """Build a GetPublicKeysRequest."""
    return pb.GetPublicKeysRequest(tenant_id=tenant_id)


def public_keys(response: pb.GetPublicKeysResponse) -> PublicKeys:
    """Read a GetPublicKeysResponse."""
    keys = tuple(
        PublicKey(
            key.key_id,
            key.public_key,
            pb.KeyStatus.Name(key.status),
            _time(key.create_time),
            _time(key.rotate_time),
            _time(key.revoke_time),
        )
        for key in response.keys
    )
    return PublicKeys(keys, response.jwks)


_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def _refusal(status: pb.ItemStatus) -> SpanRefusal | None:
    return SpanRefusal(*_refused(status)) if status.code else None


def _item_refusal(status: pb.ItemStatus) -> ItemRefusal:
    return ItemRefusal(*_refused(status))


def _refused(status: pb.ItemStatus) -> tuple[str, str, str, float | None]:
    return _CODES.get(status.code, "UNKNOWN"), status.message, status.reason, retry_after_of(status)


def _time(time: Timestamp) -> str:
    return time.ToJsonString() if time.ByteSize() else ""
