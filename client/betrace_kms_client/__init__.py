"""Clients of the betrace-kms daemon.

::

    from betrace_kms_client import KmsClient

    with KmsClient("127.0.0.1:50051") as kms:
        sealed = kms.encrypt("acme", b"alice@example.com", {"field": "email"})
        opened = kms.decrypt("acme", sealed.ciphertext_blob, {"field": "email"})

AsyncKmsClient has the same methods as coroutines.
"""

from betrace_kms_client.async_client import AsyncKmsClient
from betrace_kms_client.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidRequest,
    KeyDataLoss,
    KmsClientError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
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
from betrace_kms_client.sealer import AsyncKmsSealer, KmsSealer
from betrace_kms_client.sync_client import KmsClient

__all__ = [
    "AsyncKmsClient",
    "AsyncKmsSealer",
    "Cancelled",
    "Ciphertext",
    "DataKey",
    "DeadlineExceeded",
    "FailedPrecondition",
    "InternalError",
    "InvalidRequest",
    "ItemRefusal",
    "KeyDataLoss",
    "KmsClient",
    "KmsClientError",
    "KmsSealer",
    "Mac",
    "MessageKey",
    "NotFound",
    "PermissionDenied",
    "Plaintext",
    "PublicKeys",
    "ResourceExhausted",
    "SignedSpan",
    "SpanRefusal",
    "SpanSignature",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Verdict",
]
