"""The errors of every kind of store for what is not what was written. Nothing is used, replaced or made then."""

from betrace_kms_server.core.errors import KeyDamaged


def damaged_key(key_id: str) -> KeyDamaged:
    """Return the error for a key that is not what was written."""
    return KeyDamaged(
        f"signing key {key_id} is damaged in the key store: restore the store from a backup; the key was neither"
        " used nor replaced"
    )


def damaged_generation(tenant_id: str) -> KeyDamaged:
    """Return the error for a tenant whose generation is no number."""
    return KeyDamaged(
        f"the generation of tenant {tenant_id} is damaged in the key store: restore the store from a backup"
    )


def no_active_key(tenant_id: str) -> KeyDamaged:
    """Return the error for a tenant that had an active key and has none any more."""
    return KeyDamaged(
        f"tenant {tenant_id} has had signing keys, but none of them is active in the key store: restore the store from"
        " a backup, or import the active key from an export; no new key was made"
    )
