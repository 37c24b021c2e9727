"""Shredding: destroying a tenant's branch key, so that what it sealed opens no more, wherever a copy of it is.

open -> pending -> destroying -> shredded -> open. A tenant that is not open is refused by the caches' gate
(cache/generations.py, cache/gate.py), here at once and by other daemons within a bound. While it is pending it can be
cancelled. When it is due, one conditional write makes it `destroying`, which ends that; then every row of the branch
key is deleted, and only when none is left is the tenant `shredded`. Whichever daemon finds a tenant that is due or
`destroying`, also one that another daemon left so, carries on from there. `recreate` opens a shredded tenant, which
then gets a new branch key.

Signing keys and public keys stay: evidence outlives the data.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog

from betrace_kms_server.cache.key_caches import KeyCaches
from betrace_kms_server.core.changes import Changes
from betrace_kms_server.core.errors import KmsError, StoreUnavailable, TenantPendingShred, TenantShredded, cause_of
from betrace_kms_server.core.key_event import KeyEvent, Recorder, ignore, part_of
from betrace_kms_server.core.shredding import Shredding, TenantHead
from betrace_kms_server.stores.branch_keys import BranchKeyStore
from betrace_kms_server.stores.protocol import KeyStore

log = structlog.get_logger()

CHECK_SECONDS = 60.0
"""How often a daemon reads which tenants are to be shredded."""
_DAY_MS = 86_400_000
_ATTEMPTS = 5
_BLOBS = (
    "blobs of GenerateDataKey, and messages that were sealed in data-key mode: these daemons refuse them, and whoever"
    " may use the master key can still open them"
)
_DATA_KEY_MODE = "any message of this tenant from now on: kms.encryption.mode is data-key, so messages are refused only"
_COPIES = "exports of the branch key store and other backups of it, which these daemons do not know of: delete them"
_SDK_CACHES = "branch keys in the caches of official SDKs on the same table, for their time to live"
_HELD_KEYS = "data keys that callers hold: of GenerateDataKey, GenerateMessageKey and OpenMessageKey, and in sealers"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of a tenant, and what that does not reach."""

    state: Shredding | None
    """None if the tenant is open."""
    entries: int = 0
    """Cache entries that were dropped here."""
    unrecoverable_after_ms: int | None = None
    """From when no copy of the branch key that is known of is left; milliseconds since the Unix epoch."""
    not_destroyed: Sequence[str] = ()


