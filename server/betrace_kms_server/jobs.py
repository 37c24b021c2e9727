"""What the daemon does automatically, beside the calls that it answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta

import structlog

from betrace_kms_server.cache.key_caches import KeyCaches
from betrace_kms_server.config.settings import Settings
from betrace_kms_server.core.errors import KmsError
from betrace_kms_server.core.key_event import Recorder
from betrace_kms_server.core.moving import Report
from betrace_kms_server.data_keys.row_keys import rewrap_branch_keys
from betrace_kms_server.host.connection_bounds import ConnectionBounds
from betrace_kms_server.operations.emergency_stop import EmergencyStop
from betrace_kms_server.operations.monitor import KmsState
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.rpc.health import KEY_MANAGEMENT, KMS, HealthService
from betrace_kms_server.rpc.large_messages import LargeMessages
from betrace_kms_server.signing_keys.rewrapping import rewrap_signing_keys
from betrace_kms_server.signing_keys.rotation import Rotation
from betrace_kms_server.stores.branch_keys import BranchKeyStore
from betrace_kms_server.stores.protocol import KeyStore

log = structlog.get_logger()

RESTART_SECONDS = 30.0
"""Pause before a background job that failed begins again."""
_BOUNDS_SECONDS = 0.25
_UNREAD_SECONDS = 1.0
"""From when on an answer that was not read counts as unread."""
SWEEP_SECONDS = 60.0
"""How often expired keys that no one asks for are dropped from memory."""


def on_kms_state(health: HealthService, provider: KeyProvider, caches: KeyCaches) -> Callable[[KmsState], None]:
    """Return what is to be done when the master key was checked.

    The health service shows KMS as it is now, and our own service from the first time that the master key was enabled.
    A master key that somebody disabled, or scheduled for deletion, takes what it wrapped with it. An outage does not,
    nor does a custom key store that is away for a while.
    """

    def changed(state: KmsState) -> None:
        health.set(KMS, state.usable)
        if state.enabled:
            health.set(KEY_MANAGEMENT, True)
        if state.withdrawn:
            dropped = caches.purge(provider.master_key_arn)
            if dropped:
                log.error("The master key may not be used any more: its keys were dropped", entries=dropped)

    return changed


async def keep_bounds(bounds: ConnectionBounds, large: LargeMessages) -> None:
    """End connections that are too many, and those that do not take their answers."""
    while True:
        bounds.end_surplus()
        bounds.end_stalled(large.unread(_UNREAD_SECONDS))
        await asyncio.sleep(_BOUNDS_SECONDS)


@asynccontextmanager
async def background(*jobs: Callable[[], Coroutine[None, None, None]]) -> AsyncIterator[None]:
    """Run jobs until the context is left; one that fails is logged, and begins again after `RESTART_SECONDS`."""
    tasks = [asyncio.create_task(_run(job)) for job in jobs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _run(job: Callable[[], Coroutine[None, None, None]]) -> None:
    while True:
        try:
            return await job()
        except Exception as error:  # a defect must not end for good what keeps keys rotated and memory clean
            log.error("A background job failed and begins again", seconds=RESTART_SECONDS, exc_info=error)
        await asyncio.sleep(RESTART_SECONDS)


async def while_permitted(stop: EmergencyStop, job: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a job that uses keys until it ends. An emergency stop cancels it; once that is over, it begins again."""
    while True:
        await stop.permits.wait()
        running, stopped = asyncio.create_task(job()), asyncio.create_task(stop.refuses.wait())
        try:
            await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
        finally:
            running.cancel()
            stopped.cancel()
            await asyncio.gather(running, stopped, return_exceptions=True)


async def leave_former_keys(
    provider: KeyProvider,
    store: KeyStore,
    branch_store: BranchKeyStore | None,
    logical_name: str,
    usable: asyncio.Event,
    record: Recorder,
    report: Report,
) -> None:
    """Once the master key is usable, check the former ones, and move signing keys and branch keys off them."""
    await usable.wait()
    for arn in provider.decrypt_key_arns[1:]:
        try:
            await provider.check(arn)
        except KmsError as error:
            log.error(f"A former master key cannot be used: {error.message}", master_key=arn)  # noqa: G004
        else:
            log.info("A former master key is usable for Decrypt", master_key=arn)
    await rewrap_signing_keys(provider, store, record=record, report=report)
    if branch_store is not None:
        await rewrap_branch_keys(provider, branch_store, logical_name, record=record, report=report)


async def rotate_on_schedule(settings: Settings, rotation: Rotation, usable: asyncio.Event) -> None:
    """Once the master key is usable, rotate signing keys by the schedule."""
    if settings.rotation_enabled:
        await usable.wait()
        await rotation.follow(settings.rotation_check_cron, timedelta(days=settings.rotation_max_age_days))


async def sweep(caches: KeyCaches) -> None:
    """Drop expired keys from memory again and again."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        caches.drop_expired()
