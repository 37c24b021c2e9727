"""A tenant's public keys as a JSON Web Key Set (RFC 7517, RFC 8037), for verification without the daemon.

Each key has ``kty`` OKP, ``crv`` Ed25519, ``x``, ``kid``, ``use`` sig and ``alg`` EdDSA, and members of ours that other
readers ignore (RFC 7517, section 4): ``status`` (ACTIVE, ROTATED or REVOKED), ``create_time``, ``rotate_time`` and
``revoke_time`` (RFC 3339, in UTC). The set names its tenant in ``tenant_id``.

A set may hold keys of others (RFC 7517, section 5): what is no public Ed25519 key for verification is skipped, and its
id is unknown. A key of small order, under which one signature fits many messages, is none.
"""

import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from betrace_kms_evidence.strict_json import base64url_bytes, strict_json

_TENANT_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_TRUSTED = ("ACTIVE", "ROTATED")
_PRIME = 2**255 - 19
_Y8 = 2707385501144840649318225287225658788936804267575313519463743609750303402022
SMALL_ORDER = frozenset({0, 1, _PRIME - 1, _Y8, _PRIME - _Y8})
"""y-coordinates of the points of order 1, 2, 4 and 8 of Curve25519 (RFC 7748, RFC 8032): no key pair has one."""


class InvalidKeySet(ValueError):
    """The document is no key set of ours. The message says what to fix."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One public key (32 bytes) of a tenant; times are RFC 3339 text, empty where they do not apply."""

    key_id: str
    raw: bytes
    status: str
    create_time: str = ""
    rotate_time: str = ""
    revoke_time: str = ""


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of one tenant, by id, ready to verify."""

    tenant_id: str
    keys: Mapping[str, PublicKey]
    verifiers: Mapping[str, Ed25519PublicKey] = field(repr=False)


def jwks_text(tenant_id: str, keys: Iterable[PublicKey]) -> str:
    """Return the JSON text of a tenant's key set."""
    return orjson.dumps(
        {"keys": [_jwk(key) for key in keys], "tenant_id": tenant_id}, option=orjson.OPT_INDENT_2
    ).decode()


def _jwk(key: PublicKey) -> dict[str, str]:
    times = {"create_time": key.create_time, "rotate_time": key.rotate_time, "revoke_time": key.revoke_time}
    return {
        "kty": "OKP",
        "crv": "Ed25519",
        "alg": "EdDSA",
        "use": "sig",
        "kid": key.key_id,
        "x": urlsafe_b64encode(key.raw).decode().rstrip("="),
        "status": key.status,
        **{name: time for name, time in times.items() if time},
    }


def read_jwks(text: bytes | str, tenant_id: str = "") -> KeySet:
    """Read a key set; `tenant_id` is needed for one that does not name its tenant. Raises InvalidKeySet."""
    try:
        document = strict_json(text)
        tenant = tenant_id or document["tenant_id"]
        keys = [key for key in map(_public_key, document["keys"]) if key is not None]
        verifiers = {key.key_id: Ed25519PublicKey.from_public_bytes(key.raw) for key in keys}
    except (AttributeError, KeyError, TypeError, ValueError) as cause:
        raise InvalidKeySet("this is no key set as `betrace-kms keys --jwks` writes it") from cause
    if not isinstance(tenant, str) or not _TENANT_ID.fullmatch(tenant) or not isinstance(document["keys"], list):
        raise InvalidKeySet("the key set names no tenant")
    if tenant_id and document.get("tenant_id", tenant_id) != tenant_id:
        raise InvalidKeySet("the key set belongs to another tenant")
    if len(verifiers) != len(keys):
        raise InvalidKeySet("the key set has two keys of one id")
    return KeySet(tenant, {key.key_id: key for key in keys}, verifiers)


def _public_key(jwk: Mapping[str, Any]) -> PublicKey | None:
    """Return a key, or None for one that is of no use here. Raises AttributeError for what is no object."""
    key_id, status, operations = jwk.get("kid"), jwk.get("status", "ACTIVE"), jwk.get("key_ops", ["verify"])
    if (jwk.get("kty"), jwk.get("crv"), jwk.get("use", "sig"), jwk.get("alg", "EdDSA")) != _EXPECTED or "d" in jwk:
        return None
    if not isinstance(key_id, str) or not key_id or not isinstance(operations, list) or "verify" not in operations:
        return None
    try:
        raw = base64url_bytes(jwk.get("x"), "x", size=32)
    except ValueError:
        return None
    y = int.from_bytes(raw, "little") % 2**255
    if y in SMALL_ORDER or y >= _PRIME:
        return None
    times = (jwk.get(name, "") for name in ("create_time", "rotate_time", "revoke_time"))
    return PublicKey(
        key_id,
        raw,
        status if isinstance(status, str) and status in _TRUSTED else "REVOKED",  # unknown is no reason to trust
        *(time if isinstance(time, str) else "" for time in times),
    )


_EXPECTED = ("OKP", "Ed25519", "sig", "EdDSA")
