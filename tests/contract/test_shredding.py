"""Shredding over every store and in both modes: who is refused when, what is destroyed, and what stays."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_server.cache.key_caches import KeyCaches
from betrace_kms_server.config.keys import KeySettings
from betrace_kms_server.core.errors import (
    DoesNotOpen,
    KeyDamaged,
    KmsError,
    StoreUnavailable,
    TenantPendingShred,
    TenantShredded,
)
from betrace_kms_server.core.key_event import KeyEvent
from betrace_kms_server.data_keys.batches import (
    Item,
    KeyItem,
    SharedContext,
    Turns,
    data_key_batch,
    open_batch,
    seal_batch,
)
from betrace_kms_server.data_keys.branch_keys import BranchKeys
from betrace_kms_server.data_keys.branch_messages import BranchMessages
from betrace_kms_server.data_keys.keyring import KeyRing
from betrace_kms_server.data_keys.shredding import Shredder
from betrace_kms_server.operations.validation import Validator
from betrace_kms_server.signing_keys.signer import Signer
from betrace_kms_server.stores.branch_keys import BranchKeyStore
from betrace_kms_server.stores.dynamodb.branch_keys import open_branch_keys
from betrace_kms_server.stores.dynamodb.store import open_dynamodb
from betrace_kms_server.stores.postgresql.branch_keys import PostgresBranchKeys
from betrace_kms_server.stores.postgresql.store import open_postgresql
from betrace_kms_server.stores.protocol import KeyStore
from betrace_kms_server.stores.sqlite.branch_keys import SqliteBranchKeys
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE, open_sqlite

from tests.aws_proxy import aws_proxy
from tests.contract import postgres_peer
from tests.contract.doubles import CountedLocalProvider, FakeClock
from tests.contract.samples import span
from tests.contract.shared_tables import emptied_tables
from tests.contract.test_shredding_state import overwrite
from tests.moto_server import REGION, MotoServer

DAY, WAIT_DAYS = 86_400.0, 7
MAX_AGE, MAX_STALE = 60.0, 1_800.0
CONTEXT = {"record": "17"}
Stores = tuple[KeyStore, BranchKeyStore]


@asynccontextmanager
async def _sqlite(request: pytest.FixtureRequest) -> AsyncIterator[Stores]:
    path: Path = request.getfixturevalue("tmp_path")
    async with open_sqlite(path / DATABASE_FILE) as store:
        yield store, SqliteBranchKeys(store)


@asynccontextmanager
async def _dynamodb(request: pytest.FixtureRequest) -> AsyncIterator[Stores]:
    moto: MotoServer = request.getfixturevalue("moto")
    names = await emptied_tables(moto.url)
    async with (
        open_dynamodb(names[0], region=REGION, endpoint=moto.url) as store,
        open_branch_keys(names[1], region=REGION, endpoint=moto.url) as branch_keys,
    ):
        yield store, branch_keys


@asynccontextmanager
async def _postgresql(request: pytest.FixtureRequest) -> AsyncIterator[Stores]:
    place = await postgres_peer.emptied(request.getfixturevalue("postgres"))
    async with open_postgresql(place.conninfo) as store:
        yield store, PostgresBranchKeys(store.database)


STORES: Mapping[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Stores]]] = {
    "sqlite": _sqlite,
    "dynamodb": _dynamodb,
    "postgresql": _postgresql,
}


class Away:
    """A key store that can be made unreachable."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self.away = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def head(self, tenant_id: str) -> Any:
        """Read, unless away."""
        if self.away:
            raise StoreUnavailable("the key store does not answer")
        return await self._store.head(tenant_id)


