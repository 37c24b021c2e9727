"""The calls that are measured, each made once to see that it is answered well and how large the answer is.

A workload is one fixed request. It is built with the help of a daemon: what Decrypt opens was sealed there before. So
building it also warms every key that it needs.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from betrace_kms_client import KmsClient
from betrace_kms_envelope import Message

from bench.sign import span

SERVICE = "betrace.kms.v1.KeyManagementService"
CONTEXT = {"field": "email"}
_CLOCK = 0.02
"""A proof holds the time of day, whose length in bytes varies a little."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One request, and what a good answer to it is like."""

    method: str
    request: bytes
    answer_bytes: int
    items: int
    payload: int
    """Bytes of one item."""
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the results: how its request is made, and the sizes at the point from which dimensions vary."""

    make: "Callable[[Daemon, int, int], Workload]"
    payload: int = 0
    batch: int = 1


@dataclass(frozen=True, slots=True)
class Daemon:
    """The tenant of a daemon for whom calls are made."""

    stub: KeyManagementServiceStub
    address: str
    tenant: str = "acme"

    def workload(self, rpc: str, request: Any, *, payload: int, tolerance: float = 0.0) -> Workload:
        """Make the call, and raise AssertionError unless every item of the answer is good."""
        answer = getattr(self.stub, rpc)(request)
        results = getattr(answer, "results", [])
        assert all(result.status.code == 0 for result in results), f"{rpc}: {results[0].status.message}"
        for each in results or [answer]:
            assert getattr(each, "valid", True), f"{rpc}: a good signature does not verify"
            assert getattr(each, "mac_valid", True), f"{rpc}: a good MAC does not verify"
        return Workload(
            method=f"/{SERVICE}/{rpc}",
            request=request.SerializeToString(),
            answer_bytes=answer.ByteSize(),
            items=len(results) or 1,
            payload=payload,
            tolerance=tolerance,
        )

    def sealed(self, size: int) -> bytes:
        """Return a message that holds a payload of this size."""
        request = pb.EncryptRequest(tenant_id=self.tenant, plaintext=os.urandom(size), encryption_context=CONTEXT)
        return bytes(self.stub.Encrypt(request).ciphertext_blob)

    def signed(self, count: int) -> list[pb.SignedSpan]:
        """Return spans with signatures of their own."""
        spans = [span(number) for number in range(count)]
        results = self.stub.SignSpans(pb.SignSpansRequest(tenant_id=self.tenant, spans=spans)).results
        return [
            pb.SignedSpan(span=each, signature=result.signature, key_id=result.key_id)
            for each, result in zip(spans, results, strict=True)
        ]


def _data_key(daemon: Daemon, payload: int, batch: int) -> Workload:
    request = pb.GenerateDataKeyRequest(tenant_id=daemon.tenant, key_spec=pb.AES_256, encryption_context=CONTEXT)
    return daemon.workload("GenerateDataKey", request, payload=payload)


def _data_keys(daemon: Daemon, payload: int, batch: int) -> Workload:
    items = [pb.GenerateDataKeysItem(key_spec=pb.AES_256, encryption_context=CONTEXT) for _ in range(batch)]
    request = pb.GenerateDataKeysRequest(tenant_id=daemon.tenant, items=items)
    return daemon.workload("GenerateDataKeys", request, payload=payload)


def _encrypt(daemon: Daemon, payload: int, batch: int) -> Workload:
    plaintext = os.urandom(payload)
    request = pb.EncryptRequest(tenant_id=daemon.tenant, plaintext=plaintext, encryption_context=CONTEXT)
    return daemon.workload("Encrypt", request, payload=payload)


def _decrypt(daemon: Daemon, payload: int, batch: int) -> Workload:
    blob = daemon.sealed(payload)
    request = pb.DecryptRequest(tenant_id=daemon.tenant, ciphertext_blob=blob, encryption_context=CONTEXT)
    return daemon.workload("Decrypt", request, payload=payload)


def _re_encrypt(daemon: Daemon, payload: int, batch: int) -> Workload:
    request = pb.ReEncryptRequest(
        tenant_id=daemon.tenant,
        ciphertext_blob=daemon.sealed(payload),
        encryption_context=CONTEXT,
        destination_encryption_context={"field": "phone"},
    )
    return daemon.workload("ReEncrypt", request, payload=payload)


def _encrypt_batch(daemon: Daemon, payload: int, batch: int) -> Workload:
    items = [pb.EncryptBatchItem(plaintext=os.urandom(payload), encryption_context=CONTEXT) for _ in range(batch)]
    return daemon.workload(
        "EncryptBatch", pb.EncryptBatchRequest(tenant_id=daemon.tenant, items=items), payload=payload
    )


def _decrypt_batch(daemon: Daemon, payload: int, batch: int) -> Workload:
    items = [
        pb.DecryptBatchItem(ciphertext_blob=daemon.sealed(payload), encryption_context=CONTEXT) for _ in range(batch)
    ]
    return daemon.workload(
        "DecryptBatch", pb.DecryptBatchRequest(tenant_id=daemon.tenant, items=items), payload=payload
    )


def _mac(daemon: Daemon, payload: int, batch: int) -> Workload:
    request = pb.GenerateMacRequest(tenant_id=daemon.tenant, purpose="users.email", message=os.urandom(payload))
    return daemon.workload("GenerateMac", request, payload=payload)


def _mac_batch(daemon: Daemon, payload: int, batch: int) -> Workload:
    items = [pb.GenerateMacBatchItem(purpose="users.email", message=os.urandom(payload)) for _ in range(batch)]
    return daemon.workload(
        "GenerateMacBatch", pb.GenerateMacBatchRequest(tenant_id=daemon.tenant, items=items), payload=payload
    )


def _verify_mac(daemon: Daemon, payload: int, batch: int) -> Workload:
    message = os.urandom(payload)
    made = daemon.stub.GenerateMac(
        pb.GenerateMacRequest(tenant_id=daemon.tenant, purpose="users.email", message=message)
    )
    request = pb.VerifyMacRequest(tenant_id=daemon.tenant, purpose="users.email", message=message, mac=made.mac)
    return daemon.workload("VerifyMac", request, payload=payload)


def _message_key(daemon: Daemon, payload: int, batch: int) -> Workload:
    request = pb.GenerateMessageKeyRequest(tenant_id=daemon.tenant, encryption_context=CONTEXT)
    return daemon.workload("GenerateMessageKey", request, payload=payload)


def _open_message_key(daemon: Daemon, payload: int, batch: int) -> Workload:
    with KmsClient(daemon.address) as client, client.sealer(daemon.tenant, CONTEXT) as sealer:
        header = Message.parse(sealer.seal(b"")).header
    request = pb.OpenMessageKeyRequest(tenant_id=daemon.tenant, message_header=header, encryption_context=CONTEXT)
    return daemon.workload("OpenMessageKey", request, payload=payload)


def _sign_span(daemon: Daemon, payload: int, batch: int) -> Workload:
    each = span(1)
    return daemon.workload("SignSpan", pb.SignSpanRequest(tenant_id=daemon.tenant, span=each), payload=each.ByteSize())


def _sign_spans(daemon: Daemon, payload: int, batch: int) -> Workload:
    spans = [span(number) for number in range(batch)]
    request = pb.SignSpansRequest(tenant_id=daemon.tenant, spans=spans)
    return daemon.workload("SignSpans", request, payload=spans[0].ByteSize())


def _proofs(daemon: Daemon, payload: int, batch: int) -> Workload:
    spans = [span(number) for number in range(batch)]
    request = pb.SignSpansRequest(tenant_id=daemon.tenant, spans=spans, mode=pb.BATCH_PROOF)
    return daemon.workload("SignSpans", request, payload=spans[0].ByteSize(), tolerance=_CLOCK)


def _verify_span(daemon: Daemon, payload: int, batch: int) -> Workload:
    signed = daemon.signed(1)[0]
    request = pb.VerifySpanRequest(
        tenant_id=daemon.tenant, span=signed.span, signature=signed.signature, key_id=signed.key_id
    )
    return daemon.workload("VerifySpan", request, payload=signed.span.ByteSize())


def _verify_spans(daemon: Daemon, payload: int, batch: int) -> Workload:
    signed = daemon.signed(batch)
    request = pb.VerifySpansRequest(tenant_id=daemon.tenant, spans=signed)
    return daemon.workload("VerifySpans", request, payload=signed[0].span.ByteSize())


def _public_keys(daemon: Daemon, payload: int, batch: int) -> Workload:
    daemon.signed(1)
    return daemon.workload("GetPublicKeys", pb.GetPublicKeysRequest(tenant_id=daemon.tenant), payload=payload)


KINDS: Mapping[str, Kind] = {
    "GenerateDataKey": Kind(_data_key, payload=32),
    "GenerateDataKeys": Kind(_data_keys, payload=32, batch=100),
    "Encrypt": Kind(_encrypt, payload=1024),
    "Decrypt": Kind(_decrypt, payload=1024),
    "ReEncrypt": Kind(_re_encrypt, payload=1024),
    "EncryptBatch": Kind(_encrypt_batch, payload=64, batch=100),
    "DecryptBatch": Kind(_decrypt_batch, payload=64, batch=100),
    "GenerateMac": Kind(_mac, payload=64),
    "GenerateMacBatch": Kind(_mac_batch, payload=64, batch=100),
    "VerifyMac": Kind(_verify_mac, payload=64),
    "GenerateMessageKey": Kind(_message_key, payload=32),
    "OpenMessageKey": Kind(_open_message_key, payload=32),
    "SignSpan": Kind(_sign_span),
    "SignSpans": Kind(_sign_spans, batch=100),
    "SignSpans, proofs": Kind(_proofs, batch=100),
    "VerifySpan": Kind(_verify_span),
    "VerifySpans": Kind(_verify_spans, batch=100),
    "GetPublicKeys": Kind(_public_keys),
}
"""Every RPC of the service, with the sizes at the base point. A row without a payload has spans of one size."""
