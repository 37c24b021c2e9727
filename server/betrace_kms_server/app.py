"""The composition root: builds everything on assembly.py, and owns start, drain and stop.

Start: settings, data folder, key store, provider, server; then the master key is checked, and only when it is usable
does the service say SERVING. KMS failing is no reason to exit: the daemon stays NOT_SERVING and tries again.

Stop: NOT_SERVING, streams end, calls are answered (rpc/drain.py), then caches, provider and store close.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog

from betrace_kms_server.access.admission import Access
from betrace_kms_server.access.listeners import Listeners, open_listeners
from betrace_kms_server.access.quotas import CallQuota
from betrace_kms_server.assembly import Core, build_core
from betrace_kms_server.cache.key_caches import KeyCaches
from betrace_kms_server.config.reload import Reread, SettingsReload
from betrace_kms_server.config.settings import Settings
from betrace_kms_server.config.sources import described
from betrace_kms_server.core.key_event import KeyEvent, recorded
from betrace_kms_server.host.connection_bounds import ConnectionBounds
from betrace_kms_server.host.connections import Callers
from betrace_kms_server.host.descriptors import SpareDescriptor
from betrace_kms_server.host.process import ROOT, runs_as_root
from betrace_kms_server.host.signals import handle_signals
from betrace_kms_server.host.sockets import Address, admin_socket, claimed
from betrace_kms_server.jobs import (
    background,
    keep_bounds,
    leave_former_keys,
    rotate_on_schedule,
    sweep,
    while_permitted,
)
from betrace_kms_server.operations.http import build_apps, serving_ops
from betrace_kms_server.operations.monitor import KmsState
from betrace_kms_server.operations.validation import Validation
from betrace_kms_server.rpc.admin import AdminService
from betrace_kms_server.rpc.drain import drain
from betrace_kms_server.rpc.emergency_stop import EmergencyStopInterceptor
from betrace_kms_server.rpc.gate import CallGate
from betrace_kms_server.rpc.health import KEY_MANAGEMENT, HealthService
from betrace_kms_server.rpc.key_management import KeyManagementService
from betrace_kms_server.rpc.reception import end_slow_requests
from betrace_kms_server.rpc.server import bind, build_admin_server, build_server
from betrace_kms_server.startup import (
    ephemeral_volume,
    open_data_dir,
)
from betrace_kms_server.telemetry import export
from betrace_kms_server.telemetry.logs import set_level
from betrace_kms_server.telemetry.metrics import Metrics
from betrace_kms_server.telemetry.observers import CallObserver

log = structlog.get_logger()

READY_SECONDS = 0.5
"""How old the answer of /q/health/ready may be."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon that takes calls."""

    addresses: Sequence[str]
    """Where it listens, with the ports that were bound."""
    ops_addresses: Sequence[str]
    """host:port of each HTTP port for operators."""
    health: HealthService
    caches: KeyCaches
    gate: CallGate
    connections: ConnectionBounds
    reloads: Sequence[Callable[[], None]] = ()
    """What SIGHUP is to reload, beside settings."""

    @property
    def ops_address(self) -> str:
        """The first of them."""
        return self.ops_addresses[0]


async def serve(settings: Settings, origins: Mapping[str, str], reread: Reread) -> None:
    """Run a daemon until SIGTERM or SIGINT, which also end a start. Raises StartRefused if it cannot start safely.

    SIGHUP applies what `reread` returns, where that needs no restart.
    """
    signals = handle_signals()
    levels = {"kms.log.level": lambda now: set_level(now.log_level)}
    signals.on_reload(SettingsReload(settings, origins, reread, levels).reload)
    if runs_as_root():
        log.warning("The process has more rights than it needs", problem=ROOT)
    for name, value, origin in described(settings, origins):
        if value:
            log.info(f"{name} = {value}", source=origin)  # noqa: G004  # the line is the message
    started = asyncio.Event()

    async def daemon() -> None:
        async with running(settings, hurry=signals.hurry) as running_daemon:
            for reload in running_daemon.reloads:
                signals.on_reload(reload)
            started.set()
            await signals.stop.wait()
            log.info("Stopping")

    task, stop = asyncio.create_task(daemon()), asyncio.create_task(signals.stop.wait())
    await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
    if not started.is_set() and not task.done():
        log.info("Stopping during the start")
        task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    log.info("Stopped")