class Pod:
    """What one daemon has for itself, beside the stores and the KMS that it shares with others."""

    def __init__(self, place: "Place", *, seals: bool = True, wait_days: int = WAIT_DAYS) -> None:
        self.store: Any = Away(place.store)
        self.events: list[KeyEvent] = []
        self.caches = KeyCaches(
            self.store,
            encryption_ttl=3600.0,
            signing_ttl=3600.0,
            public_ttl=3600.0,
            max_size=100,
            version_check_seconds=MAX_AGE,
            max_stale_seconds=MAX_STALE,
            clock=place.clock,
            jitter=lambda: 0.0,
        )
        self.branch_keys = BranchKeys(
            place.provider,
            place.branch_store,
            self.caches.branch,
            logical_name="logical",
            changed=self.caches.changed,
            now=place.clock,
            clock=place.clock,
        )
        messages = BranchMessages(self.branch_keys, seals=seals)
        self.ring = KeyRing(place.provider, self.caches.encryption, branch_messages=messages)
        self.signer = Signer(
            place.provider,
            self.store,
            signing_keys=self.caches.signing,
            public_keys=self.caches.public,
            auto_create=True,
            now=place.clock,
        )
        self.shredder = Shredder(
            self.store,
            place.branch_store,
            self.caches,
            wait_days=wait_days,
            seals=seals,
            now=place.clock,
            record=self.events.append,
        )

    async def seal(self, tenant: str = "acme") -> bytes:
        """Seal a payload."""
        return (await self.ring.seal(tenant, b"secret", CONTEXT)).ciphertext

    async def open(self, message: bytes, tenant: str = "acme") -> bytes:
        """Open a payload."""
        return (await self.ring.open(tenant, message, CONTEXT)).plaintext

    def encrypting(self, message: bytes, blob: bytes, tenant: str = "acme") -> list[Awaitable[object]]:
        """Return every use of keys that encrypt or decrypt."""
        return [
            self.ring.seal(tenant, b"secret", CONTEXT),
            self.ring.seal(tenant, b"secret", {"record": "new"}),
            self.ring.open(tenant, message, CONTEXT),
            self.ring.open(tenant, blob, {}),
            self.ring.data_key(tenant, 32, {}),
            self.ring.data_key(tenant, 32, {}, fresh=True),
            self.ring.message_key(tenant, CONTEXT),
            self.ring.key_of(tenant, self.ring.parse(message), CONTEXT),
            self.ring.reseal(tenant, message, CONTEXT, {}),
            self.ring.reseal(tenant, blob, {}, CONTEXT),
            self.branch_keys.active(tenant),
            raising(data_key_batch(self.ring, tenant, [KeyItem(32, SharedContext({}))], Turns())),
            raising(data_key_batch(self.ring, tenant, [KeyItem(32, SharedContext({}), fresh=True)], Turns())),
            raising(seal_batch(self.ring, tenant, [Item(b"secret", SharedContext(CONTEXT))], Turns())),
            raising(open_batch(self.ring, tenant, [Item(message, SharedContext(CONTEXT))], Turns())),
        ]

    async def refuses(self, error: type[KmsError], message: bytes, blob: bytes) -> None:
        """Check that each use is refused, and that signing and verifying go on."""
        for use in self.encrypting(message, blob):
            with pytest.raises(error):
                await use
        signed = await self.signer.sign("acme", span())
        verifier = await self.signer.verifier("acme", [signed.key_id])
        assert "VALID" == verifier.verify(span(), signed.signature, signed.key_id, None)


async def raising(batch: Awaitable[list[Any]]) -> None:
    """Raise the error of the only item."""
    (outcome,) = await batch
    if isinstance(outcome, Exception):
        raise outcome


class Place:
    """The stores, the KMS and the clock of any number of daemons."""

    def __init__(self, stores: Stores, clock: FakeClock) -> None:
        self.store, self.branch_store = stores
        self.provider = CountedLocalProvider(os.urandom(32))
        self.clock = clock

    async def rows(self, tenant: str = "acme") -> int:
        """Return how many rows the tenant's branch key has, by counting what a destruction would read."""
        count = 0

        async def no() -> bool:
            nonlocal count
            count = 1
            return False

        await self.branch_store.destroy(tenant, no)
        return count


@pytest.fixture(params=STORES)
async def place(request: pytest.FixtureRequest, clock: FakeClock) -> AsyncIterator[Place]:
    """Give an empty place on each kind of store."""
    async with STORES[request.param](request) as stores:
        yield Place(stores, clock)


