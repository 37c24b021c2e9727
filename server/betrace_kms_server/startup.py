"""Opens what the daemon stands on: its data folder, its key store and its audit trail. Refuses what would lose keys."""

import os
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import structlog

from betrace_kms_server.audit.file import STDOUT
from betrace_kms_server.audit.trail import AuditTrail
from betrace_kms_server.aws.holder import DAEMON, Holder
from betrace_kms_server.config.settings import Settings
from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.host.modes import check_file, check_folder
from betrace_kms_server.host.sockets import exclusive
from betrace_kms_server.host.volume import ephemeral_kind
from betrace_kms_server.providers.local import MASTER_KEY_FILE
from betrace_kms_server.stores.branch_keys import BranchKeyStore
from betrace_kms_server.stores.protocol import KeyStore
from betrace_kms_server.stores.sqlite.branch_keys import SqliteBranchKeys
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE, SqliteStore, open_sqlite

log = structlog.get_logger()


def open_data_dir(folder: Path, resources: AsyncExitStack) -> None:
    """Make the data folder if it is missing, and hold it for this process. Raises StartRefused."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as cause:
        raise StartRefused(f"kms.data-dir {folder} cannot be made: {cause.strerror}") from cause
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise StartRefused(f"kms.data-dir {folder} is not writable: give it to the daemon's user")
    check_folder(folder)
    resources.enter_context(exclusive(folder / "daemon.lock", f"another daemon uses kms.data-dir {folder}"))


def store_file(folder: Path) -> Path:
    """Return the store's path; a store that vanished beside its master key must not be replaced by an empty one."""
    path = folder / DATABASE_FILE
    check_file(path)
    if path.exists():
        return path
    if (folder / MASTER_KEY_FILE).exists():
        raise StartRefused(
            f"{path} is missing beside {MASTER_KEY_FILE}: restore it from a backup; only if there never were keys to"
            " lose, remove both and start anew"
        )
    log.warning("There is no key store, making a new and empty one", path=str(path))
    return path


def ephemeral_volume(settings: Settings) -> str | None:
    """Return the kind of volume that dies with the pod, if keys of a real provider are on one.

    Raises StartRefused unless the settings allow that.
    """
    kind = ephemeral_kind(settings.data_dir)
    if settings.provider == "local" or settings.store != "sqlite" or kind is None:
        return None
    if not settings.store_allow_ephemeral:
        raise StartRefused(
            f"kms.data-dir {settings.data_dir} is on {kind}, and signing keys would die with it: mount a persistent"
            " volume there, or set kms.store.allow-ephemeral=true where losing them does not matter"
        )
    log.warning("Signing keys are kept on a volume that dies with the pod", data_dir=str(settings.data_dir), kind=kind)
    return kind


async def open_store(settings: Settings, resources: AsyncExitStack, holder: Holder = DAEMON) -> KeyStore:
    """Return the key store that the settings ask for. `holder` is whose AWS credentials it uses."""
    if settings.store == "sqlite":
        return await resources.enter_async_context(open_sqlite(store_file(settings.data_dir)))
    if settings.store == "postgresql":
        return await _open_postgresql(settings, resources)
    from betrace_kms_server.stores.dynamodb.client import dynamodb_client  # late, as below
    from betrace_kms_server.stores.dynamodb.store import open_dynamodb

    return await resources.enter_async_context(
        open_dynamodb(
            settings.store_table or "",
            region=settings.dynamodb_region,
            endpoint=settings.store_endpoint,
            client_factory=partial(dynamodb_client, holder=holder),
        )
    )


async def _open_postgresql(settings: Settings, resources: AsyncExitStack) -> KeyStore:
    try:
        from betrace_kms_server.stores.postgresql.conninfo import complete, password_of
        from betrace_kms_server.stores.postgresql.store import open_postgresql
    except ImportError as cause:
        raise StartRefused("kms.store is postgresql: install betrace-kms[postgresql]") from cause
    conninfo = complete(settings.store_dsn)
    return await resources.enter_async_context(open_postgresql(conninfo, password_of(settings.store_password_file)))


async def open_branch_keys(
    settings: Settings, store: KeyStore, resources: AsyncExitStack, holder: Holder = DAEMON
) -> BranchKeyStore | None:
    """Return the branch key store beside the key store, if there is one. `holder` is whose AWS credentials it uses."""
    if isinstance(store, SqliteStore):
        return SqliteBranchKeys(store)
    if settings.store == "postgresql":
        from betrace_kms_server.stores.postgresql.branch_keys import branch_keys_beside

        return branch_keys_beside(store)
    if settings.branch_keys_table is None:
        return None
    from betrace_kms_server.stores.dynamodb.branch_keys import open_branch_keys  # late, as below
    from betrace_kms_server.stores.dynamodb.client import dynamodb_client

    return await resources.enter_async_context(
        open_branch_keys(
            settings.branch_keys_table,
            region=settings.dynamodb_region,
            endpoint=settings.store_endpoint,
            client_factory=partial(dynamodb_client, holder=holder),
        )
    )


async def open_audit(settings: Settings, resources: AsyncExitStack) -> AuditTrail | None:
    """Begin the audit trail, if there is one. Raises StartRefused if others can read it or it cannot be written."""
    if settings.audit_file is None:
        return None
    if settings.audit_file != STDOUT:
        check_file(Path(settings.audit_file), may_be_link=True)
    return await resources.enter_async_context(
        AuditTrail(
            settings.audit_file,
            settings.data_dir,
            required=settings.audit_required,
            durable=settings.audit_durable,
        )
    )
