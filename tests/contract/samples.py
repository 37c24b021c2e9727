"""Spans and stored keys that differ only in what a test is about."""

import secrets

from betrace.kms.v1 import span_pb2
from betrace_kms_server.core.keys import SEED_BYTES, KeyStatus, StoredKey, WrappedKey

ARN = "arn:aws:kms:us-east-1:123456789012:key/00000000-1111-2222-3333-444444444444"


def span(name: str = "user.login") -> span_pb2.ComplianceSpan:
    """Return a span that can be signed."""
    return span_pb2.ComplianceSpan(trace_id=bytes(range(16)), span_id=bytes(range(1, 9)), name=name, framework="soc2")


def stored_key(
    tenant_id: str = "acme",
    *,
    key_id: str | None = None,
    wrapped_seed: WrappedKey | None = None,
    public_key: bytes | None = None,
    status: KeyStatus = "active",
    provider: str = "aws",
    create_time_ms: int = 1_700_000_000_000,
    rotate_time_ms: int | None = None,
    revoke_time_ms: int | None = None,
) -> StoredKey:
    """Return a row of a key store, random where nothing is given."""
    return StoredKey(
        tenant_id=tenant_id,
        key_id=key_id or secrets.token_hex(16),
        provider=provider,
        wrapped_seed=wrapped_seed or WrappedKey(secrets.token_bytes(100), ARN),
        public_key=public_key or secrets.token_bytes(SEED_BYTES),
        status=status,
        create_time_ms=create_time_ms,
        rotate_time_ms=rotate_time_ms,
        revoke_time_ms=revoke_time_ms,
    )
