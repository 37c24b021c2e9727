"""Assembles the core of a daemon on its key store and provider. No caller reaches it yet: app.py lets them."""

import os
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog

from betrace_kms_server.access.listeners import Listeners
from betrace_kms_server.audit.trail import AuditTrail
from betrace_kms_server.cache.key_caches import KeyCaches
from betrace_kms_server.config.settings import Settings
from betrace_kms_server.core.errors import StartRefused, StoreUnavailable
from betrace_kms_server.core.key_event import Recorder
from betrace_kms_server.data_keys.branch_keys import BranchKeys
from betrace_kms_server.data_keys.branch_messages import BranchMessages
from betrace_kms_server.data_keys.keyring import KeyRing
from betrace_kms_server.data_keys.macs import Macs
from betrace_kms_server.data_keys.shredding import Shredder
from betrace_kms_server.host.process import runs_as_root
from betrace_kms_server.jobs import on_kms_state
from betrace_kms_server.operations.emergency_stop import EmergencyStop
from betrace_kms_server.operations.monitor import KmsMonitor
from betrace_kms_server.operations.production import inspect_deployment
from betrace_kms_server.operations.validation import Validator
from betrace_kms_server.provider_startup import open_provider
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.rpc.gate import CallGate
from betrace_kms_server.rpc.health import KEY_MANAGEMENT, HealthService
from betrace_kms_server.rpc.large_messages import LargeMessages
from betrace_kms_server.signing_keys.lifecycle import Lifecycle
from betrace_kms_server.signing_keys.rotation import Rotation
from betrace_kms_server.signing_keys.signer import Signer
from betrace_kms_server.startup import open_audit, open_branch_keys, open_store
from betrace_kms_server.stores.branch_keys import BranchKeyStore
from betrace_kms_server.stores.protocol import KeyStore
from betrace_kms_server.telemetry import export
from betrace_kms_server.telemetry.figures import CallStats, Figures
from betrace_kms_server.telemetry.observers import KmsCallObserver, recorder
from betrace_kms_server.telemetry.tracing import Tracing

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Core:
    """What makes, keeps and uses keys, and what counts that."""

    provider: KeyProvider
    store: KeyStore
    caches: KeyCaches
    keyring: KeyRing
    branch_store: BranchKeyStore | None
    macs: Macs
    signer: Signer
    lifecycle: Lifecycle
    rotation: Rotation
    shredder: Shredder
    monitor: KmsMonitor
    validator: Validator
    stop: EmergencyStop
    health: HealthService
    audit: AuditTrail | None
    tracing: Tracing | None
    rpcs: CallStats
    figures: Figures
    gate: CallGate
    record: Recorder


async def build_core(
    settings: Settings, ephemeral: str | None, listeners: Listeners, resources: AsyncExitStack
) -> Core:
    """Open the key store and the provider, and build what stands on them. Raises StartRefused."""
    store = await open_store(settings, resources)
    audit = await open_audit(settings, resources)
    record = recorder(audit)
    tracing = export.open_tracing(os.environ)
    rpcs, kms_calls = CallStats(), CallStats()
    branch_store = await open_branch_keys(settings, store, resources)
    provider = await open_provider(settings, store, branch_store, KmsCallObserver(kms_calls, tracing), resources)
    caches = KeyCaches(
        store,
        encryption_ttl=settings.encryption_key_ttl_minutes * 60.0,
        signing_ttl=settings.private_key_ttl_minutes * 60.0,
        public_ttl=settings.public_key_ttl_hours * 3600.0,
        max_size=settings.cache_max_size,
        branch_max_size=settings.branch_keys_cache_size,
        version_check_seconds=settings.version_check_seconds,
        max_stale_seconds=settings.max_stale,
        record=record,
        request_check=lambda: monitor.request_check(),
    )
    resources.push_async_callback(caches.close)
    await _list_shreddings(caches, store)
    health = HealthService()
    stop = EmergencyStop(store, caches, lambda refusing: health.withhold(*([KEY_MANAGEMENT] if refusing else [])))
    await stop.check()  # before there is anybody to serve
    monitor = KmsMonitor(provider, on_kms_state(health, provider, caches))
    signer = Signer(
        provider,
        store,
        signing_keys=caches.signing,
        public_keys=caches.public,
        auto_create=settings.auto_create,
        now=time.time,
        record=record,
    )
    branch_keys = branch_messages = None
    if branch_store is not None:
        branch_keys = BranchKeys(
            provider,
            branch_store,
            caches.branch,
            logical_name=settings.logical_name,
            changed=lambda tenant_id: lifecycle.invalidate(tenant_id),
            record=record,
        )
        branch_messages = BranchMessages(branch_keys, seals=settings.encryption_mode == "branch-key")
    keyring = KeyRing(
        provider,
        caches.encryption,
        max_messages=settings.encryption_key_max_messages,
        max_uses=settings.data_key_max_uses,
        max_encrypted_data_keys=settings.max_encrypted_data_keys,
        sealing_key_type=settings.sealing_key_type or await store.sealing_key_type(),
        branch_messages=branch_messages,
    )
    gate = CallGate(settings.max_calls_in_flight, LargeMessages.of_payloads(settings.max_message_bytes))
    lifecycle = Lifecycle(provider, store, caches.changed, now=time.time, record=record, others=branch_keys)
    rotation = Rotation(lifecycle, batch_size=settings.rotation_batch_size, record=record)
    shredder = Shredder(
        store,
        branch_store,
        caches,
        wait_days=settings.shred_wait_days,
        seals=settings.encryption_mode == "branch-key",
        now=lambda: time.time() - max(0.0, provider.clock_skew_seconds or 0.0),  # a clock that is ahead is not obeyed
        record=record,
    )
    validator = Validator(
        provider,
        store,
        deployment=inspect_deployment(settings, callers=listeners.problem, ephemeral=ephemeral, root=runs_as_root()),
        serving=lambda: health.is_serving(KEY_MANAGEMENT),
        branch_keys=branch_store,
        logical_name=settings.logical_name if settings.makes_branch_keys else None,
    )
    for part in (lifecycle, rotation, shredder, validator):
        resources.push_async_callback(part.close)
    return Core(
        provider=provider,
        store=store,
        caches=caches,
        keyring=keyring,
        branch_store=branch_store,
        macs=Macs(branch_keys),
        signer=signer,
        lifecycle=lifecycle,
        rotation=rotation,
        shredder=shredder,
        monitor=monitor,
        validator=validator,
        stop=stop,
        health=health,
        audit=audit,
        tracing=tracing,
        rpcs=rpcs,
        figures=Figures(
            monitor,
            caches,
            signer.retrievals,
            rpcs,
            kms_calls,
            audit,
            rotation,
            provider,
            stop,
            in_flight=lambda: gate.in_flight,
            pending_shreds=lambda: shredder.pending,
            failing_shreds=lambda: shredder.failing,
        ),
        gate=gate,
        record=record,
    )


async def _list_shreddings(caches: KeyCaches, store: KeyStore) -> None:
    """Learn which tenants are refused, before there is anybody to serve. Raises StartRefused if that must be known.

    Where other daemons write, a tenant is read before its keys are used, and refused if it cannot be.
    """
    try:
        await caches.list_shreddings()
    except StoreUnavailable as cause:
        if not store.shared:
            raise StartRefused(f"which tenants were shredded cannot be read: {cause.message}") from cause
        log.error("Which tenants were shredded cannot be read", problem=cause.message)
