#!/usr/bin/env python3
"""Verify signed compliance spans offline: python verify_spans.py keys.json FILE

keys.json holds a tenant's public keys, from `betrace-kms keys --jwks`; FILE what `betrace-kms sign` wrote: one JSON
document, or JSON lines. Prints a verdict for each span; exits with 0 if all are VALID, 1 if not, 2 if it cannot begin.
Needs Python 3.11, the package `cryptography` and no network. The sections are those of docs/signed-spans.md.
"""

import json
import math
import re
import sys
from base64 import b64decode, urlsafe_b64decode
from datetime import datetime
from decimal import Decimal
from functools import lru_cache, partial
from hashlib import sha256
from operator import methodcaller
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SPAN, TREE_HEAD = "application/vnd.betrace.span.v1+json", "application/vnd.betrace.tree-head.v1+json"
MEMBERS = {"attributes", "control", "durationNano", "error", "evidenceType", "framework", "name", "parentSpanId"}
MEMBERS |= {"result", "spanId", "startTimeUnixNano", "traceId"}
MALFORMED = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a JSON object that has a member twice (section 1.5)."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("an object has a member twice")
    return dict(pairs)


parse = partial(json.loads, object_pairs_hook=unique, parse_int=float)  # every number of JSON is a double
in_utf16 = methodcaller("encode", "utf-16-be")


def number(value: float) -> str:
    """Write a double as ECMAScript does (section 1.4). Its digits, the shortest that give it back, are repr's."""
    if not math.isfinite(value):
        raise ValueError("NaN and the infinities have no canonical form")
    digits = repr(value + 0.0)  # -0.0 + 0.0 is 0.0
    if value == 0 or 1e-6 <= abs(value) < 1e21:
        return f"{Decimal(digits):f}".removesuffix(".0")
    return digits.replace("e-0", "e-")


def canonical(value: Any) -> str:
    """Write JSON as RFC 8785 does (section 1.4)."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{canonical(name)}:{canonical(value[name])}' for name in sorted(value, key=in_utf16))}}}"
    if isinstance(value, list):
        return f"[{','.join(map(canonical, value))}]"
    return number(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def order_pairs(value: dict[str, Any]) -> None:
    """Order the pairs of each key-value list in a typed value (section 1.3)."""
    for kind in value.keys() & {"arrayValue", "kvlistValue"}:
        items = value[kind]["values"]
        for item in items:
            order_pairs(item["value"] if kind == "kvlistValue" else item)
        if kind == "kvlistValue":
            items.sort(key=lambda pair: in_utf16(pair["key"]))
            unique([(pair["key"], None) for pair in items])


def canonical_span(tenant_id: str, key_id: str, span: dict[str, Any]) -> bytes:
    """Return the bytes that stand for a span (section 1)."""
    if unknown := span.keys() - MEMBERS:
        raise ValueError(f"the span has the unknown member {min(unknown)}")
    whole = {**dict.fromkeys(MEMBERS), "attributes": {}, **span, "tenantId": tenant_id, "keyId": key_id}
    for value in whole["attributes"].values():
        order_pairs(value)
    return canonical(whole).encode()


def tree_head(tenant_id: str, key_id: str, leaf: bytes, proof: dict[str, Any]) -> bytes:
    """Return the tree head that a span and its proof lead to (section 3)."""
    index, size = int(proof.get("leafIndex", "0")), int(proof["treeSize"])
    node, last, root = index, size - 1, sha256(b"\0" + leaf).digest()
    for sibling in (b64decode(text, validate=True) for text in proof.get("hashes", [])):
        if last <= 0 or len(sibling) != 32:
            raise InvalidSignature
        left = node % 2 == 1 or node == last
        while left and node % 2 == 0 and node > 0:
            node, last = node >> 1, last >> 1
        root = sha256(b"\1" + sibling + root if left else b"\1" + root + sibling).digest()
        node, last = node >> 1, last >> 1
    if not 0 <= index < size or last != 0 or root != b64decode(proof["rootHash"], validate=True):
        raise InvalidSignature
    time = re.fullmatch(r"([0-9-]{10}T[0-9:]{8})(?:\.([0-9]{1,9}))?Z", proof["signTime"]) or ["", "", ""]
    since = datetime.fromisoformat(time[1]) - datetime(1970, 1, 1)
    nanos = (since.days * 86_400 + since.seconds) * 10**9 + int((time[2] or "").ljust(9, "0"))
    head = {"keyId": key_id, "rootHash": root.hex(), "signTimeUnixNano": str(nanos), "treeSize": str(size)}
    return canonical({**head, "tenantId": tenant_id}).encode()


@lru_cache(maxsize=1024)  # the spans of a batch share one signature
def verify(x: str, signature: bytes, kind: bytes, payload: bytes) -> None:
    """Verify a DSSE signature (section 2) with a key of a key set, or raise InvalidSignature."""
    key = Ed25519PublicKey.from_public_bytes(urlsafe_b64decode(x + "=" * (-len(x) % 4)))
    key.verify(signature, b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload))


def verdict(tenant_id: str, keys: dict[str, Any], text: bytes) -> str:
    """Judge one signed span (section 5)."""
    try:
        signed = parse(text)
        if (key := keys.get(key_id := signed["keyId"])) is None:
            return "UNKNOWN_KEY"
        payload, kind = canonical_span(tenant_id, key_id, signed["span"]), SPAN
        if key.get("status", "ACTIVE") not in ("ACTIVE", "ROTATED"):
            return "KEY_REVOKED"
        if (proof := signed.get("proof")) is not None:
            payload, kind = tree_head(tenant_id, key_id, payload, proof), TREE_HEAD
        if signed.get("payloadType", kind) != kind:
            raise ValueError("this payload type is none of version 1")
        verify(key["x"], b64decode(signed["signature"], validate=True), kind.encode(), payload)
        return "VALID"
    except InvalidSignature:
        return "BAD_SIGNATURE"
    except MALFORMED as error:
        return f"MALFORMED {error!a}"


def main(keys_file: str, spans_file: str) -> int:
    """Print the verdict on each span of a file; return 0 if all are valid."""
    key_set = parse(Path(keys_file).read_bytes())
    ours = [jwk for jwk in key_set["keys"] if (jwk["kty"], jwk.get("crv")) == ("OKP", "Ed25519")]
    keys = unique([(jwk["kid"], jwk) for jwk in ours])
    text = Path(spans_file).read_bytes().strip()
    lines = text.split(b"\n") if text.partition(b"\n")[0].rstrip().endswith(b"}") else [text]
    verdicts = [verdict(key_set["tenant_id"], keys, line) for line in lines]
    print("\n".join(f"{place}: {each}" for place, each in enumerate(verdicts, 1)))
    return int(set(verdicts) != {"VALID"})


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except MALFORMED as cause:
        print(f"usage: verify_spans.py keys.json FILE: {cause!a}", file=sys.stderr)
        sys.exit(2)
