"""The composition root: builds everything, and owns start, drain and stop.

Start: settings, data folder, key store, provider, server; then the master key is looked at, and only when it is usable
does the service say SERVING. KMS failing is no reason to exit: the daemon stays NOT_SERVING and tries again.

Stop: NOT_SERVING, watches end, calls in flight finish within the grace, then caches, provider and store close.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from betrace_kms_server.cache import KeyCache
from betrace_kms_server.config import LATER, Settings, described
from betrace_kms_server.errors import KmsError
from betrace_kms_server.keyring import KeyRing
from betrace_kms_server.listen import admin_socket, claimed
from betrace_kms_server.monitor import KmsMonitor, KmsState
from betrace_kms_server.observation import Recorder, ignore
from betrace_kms_server.ops import build_app, serving_ops
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.rewrapping import rewrap_signing_keys
from betrace_kms_server.rpc.admin import AdminService
from betrace_kms_server.rpc.health import KEY_MANAGEMENT, KMS, HealthService
from betrace_kms_server.rpc.key_management import KeyManagementService
from betrace_kms_server.rpc.server import bind, build_admin_server, build_server
from betrace_kms_server.signing import Signer
from betrace_kms_server.startup import ephemeral_volume, open_data_dir, open_provider, store_file
from betrace_kms_server.stores.protocol import KeyStore
from betrace_kms_server.stores.sqlite import open_sqlite
from betrace_kms_server.telemetry import export
from betrace_kms_server.telemetry.audit import AuditTrail
from betrace_kms_server.telemetry.figures import CallStats, Figures
from betrace_kms_server.telemetry.metrics import Metrics
from betrace_kms_server.telemetry.observers import CallObserver, KmsCallObserver
from betrace_kms_server.telemetry.tracing import Tracing
from betrace_kms_server.validation import Validator

log = structlog.get_logger()

READY_SECONDS = 0.5
"""How old the answer of /q/health/ready may be."""
SWEEP_SECONDS = 60.0
"""How often expired keys that nobody asks for are dropped from memory."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon that takes calls."""

    addresses: Sequence[str]
    """Where it listens, with the ports that were bound."""
    ops_address: str
    """host:port of the HTTP port for operators."""
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
        ephemeral = ephemeral_volume(settings)
        open_data_dir(settings.data_dir, resources)
        admin_address = admin_socket(settings.data_dir)
        for address in (*settings.listen, admin_address):
            resources.enter_context(claimed(address))
        store = await resources.enter_async_context(open_sqlite(store_file(settings.data_dir)))
        audit = await _open_audit(settings, resources)
        record = ignore if audit is None else audit.record
        tracing = _open_tracing(resources)
        rpcs, kms_calls = CallStats(), CallStats()
        provider = await open_provider(settings, store, KmsCallObserver(kms_calls, tracing), resources)
        encryption_keys, signing_keys, public_keys = caches = _open_caches(settings, record, resources)
        signer = Signer(
            provider,
            store,
            signing_keys=signing_keys,
            public_keys=public_keys,
            auto_create=settings.auto_create,
            now=time.time,
            record=record,
        )
        keyring = KeyRing(
            provider,
            encryption_keys,
            max_messages=settings.encryption_key_max_messages,
            max_uses=settings.data_key_max_uses,
            max_encrypted_data_keys=settings.max_encrypted_data_keys,
        )
        health = HealthService()
        monitor = KmsMonitor(provider, _health_follows(health))
        figures = Figures(monitor, caches, signer.retrievals, rpcs, kms_calls, audit)
        metrics = _open_metrics(figures, resources)
        validator = Validator(provider, store, endpoint=settings.endpoint, ephemeral=ephemeral)
        resources.push_async_callback(validator.close)

        def status() -> dict[str, Any]:
            return figures.status(
                provider=provider.name,
                master_key=provider.master_key_arn,
                region=settings.kms_region,
                store=settings.store,
                serving=health.is_serving(KEY_MANAGEMENT),
            )

        async def invalidate(tenant_id: str) -> int:
            return sum(cache.invalidate(tenant_id) for cache in caches)

        threads = resources.enter_context(ThreadPoolExecutor(2, thread_name_prefix="evidence"))
        observer = CallObserver(rpcs, audit, tracing)
        server = build_server(
            KeyManagementService(keyring, signer, threads=threads, max_payload_bytes=settings.max_message_bytes),
            health,
            observer,
            max_payload_bytes=settings.max_message_bytes,
            reflect=settings.reflection,
        )
        addresses = bind(server, settings.listen)
        admin = build_admin_server(
            AdminService(provider.name, validate=validator.run, status=status, invalidate=invalidate), health, observer
        )
        bind(admin, [admin_address])
        await asyncio.gather(server.start(), admin.start())
        resources.push_async_callback(_stop, (server, admin), settings.drain_seconds)
        ops = build_app(
            provider.name,
            readiness=lambda: monitor.fresh(READY_SECONDS),
            metrics=metrics.text,
            validate=validator.run,
            status=status,
        )
        ops_address = await resources.enter_async_context(serving_ops(settings.ops_listen, ops))
        resources.callback(health.drain)
        async with _background(
            monitor.watch(settings.health_check_seconds),
            _leave_former_keys(provider, store, monitor.usable),
            _sweep(caches),
        ):
            log.info("Listening", addresses=addresses, operations=ops_address)
            yield Daemon(addresses, ops_address, health, caches)


def _open_caches(settings: Settings, record: Recorder, resources: AsyncExitStack) -> list[KeyCache]:
    """Return the caches of data keys, signing keys and public keys."""
    minute = 60.0
    caches = [
        KeyCache(kind, ttl=ttl, max_size=settings.cache_max_size, record=record)
        for kind, ttl in (
            ("encryption", settings.encryption_key_ttl_minutes * minute),
            ("signing", settings.private_key_ttl_minutes * minute),
            ("public", settings.public_key_ttl_hours * 60 * minute),
        )
    ]
    for cache in caches:
        resources.push_async_callback(cache.close)
    return caches


async def _open_audit(settings: Settings, resources: AsyncExitStack) -> AuditTrail | None:
    if settings.audit_file is None:
        return None
    return await resources.enter_async_context(
        AuditTrail(settings.audit_file, settings.data_dir, required=settings.audit_required)
    )


def _open_tracing(resources: AsyncExitStack) -> Tracing | None:
    exporter = export.exporter("traces", os.environ)
    if exporter is None:
        return None
    sampler = os.environ.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on"
    tracing = Tracing(exporter, export.resource(os.environ), follows_parent=sampler.startswith("parentbased"))
    resources.push_async_callback(asyncio.to_thread, export.shut_down, tracing.shutdown)
    return tracing


def _open_metrics(figures: Figures, resources: AsyncExitStack) -> Metrics:
    metrics = Metrics(figures, export.resource(os.environ), export.exporter("metrics", os.environ))
    resources.push_async_callback(asyncio.to_thread, export.shut_down, metrics.shutdown)
    return metrics


def _health_follows(health: HealthService) -> Callable[[KmsState], None]:
    """Return what keeps the health service true: KMS as it is now, the service from the first time it was usable."""

    def changed(state: KmsState) -> None:
        health.set(KMS, state.usable)
        if state.usable:
            health.set(KEY_MANAGEMENT, True)

    return changed


async def _stop(servers: Sequence[grpc.aio.Server], grace: float) -> None:
    await asyncio.gather(*(server.stop(grace) for server in servers))


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