class Shredder:
    """Shreds tenants of one key store. `branch_keys` is the branch key store beside it, if there is one.

    `seals` says whether new messages are sealed under branch keys. `now` is seconds since the Unix epoch.
    """

    def __init__(
        self,
        store: KeyStore,
        branch_keys: BranchKeyStore | None,
        caches: KeyCaches,
        *,
        wait_days: int,
        seals: bool,
        now: Callable[[], float],
        record: Recorder = ignore,
    ) -> None:
        self.pending = 0
        """How many tenants wait for their shredding, or are being shredded: as read a minute ago at most."""
        self._store = store
        self._branch_keys = branch_keys
        self._caches = caches
        self._wait_ms = wait_days * _DAY_MS
        self._seals = seals
        self._now = now
        self._record = record
        self._problems: dict[str, str] = {}
        self._changes = Changes()

    @property
    def failing(self) -> int:
        """How many tenants could not be shredded when that was last tried; 1 if no tenant could be read."""
        return len(self._problems)

    async def request(self, tenant_id: str, event: KeyEvent | None = None) -> Outcome:
        """Refuse the tenant's calls from now on, and destroy its branch key when the wait is over.

        A tenant that was to be shredded already stays as it is.
        """

        def pending(former: Shredding | None) -> Shredding | None:
            now_ms = int(self._now() * 1000)
            return former or Shredding("pending", now_ms, now_ms + self._wait_ms)

        return await self._changes.whole(self._change(tenant_id, pending, "RequestShredding", event), event)

    async def cancel(self, tenant_id: str, event: KeyEvent | None = None) -> Outcome:
        """Open a tenant that is pending. Raises TenantShredded if it is too late."""

        def cancelled(former: Shredding | None) -> None:
            if former is not None and former.status != "pending":
                raise TenantShredded(
                    "it is too late to cancel: the tenant's keys were destroyed, or are being destroyed"
                )

        return await self._changes.whole(self._change(tenant_id, cancelled, "CancelShredding", event), event)

    async def recreate(self, tenant_id: str, event: KeyEvent | None = None) -> Outcome:
        """Open a tenant that was shredded. What was sealed before stays lost.

        Raises TenantPendingShred, or TenantShredded while the tenant's keys are being destroyed.
        """

        def opened(former: Shredding | None) -> None:
            if former is not None and former.status == "pending":
                raise TenantPendingShred(
                    "the tenant was not shredded yet: cancel that with `betrace-kms shred --cancel`"
                )
            if former is not None and former.status == "destroying":
                raise TenantShredded("the tenant's keys are being destroyed: try again when `shred` shows SHREDDED")

        return await self._changes.whole(self._change(tenant_id, opened, "RecreateTenant", event), event)

    async def close(self) -> None:
        """Let what has begun come to its end."""
        await self._changes.close()

    async def follow(self) -> None:
        """Destroy what is due, again and again."""
        while True:
            await self.run()
            await asyncio.sleep(CHECK_SECONDS)

    async def run(self) -> None:
        """Destroy what is due now, and what was left half destroyed. What fails is logged once and tried again."""
        problems: dict[str, str] = {}
        try:
            found = await self._caches.list_shreddings()
        except Exception as error:  # noqa: BLE001  # a defect must not end the job for good
            self._report("", error, problems)
        else:
            await self._destroy_due(found, problems)
        self._problems = problems

    async def _destroy_due(self, found: Mapping[str, TenantHead], problems: dict[str, str]) -> None:
        pending = 0
        for tenant_id in found:
            try:
                state = found[tenant_id].shredding()
                if state is not None and state.status != "shredded":
                    pending += not await self._destroyed(tenant_id, state)
            except Exception as error:  # noqa: BLE001  # of one tenant, and says nothing about the others
                pending += 1
                self._report(tenant_id, error, problems)
        self.pending = pending

    async def _destroyed(self, tenant_id: str, state: Shredding) -> bool:
        """Destroy a tenant's branch key if it is due. Returns whether the tenant is pending no more."""
        if state.status == "pending":
            if state.due_ms > self._now() * 1000:
                return False
            destroying = replace(state, status="destroying")
            if await self._set(tenant_id, state, destroying) is None:
                return True  # cancelled, or another daemon's by now
            state = destroying
        record = state.record(tenant_id)

        async def still() -> bool:
            return (await self._store.head(tenant_id)).record == record

        rows = 0 if self._branch_keys is None else await self._branch_keys.destroy(tenant_id, still)
        shredded = replace(state, status="shredded", due_ms=max(state.due_ms, int(self._now() * 1000)))
        if await self._set(tenant_id, state, shredded) is not None:
            event = KeyEvent("DestroyBranchKey", tenant_id, items=rows)
            event.unrecoverable_after = _timestamp((await self._outcome(shredded)).unrecoverable_after_ms)
            self._record(event)
            log.warning("A tenant was shredded: its branch key is destroyed", rows=rows)
        return True

    async def _change(
        self,
        tenant_id: str,
        following: Callable[[Shredding | None], Shredding | None],
        operation: str,
        event: KeyEvent | None,
    ) -> Outcome:
        for _ in range(_ATTEMPTS):
            former = (await self._store.head(tenant_id)).shredding()
            state = following(former)
            if state == former:
                return await self._outcome(state, event=event)
            entries = await self._set(tenant_id, former, state)
            if entries is not None:
                before = former is not None and former.status != "shredded"
                self.pending = max(0, self.pending + (state is not None) - before)
                outcome = await self._outcome(state, entries, event)
                self._record(part_of(event, operation, tenant_id, ""))
                return outcome
        raise StoreUnavailable("the tenant's shredding is changed by others all the time: try again in a moment")

    async def _set(self, tenant_id: str, former: Shredding | None, state: Shredding | None) -> int | None:
        """Change the state. Returns how many cache entries that dropped here, or None if it is another one by now."""
        landed = False
        try:
            landed = await self._store.set_shredding(tenant_id, former, state)
        finally:
            head = TenantHead(tenant_id, 0, None if state is None else state.record(tenant_id))
            entries = await self._caches.shredding_changed(tenant_id, head if landed else None)
        return entries if landed else None

    async def _outcome(self, state: Shredding | None, entries: int = 0, event: KeyEvent | None = None) -> Outcome:
        if state is None:
            return Outcome(None, entries)
        left = [_BLOBS, _HELD_KEYS]
        after = None
        if self._branch_keys is not None:
            days = await self._branch_keys.recovery_days()
            left.append(_COPIES)
            if self._store.shared:
                left.append(_SDK_CACHES)
            if days:
                left.append(
                    f"what point-in-time recovery of the branch key table can bring back, for {days} days after the"
                    " destruction"
                )
            after = state.due_ms + days * _DAY_MS
            if state.status != "shredded" and (problem := await self._deletion_problem()):
                left.insert(0, f"the branch key, as things are, because it cannot be deleted: {problem}")
                after = None
        if not self._seals:
            left.insert(0, _DATA_KEY_MODE)
            after = None
        if event is not None:
            event.unrecoverable_after = _timestamp(after)
        return Outcome(state, entries, after, left)

    async def _deletion_problem(self) -> str:
        """Return why rows cannot be deleted now; "" if they can."""
        try:
            if self._branch_keys is not None:
                await self._branch_keys.check_destroy()
        except KmsError as error:
            return error.message
        return ""

    def _report(self, tenant_id: str, error: Exception, problems: dict[str, str]) -> None:
        """Log what went wrong, once as long as it stays so."""
        text = error.message if isinstance(error, KmsError) else type(error).__name__
        problems[tenant_id] = text
        if self._problems.get(tenant_id) != text:
            log.error(
                "Shredding failed and is tried again",
                problem=text,
                cause=cause_of(error),
                exc_info=None if isinstance(error, KmsError) else error,
            )


def _timestamp(time_ms: int | None) -> str:
    return "" if time_ms is None else f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
