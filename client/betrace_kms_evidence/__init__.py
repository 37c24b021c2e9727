"""The signed-span format: canonical bytes, DSSE encoding, Ed25519, and the JSON form of a span.

Server and client share this package so that what one signs is, byte for byte, what the other verifies. It is pure: it
opens no file and no socket, and it keeps no state.
"""

from betrace_kms_evidence.canonical import InvalidSpan, canonical_span
from betrace_kms_evidence.dsse import ALGORITHM, PAYLOAD_TYPE, pre_authentication_encoding, sign, verify
from betrace_kms_evidence.span_json import span_from_json, span_to_json

__all__ = [
    "ALGORITHM",
    "PAYLOAD_TYPE",
    "InvalidSpan",
    "canonical_span",
    "pre_authentication_encoding",
    "sign",
    "span_from_json",
    "span_to_json",
    "verify",
]
