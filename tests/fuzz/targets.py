"""What is fuzzed: each reader of bytes from outside, inputs to begin with, and how it may refuse one.

A reader may refuse by exactly the types that its docstring names, and not by a subclass: ValueError would otherwise
hide a UnicodeDecodeError. What it takes must also hold: what is written again is what was read, and no bound is passed.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from betrace_kms_client.otlp.encodings import DamagedInput, InvalidInput, decoded
from betrace_kms_client.otlp.files import lines_of, read_first
from betrace_kms_envelope import DoesNotOpen, Message
from betrace_kms_evidence import (
    InvalidDocument,
    InvalidKeySet,
    InvalidSpan,
    canonical_span,
    proof_from_text,
    read_jwks,
    read_signed_span,
    span_from_json,
    span_to_json,
    strict_json,
)
from betrace_kms_server.access.policy import InvalidPolicy, parse_policy
from betrace_kms_server.access.token_file import parse_tokens
from betrace_kms_server.audit.chain import ChainVerifier, parse_line
from betrace_kms_server.config.properties import parse_properties
from betrace_kms_server.core.errors import InvalidRequest
from betrace_kms_server.host.trusted_files import Untrusted
from betrace_kms_server.rpc.wire import Unreadable, check_of
from betrace_kms_server.stores import branch_key_export
from betrace_kms_server.stores.export import key_of, line_of
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.fuzz.bounds import request_within_bounds

CORPUS = Path(__file__).with_name("corpus")
"""A folder for each target: inputs to begin with, and inputs that once were findings."""
_KEY = bytes(range(32))


@dataclass(frozen=True)
class Target:
    """A reader, its first inputs, the types of error by which it refuses, and the functions that name those."""

    read: Callable[[bytes], object]
    seeds: Sequence[bytes]
    refusals: tuple[type[Exception], ...] = ()
    readers: Sequence[Callable[..., object]] = ()

    def check(self, data: bytes) -> None:
        """Read an input. Raises what the reader raised if that is no refusal."""
        try:
            self.read(data)
        except Exception as cause:
            if type(cause) not in self.refusals:
                raise


def kept(name: str) -> Sequence[bytes]:
    """Return the inputs in a target's folder."""
    return [file.read_bytes() for file in sorted((CORPUS / name).glob("*"))]


def _open(data: bytes) -> bytes:
    message = Message.parse(data)
    message.is_under(_KEY)
    return message.open(_KEY)


def _open_authentic(data: bytes) -> bytes:
    """Open a message whose header was made authentic, so that what follows the header is read at all."""
    message = Message.parse(data)

    def derived(info: bytes) -> bytes:
        return HKDF(hashes.SHA512(), 32, message.message_id, info).derive(_KEY)

    end = data.index(message.commitment, 3 + 32 + len(message.fields))
    header = data[:end] + derived(b"COMMITKEY")
    tag = AESGCM(derived(message.suite.to_bytes(2, "big") + b"DERIVEKEY")).encrypt(bytes(12), b"", header)
    return _open(header + tag + data[len(header) + len(tag) :])


def _span(data: bytes) -> None:
    members = strict_json(data)
    if not isinstance(members, dict):
        raise InvalidDocument("no object")
    span = span_from_json(members)
    assert canonical_span("t", "k", span) == canonical_span("t", "k", span_from_json(span_to_json(span)))


def _otlp(data: bytes) -> None:
    source = decoded(io.BytesIO(data))
    head, _ = read_first(source)
    for line in lines_of(head, source):
        text = line.text()
        assert line.problem or line.document is None or orjson.loads(text) == line.document


def _properties(data: bytes) -> None:
    for entry in parse_properties(data.decode("latin-1")):
        assert entry.line >= 1
        f"{entry.name}={entry.value}".encode()


def _branch_key_row(data: bytes) -> None:
    row = branch_key_export.row_of(data, "logical")
    assert row == branch_key_export.row_of(branch_key_export.line_of(row, "logical"), "logical")


def _stored_key(data: bytes) -> None:
    key = key_of(data)
    assert key == key_of(line_of(key))


