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
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from hashlib import sha256
from operator import methodcaller
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SPAN, TREE_HEAD = "application/vnd.betrace.span.v1+json", "application/vnd.betrace.tree-head.v1+json"
LONGEST = 315_576_000_000 * 10**9 + 10**9
TIMES = {
    "startTimeUnixNano": (-62_135_596_800 * 10**9, 253_402_300_800 * 10**9),
    "durationNano": (1 - LONGEST, LONGEST),
}
IDS = {"parentSpanId": 16, "spanId": 16, "traceId": 32}
MEMBERS = {"attributes", "control", "error", "evidenceType", "framework", "name", "result", *IDS, *TIMES}
SIGNED = {"span", "signature", "keyId", "algorithm", "payloadType", "payload", "proof"}
PROOF = {"leafIndex", "treeSize", "rootHash", "hashes", "signTime"}
PRIME, Y8 = 2**255 - 19, 2707385501144840649318225287225658788936804267575313519463743609750303402022
MALFORMED = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)
Proof = tuple[int, int, bytes, list[bytes], int]


def check(condition: object, problem: str) -> None:
    """Refuse a document that is not in the form of this format."""
    if not condition:
        raise ValueError(problem)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a JSON object that has a member twice (section 1.5)."""
    check(len(dict(pairs)) == len(pairs), "an object has a member twice")
    return dict(pairs)


def parse(text: bytes) -> Any:
    """Parse JSON in UTF-8 as section 1.5 asks; every number of it is a double."""
    document = json.loads(text.decode(), object_pairs_hook=unique, parse_int=float)
    json.dumps(document, ensure_ascii=False, allow_nan=False).encode()  # nor is half a surrogate pair a character
    return document


def integer(text: Any, low: int = 0, beyond: int = 2**64) -> int:
    """Read an integer: a decimal string in its shortest form (section 5.4)."""
    check(re.fullmatch("0|-?[1-9][0-9]{0,29}", text, re.ASCII) and low <= int(text) < beyond, "not such an integer")
    return int(text)


def raw_bytes(text: str, *, url: bool = False) -> bytes:
    """Read base64 with padding, or base64url without, that has zeros in the bits that are left (section 5.4)."""
    raw = urlsafe_b64decode(text + "=" * (-len(text) % 4)) if url else b64decode(text, validate=True)
    check(text == (urlsafe_b64encode(raw).decode().rstrip("=") if url else b64encode(raw).decode()), "not base64")
    return raw


def check_value(value: Any, depth: int = 0) -> None:
    """Check a typed value (section 1.3), and order the pairs of each key-value list in it."""
    check(isinstance(value, dict) and len(value) < 2 and depth < 33, "not a typed value")
    for kind, content in value.items():
        match kind, content:
            case ("stringValue", str()) | ("boolValue", bool()) | ("doubleValue", float()):
                pass
            case "intValue", str():
                integer(content, -(2**63), 2**63)
            case "bytesValue", str():
                raw_bytes(content)
            case "arrayValue", {"values": list(items), **rest} if not rest:
                for item in items:
                    check_value(item, depth + 1)
            case "kvlistValue", {"values": list(items), **rest} if not rest:
                for pair in items:
                    check(isinstance(pair, dict) and pair.keys() == {"key", "value"}, "not a pair")
                    check_value(pair["value"], depth + 1)
                items.sort(key=lambda pair: in_utf16(pair["key"]))
                unique([(pair["key"], None) for pair in items])
            case _:
                raise ValueError("not a typed value")


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


def canonical_span(tenant_id: str, key_id: str, span: dict[str, Any]) -> bytes:
    """Return the bytes that stand for a span (section 1)."""
    check(not span.keys() - MEMBERS, "the span has an unknown member")
    for name, member in ((name, member) for name, member in span.items() if member is not None):
        if name in IDS:
            check(re.fullmatch(f"[0-9a-f]{{{IDS[name]}}}", member) and int(member, 16), f"{name} is no id")
        elif name in TIMES:
            integer(member, *TIMES[name])
        else:
            check(isinstance(member, dict if name == "attributes" else str), f"{name} is of another type")
    check(span["traceId"] and span["spanId"], "a span has ids")
    whole = {**dict.fromkeys(MEMBERS), **span, "tenantId": tenant_id, "keyId": key_id}
    whole["attributes"] = whole["attributes"] or {}
    for value in whole["attributes"].values():
        check_value(value)
    return canonical(whole).encode()


def read_proof(proof: dict[str, Any]) -> Proof:
    """Return leaf index, tree size, root, siblings, and the time in nanoseconds (section 5.1)."""
    check(not proof.keys() - PROOF and isinstance(proof.get("hashes", []), list), "the proof has other members")
    root, siblings = raw_bytes(proof["rootHash"]), [raw_bytes(text) for text in proof.get("hashes", [])]
    check({len(each) for each in (root, *siblings)} == {32} and len(siblings) < 65, "a hash has 32 bytes")
    time = re.fullmatch(r"(\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):\d\d:\d\d)(?:\.(\d{1,9}))?Z", proof["signTime"], re.ASCII)
    since = datetime.fromisoformat(time[1] if time else "") - datetime(1970, 1, 1)
    nanos = (since.days * 86_400 + since.seconds) * 10**9 + int(((time and time[2]) or "").ljust(9, "0"))
    return integer(proof.get("leafIndex", "0")), integer(proof["treeSize"]), root, siblings, nanos


def tree_head(tenant_id: str, key_id: str, leaf: bytes, proof: Proof) -> bytes:
    """Return the tree head that a span and its proof lead to (section 3)."""
    index, size, expected, siblings, nanos = proof
    node, last, root = index, size - 1, sha256(b"\0" + leaf).digest()
    for sibling in siblings:
        if last <= 0:
            raise InvalidSignature
        left = node % 2 == 1 or node == last
        while left and node % 2 == 0 and node > 0:
            node, last = node >> 1, last >> 1
        root = sha256(b"\1" + sibling + root if left else b"\1" + root + sibling).digest()
        node, last = node >> 1, last >> 1
    if not 0 <= index < size or last != 0 or root != expected:
        raise InvalidSignature
    head = {"keyId": key_id, "rootHash": root.hex(), "signTimeUnixNano": str(nanos), "treeSize": str(size)}
    return canonical({**head, "tenantId": tenant_id}).encode()


@lru_cache(maxsize=1024)  # the spans of a batch share one signature
def verify(x: str, signature: bytes, kind: bytes, payload: bytes) -> None:
    """Verify a DSSE signature (section 2) with a key of a key set, or raise InvalidSignature."""
    key = Ed25519PublicKey.from_public_bytes(raw_bytes(x, url=True))
    key.verify(signature, b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload))


def verdict(tenant_id: str, keys: dict[str, Any], text: bytes) -> str:
    """Judge one signed span (section 5)."""
    try:
        signed = parse(text)
        check(not signed.keys() - SIGNED and isinstance(signed["keyId"], str), "the document has other members")
        signature, key_id, proof = raw_bytes(signed["signature"]), signed["keyId"], signed.get("proof")
        raw_bytes(signed.get("payload", ""))
        check(len(signature) == 64, "a signature has 64 bytes")
        payload, kind = canonical_span(tenant_id, key_id, signed["span"]), TREE_HEAD if "proof" in signed else SPAN
        read = read_proof(proof) if kind == TREE_HEAD else None
        named = signed.get("payloadType", kind), signed.get("algorithm", "Ed25519")
        check(named == (kind, "Ed25519"), "this type or algorithm is none of version 1")
        if (key := keys.get(key_id)) is None:
            return "UNKNOWN_KEY"
        if key.get("status", "ACTIVE") not in ("ACTIVE", "ROTATED"):
            return "KEY_REVOKED"
        payload = tree_head(tenant_id, key_id, payload, read) if read else payload
        verify(key["x"], signature, kind.encode(), payload)
        return "VALID"
    except InvalidSignature:
        return "BAD_SIGNATURE"
    except MALFORMED as error:
        return f"MALFORMED {error!a}"


def is_ours(jwk: dict[str, Any]) -> bool:
    """Return whether this is a public Ed25519 key for verification, which no key of small order is (section 4)."""
    named = jwk.get("kty"), jwk.get("crv"), jwk.get("use", "sig"), jwk.get("alg", "EdDSA")
    kid, operations = jwk.get("kid"), jwk.get("key_ops", ["verify"])
    if named != ("OKP", "Ed25519", "sig", "EdDSA") or "d" in jwk or not (isinstance(kid, str) and kid):
        return False
    try:
        raw = raw_bytes(jwk["x"], url=True)
    except MALFORMED:
        return False
    y = int.from_bytes(raw, "little") % 2**255
    good = len(raw) == 32 and y < PRIME and y not in (0, 1, PRIME - 1, Y8, PRIME - Y8)
    return good and isinstance(operations, list) and "verify" in operations


def documents(text: bytes) -> list[bytes]:
    """Return the one document of a file, or its lines."""
    try:
        parse(text)
    except MALFORMED:
        return text.split(b"\n") if text.partition(b"\n")[0].rstrip().endswith(b"}") else [text]
    return [text]


def main(keys_file: str, spans_file: str) -> int:
    """Print the verdict on each span of a file; return 0 if all are valid."""
    key_set = parse(Path(keys_file).read_bytes())
    tenant_id = key_set["tenant_id"]
    check(isinstance(key_set["keys"], list) and re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", tenant_id), "no set")
    keys = unique([(jwk["kid"], jwk) for jwk in key_set["keys"] if is_ours(jwk)])
    text = Path(spans_file).read_bytes().removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n")
    verdicts = [verdict(tenant_id, keys, document) for document in documents(text)]
    print("\n".join(f"{place}: {each}" for place, each in enumerate(verdicts, 1)))
    return int(set(verdicts) != {"VALID"})


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except MALFORMED as cause:
        print(f"usage: verify_spans.py keys.json FILE: {cause!a}", file=sys.stderr)
        sys.exit(2)
