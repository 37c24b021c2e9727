"""The calls that can travel together, and how a batch is made of their requests.

An item's result has the fields of the single call's response, and is read in its place.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from betrace.kms.v1 import key_management_pb2 as pb
from google.protobuf.message import Message

_KEY_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Kind:
    """How requests of one call become the request of a batch call."""

    batch: str
    """Name of the batch call."""
    gathered: Callable[[str, Sequence[Any]], Message]
    """Makes one request for a tenant of the requests of single calls."""
    shared: Callable[[Any], Hashable] = lambda _: None
    """What, besides the tenant, must be the same in all requests of a batch."""


def _data_keys(tenant_id: str, requests: Sequence[pb.GenerateDataKeyRequest]) -> Message:
    items = [
        pb.GenerateDataKeysItem(
            key_spec=each.key_spec,
            number_of_bytes=each.number_of_bytes,
            encryption_context=each.encryption_context,
            fresh=each.fresh,
        )
        for each in requests
    ]
    return pb.GenerateDataKeysRequest(tenant_id=tenant_id, items=items)


def _encrypts(tenant_id: str, requests: Sequence[pb.EncryptRequest]) -> Message:
    items = [
        pb.EncryptBatchItem(plaintext=each.plaintext, encryption_context=each.encryption_context) for each in requests
    ]
    return pb.EncryptBatchRequest(tenant_id=tenant_id, items=items)


def _decrypts(tenant_id: str, requests: Sequence[pb.DecryptRequest]) -> Message:
    items = [
        pb.DecryptBatchItem(ciphertext_blob=each.ciphertext_blob, encryption_context=each.encryption_context)
        for each in requests
    ]
    return pb.DecryptBatchRequest(tenant_id=tenant_id, items=items)


def _macs(tenant_id: str, requests: Sequence[pb.GenerateMacRequest]) -> Message:
    items = [pb.GenerateMacBatchItem(purpose=each.purpose, message=each.message, bits=each.bits) for each in requests]
    return pb.GenerateMacBatchRequest(tenant_id=tenant_id, items=items)


def _signs(tenant_id: str, requests: Sequence[pb.SignSpanRequest]) -> Message:
    return pb.SignSpansRequest(
        tenant_id=tenant_id,
        spans=[each.span for each in requests],
        mode=pb.EACH,
        return_payload=requests[0].return_payload,
    )


def _verifies(tenant_id: str, requests: Sequence[pb.VerifySpanRequest]) -> Message:
    spans = [
        pb.SignedSpan(
            span=each.span,
            signature=each.signature,
            key_id=each.key_id,
            proof=each.proof if each.HasField("proof") else None,
        )
        for each in requests
    ]
    return pb.VerifySpansRequest(tenant_id=tenant_id, spans=spans)


KINDS: Mapping[type[Message], Kind] = {
    # Cached keys do not wait for KMS to make fresh ones.
    pb.GenerateDataKeyRequest: Kind("GenerateDataKeys", _data_keys, lambda request: request.fresh),
    pb.EncryptRequest: Kind("EncryptBatch", _encrypts),
    pb.DecryptRequest: Kind("DecryptBatch", _decrypts),
    pb.GenerateMacRequest: Kind("GenerateMacBatch", _macs),
    pb.SignSpanRequest: Kind("SignSpans", _signs, lambda request: request.return_payload),
    # A key that has to be read, or that is damaged, concerns those only who ask for it.
    pb.VerifySpanRequest: Kind("VerifySpans", _verifies, lambda request: request.key_id),
}
"""By the request of the single call."""


def kind_of(request: Any) -> Kind | None:
    """Return how a request travels with others, or None if it travels alone.

    A signed span whose key id is none gets a verdict in VerifySpans, as by every reader of evidence, and VerifySpan
    refuses it.
    """
    if isinstance(request, pb.VerifySpanRequest) and not _KEY_ID.fullmatch(request.key_id):
        return None
    return KINDS.get(type(request))
