"""Audit trails that tests make up and verify."""

import io

from betrace_kms_server.audit.chain import START, ChainVerifier, Finding, Head, format_line, parse_line
from betrace_kms_server.core.key_event import KeyEvent

CHANGED = "changed: its hash is not that of its content"
TIME = 1_704_164_645_006_999_999
EVENT = KeyEvent(
    "SignSpan",
    "acme",
    "00112233445566778899aabbccddeeff",
    "unix: betrace-backend/2.1",
    cache_hit=False,
    kms_request_ids=["7a3c2c1e-6c1e-4f0e-9d0d-3a5d0c1d2e3f"],
    request_id="0123456789abcdef",
    trace_id="0af7651916cd43dd8448eb211c80319c",
    identity="backend",
    rule="sign",
)


def chain(count: int, before: Head = START, operation: str = "Encrypt") -> list[bytes]:
    lines = []
    for number in range(count):
        line, before = format_line(KeyEvent(operation, "acme"), TIME + number, before)
        lines.append(line)
    return lines


def head_of(line: bytes) -> Head:
    parsed = parse_line(line)
    assert parsed is not None
    return parsed.head


def verified(*files: bytes, head: str | None = None) -> list[Finding]:
    verifier = ChainVerifier(head)
    found: list[Finding] = []
    for number, file in enumerate(files):
        found += verifier.read(f"file{number}", io.BytesIO(file))
    return [*found, *verifier.finish()]
