"""Tenant ids and encryption contexts: what keeps one tenant's keys from another.

KMS binds a wrapped key to its encryption context: it unwraps only for the very same pairs. The server itself puts
``tenantId`` and ``keyType`` there, so no caller can ask for another tenant's key by naming pairs of its own.
"""

import re
from collections.abc import Mapping
from typing import Literal

import orjson

from betrace_kms_server.core.errors import InvalidRequest

Context = Mapping[str, str]
VALIDATION_TENANT = "betrace-kms:validate"
"""Whom the daemon's own trials are for: by it, CloudTrail shows them apart from a tenant's calls."""
DataKeyType = Literal["encryption", "sealing"]
"""What a data key is for: `encryption` if a caller may have it, `sealing` if it never leaves the daemon."""

_TENANT_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_KEY_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_RESERVED = ("tenantId", "keyType")
_RESERVED_PREFIX = "aws-crypto-"
MAX_CONTEXT_PAIRS = 256
"""Pairs in an encryption context of a caller."""
_KMS_CONTEXT_LIMIT = 8192
_CONTEXT_LIMIT = 4096
"""Bytes that a caller's pairs may have together as JSON. KMS takes 8,192 for the whole serialised context (AWS KMS API
reference, Encrypt), our own pairs included."""


def check_tenant_id(tenant_id: str) -> str:
    """Return the id, or raise InvalidRequest if it is not 1 to 128 characters of [A-Za-z0-9._:-]."""
    if not _TENANT_ID.fullmatch(tenant_id):
        raise InvalidRequest("tenant_id must be 1 to 128 characters of [A-Za-z0-9._:-]")
    return tenant_id


def check_key_id(key_id: str) -> str:
    """Return the id, or raise InvalidRequest if it is not 32 lower-case hexadecimal digits."""
    if not _KEY_ID.fullmatch(key_id):
        raise InvalidRequest("key_id must be the 32 lower-case hexadecimal digits that SignSpan returned")
    return key_id


def check_caller_context(pairs: Context, field: str = "encryption_context") -> dict[str, str]:
    """Return a copy of the caller's pairs, or raise InvalidRequest if they use a reserved name or are too many."""
    if len(pairs) > MAX_CONTEXT_PAIRS:
        raise InvalidRequest(
            f"{field} has {len(pairs)} pairs, the limit is {MAX_CONTEXT_PAIRS}: keep only labels in it"
        )
    for name in pairs:
        if name in _RESERVED or name.startswith(_RESERVED_PREFIX):
            raise InvalidRequest(
                f"{field} may not set tenantId, keyType or a name that begins with aws-crypto-: the server does"
            )
        if not name:
            raise InvalidRequest(f"{field} may not have an empty name")
    copy = dict(pairs)
    size = len(orjson.dumps(copy))  # as JSON, which is how KMS counts: a control character takes six bytes
    if size > _CONTEXT_LIMIT:
        raise InvalidRequest(
            f"{field} has {size} bytes as JSON, the limit is {_CONTEXT_LIMIT}: keep only short labels in it"
        )
    return copy


def encryption_context(tenant_id: str, caller: Context, key_type: DataKeyType = "encryption") -> dict[str, str]:
    """Return the whole context of a data key."""
    return {**caller, "tenantId": tenant_id, "keyType": key_type}


def signing_context(tenant_id: str, key_id: str) -> dict[str, str]:
    """Return the whole context of a signing key's seed."""
    return {"tenantId": tenant_id, "keyType": "signing", "keyId": key_id}


def tenant_of(whole: Context) -> str:
    """Return the tenant of a whole context: also of a row of a branch key store, whose id is the tenant's."""
    return whole.get("tenantId") or whole.get("branch-key-id", "")


def fits_kms(whole: Context) -> bool:
    """Return whether KMS takes a context of this size; one that it did not take cannot have wrapped anything."""
    return len(orjson.dumps(dict(whole))) <= _KMS_CONTEXT_LIMIT


def belongs_to(whole: Context, tenant_id: str, caller: Context) -> bool:
    """Return whether a message's whole context is that of this tenant's data key with exactly the caller's pairs.

    Its key may be of either type: messages of official SDKs, and of earlier versions, have keyType `encryption`.
    Pairs that begin with ``aws-crypto-`` are the message format's own and are not the caller's to give.
    """
    shown = {name: value for name, value in whole.items() if not name.startswith(_RESERVED_PREFIX)}
    return shown == encryption_context(tenant_id, caller, "sealing") or shown == encryption_context(tenant_id, caller)
