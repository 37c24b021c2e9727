"""Seeds of signing keys between KMS and the key store: make one, unwrap one, move one to today's master key.

A seed that unwraps must have the public key that the row names, or the row is damaged. A row moves to another master
key only when what replaces it has been unwrapped and compared, so an interrupted move loses nothing.
"""

import secrets
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.constant_time import bytes_eq

from betrace_kms_server.core.errors import DoesNotOpen, KeyDamaged, MasterKeyUnusable
from betrace_kms_server.core.keys import SEED_BYTES, KeyMaterial, StoredKey, WrappedKey
from betrace_kms_server.core.master_keys import step_to_configure
from betrace_kms_server.core.tenancy import signing_context
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.stores.protocol import KeyStore


def private_key_of(seed: KeyMaterial) -> Ed25519PrivateKey:
    """Return the Ed25519 key of a seed of 32 bytes (RFC 8032, section 5.1.5)."""
    return Ed25519PrivateKey.from_private_bytes(seed.raw)


async def new_key(provider: KeyProvider, tenant_id: str, now_ms: int) -> tuple[StoredKey, Ed25519PrivateKey]:
    """Return a new active key of a tenant, which the store does not have yet, and its private half.

    The id is drawn before KMS is asked, because it is part of the encryption context.
    """
    key_id = secrets.token_hex(16)
    seed = await provider.generate_data_key(SEED_BYTES, signing_context(tenant_id, key_id))
    private_key = private_key_of(seed.material)
    public_key = private_key.public_key().public_bytes_raw()
    return StoredKey(tenant_id, key_id, provider.name, seed.wrapped, public_key, "active", now_ms), private_key


async def unwrap_seed(provider: KeyProvider, stored: StoredKey) -> KeyMaterial:
    """Return the seed of a stored key.

    Raises MasterKeyUnusable if its master key is not configured, and KeyDamaged if it is not what was stored.
    """
    arn = provider.unwrapping_key_for(stored.wrapped_seed.master_key_arn)
    if arn is None:
        raise MasterKeyUnusable(
            f"signing key {stored.key_id} was wrapped by {stored.wrapped_seed.master_key_arn}, which is not configured:"
            f" {step_to_configure(stored.wrapped_seed.master_key_arn, provider.name)}"
        )
    context = signing_context(stored.tenant_id, stored.key_id)
    try:
        seed = await provider.unwrap(WrappedKey(stored.wrapped_seed.blob, arn), context)
    except DoesNotOpen as cause:
        raise _damaged(stored) from cause
    if len(seed) != SEED_BYTES or private_key_of(seed).public_key().public_bytes_raw() != stored.public_key:
        raise _damaged(stored)
    return seed


async def rewrap_seed(provider: KeyProvider, store: KeyStore, stored: StoredKey, seed: KeyMaterial) -> None:
    """Wrap a stored key's seed under today's master key. If anything fails, the row is as it was."""
    context = signing_context(stored.tenant_id, stored.key_id)
    wrapped = await provider.wrap(seed, context)
    again = await provider.unwrap(wrapped, context)
    if not bytes_eq(bytes(again.raw), bytes(seed.raw)):
        raise _damaged(stored)
    await store.replace(stored, replace(stored, wrapped_seed=wrapped))


def _damaged(stored: StoredKey) -> KeyDamaged:
    return KeyDamaged(
        f"signing key {stored.key_id} does not unwrap to the key that was stored: restore the key store from a backup;"
        " the key was neither used nor replaced"
    )
