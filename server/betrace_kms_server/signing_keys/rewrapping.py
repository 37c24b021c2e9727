"""Moves signing keys from former master keys to today's, in the background, after an operator changed it."""

import asyncio
from collections.abc import Awaitable, Callable

from betrace_kms_server.core.key_event import KeyEvent, Recorder, ignore, recorded
from betrace_kms_server.core.keys import KeyMaterial, StoredKey
from betrace_kms_server.core.moving import Report, move_keys, not_configured, unreported
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.signing_keys.seeds import rewrap_seed, unwrap_seed
from betrace_kms_server.stores.protocol import KeyStore

_Name = tuple[str, str]
"""Tenant id and key id."""


async def rewrap_signing_keys(
    provider: KeyProvider,
    store: KeyStore,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    record: Recorder = ignore,
    report: Report = unreported,
) -> None:
    """Wrap every signing key of a former master key under today's: see `move_keys`.

    What a replica of today's master key wrapped is at home already.
    """

    async def unwrap(name: _Name) -> tuple[StoredKey, KeyMaterial] | None:
        stored = await store.get(*name)
        if stored is None:
            return None
        arn = stored.wrapped_seed.master_key_arn
        if provider.is_current(arn):
            return None  # a replica wrapped it, when its region served
        if provider.unwrapping_key_for(arn) is None:
            raise not_configured(arn, provider.name)
        return stored, await recorded(KeyEvent("UnwrapKey", *name), record, unwrap_seed(provider, stored))

    async def rewrap(name: _Name, key: tuple[StoredKey, KeyMaterial]) -> None:
        await recorded(KeyEvent("RewrapKey", *name), record, rewrap_seed(provider, store, *key))

    await move_keys(
        "signing keys",
        lambda: store.wrapped_by_other_keys(provider.master_key_arn),
        unwrap,
        rewrap,
        sleep=sleep,
        report=report,
    )
