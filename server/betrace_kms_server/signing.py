"""The use cases of signing keys: sign a span, verify one.

A tenant's first key is made when it first signs. Its id is drawn before KMS is asked, because the id is part of the
encryption context; its seed is the plaintext of a KMS data key; and nobody learns of it before the store has made it
durable. Whatever unwraps from the store must have the public key that the store tells, or it is not used at all.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from betrace.kms.v1 import span_pb2
from betrace_kms_evidence import InvalidSpan, canonical_span, sign, verify
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from betrace_kms_server.cache import KeyCache
from betrace_kms_server.errors import InvalidRequest, KeyDamaged, NoSigningKey
from betrace_kms_server.keys import SEED_BYTES, SigningKey, StoredKey, VerificationKey
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.seeds import private_key_of, unwrap_seed
from betrace_kms_server.stores.protocol import KeyStore
from betrace_kms_server.tenancy import signing_context

Verdict = Literal["VALID", "UNKNOWN_KEY", "BAD_SIGNATURE", "KEY_REVOKED"]


@dataclass(frozen=True, slots=True)
class Signed:
    """A span's signature (64 bytes), the id of the key that made it, and the canonical span that it covers."""

    signature: bytes
    key_id: str
    payload: bytes = field(repr=False)


class Signer:
    """Signing keys of all tenants, cached in front of a provider and a store. `now` is seconds since the Unix epoch."""

    def __init__(
        self,
        provider: KeyProvider,
        store: KeyStore,
        *,
        signing_keys: KeyCache,
        public_keys: KeyCache,
        auto_create: bool,
        now: Callable[[], float],
    ) -> None:
        self._provider = provider
        self._store = store
        self._signing_keys = signing_keys
        self._public_keys = public_keys
        self._auto_create = auto_create
        self._now = now

    async def sign(self, tenant_id: str, span: span_pb2.ComplianceSpan) -> Signed:
        """Sign a span with the tenant's active key. Raises InvalidRequest for a span that cannot be signed."""

        async def load() -> SigningKey:
            return await self._active_key(tenant_id)

        cache, key = self._signing_keys, ("signing key", self._provider.master_key_arn, tenant_id)
        signing_key = cache.get_nowait(key, load)
        if signing_key is None:
            _canonical(tenant_id, "", span)  # a span that cannot be signed must not make a key
            signing_key = await cache.get_or_load(key, load)
        payload = _canonical(tenant_id, signing_key.key_id, span)
        return Signed(sign(signing_key.private_key, payload), signing_key.key_id, payload)

    async def verify(self, tenant_id: str, key_id: str, span: span_pb2.ComplianceSpan, signature: bytes) -> Verdict:
        """Tell whether the tenant's key made this signature over this span."""

        async def load() -> VerificationKey:
            return await self._verification_key(tenant_id, key_id)

        payload = _canonical(tenant_id, key_id, span)
        key = ("public key", self._provider.master_key_arn, tenant_id, key_id)
        try:
            public_key = await self._public_keys.get_or_load(key, load)
        except NoSigningKey:
            return "UNKNOWN_KEY"
        if public_key.status == "revoked":
            return "KEY_REVOKED"
        return "VALID" if verify(public_key.public_key, signature, payload) else "BAD_SIGNATURE"

    async def _verification_key(self, tenant_id: str, key_id: str) -> VerificationKey:
        stored = await self._store.get(tenant_id, key_id)
        if stored is None:
            raise NoSigningKey(f"the tenant has no signing key {key_id}")
        try:
            public_key = Ed25519PublicKey.from_public_bytes(stored.public_key)
        except ValueError as cause:
            raise KeyDamaged(f"public key {key_id} is damaged in the key store: restore the store") from cause
        return VerificationKey(key_id, public_key, stored.status)

    async def _active_key(self, tenant_id: str) -> SigningKey:
        stored = await self._store.active(tenant_id)
        if stored is not None:
            return await self._unwrap(stored)
        if not self._auto_create:
            raise NoSigningKey(
                "the tenant has no signing key and kms.signing.auto-create is off: turn it on, or make a key first"
            )
        return await self._create_key(tenant_id)

    async def _create_key(self, tenant_id: str) -> SigningKey:
        key_id = secrets.token_hex(16)
        seed = await self._provider.generate_data_key(SEED_BYTES, signing_context(tenant_id, key_id))
        private_key = private_key_of(seed.material)
        created = StoredKey(
            tenant_id=tenant_id,
            key_id=key_id,
            provider=self._provider.name,
            wrapped_seed=seed.wrapped,
            public_key=private_key.public_key().public_bytes_raw(),
            status="active",
            create_time_ms=int(self._now() * 1000),
        )
        winner = await self._store.create(created)
        return SigningKey(key_id, private_key) if winner.key_id == key_id else await self._unwrap(winner)

    async def _unwrap(self, stored: StoredKey) -> SigningKey:
        return SigningKey(stored.key_id, private_key_of(await unwrap_seed(self._provider, stored)))


def _canonical(tenant_id: str, key_id: str, span: span_pb2.ComplianceSpan) -> bytes:
    try:
        return canonical_span(tenant_id, key_id, span)
    except InvalidSpan as cause:
        raise InvalidRequest(str(cause)) from cause