@pytest.mark.parametrize("seals", [True, False], ids=["branch-key", "data-key"])
async def test_from_the_request_on_the_tenant_is_refused_until_it_is_cancelled(place: Place, seals: bool) -> None:
    """Warm and cold, each use of its keys; others and its signatures do not notice, and a cancel brings all back."""
    pod = Pod(place, seals=seals)
    message, other = await pod.seal(), await pod.seal("globex")
    blob = (await pod.ring.data_key("acme", 32, {})).wrapped.blob
    outcome = await pod.shredder.request("acme")
    assert outcome.state is not None
    assert ("pending", place.clock.now + WAIT_DAYS * DAY) == (outcome.state.status, outcome.state.due_ms / 1000)
    calls = place.provider.calls.copy()
    await pod.refuses(TenantPendingShred, message, blob)
    assert calls["Decrypt"] == place.provider.calls["Decrypt"]
    assert b"secret" == await pod.open(other, "globex")
    restarted = Pod(place, seals=seals)
    await restarted.caches.list_shreddings()
    await restarted.refuses(TenantPendingShred, message, blob)
    place.clock.now += WAIT_DAYS * DAY - 1
    await restarted.shredder.run()
    await restarted.refuses(TenantPendingShred, message, blob)
    assert 1 == restarted.shredder.pending
    assert (await restarted.shredder.cancel("acme")).state is None
    for use in restarted.encrypting(message, blob):
        await use
    assert ["RequestShredding"] == [event.operation for event in pod.events]
    assert ["CancelShredding"] == [event.operation for event in restarted.events]


@pytest.mark.parametrize("seals", [True, False], ids=["branch-key", "data-key"])
async def test_after_the_wait_the_branch_key_is_gone_until_a_new_one_is_made(place: Place, seals: bool) -> None:
    """Every version and the beacon; another tenant's stay. It cannot be cancelled; what was sealed stays lost."""
    pod = Pod(place)
    message, other = await pod.seal(), await pod.seal("globex")
    assert await pod.branch_keys.rotate("acme")
    blob = (await pod.ring.data_key("acme", 32, {})).wrapped.blob
    pod = Pod(place, seals=seals)
    await pod.caches.list_shreddings()
    await pod.shredder.request("acme")
    place.clock.now += WAIT_DAYS * DAY
    await pod.shredder.run()
    assert (0, 1, 0) == (await place.rows(), await place.rows("globex"), pod.shredder.pending)
    await pod.refuses(TenantShredded, message, blob)
    with pytest.raises(TenantShredded, match="too late"):
        await pod.shredder.cancel("acme")
    again = await pod.shredder.request("acme")
    assert again.state is not None
    assert "shredded" == again.state.status
    await pod.shredder.run()
    assert (await pod.shredder.recreate("acme")).state is None
    with pytest.raises(DoesNotOpen):
        await pod.open(message)
    assert b"secret" == await pod.open(await pod.seal())
    assert b"secret" == await pod.open(other, "globex")
    assert [("RequestShredding", 1), ("DestroyBranchKey", 4), ("RecreateTenant", 1)] == [
        (event.operation, event.items) for event in pod.events
    ]


async def test_answer_says_what_is_left(place: Place) -> None:
    """When no copy that is known of is left, also in the audit trail; in data-key mode that nothing is destroyed."""
    pod, event = Pod(place), KeyEvent("ShredTenant", "acme")
    outcome = await pod.shredder.request("acme", event)
    days = WAIT_DAYS + (35 if place.store.shared else 0)
    assert (place.clock.now + days * DAY) * 1000 == outcome.unrecoverable_after_ms
    assert event.unrecoverable_after == pod.events[0].unrecoverable_after
    assert event.unrecoverable_after.startswith("2023-12-26" if place.store.shared else "2023-11-21")
    assert any("GenerateDataKey" in each for each in outcome.not_destroyed)
    assert place.store.shared is any("recovery" in each for each in outcome.not_destroyed)
    there = await Pod(place, seals=False).shredder.request("globex")
    assert (None, True) == (there.unrecoverable_after_ms, "data-key" in there.not_destroyed[0])


async def test_without_a_branch_key_store_the_tenant_is_refused_alone(place: Place) -> None:
    """As in data-key mode on DynamoDB: the states are the same, and nothing is there to destroy."""
    shredder = Shredder(place.store, None, Pod(place).caches, wait_days=WAIT_DAYS, seals=False, now=place.clock)
    assert (await shredder.request("acme")).unrecoverable_after_ms is None
    place.clock.now += WAIT_DAYS * DAY
    await shredder.run()
    with pytest.raises(TenantShredded):
        (await place.store.head("acme")).check_open()