def _audit(data: bytes) -> None:
    parse_line(data)
    verifier = ChainVerifier()
    assert all(finding.problem for finding in verifier.read("audit.log", io.BytesIO(data)))
    assert not list(verifier.finish())


_POLICY = b"""[[rule]]
name = "backend"
identities = ["backend", "spiffe://example.org/*"]
tenants = ["acme", "eu-*"]
operations = ["SignSpan", "VerifySpan"]
"""
_ATTRIBUTES = {
    "n": {"intValue": "1"},
    "d": {"doubleValue": 0.5},
    "l": {"arrayValue": {"values": [{"kvlistValue": {"values": [{"key": "k", "value": {"bytesValue": "AAE="}}]}}]}},
}
_SPAN = {
    "traceId": "0" * 31 + "1",
    "spanId": "0" * 15 + "1",
    "name": "login",
    "startTimeUnixNano": "1704164645000000000",
    "durationNano": "-1",
    "attributes": _ATTRIBUTES,
}
_PROOF = {"treeSize": "2", "rootHash": "A" * 43 + "=", "hashes": ["A" * 43 + "="], "signTime": "2024-01-02T03:04:05.6Z"}
_SIGNED = {"span": _SPAN, "signature": "A" * 86 + "==", "keyId": "k", "proof": _PROOF}
_OTLP_SPAN = {
    **{name: value for name, value in _SPAN.items() if name not in ("durationNano", "attributes")},
    "endTimeUnixNano": "1704164645000000001",
    "attributes": [{"key": name, "value": value} for name, value in _ATTRIBUTES.items()],
}
_TRACES = orjson.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [_OTLP_SPAN]}]}]})
_JWK = {"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
_TOKEN = b"0123456789abcdef" * 2

TARGETS: Mapping[str, Target] = {
    "envelope": Target(_open, (), (DoesNotOpen,), (Message.parse, Message.open)),
    "envelope-authentic": Target(_open_authentic, kept("envelope"), (DoesNotOpen,), (Message.parse, Message.open)),
    "jwks": Target(read_jwks, [orjson.dumps({"keys": [_JWK], "tenant_id": "acme"})], (InvalidKeySet,), (read_jwks,)),
    "proof": Target(
        lambda data: proof_from_text(data.decode("latin-1")), [orjson.dumps(_PROOF)], (InvalidSpan,), (proof_from_text,)
    ),
    "signed-span": Target(
        lambda data: read_signed_span(strict_json(data)),
        [orjson.dumps(_SIGNED)],
        (InvalidDocument, InvalidSpan),
        (strict_json, read_signed_span),
    ),
    "span": Target(_span, [orjson.dumps(_SPAN)], (InvalidDocument, InvalidSpan), (strict_json, span_from_json)),
    "otlp": Target(
        _otlp, [_TRACES, _TRACES + b"\n" + _TRACES + b"\n"], (InvalidInput, DamagedInput), (decoded, read_first)
    ),
    "properties": Target(
        _properties,
        [b"kms.server.listen=127.0.0.1:0\n# note\nkms.data-dir = \\\n  data\n", b"a:\\u0041\r\nb c\r"],
        (ValueError,),
        (parse_properties,),
    ),
    "branch-keys": Target(_branch_key_row, (), (ValueError,), (branch_key_export.row_of,)),
    "keystore": Target(_stored_key, (), (ValueError,), (key_of,)),
    "policy": Target(
        parse_policy, [_POLICY, _POLICY + _POLICY.replace(b"backend", b"b")], (InvalidPolicy,), (parse_policy,)
    ),
    "tokens": Target(
        lambda data: parse_tokens(Path("tokens"), data),
        [b"# two\n" + _TOKEN + b"\nname " + _TOKEN[::-1] + b"=\n"],
        (Untrusted,),
        (parse_tokens,),
    ),
    "audit": Target(_audit, (), (), (parse_line, ChainVerifier.read)),
    "wire": Target(request_within_bounds, (), (InvalidRequest, Unreadable), (check_of,)),
}
