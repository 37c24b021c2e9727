"""Clients of the betrace-kms daemon.

::

    from betrace_kms_client import KmsClient

    with KmsClient("127.0.0.1:50051") as kms:
        sealed = kms.encrypt("acme", b"alice@example.com", {"field": "email"})
        opened = kms.decrypt("acme", sealed.ciphertext_blob, {"field": "email"})

AsyncKmsClient has the same methods as coroutines.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_MODULES = {
    "async_client": ("AsyncKmsClient",),
    "errors": (
        "Cancelled",
        "DeadlineExceeded",
        "FailedPrecondition",
        "InternalError",
        "InvalidRequest",
        "KeyDataLoss",
        "KmsClientError",
        "NotFound",
        "PermissionDenied",
        "ResourceExhausted",
        "Unauthenticated",
        "Unavailable",
        "Unimplemented",
    ),
    "results": (
        "Ciphertext",
        "DataKey",
        "ItemRefusal",
        "Mac",
        "MessageKey",
        "Plaintext",
        "PublicKeys",
        "SignedSpan",
        "SpanRefusal",
        "SpanSignature",
        "Verdict",
    ),
    "sealer": ("AsyncKmsSealer", "KmsSealer"),
    "sync_client": ("KmsClient",),
}
"""Where the names are. A module is imported when a name of it is used: `betrace-kms health` needs no client."""
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
