"""Branch keys: one key a tenant, wrapped by KMS in a branch key store, under which each message's data key is wrapped.

A branch key's id is the tenant's id. Rows are those of the AWS Encryption SDK specification
(framework/branch-key-store.md), made with GenerateDataKey and Encrypt alone, and authenticated by unwrapping: a row
that does not open is KeyDamaged, and no new key takes its place. Before a new version seals anything, the row that
opens its messages is durable and has been unwrapped and compared. Every version opens its messages for ever.
"""

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from uuid import UUID, uuid4

from cryptography.hazmat.primitives.constant_time import bytes_eq

from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.branch_rows import (
    ACTIVE,
    BEACON,
    CREATE_TIME,
    CUSTOM_PREFIX,
    VERSION,
    BranchKeyRow,
    VersionRows,
    attributes_of,
    timestamp,
    type_of,
)
from betrace_kms_server.core.errors import (
    DoesNotOpen,
    TenantPendingShred,
    TenantShredded,
)
from betrace_kms_server.core.key_event import KeyEvent, Recorder, ignore, part_of
from betrace_kms_server.data_keys.hierarchy import BRANCH_KEY_BYTES, BranchKey
from betrace_kms_server.data_keys.mac_keys import BeaconKey
from betrace_kms_server.data_keys.row_keys import RowKeys
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.stores.branch_keys import BranchKeyStore, damaged_row, missing_row

_UNKNOWN_SECONDS = 60.0
"""How long a version that the store does not have is refused without reading the store again."""
_UNKNOWN_VERSIONS = 10_000
"""How many of them are remembered."""


