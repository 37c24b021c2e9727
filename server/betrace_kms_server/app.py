"""The composition root: builds everything, and owns start, drain and stop.

Start: settings, data folder, key store, provider, server; then the master key is looked at, and only when it is usable
does the service say SERVING. KMS failing is no reason to exit: the daemon stays NOT_SERVING and tries again.

Stop: NOT_SERVING, watches end, calls in flight finish within the grace, then caches, provider and store close.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from betrace_kms_server.cache import KeyCache
from betrace_kms_server.config import LATER, Settings, described
from betrace_kms_server.errors import KmsError, StartRefused
from betrace_kms_server.keyring import KeyRing
from betrace_kms_server.listen import claimed, exclusive
from betrace_kms_server.providers.local import MASTER_KEY_FILE, LocalProvider, load_master_key
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.rewrapping import rewrap_signing_keys
from betrace_kms_server.rpc.health import KEY_MANAGEMENT, KMS, HealthService
from betrace_kms_server.rpc.key_management import KeyManagementService
from betrace_kms_server.rpc.server import bind, build_server
from betrace_kms_server.signing import Signer
from betrace_kms_server.stores.protocol import KeyStore
from betrace_kms_server.stores.sqlite import DATABASE_FILE, open_sqlite
from betrace_kms_server.stores.volume import ephemeral_kind
from betrace_kms_server.telemetry.logs import cause_of

log = structlog.get_logger()

RETRY_SECONDS = 2.0
"""How soon an unusable master key is looked at again."""
SWEEP_SECONDS = 60.0
"""How often expired keys that nobody asks for are dropped from memory."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon that takes calls."""

    addresses: Sequence[str]
    """Where it listens, with the ports that were bound."""
    health: HealthService
    caches: Sequence[KeyCache]


async def serve(settings: Settings, origins: Mapping[str, str]) -> None:
    """Run a daemon until SIGTERM or SIGINT. Raises StartRefused if it cannot start safely."""
    stopping = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopping.set)
    for name, value, origin in described(settings, origins):
        if not value or (name in LATER and origin == "default"):
            continue
        log.info(f"{name} = {value}", source=origin)  # noqa: G004  # the line is the message
        if name in LATER:
            log.warning(f"{name} has no effect in this version")  # noqa: G004
    async with running(settings):
        await stopping.wait()
        log.info("Stopping")
    log.info("Stopped")


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Daemon]:
    """Start a daemon, and drain and stop it on leaving. Raises StartRefused if it cannot start safely."""
    async with AsyncExitStack() as resources:
        _refuse_ephemeral(settings)
        _open_data_dir(settings.data_dir, resources)
        for address in settings.listen:
            resources.enter_context(claimed(address))
        store = await resources.enter_async_context(open_sqlite(_store_file(settings.data_dir)))
        provider = await _open_provider(settings, store, resources)
        minute = 60.0
        encryption_keys, signing_keys, public_keys = caches = [
            KeyCache(kind, ttl=ttl, max_size=settings.cache_max_size)
            for kind, ttl in (
                ("encryption", settings.encryption_key_ttl_minutes * minute),
                ("signing", settings.private_key_ttl_minutes * minute),
                ("public", settings.public_key_ttl_hours * 60 * minute),
            )
        ]
        for cache in caches:
            resources.push_async_callback(cache.close)
        signer = Signer(
            provider,
            store,
            signing_keys=signing_keys,
            public_keys=public_keys,
            auto_create=settings.auto_create,
            now=time.time,
        )
        keyring = KeyRing(
            provider,
            encryption_keys,
            max_messages=settings.encryption_key_max_messages,
            max_uses=settings.data_key_max_uses,
            max_encrypted_data_keys=settings.max_encrypted_data_keys,
        )
        threads = resources.enter_context(ThreadPoolExecutor(2, thread_name_prefix="evidence"))
        health = HealthService()
        server = build_server(
            KeyManagementService(keyring, signer, threads=threads, max_payload_bytes=settings.max_message_bytes),
            health,
            max_payload_bytes=settings.max_message_bytes,
            reflect=settings.reflection,
        )
        addresses = bind(server, settings.listen)
        await server.start()
        resources.push_async_callback(server.stop, settings.drain_seconds)
        resources.callback(health.drain)
        usable = asyncio.Event()
        async with _background(
            _watch_master_key(provider, health, usable, settings.health_check_seconds),
            _leave_former_keys(provider, store, usable),
            _sweep(caches),
        ):
            log.info("Listening", addresses=addresses)
            yield Daemon(addresses, health, caches)


def _open_data_dir(folder: Path, resources: AsyncExitStack) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as cause:
        raise StartRefused(f"kms.data-dir {folder} cannot be made: {cause.strerror}") from cause
    if folder.stat().st_uid == os.geteuid():
        folder.chmod(0o700)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise StartRefused(f"kms.data-dir {folder} is not writable: give it to the daemon's user")
    resources.enter_context(exclusive(folder / "daemon.lock", f"another daemon uses kms.data-dir {folder}"))


