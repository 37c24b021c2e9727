"""Requests and results of each call, once for the sync and the async client."""

from collections.abc import Mapping

from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1 import span_pb2

from betrace_kms_client.results import Ciphertext, DataKey, Plaintext, SpanSignature, Verdict

Context = Mapping[str, str]


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


def sign_request(tenant_id: str, span: span_pb2.ComplianceSpan, return_payload: bool) -> pb.SignSpanRequest:
    """Build a SignSpanRequest."""
    return pb.SignSpanRequest(tenant_id=tenant_id, span=span, return_payload=return_payload)


def signature(response: pb.SignSpanResponse) -> SpanSignature:
    """Read a SignSpanResponse."""
    return SpanSignature(
        response.signature, response.key_id, response.algorithm, response.payload_type, response.payload
    )


def verify_request(
    tenant_id: str, span: span_pb2.ComplianceSpan, signature: bytes, key_id: str
) -> pb.VerifySpanRequest:
    """Build a VerifySpanRequest."""
    return pb.VerifySpanRequest(tenant_id=tenant_id, span=span, signature=signature, key_id=key_id)


def verdict(response: pb.VerifySpanResponse) -> Verdict:
    """Read a VerifySpanResponse."""
    return Verdict(response.valid, pb.VerifyReason.Name(response.reason))
