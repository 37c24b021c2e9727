"""Runs over many tenants: whose KMS request ids an event carries, a clock that is set back, callers that leave."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_server.core.key_event import KeyEvent, KmsCall, current_event
from betrace_kms_server.core.keys import DataKey
from betrace_kms_server.core.tenancy import Context
from betrace_kms_server.providers.local import LocalProvider
from betrace_kms_server.signing_keys.lifecycle import Lifecycle
from betrace_kms_server.signing_keys.rotation import Outcome, Rotation
from betrace_kms_server.signing_keys.seeds import new_key
from betrace_kms_server.stores.sqlite.store import SqliteStore, open_sqlite

TENANTS = 60


class Call:
    """A call that nobody observes."""

    def answered(self, request_id: str | None) -> None:
        """Take it."""


class NumberedKms(LocalProvider):
    """Gives every GenerateDataKey a request id, and notes for whom it was."""

    def __init__(self) -> None:
        self.owner: dict[str, str] = {}
        self.calls = 0
        self.hold: asyncio.Event | None = None
        self.asked = asyncio.Event()
        self._ids = itertools.count(1)
        super().__init__(os.urandom(32), observe=self._observed)

    def _observed(self, action: str, region: str) -> AbstractContextManager[KmsCall]:
        event = current_event.get()
        if action == "GenerateDataKey" and event is not None:
            name = f"request-{next(self._ids)}"
            self.owner[name] = event.tenant_id
            event.kms_request_ids.append(name)
        return nullcontext(Call())

    async def generate_data_key(self, number_of_bytes: int, context: Context) -> DataKey:
        """Count, and wait if a test wants that."""
        self.calls += 1
        self.asked.set()
        if self.hold is not None:
            await self.hold.wait()
        return await super().generate_data_key(number_of_bytes, context)


@pytest.fixture
def kms() -> NumberedKms:
    """Give a provider that counts."""
    return NumberedKms()


@pytest.fixture
async def store(tmp_path: Path, kms: NumberedKms) -> AsyncIterator[SqliteStore]:
    """Give a store with a key of each tenant."""
    async with open_sqlite(tmp_path / "keystore.db") as opened:
        for number in range(TENANTS):
            key, _ = await new_key(kms, f"tenant-{number}", 1000)
            await opened.create(key)
        kms.calls = 0
        yield opened


async def unchanged(tenant_id: str) -> int:
    """Drop nothing."""
    return 0


async def test_events_of_a_rotation_carry_their_own_request_ids(kms: NumberedKms, store: SqliteStore) -> None:
    """Each tenant's event has the id of its own call to KMS and of no other tenant's, under a call or without one."""
    for number, whole in enumerate((None, KeyEvent("RotateKeys", "", caller="cli"))):
        events: list[KeyEvent] = []
        current_event.set(whole)
        lifecycle = Lifecycle(kms, store, unchanged, now=lambda: 1e9, record=events.append)
        await Rotation(lifecycle, batch_size=25, now=lambda: 1e9, record=events.append).run(2_000_000_000_000 + number)
        assert TENANTS == len(events)
        assert [[event.tenant_id] for event in events] == [
            [kms.owner[name] for name in event.kms_request_ids] for event in events
        ]


@pytest.mark.parametrize("back", [60.0, 3600.0, 1e9 - 1])
async def test_clock_that_is_set_back_rotates_nobody_twice(kms: NumberedKms, store: SqliteStore, back: float) -> None:
    """What a run made is young for this run, whatever the clock says by then."""
    clock = [1e9]
    lifecycle = Lifecycle(kms, store, unchanged, now=lambda: clock[0])
    rotation = Rotation(lifecycle, batch_size=10, now=lambda: clock[0])
    running = asyncio.create_task(rotation.run_for_all())
    await kms.asked.wait()
    clock[0] -= back
    assert Outcome(TENANTS, 0) == await asyncio.wait_for(running, 20)
    assert TENANTS == kms.calls


async def test_rotation_of_all_covers_keys_that_were_made_while_another_ran(
    kms: NumberedKms, store: SqliteStore
) -> None:
    """Whoever comes meanwhile shares the next run, which begins after they came."""
    clock = [1e9]
    lifecycle = Lifecycle(kms, store, unchanged, now=lambda: clock[0])
    rotation = Rotation(lifecycle, batch_size=10, now=lambda: clock[0])
    kms.asked.clear()
    first = asyncio.create_task(rotation.run_for_all())
    await kms.asked.wait()
    clock[0] += 1
    key, _ = await new_key(LocalProvider(bytes(32)), "newcomer", int(clock[0] * 1000))
    await store.create(key)
    clock[0] += 1
    others = [asyncio.create_task(rotation.run_for_all()) for _ in range(3)]
    assert Outcome(TENANTS, 0) == await asyncio.wait_for(first, 20)
    assert [Outcome(TENANTS + 1, 0)] * 3 == await asyncio.wait_for(asyncio.gather(*others), 20)
    assert ["rotated", "active"] == [each.status for each in await store.all("newcomer")]
    await rotation.close()


@pytest.mark.parametrize("change", ["rotate", "revoke", "invalidate"])
async def test_change_goes_on_when_its_caller_leaves(kms: NumberedKms, store: SqliteStore, change: str) -> None:
    """A caller that is cancelled in the middle does not stop a change: caches and the audit trail learn of it."""
    events: list[KeyEvent] = []
    dropped: list[str] = []
    done = asyncio.Event()

    async def changed(tenant_id: str) -> int:
        dropped.append(tenant_id)
        done.set()
        return 0

    lifecycle = Lifecycle(kms, store, changed, now=lambda: 1e9, record=events.append)
    before = await store.active("tenant-1")
    assert before is not None
    call: asyncio.Task[object]
    if change == "invalidate":
        call = asyncio.create_task(lifecycle.invalidate("tenant-1"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    else:
        kms.hold = asyncio.Event()
        kms.asked.clear()
        work: Coroutine[Any, Any, object] = lifecycle.rotate("tenant-1")
        if change == "revoke":
            work.close()
            work = lifecycle.revoke("tenant-1", before.key_id)
        call = asyncio.create_task(work)
        await kms.asked.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    if kms.hold:
        kms.hold.set()
    await asyncio.wait_for(done.wait(), 5)
    await lifecycle.close()
    after = await store.active("tenant-1")
    assert after is not None
    assert (change != "invalidate") == (after.key_id != before.key_id)
    assert (["tenant-1"], 1) == (dropped, await store.generation("tenant-1"))
    assert {"rotate": 1, "revoke": 2, "invalidate": 0}[change] == len(events)
