"""The attributes that hold a span's signature: written by sign, read by verify, and never part of what is signed."""

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from betrace.kms.v1 import span_pb2 as pb
from betrace_kms_evidence import ALGORITHM, InvalidSpan, proof_from_text
from google.protobuf import json_format

from betrace_kms_client.otlp.values import bytes_of, items_of, members_of
from betrace_kms_client.results import SpanSignature

SIGNATURE_BYTES = 64
SIGNATURE = "span.signature"
_ALGORITHM = f"{SIGNATURE}.algorithm"
_KEY_ID = f"{SIGNATURE}.key_id"
_TIMESTAMP = f"{SIGNATURE}.timestamp"
_STATUS = f"{SIGNATURE}.status"
_ERROR = f"{SIGNATURE}.error"
_PROOF = f"{SIGNATURE}.proof"
SIGNATURE_ATTRIBUTES = frozenset({SIGNATURE, _ALGORITHM, _KEY_ID, _TIMESTAMP, _STATUS, _ERROR, _PROOF})
_PAIR = frozenset({"key", "value"})


def is_signature_attribute(item: Any) -> bool:
    """Return whether an item of a span's attributes is one of those that hold its signature."""
    key = item.get("key") if isinstance(item, dict) else None
    return isinstance(key, str) and key in SIGNATURE_ATTRIBUTES


@dataclass(frozen=True, slots=True)
class ReadSignature:
    """A signature (64 bytes) as a span's attributes hold it."""

    signature: bytes
    key_id: str
    proof: pb.InclusionProof | None = field(default=None, repr=False)


def proof_text(proof: pb.InclusionProof) -> str:
    """Return the JSON text of a proof, on one line: the one that protobuf's JSON mapping gives."""
    return json_format.MessageToJson(proof, indent=None)


def attach_signature(members: dict[str, Any], signed: SpanSignature, time: str) -> None:
    """Replace the signature attributes of a span of OTLP/JSON; `time` is RFC 3339 text."""
    attributes = {
        SIGNATURE: b64encode(signed.signature).decode(),
        _ALGORITHM: signed.algorithm,
        _KEY_ID: signed.key_id,
        _TIMESTAMP: time,
        _STATUS: "signed",
    }
    if signed.proof is not None:
        attributes[_PROOF] = proof_text(signed.proof)
    _replace(members, attributes)


def attach_failure(members: dict[str, Any], reason: str, time: str) -> None:
    """Replace the signature attributes of a span by those that say why it is not signed."""
    _replace(members, {_TIMESTAMP: time, _STATUS: "signing_failed", _ERROR: reason})


def _replace(members: dict[str, Any], attributes: Mapping[str, str]) -> None:
    present = members.get("attributes") or []
    if isinstance(present, list):  # or else there is nowhere to say it; the span stays as it is
        kept = [item for item in present if not is_signature_attribute(item)]
        added = [{"key": key, "value": {"stringValue": text}} for key, text in attributes.items()]
        members["attributes"] = kept + added


def signature_of(members: Mapping[str, Any]) -> ReadSignature | None:
    """Return what the attributes of a span of OTLP/JSON say, or None if it is not signed.

    Raises InvalidSpan if they contradict each other, or are not such as `attach_signature` writes.
    """
    found: dict[str, str] = {}
    for item in items_of(members.get("attributes"), "attributes"):
        if is_signature_attribute(item):
            key, value = item["key"], members_of(item, _PAIR, "an attribute").get("value")
            text = value.get("stringValue") if isinstance(value, dict) and len(value) == 1 else None
            if not isinstance(text, str):
                raise InvalidSpan(f"attribute {key!r} must be a string")
            if key in found:
                raise InvalidSpan(f"attributes has the key {key!r} twice")
            found[key] = text
    if SIGNATURE not in found:
        return None
    if found.get(_STATUS, "signed") != "signed" or _ERROR in found:
        raise InvalidSpan(f"span has a signature, but {_STATUS} or {_ERROR} says that signing failed")
    if found.get(_ALGORITHM, ALGORITHM) != ALGORITHM:
        raise InvalidSpan(f"{_ALGORITHM} must be {ALGORITHM}")
    signature = bytes_of(found[SIGNATURE], SIGNATURE)
    if len(signature) != SIGNATURE_BYTES:
        raise InvalidSpan(f"{SIGNATURE} must be {SIGNATURE_BYTES} bytes, not {len(signature)}")
    proof = proof_from_text(found[_PROOF]) if _PROOF in found else None
    return ReadSignature(signature, found.get(_KEY_ID, ""), proof)