async def test_request_whose_caller_leaves_is_made_to_its_end(place: Place) -> None:
    """What the store has, the caches know."""
    pod = Pod(place)
    message = await pod.seal()
    set_shredding, began, go_on = place.store.set_shredding, asyncio.Event(), asyncio.Event()

    async def slow(*change: Any) -> bool:
        began.set()
        await go_on.wait()
        return await set_shredding(*change)

    pod.store.set_shredding = slow
    call = asyncio.create_task(pod.shredder.request("acme"))
    await began.wait()
    call.cancel()
    await asyncio.wait([call])
    go_on.set()
    await pod.shredder.close()
    with pytest.raises(TenantPendingShred):
        await pod.open(message)
    assert ["RequestShredding"] == [event.operation for event in pod.events]


async def test_wrong_order_is_refused_by_name(place: Place) -> None:
    """A tenant that is pending is not made anew, and one that is open is neither cancelled nor made anew for real."""
    shredder = Pod(place).shredder
    assert (None, None) == ((await shredder.cancel("acme")).state, (await shredder.recreate("acme")).state)
    assert 0 == (await place.store.head("acme")).generation
    await shredder.request("acme")
    with pytest.raises(TenantPendingShred, match="--cancel"):
        await shredder.recreate("acme")


async def test_destruction_that_was_interrupted_is_completed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever comes next; until then it can be neither cancelled nor made anew."""
    pod = Pod(place)
    message = await pod.seal()
    await pod.shredder.request("acme")
    place.clock.now += WAIT_DAYS * DAY

    async def fail(*_: object) -> int:
        raise StoreUnavailable("the branch key store does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(place.branch_store, "destroy", fail)
        await pod.shredder.run()
    assert (1, 1, 1) == (await place.rows(), pod.shredder.pending, pod.shredder.failing)
    for late in (pod.shredder.cancel, pod.shredder.recreate):
        with pytest.raises(TenantShredded):
            await late("acme")
    with pytest.raises(TenantShredded):
        await pod.open(message)
    await Pod(place).shredder.run()
    assert 0 == await place.rows()
    assert (await pod.shredder.recreate("acme")).state is None


async def test_daemon_that_comes_late_destroys_nothing_new(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stalls in the middle; another destroys, the tenant is made anew, and the first one wakes up."""
    slow, quick = Pod(place), Pod(place)
    await slow.seal()
    await slow.shredder.request("acme")
    place.clock.now += WAIT_DAYS * DAY
    began, go_on = asyncio.Event(), asyncio.Event()
    destroy = place.branch_store.destroy

    async def stalled(tenant_id: str, still: Callable[[], Awaitable[bool]]) -> int:
        began.set()
        await go_on.wait()
        return await destroy(tenant_id, still)

    with monkeypatch.context() as patch:
        patch.setattr(place.branch_store, "destroy", stalled)
        late = asyncio.create_task(slow.shredder.run())
        await began.wait()
    await quick.shredder.run()
    await quick.shredder.recreate("acme")
    message = await quick.seal()
    go_on.set()
    await late
    assert b"secret" == await quick.open(message)
    assert b"secret" == await Pod(place).open(message)


async def test_rotation_gives_a_shredded_tenant_no_new_version(place: Place) -> None:
    """It is no failure either, so that a run over all tenants goes on."""
    pod = Pod(place)
    await pod.seal()
    row = await place.branch_store.active("acme")
    await pod.shredder.request("acme")
    assert await pod.branch_keys.rotate("acme") is False
    assert row == await place.branch_store.active("acme")


async def test_damaged_state_is_data_loss(place: Place) -> None:
    """For the tenant alone; it is never open, and nothing of it is destroyed."""
    pod = Pod(place)
    message, other = await pod.seal(), await pod.seal("globex")
    blob = (await pod.ring.data_key("acme", 32, {})).wrapped.blob
    await pod.shredder.request("acme")
    await overwrite(place.store, "pending:0:0")
    place.clock.now += WAIT_DAYS * DAY
    for daemon in (pod, Pod(place)):
        await daemon.caches.list_shreddings()
        await daemon.refuses(KeyDamaged, message, blob)
        for change in (daemon.shredder.request, daemon.shredder.cancel, daemon.shredder.recreate):
            with pytest.raises(KeyDamaged):
                await change("acme")
        await daemon.shredder.run()
        assert b"secret" == await daemon.open(other, "globex")
    assert 1 == await place.rows()


@pytest.fixture
async def shared(request: pytest.FixtureRequest, clock: FakeClock) -> AsyncIterator[Place]:
    """Give an empty place that daemons share."""
    async with _dynamodb(request) as stores:
        yield Place(stores, clock)


