"""Moves signing keys from former master keys to today's, in the background, after an operator changed it."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import structlog

from betrace_kms_server.core.errors import AccessDenied, KeyDamaged, KmsError, MasterKeyUnusable
from betrace_kms_server.core.key_event import KeyEvent, Recorder, ignore, recorded
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.signing_keys.seeds import rewrap_seed, unwrap_seed
from betrace_kms_server.stores.protocol import KeyStore

log = structlog.get_logger()

PAUSE_SECONDS = 30.0
"""How long to wait before another try, when KMS or the store failed."""


async def rewrap_signing_keys(
    provider: KeyProvider,
    store: KeyStore,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    record: Recorder = ignore,
) -> None:
    """Wrap every signing key of a former master key under today's, and try again until none is left that can be.

    A key that is damaged, or whose master key is not configured, stays as it is and is named in the log. What a replica
    of today's master key wrapped is at home already.
    """
    while True:
        try:
            left = await store.wrapped_by_other_keys(provider.master_key_arn)
            if not left:
                return
            done, stuck = await _rewrap(provider, store, left, record)
        except KmsError as error:
            log.warning("Moving signing keys to the master key is interrupted, trying again", problem=error.message)
        else:
            if done or stuck:
                log.info("Signing keys were moved to the master key", moved=done, left=sum(stuck.values()))
            for problem, count in stuck.items():
                log.error("Signing keys could not be moved to the master key", keys=count, problem=problem)
            return
        await sleep(PAUSE_SECONDS)


async def _rewrap(
    provider: KeyProvider, store: KeyStore, keys: Sequence[tuple[str, str]], record: Recorder
) -> tuple[int, Counter[str]]:
    done, stuck = 0, Counter[str]()
    for tenant_id, key_id in keys:
        try:
            stored = await store.get(tenant_id, key_id)
            if stored is None:
                continue
            arn = stored.wrapped_seed.master_key_arn
            if provider.is_current(arn):
                continue  # a replica wrapped it, when its region served
            if provider.unwrapping_key_for(arn) is None:
                stuck[f"they were wrapped by {arn}: list it in aws.kms.decrypt-key-ids"] += 1
                continue
            seed = await recorded(KeyEvent("UnwrapKey", tenant_id, key_id), record, unwrap_seed(provider, stored))
        except (AccessDenied, KeyDamaged, MasterKeyUnusable) as error:  # this key's own trouble; others may move
            stuck[error.message] += 1
            continue
        await recorded(KeyEvent("RewrapKey", tenant_id, key_id), record, rewrap_seed(provider, store, stored, seed))
        done += 1
    return done, stuck
