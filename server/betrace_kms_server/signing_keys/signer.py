"""The use cases of signing keys: the key that signs for a tenant, and those that verify.

A tenant's first key is made when it first signs. Its id is drawn before KMS is asked, because the id is part of the
encryption context; its seed is the plaintext of a KMS data key; and no one learns of it before the store has made it
durable. Whatever unwraps from the store must have the public key that the store names, or it is not used at all.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from betrace.kms.v1 import span_pb2
from betrace_kms_evidence import InvalidSpan, KeySet, PublicKey, SpanVerifier, canonical_span, sign
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from betrace_kms_server.cache.key_cache import KeyCache, Load
from betrace_kms_server.core.errors import InvalidRequest, KeyDamaged, NoSigningKey
from betrace_kms_server.core.histogram import Histogram
from betrace_kms_server.core.key_event import KeyEvent, Recorder, ignore, part_of
from betrace_kms_server.core.keys import SigningKey, StoredKey
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.signing_keys.batched_reads import BatchedReads
from betrace_kms_server.signing_keys.seeds import new_key, private_key_of, unwrap_seed
from betrace_kms_server.stores.protocol import KeyStore


@dataclass(frozen=True, slots=True)
class Signed:
    """A span's signature (64 bytes), the id of the key that made it, and the canonical span that it covers."""

    signature: bytes
    key_id: str
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _VerificationKey:
    public_key: PublicKey
    verifier: Ed25519PublicKey = field(repr=False)


class Signer:
    """Signing keys of all tenants, cached in front of a provider and a store.

    `now` is seconds since the Unix epoch; `record` gets every key that is made; `retrievals` counts the seconds
    that it took to get a key that signs.
    """

    def __init__(
        self,
        provider: KeyProvider,
        store: KeyStore,
        *,
        signing_keys: KeyCache,
        public_keys: KeyCache,
        auto_create: bool,
        now: Callable[[], float],
        record: Recorder = ignore,
    ) -> None:
        self._provider = provider
        self._store = store
        self._signing_keys = signing_keys
        self._public_keys = public_keys
        self._auto_create = auto_create
        self._now = now
        self._record = record
        self.retrievals = Histogram()

    async def sign(self, tenant_id: str, span: span_pb2.ComplianceSpan, event: KeyEvent | None = None) -> Signed:
        """Sign a span with the tenant's active key. Raises InvalidRequest for a span that cannot be signed."""
        try:
            key = await self.signing_key(tenant_id, [span], event)
            payload = canonical_span(tenant_id, key.key_id, span)
        except InvalidSpan as cause:
            raise InvalidRequest(str(cause)) from cause
        return Signed(sign(key.private_key, payload), key.key_id, payload)

    async def signing_key(
        self, tenant_id: str, spans: Sequence[span_pb2.ComplianceSpan], event: KeyEvent | None = None
    ) -> SigningKey:
        """Return the tenant's active key, made if need be and if at least one of the spans can be signed with it.

        Raises InvalidSpan, about the last span, if none can.
        """

        async def load() -> SigningKey:
            return await self._active_key(tenant_id, event)

        began = time.perf_counter()
        key = ("signing key", self._provider.master_key_arn, tenant_id)
        found = self._signing_keys.get_nowait(key, load)
        if found is None:
            _refuse_unless_one_is_signable(tenant_id, spans)
            found = await self._signing_keys.get_or_load(key, load, event=event)
        self.retrievals.observe(time.perf_counter() - began)
        return found

    async def verifier(self, tenant_id: str, key_ids: Iterable[str], event: KeyEvent | None = None) -> SpanVerifier:
        """Return what verifies signatures of these keys of a tenant; other ids are unknown to it."""
        reads = BatchedReads(self._store, tenant_id)
        keys: list[_VerificationKey] = []
        cold = []
        for key_id in set(key_ids):
            load = self._load(reads, key_id)
            key = ("public key", self._provider.master_key_arn, tenant_id, key_id)
            found = self._public_keys.get_nowait(key, load)
            if found is None:
                cold.append(self._public_keys.get_or_load(key, load, event=event))
            else:
                keys.append(found)
        for outcome in await asyncio.gather(*cold, return_exceptions=True) if cold else ():
            if isinstance(outcome, _VerificationKey):
                keys.append(outcome)
            elif not isinstance(outcome, NoSigningKey):
                raise outcome
        return SpanVerifier(
            KeySet(
                tenant_id,
                {key.public_key.key_id: key.public_key for key in keys},
                {key.public_key.key_id: key.verifier for key in keys},
            )
        )

    async def public_keys(self, tenant_id: str) -> Sequence[StoredKey]:
        """Return every key that a tenant ever had, oldest first."""
        return await self._store.all(tenant_id)

    def _load(self, reads: BatchedReads, key_id: str) -> Load[_VerificationKey]:
        async def load() -> _VerificationKey:
            stored = await reads.get(key_id)
            if stored is None:
                raise NoSigningKey(f"the tenant has no signing key {key_id}")
            try:
                verifier = Ed25519PublicKey.from_public_bytes(stored.public_key)
            except ValueError as cause:
                raise KeyDamaged(f"public key {key_id} is damaged in the key store: restore the store") from cause
            return _VerificationKey(public_key_of(stored), verifier)

        return load

    async def _active_key(self, tenant_id: str, event: KeyEvent | None) -> SigningKey:
        stored = await self._store.active(tenant_id)
        if stored is not None:
            return await self._unwrap(stored)
        if not self._auto_create:
            raise NoSigningKey(
                "the tenant has no signing key and kms.signing.auto-create is off: turn it on, or make a key first"
            )
        return await self._create_key(tenant_id, event)

    async def _create_key(self, tenant_id: str, event: KeyEvent | None) -> SigningKey:
        created, private_key = await new_key(self._provider, tenant_id, int(self._now() * 1000))
        winner = await self._store.create(created)
        if winner.key_id != created.key_id:
            return await self._unwrap(winner)
        self._record(part_of(event, "CreateSigningKey", tenant_id, created.key_id))
        return SigningKey(created.key_id, private_key)

    async def _unwrap(self, stored: StoredKey) -> SigningKey:
        return SigningKey(stored.key_id, private_key_of(await unwrap_seed(self._provider, stored)))


def public_key_of(stored: StoredKey) -> PublicKey:
    """Return what everybody may know of a stored key."""
    return PublicKey(
        stored.key_id,
        stored.public_key,
        stored.status.upper(),
        _rfc3339(stored.create_time_ms),
        _rfc3339(stored.rotate_time_ms),
        _rfc3339(stored.revoke_time_ms),
    )


def _rfc3339(milliseconds: int | None) -> str:
    if milliseconds is None:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _refuse_unless_one_is_signable(tenant_id: str, spans: Sequence[span_pb2.ComplianceSpan]) -> None:
    """Raise InvalidSpan if no span can be signed: such a call must not make a key."""
    refusal = "there is no span"
    for span in spans:
        try:
            canonical_span(tenant_id, "", span)
        except InvalidSpan as error:
            refusal = str(error)
        else:
            return
    raise InvalidSpan(refusal)