async def test_other_daemons_refuse_within_the_bound(shared: Place) -> None:
    """Until they read the tenant's generation again a warm key may serve, and not a second longer."""
    here, there = Pod(shared), Pod(shared)
    message = await there.seal()
    await here.shredder.request("acme")
    shared.clock.now += MAX_AGE - 1
    assert b"secret" == await there.open(message)
    shared.clock.now += 1
    with pytest.raises(TenantPendingShred):
        await there.open(message)
    await here.shredder.cancel("acme")
    shared.clock.now += MAX_AGE
    assert b"secret" == await there.open(message)


async def test_tenant_that_could_not_be_read_for_too_long_is_refused(shared: Place) -> None:
    """Which bounds a shredding while the store is away; signing goes on, and the store's return ends it."""
    pod = Pod(shared)
    message = await pod.seal()
    signed = await pod.signer.sign("acme", span())
    pod.store.away = True
    for seconds in (1.0, MAX_AGE, MAX_STALE / 2, MAX_STALE - 1):
        shared.clock.now = 1_700_000_000.0 + seconds
        assert b"secret" == await pod.open(message)
    shared.clock.now = 1_700_000_000.0 + MAX_STALE
    with pytest.raises(StoreUnavailable, match=r"kms\.cache\.max-stale-seconds"):
        await pod.open(message)
    assert signed.key_id == (await pod.signer.sign("acme", span())).key_id
    pod.store.away = False
    shared.clock.now += 5
    assert b"secret" == await pod.open(message)


async def test_tenant_that_was_never_read_goes_by_the_list(shared: Place) -> None:
    """While the store is away: open if the list is young and has it not, refused if it has, or if there is no list."""
    message = await Pod(shared).seal()
    pod, unlisted = Pod(shared), Pod(shared)
    await pod.caches.list_shreddings()
    for each in (pod, unlisted):
        each.store.away = True
    assert b"secret" == await pod.open(message)
    with pytest.raises(StoreUnavailable):
        await unlisted.open(message)
    shared.clock.now += MAX_STALE
    with pytest.raises(StoreUnavailable):
        await pod.open(message)
    await Pod(shared).shredder.request("acme")
    await pod.caches.list_shreddings()
    with pytest.raises(TenantPendingShred):
        await pod.open(message)


async def test_request_holds_here_while_the_store_is_away_again(shared: Place) -> None:
    """A state that landed is not forgotten because the next read fails."""
    pod = Pod(shared)
    message = await pod.seal()
    set_shredding = shared.store.set_shredding

    async def and_away(*change: Any) -> bool:
        landed = await set_shredding(*change)
        pod.store.away = True
        return landed

    pod.store.set_shredding = and_away
    await pod.shredder.request("acme")
    with pytest.raises(TenantPendingShred):
        await pod.open(message)


async def test_due_earlier_than_the_bound_does_not_exist() -> None:
    """The wait is a day at least, and no daemon overlooks a request for longer than that."""
    fields = KeySettings.model_fields
    longest = max(limit.le for limit in fields["max_stale_seconds"].metadata if hasattr(limit, "le"))
    shortest = min(limit.ge for limit in fields["shred_wait_days"].metadata if hasattr(limit, "ge"))
    assert longest <= shortest * DAY


async def test_deletion_that_is_denied_is_said_before_it_is_due(moto: MotoServer, clock: FakeClock) -> None:
    """In the answer, which then has no time, and by `validate`; granted, neither says so, and nothing is deleted."""
    keys, branch_keys = await emptied_tables(moto.url)
    with aws_proxy(moto.url) as proxy:
        async with (
            open_dynamodb(keys, region=REGION, endpoint=moto.url) as store,
            open_branch_keys(branch_keys, region=REGION, endpoint=proxy.url) as branch_store,
        ):
            place = Place((store, branch_store), clock)
            shredder = Pod(place).shredder

            async def said() -> tuple[bool, bool, bool]:
                outcome = await shredder.request("denied")
                validator = Validator(place.provider, store, branch_keys=branch_store)
                notes = (await validator.run()).recommendations
                return (
                    any("dynamodb:DeleteItem" in each for each in outcome.not_destroyed),
                    outcome.unrecoverable_after_ms is None,
                    any("dynamodb:DeleteItem" in each for each in notes),
                )

            proxy.always("deny", "DeleteItem")
            assert (True, True, True) == await said()
            proxy.always("pass")
            assert (False, False, False) == await said()