@asynccontextmanager
async def running(settings: Settings, hurry: asyncio.Event | None = None) -> AsyncIterator[Daemon]:
    """Start a daemon, and drain and stop it on leaving. Raises StartRefused if it cannot start safely.

    `hurry` ends the wait for calls in flight.
    """
    async with AsyncExitStack() as resources:
        ephemeral = ephemeral_volume(settings)
        open_data_dir(settings.data_dir, resources)
        admin_address = admin_socket(settings.data_dir)
        for address in (*settings.listen, admin_address):
            resources.enter_context(claimed(address))
        listeners = open_listeners(settings)
        core = await build_core(settings, ephemeral, listeners, resources)
        daemon = await build_edges(core, settings, listeners, admin_address, resources, hurry or asyncio.Event())
        async with background(
            lambda: core.monitor.watch(settings.health_check_seconds),
            lambda: core.stop.watch(settings.lock_check_seconds),
            lambda: while_permitted(core.stop, lambda: _leave_former_keys(core, settings)),
            lambda: sweep(core.caches),
            lambda: while_permitted(core.stop, core.shredder.follow),
            lambda: while_permitted(
                core.stop, lambda: rotate_on_schedule(settings, core.rotation, core.monitor.usable)
            ),
            listeners.follow,
            lambda: keep_bounds(daemon.connections, daemon.gate.large),
            lambda: end_slow_requests(daemon.gate),
        ):
            log.info("Listening", addresses=daemon.addresses, operations=daemon.ops_addresses)
            yield daemon


async def _leave_former_keys(core: Core, settings: Settings) -> None:
    await leave_former_keys(
        core.provider,
        core.store,
        core.branch_store,
        settings.logical_name,
        core.monitor.usable,
        core.record,
        core.figures.left.__setitem__,
    )


async def build_edges(
    core: Core,
    settings: Settings,
    listeners: Listeners,
    admin_address: Address,
    resources: AsyncExitStack,
    hurry: asyncio.Event,
) -> Daemon:
    """Let callers and operators reach the core: gRPC servers and the HTTP ports. Raises StartRefused."""
    metrics = _open_metrics(core, resources)

    def validate_over_http(production: bool) -> Awaitable[Validation]:
        return recorded(KeyEvent("Validate", "", caller="http"), core.record, core.validator.run(production))

    def status() -> dict[str, Any]:
        serving = core.health.is_serving(KEY_MANAGEMENT)
        return core.figures.status(store=settings.store, serving=serving) | {
            "access": {"unauthenticated": listeners.unauthenticated},
            "process": {"root": runs_as_root(), "dumpable": settings.process_dumpable},
        }

    async def readiness() -> KmsState:
        if core.stop.refusing:
            refusal = core.stop.refusal()
            return KmsState(False, refusal.message, refusal.reason)
        return await core.monitor.fresh(READY_SECONDS)

    threads = resources.enter_context(ThreadPoolExecutor(2, thread_name_prefix="evidence"))
    observer, gate = CallObserver(core.rpcs, core.audit, core.tracing), core.gate
    service = KeyManagementService(
        core.keyring, core.macs, core.signer, threads=threads, max_payload_bytes=settings.max_message_bytes
    )
    per_second = settings.quota_tenant_per_second
    quota = CallQuota(per_second, settings.quota_tenant_burst) if per_second else None
    servers, bound = [], dict[Address, str]()
    for listener in listeners.listeners:
        server = build_server(
            service,
            core.health,
            observer,
            gate,
            Access(listener.authenticator, listeners.policy, quota),
            max_payload_bytes=settings.max_message_bytes,
            reflect=settings.reflects,
            tls=listener.credentials is not None,
            interceptors=[EmergencyStopInterceptor(core.stop)],
        )
        servers.append(server)
        bound |= zip(listener.addresses, bind(server, listener.addresses, listener.credentials), strict=True)
    addresses = [bound[address] for address in settings.listen]
    admin = build_admin_server(
        AdminService(
            core.provider.name,
            validate=core.validator.run,
            status=status,
            lifecycle=core.lifecycle,
            rotation=core.rotation,
            stop=core.stop,
            shredder=core.shredder,
        ),
        core.health,
        observer,
        gate,
    )
    ciphered = [bound[address] for each in listeners.listeners if each.credentials for address in each.addresses]
    spare = resources.enter_context(SpareDescriptor())
    callers = Callers([*addresses, *bind(admin, [admin_address])], ciphered, spare)
    resources.push_async_callback(drain, (*servers, admin), callers, gate, settings.drain_seconds, hurry)
    await asyncio.gather(*(server.start() for server in servers), admin.start())
    ops = build_apps(
        core.provider.name,
        readiness=readiness,
        metrics=metrics.text,
        validate=validate_over_http,
        status=status,
        hosts=settings.ops_hosts,
    )
    ops_addresses = await resources.enter_async_context(serving_ops(settings.ops_listen, ops))
    resources.callback(core.health.drain)
    connections = ConnectionBounds(callers, settings.max_connections)
    return Daemon(addresses, ops_addresses, core.health, core.caches, gate, connections, [listeners.reload])


def _open_metrics(core: Core, resources: AsyncExitStack) -> Metrics:
    metrics = export.open_metrics(core.figures, os.environ)
    shutdowns = [metrics.shutdown] if core.tracing is None else [metrics.shutdown, core.tracing.shutdown]
    resources.push_async_callback(asyncio.to_thread, export.shut_down, *shutdowns)
    return metrics