class BranchKeys:
    """Branch keys of all tenants, cached in front of a provider and a store. Tenant ids have been checked before.

    `logical_name` is that of the store, and part of every row's encryption context. `changed` is called when a tenant
    has a new version. `now` is seconds since the Unix epoch, `clock` is monotonic.
    """

    def __init__(
        self,
        provider: KeyProvider,
        store: BranchKeyStore,
        cache: KeyCache,
        *,
        logical_name: str,
        changed: Callable[[str], Awaitable[object]],
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        record: Recorder = ignore,
    ) -> None:
        self._provider = provider
        self._store = store
        self._cache = cache
        self._rows = RowKeys(provider, logical_name)
        self._changed = changed
        self._now = now
        self._clock = clock
        self._record = record
        self._unknown: OrderedDict[tuple[str, UUID], float] = OrderedDict()

    async def active(self, tenant_id: str, event: KeyEvent | None = None) -> BranchKey:
        """Return the version that wraps what is new; the tenant's first one is made if there is none."""

        async def load() -> BranchKey:
            row = await self._store.active(tenant_id)
            return await self._create(tenant_id, event) if row is None else await self._unwrap_active(row)

        return await self._cache.get_or_load(
            ("branch key", self._provider.master_key_arn, tenant_id), load, event=event
        )

    async def version(self, tenant_id: str, version: UUID, event: KeyEvent | None = None) -> BranchKey:
        """Return one version of a tenant's branch key. Raises DoesNotOpen if there is none."""
        if self._unknown.get((tenant_id, version), 0.0) > self._clock():
            await self._cache.admit(tenant_id)
            raise DoesNotOpen

        async def load() -> BranchKey:
            row = await self._store.version(tenant_id, version)
            if row is None:
                self._note_unknown(tenant_id, version)
                raise DoesNotOpen
            return await self._unwrap(row)

        key = ("branch key version", self._provider.master_key_arn, tenant_id, version)
        return await self._cache.get_or_load(key, load, event=event)

    async def beacon(self, tenant_id: str, event: KeyEvent | None = None) -> BeaconKey:
        """Return the key of the tenant's MACs, which never rotates; it is made with the branch key if there is none."""
        found = await self.existing_beacon(tenant_id, event)
        if found is None:
            await self.active(tenant_id, event)
            found = await self.existing_beacon(tenant_id, event)
        if found is None:
            raise missing_row(tenant_id, BEACON)
        return found

    async def existing_beacon(self, tenant_id: str, event: KeyEvent | None = None) -> BeaconKey | None:
        """Return the key of the tenant's MACs, or None if the tenant has none."""

        async def load() -> BeaconKey:
            row = await self._store.beacon(tenant_id)
            if row is None:
                raise DoesNotOpen
            return BeaconKey(*await self._rows.unwrap(row))

        key = ("beacon key", self._provider.master_key_arn, tenant_id)
        try:
            return await self._cache.get_or_load(key, load, event=event)
        except DoesNotOpen:
            return None

    async def rotate(
        self, tenant_id: str, *, if_older_than_ms: int | None = None, event: KeyEvent | None = None
    ) -> bool | None:
        """Make a new version, unless the newest one is young enough. Returns whether this call made one.

        None if the tenant has no branch key. If another daemon is faster, its version is the tenant's. A tenant that
        is to be shredded, or was, gets no new version.
        """
        try:
            await self._cache.admit(tenant_id)
        except (TenantPendingShred, TenantShredded):
            return False
        former = await self._store.active(tenant_id)
        if former is None:
            return None
        not_before = timestamp((if_older_than_ms or 0) / 1000)
        if if_older_than_ms is not None and former.attributes[CREATE_TIME] >= not_before:
            return False
        try:
            await self._unwrap(former)
            create_time = max(timestamp(self._now()), not_before, former.attributes[CREATE_TIME])
            arn = former.kms_arn if self._provider.is_current(former.kms_arn) else self._provider.master_key_arn
            rows, key = await self._new_version(tenant_id, arn, create_time, former.custom)
            rotated = await self._store.add_version(former, rows)
            if rotated:
                self._record(part_of(event, "RotateBranchKey", tenant_id, str(key.version)))
            return rotated
        finally:  # also after an error, which does not say that nothing was stored
            await self._changed(tenant_id)

    def created_before(self, time_ms: int) -> AsyncIterator[str]:
        """Yield the tenants whose newest version is older than a time, in milliseconds since the Unix epoch."""
        return self._store.created_before(timestamp(time_ms / 1000))

    async def _create(self, tenant_id: str, event: KeyEvent | None) -> BranchKey:
        arn, create_time = self._provider.master_key_arn, timestamp(self._now())
        custom = {f"{CUSTOM_PREFIX}tenantId": tenant_id}
        rows, key = await self._new_version(tenant_id, arn, create_time, custom)
        beacon = attributes_of(tenant_id, BEACON, kms_arn=arn, create_time=create_time, custom=custom)
        wrapped = (await self._provider.generate_data_key(BRANCH_KEY_BYTES, self._rows.context(beacon))).wrapped
        if await self._store.create(rows, BranchKeyRow(beacon, wrapped.blob)):
            self._record(part_of(event, "CreateBranchKey", tenant_id, str(key.version)))
            return key
        winner = await self._store.active(tenant_id)
        if winner is None:
            raise missing_row(tenant_id, ACTIVE)
        return await self._unwrap_active(winner)

    async def _new_version(
        self, tenant_id: str, kms_arn: str, create_time: str, custom: Mapping[str, str]
    ) -> tuple[VersionRows, BranchKey]:
        """Return the rows of a new version, and the key, which the row of the version unwraps to."""

        def attributes(type_: str) -> dict[str, str]:
            return attributes_of(tenant_id, type_, kms_arn=kms_arn, create_time=create_time, custom=custom)

        version = uuid4()
        stays, active = attributes(type_of(version)), {**attributes(ACTIVE), VERSION: type_of(version)}
        made = await self._provider.generate_data_key(BRANCH_KEY_BYTES, self._rows.context(stays))
        copy = await self._provider.wrap(made.material, self._rows.context(active))
        rows = VersionRows(BranchKeyRow(stays, made.wrapped.blob), BranchKeyRow(active, copy.blob))
        key = await self._unwrap(rows.version)
        if not bytes_eq(bytes(key.material.raw), bytes(made.material.raw)):
            raise self._rows.does_not_open(rows.version)
        return rows, key

    async def _unwrap_active(self, row: BranchKeyRow) -> BranchKey:
        """Return the key of an active row, if what it wraps can be unwrapped again when it is active no more."""
        if await self._store.version(row.branch_key_id, row.version) is None:
            raise damaged_row(row.branch_key_id, type_of(row.version))
        return await self._unwrap(row)

    async def _unwrap(self, row: BranchKeyRow) -> BranchKey:
        material, arn = await self._rows.unwrap(row)
        return BranchKey(row.branch_key_id, row.version, material, arn)

    def _note_unknown(self, tenant_id: str, version: UUID) -> None:
        self._unknown[tenant_id, version] = self._clock() + _UNKNOWN_SECONDS
        self._unknown.move_to_end((tenant_id, version))
        if len(self._unknown) > _UNKNOWN_VERSIONS:
            self._unknown.popitem(last=False)
