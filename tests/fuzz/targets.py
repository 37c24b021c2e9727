"""What is fuzzed: each reader of bytes from outside, inputs to begin with, and how it may refuse one.

A reader may refuse by exactly these types, not by a subclass: ValueError would otherwise hide a UnicodeDecodeError.
"""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from json import JSONDecodeError

import orjson
from betrace_kms_client.otlp.encodings import DamagedInput, InvalidInput, decoded
from betrace_kms_client.otlp.files import lines_of, read_first
from betrace_kms_envelope import DoesNotOpen, EncryptedDataKey, Message, Sealer
from betrace_kms_evidence import (
    InvalidDocument,
    InvalidKeySet,
    InvalidSpan,
    proof_from_text,
    read_jwks,
    read_signed_span,
    span_from_json,
    strict_json,
)
from betrace_kms_server.access.policy import InvalidPolicy, parse_policy
from betrace_kms_server.audit.chain import parse_line
from betrace_kms_server.config.properties import parse_properties
from betrace_kms_server.stores.export import key_of, line_of
from javaproperties import InvalidUEscapeError

from tests.contract.samples import stored_key

_KEY = bytes(32)
_POLICY = b"""[[rule]]
name = "backend"
identities = ["backend", "spiffe://example.org/*"]
tenants = ["acme", "eu-*"]
operations = ["SignSpan", "VerifySpan"]
"""


@dataclass(frozen=True)
class Target:
    """A reader, its first inputs, and the types of error by which it refuses."""

    read: Callable[[bytes], object]
    seeds: Sequence[bytes]
    refusals: tuple[type[Exception], ...]

    def check(self, data: bytes) -> None:
        """Read an input. Raises what the reader raised if that is no refusal."""
        try:
            self.read(data)
        except Exception as cause:
            if type(cause) not in self.refusals:
                raise


def _open(data: bytes) -> bytes:
    message = Message.parse(data)
    message.is_under(_KEY)
    return message.open(_KEY)


def _span(data: bytes) -> object:
    members = strict_json(data)
    if not isinstance(members, dict):
        raise InvalidDocument("no object")
    return span_from_json(members)


def _otlp(data: bytes) -> int:
    source = decoded(io.BytesIO(data))
    head, _ = read_first(source)
    return sum(len(line.spans) + len(line.text()) for line in lines_of(head, source))


def _messages() -> list[bytes]:
    sealer = Sealer(EncryptedDataKey("aws-kms", "arn:aws:kms:us-east-1:123456789012:key/k", os.urandom(64)), {"a": "b"})
    return [sealer.seal(text, _KEY) for text in (b"", b"hello", bytes(5000))]


_ATTRIBUTES = [{"key": "n", "value": {"intValue": "1"}}, {"key": "d", "value": {"doubleValue": 0.5}}]
_SPAN = {"traceId": "0" * 31 + "1", "spanId": "0" * 15 + "1", "name": "login", "attributes": _ATTRIBUTES}
_TRACES = orjson.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [_SPAN]}]}]})
_JWK = {"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
_JSON = (InvalidDocument, InvalidSpan, ValueError, UnicodeDecodeError, JSONDecodeError)

TARGETS: Mapping[str, Target] = {
    "envelope": Target(_open, _messages(), (DoesNotOpen,)),
    "jwks": Target(read_jwks, [orjson.dumps({"keys": [_JWK], "tenantId": "acme"})], (InvalidKeySet,)),
    "proof": Target(
        lambda data: proof_from_text(data.decode("latin-1")),
        [orjson.dumps({"leafIndex": "0", "treeSize": "1", "hashes": [], "signTime": "2024-01-02T03:04:05.600Z"})],
        _JSON,
    ),
    "signed-span": Target(
        lambda data: read_signed_span(strict_json(data)),
        [orjson.dumps({"span": _SPAN, "signature": "AAAA", "keyId": "k", "tenantId": "acme"})],
        _JSON,
    ),
    "span": Target(_span, [orjson.dumps(_SPAN)], _JSON),
    "otlp": Target(_otlp, [_TRACES, _TRACES + b"\n" + _TRACES + b"\n"], (InvalidInput, DamagedInput)),
    "properties": Target(
        lambda data: parse_properties(data.decode("latin-1")),
        [b"kms.server.listen=127.0.0.1:0\n# note\nkms.data-dir = \\\n  data\n", b"a:\\u0041\r\nb c\r"],
        (ValueError, InvalidUEscapeError),
    ),
    "keystore": Target(key_of, [line_of(stored_key("acme"))], (ValueError,)),
    "policy": Target(parse_policy, [_POLICY, _POLICY + _POLICY.replace(b"backend", b"b")], (InvalidPolicy,)),
    "audit": Target(
        parse_line, [b'{"time":"x","seq":1,"prev":"' + b"0" * 64 + b'","hash":"' + b"0" * 64 + b'"}\n'], ()
    ),
}