def _store_file(folder: Path) -> Path:
    """Return the store's path; a store that vanished beside its master key must not be replaced by an empty one."""
    path = folder / DATABASE_FILE
    if path.exists():
        return path
    if (folder / MASTER_KEY_FILE).exists():
        raise StartRefused(
            f"{path} is missing beside {MASTER_KEY_FILE}: restore it from a backup; only if there never were keys to"
            " lose, remove both and start anew"
        )
    log.warning("There is no key store, making a new and empty one", path=str(path))
    return path


def _refuse_ephemeral(settings: Settings) -> None:
    kind = ephemeral_kind(settings.data_dir)
    if settings.provider == "local" or kind is None:
        return
    if not settings.store_allow_ephemeral:
        raise StartRefused(
            f"kms.data-dir {settings.data_dir} is on {kind}, and signing keys would die with it: mount a persistent"
            " volume there, or set kms.store.allow-ephemeral=true where losing them does not matter"
        )
    log.warning("Signing keys are kept on a volume that dies with the pod", data_dir=str(settings.data_dir), kind=kind)


async def _open_provider(settings: Settings, store: KeyStore, resources: AsyncExitStack) -> KeyProvider:
    log.info(f"Initializing KMS provider: {settings.provider}")  # noqa: G004  # the words of BeTrace's documents
    rows = sorted(await store.wrapped_by())
    for name, _ in rows:
        if name != settings.provider:
            raise StartRefused(
                f"the key store holds keys wrapped by provider {name}, which {settings.provider} cannot use: set"
                f" betrace.kms.provider={name}, or choose another kms.data-dir"
            )
    if settings.provider == "local":
        path = settings.data_dir / MASTER_KEY_FILE
        local = LocalProvider(load_master_key(path, create=not rows))
        if any(arn not in local.decrypt_key_arns for _, arn in rows):
            raise StartRefused(
                f"the key store holds keys that another {MASTER_KEY_FILE} wrapped: restore that file, or choose another"
                " kms.data-dir"
            )
        log.warning("Using the local provider - NOT FOR PRODUCTION USE", master_key_file=str(path))
        return local
    from betrace_kms_server.providers.aws import AwsProvider  # late: importing the AWS SDK takes most of a second

    log.info(f"Using AWS KMS - region: {settings.kms_region}, key: {settings.master_key_id}")  # noqa: G004
    if settings.endpoint:
        log.warning("aws.kms.endpoint is set: calls do not go to AWS KMS", endpoint=settings.endpoint)
    return await resources.enter_async_context(
        AwsProvider(
            settings.master_key_id or "",
            region=settings.kms_region,
            endpoint=settings.endpoint,
            former_key_arns=settings.decrypt_key_ids,
            call_seconds=settings.call_timeout_ms / 1000,
        )
    )


@asynccontextmanager
async def _background(*jobs: Coroutine[None, None, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(job) for job in jobs]
    for task in tasks:
        task.add_done_callback(_log_failure)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("A background job failed", exc_info=error)


async def _watch_master_key(
    provider: KeyProvider, health: HealthService, usable: asyncio.Event, interval: float
) -> None:
    """Keep the health service's view of KMS true. Says what is wrong when it changes, not every time."""
    last: str | None = None
    while True:
        problem, cause = "", None
        try:
            await provider.check()
        except KmsError as error:
            problem, cause = error.message, cause_of(error)
        except Exception as error:  # a defect here must not end the watch for good
            problem = f"looking at the master key failed: {type(error).__name__}"
            log.error("Looking at the master key failed", exc_info=error)
        health.set(KMS, not problem)
        if not problem:
            health.set(KEY_MANAGEMENT, True)
            usable.set()
        if problem != last:
            last = problem
            if problem:
                log.error(f"KMS cannot be used: {problem}", cause=cause)  # noqa: G004
            else:
                log.info("KMS is usable, serving", master_key=provider.master_key_arn)
        await asyncio.sleep(min(interval, RETRY_SECONDS) if problem else interval)


async def _leave_former_keys(provider: KeyProvider, store: KeyStore, usable: asyncio.Event) -> None:
    """Once the master key is usable, look at the former ones, and move signing keys off them."""
    await usable.wait()
    for arn in provider.decrypt_key_arns[1:]:
        try:
            await provider.check(arn)
        except KmsError as error:
            log.error(f"A key of aws.kms.decrypt-key-ids cannot be used: {error.message}", master_key=arn)  # noqa: G004
        else:
            log.info("A former master key is usable for Decrypt", master_key=arn)
    await rewrap_signing_keys(provider, store)


async def _sweep(caches: Sequence[KeyCache]) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        for cache in caches:
            cache.drop_expired()
