"""Rotation, revocation, generations and outages, over a real key store and a provider that can be made to fail."""

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from betrace_kms_server.cache.generations import RETRY_SECONDS
from betrace_kms_server.cache.key_caches import KeyCaches
from betrace_kms_server.core.errors import (
    AccessDenied,
    CredentialsUnavailable,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
    NoSigningKey,
    StoreUnavailable,
    Throttled,
)
from betrace_kms_server.core.key_event import KeyEvent
from betrace_kms_server.core.schedule import Schedule
from betrace_kms_server.core.shredding import TenantHead
from betrace_kms_server.data_keys.keyring import KeyRing
from betrace_kms_server.signing_keys.lifecycle import Lifecycle
from betrace_kms_server.signing_keys.rotation import Rotation
from betrace_kms_server.signing_keys.signer import Signer
from betrace_kms_server.stores.sqlite.store import SqliteStore

from tests.contract.doubles import CountedLocalProvider, FakeClock
from tests.contract.samples import span

MINUTE = 60.0
TTL, MAX_AGE = 60 * MINUTE, 60.0
DAY_MS = 24 * 3600 * 1000


async def _unreachable(*_: Any) -> Any:
    raise StoreUnavailable("the key store does not answer")


class Shared:
    """A store that others write to as well, and that can be made unreachable. Counts reads of generations."""

    shared = True

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.reads = 0
        self.broken = False

    async def head(self, tenant_id: str) -> TenantHead:
        """Read, unless broken."""
        self.reads += 1
        await asyncio.sleep(0)
        if self.broken:
            raise StoreUnavailable("the key store does not answer")
        return await self._store.head(tenant_id)

    def __getattr__(self, name: str) -> Any:
        return _unreachable if self.broken else getattr(self._store, name)


class Pod:
    """What one daemon has for itself, beside the store and the KMS that it shares with others."""

    def __init__(self, provider: CountedLocalProvider, store: Any, clock: FakeClock) -> None:
        self.store = Shared(store)
        self.doubts: list[None] = []
        self.caches = KeyCaches(
            self.store,
            encryption_ttl=TTL,
            signing_ttl=TTL,
            public_ttl=TTL,
            max_size=100,
            version_check_seconds=MAX_AGE,
            clock=clock,
            jitter=lambda: 0.0,
            request_check=lambda: self.doubts.append(None),
        )
        self.signer = Signer(
            provider,
            self.store,
            signing_keys=self.caches.signing,
            public_keys=self.caches.public,
            auto_create=True,
            now=clock,
        )
        self.keyring = KeyRing(provider, self.caches.encryption)
        self.lifecycle = Lifecycle(provider, self.store, self.caches.changed, now=clock)

    async def signs_with(self, tenant: str = "acme") -> str:
        """Return the id of the key that signs for a tenant here."""
        return (await self.signer.sign(tenant, span())).key_id


@pytest.fixture
def provider() -> CountedLocalProvider:
    """A provider that counts its calls."""
    return CountedLocalProvider(os.urandom(32))


@pytest.fixture
def pods(provider: CountedLocalProvider, store: SqliteStore, clock: FakeClock) -> tuple[Pod, Pod]:
    """Two daemons on one store."""
    return Pod(provider, store, clock), Pod(provider, store, clock)


async def test_other_pods_see_a_rotation_within_the_bound(pods: tuple[Pod, Pod], clock: FakeClock) -> None:
    """Here at once; there when the tenant was last looked at 60 seconds ago, and not a call to KMS before."""
    here, there = pods
    old = await there.signs_with()
    assert await here.signs_with() == old
    clock.now += 1
    assert await here.lifecycle.rotate("acme")
    new = await here.signs_with()
    assert new != old
    clock.now += MAX_AGE - 2
    assert await there.signs_with() == old
    clock.now += 2
    assert await there.signs_with() == new


async def test_other_pods_see_a_revocation_and_an_invalidation(pods: tuple[Pod, Pod], clock: FakeClock) -> None:
    """Verification too, whose keys stay cached for a day; and data keys."""
    here, there = pods
    signed = await there.signer.sign("acme", span())
    assert (await there.signer.verifier("acme", [signed.key_id])).verify(
        span(), signed.signature, signed.key_id, None
    ) == "VALID"
    key = await there.keyring.data_key("acme", 32, {})
    await here.lifecycle.revoke("acme", signed.key_id)
    clock.now += MAX_AGE
    assert (await there.signer.verifier("acme", [signed.key_id])).verify(
        span(), signed.signature, signed.key_id, None
    ) == "KEY_REVOKED"
    assert (await there.keyring.data_key("acme", 32, {})).wrapped.blob != key.wrapped.blob
    again = await there.keyring.data_key("acme", 32, {})
    await here.lifecycle.invalidate("acme")
    assert (await there.keyring.data_key("acme", 32, {})).wrapped.blob == again.wrapped.blob
    clock.now += MAX_AGE
    assert (await there.keyring.data_key("acme", 32, {})).wrapped.blob != again.wrapped.blob


async def test_callers_share_one_read_and_kms_is_not_asked(
    pods: tuple[Pod, Pod], provider: CountedLocalProvider, clock: FakeClock
) -> None:
    """A hundred hits after the bound wait for one read of the store."""
    pod, _ = pods
    await pod.signs_with()
    clock.now += MAX_AGE
    provider.calls.clear()
    pod.store.reads = 0
    await asyncio.gather(*(pod.signs_with() for _ in range(100)))
    assert (pod.store.reads, sum(provider.calls.values())) == (1, 0)


async def test_a_cancelled_caller_takes_nobodys_read_with_it(pods: tuple[Pod, Pod], clock: FakeClock) -> None:
    """The caller that began the read leaves; the others get their answer."""
    pod, _ = pods
    await pod.signs_with()
    clock.now += MAX_AGE
    first, second = asyncio.create_task(pod.signs_with()), asyncio.create_task(pod.signs_with())
    await asyncio.sleep(0)
    first.cancel()
    assert await second


async def test_while_the_store_is_unreachable_keys_serve_to_their_ttl(pods: tuple[Pod, Pod], clock: FakeClock) -> None:
    """That is the bound; afterwards what changed meanwhile is seen at once."""
    here, there = pods
    old = await there.signs_with()
    began = clock.now
    there.store.broken = True
    await here.lifecycle.rotate("acme")
    while clock.now + 30 < began + TTL:
        clock.now += 30
        assert await there.signs_with() == old
    there.store.broken = False
    clock.now += RETRY_SECONDS
    assert await there.signs_with() != old


async def test_pods_that_rotate_at_once_make_one_key(
    pods: tuple[Pod, Pod], clock: FakeClock, store: SqliteStore
) -> None:
    """Twenty runs of the rotation at once: each tenant has two keys, and both pods sign with the new one."""
    here, there = pods
    tenants = [f"tenant-{number}" for number in range(30)]
    for tenant in tenants:
        await here.signs_with(tenant)
    clock.now += 1
    before_ms = int(clock.now * 1000)
    rotations = [Rotation(pod.lifecycle, batch_size=7, now=clock) for pod in pods for _ in range(10)]
    outcomes = await asyncio.gather(*(rotation.run(before_ms) for rotation in rotations))
    assert sum(outcome.rotated for outcome in outcomes) == len(tenants)
    assert not any(outcome.failed for outcome in outcomes)
    clock.now += MAX_AGE
    for tenant in tenants:
        keys = await here.store.all(tenant)
        assert sorted(key.status for key in keys) == ["active", "rotated"]
        assert await here.signs_with(tenant) == await there.signs_with(tenant)


async def test_revocation_is_once_and_for_all(pods: tuple[Pod, Pod], clock: FakeClock) -> None:
    """Twenty at once, some of a key that is rotated meanwhile: one revocation, one active key, no key lost."""
    here, there = pods
    key_id = await here.signs_with()
    clock.now += 1
    await asyncio.gather(
        *(pod.lifecycle.revoke("acme", key_id) for pod in pods for _ in range(10)),
        *(pod.lifecycle.rotate("acme") for pod in pods),
    )
    keys = {key.key_id: key for key in await here.store.all("acme")}
    assert keys[key_id].status == "revoked"
    assert [key.status for key in keys.values()].count("active") == 1
    with pytest.raises(NoSigningKey):
        await there.lifecycle.revoke("acme", "0" * 32)


class Outage:
    """Makes a provider fail with an error for as long as it is set."""

    def __init__(self, provider: CountedLocalProvider, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: KmsError | None = None
        for name in ("generate_data_key", "wrap", "unwrap"):
            monkeypatch.setattr(provider, name, self._failing(getattr(provider, name)))

    def _failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        async def failing(*arguments: Any) -> Any:
            if self.error:
                raise self.error
            return await call(*arguments)

        return failing


@pytest.fixture
def outage(provider: CountedLocalProvider, monkeypatch: pytest.MonkeyPatch) -> Outage:
    """No outage yet."""
    return Outage(provider, monkeypatch)


@pytest.mark.parametrize("error", [KmsUnreachable("no answer"), Throttled("slow down"), CredentialsUnavailable("none")])
async def test_an_outage_of_30_minutes_is_served_through_to_the_ttl_and_not_a_second_longer(
    pods: tuple[Pod, Pod], provider: CountedLocalProvider, clock: FakeClock, outage: Outage, error: KmsError
) -> None:
    """KMS vanishes when keys are 29 minutes old; they serve until they are 60, and when KMS returns all is well."""
    pod, _ = pods
    sealed = await pod.keyring.seal("acme", b"payload", {})
    key_id = await pod.signs_with()
    await pod.keyring.open("acme", sealed.ciphertext, {})
    born = clock.now
    clock.now += 29 * MINUTE
    outage.error = error

    async def served() -> None:
        assert await pod.signs_with() == key_id
        assert (await pod.keyring.open("acme", sealed.ciphertext, {})).plaintext == b"payload"
        await pod.keyring.seal("acme", b"more", {})
        await asyncio.sleep(0)  # lets refreshes that failed be noted

    while clock.now < born + 59 * MINUTE:
        clock.now += 1
        await served()
    clock.now = born + TTL - 1
    await served()
    clock.now = born + TTL
    for call in (pod.signs_with(), pod.keyring.seal("acme", b"x", {}), pod.keyring.open("acme", sealed.ciphertext, {})):
        with pytest.raises(type(error)):
            await call
    outage.error = None
    provider.calls.clear()
    await asyncio.gather(
        *(pod.signs_with() for _ in range(50)), *(pod.keyring.seal("acme", b"", {}) for _ in range(50))
    )
    assert provider.calls == {"Decrypt": 1, "GenerateDataKey": 1}
    assert await pod.signs_with() == key_id


async def test_a_denial_drops_only_the_entry_concerned(pods: tuple[Pod, Pod], clock: FakeClock, outage: Outage) -> None:
    """The refresh of one tenant's key is denied: that tenant is refused, the others are served."""
    pod, _ = pods
    for tenant in ("acme", "globex"):
        await pod.signs_with(tenant)
    clock.now += 0.8 * TTL
    outage.error = AccessDenied("KMS denies kms:Decrypt")
    await pod.signs_with("acme")
    await asyncio.sleep(0.01)
    with pytest.raises(AccessDenied):
        await pod.signs_with("acme")
    outage.error = KmsUnreachable("no answer")
    assert await pod.signs_with("globex")


async def test_an_unusable_master_key_is_doubted_before_anything_is_dropped(
    pods: tuple[Pod, Pod], clock: FakeClock, outage: Outage
) -> None:
    """A refresh that fails so asks for DescribeKey; the entry serves until that has confirmed it."""
    pod, _ = pods
    key_id = await pod.signs_with()
    clock.now += 0.8 * TTL
    outage.error = MasterKeyUnusable("Disabled")
    await pod.signs_with()
    await asyncio.sleep(0.01)
    assert pod.doubts
    assert await pod.signs_with() == key_id
    arn = pod.signer._provider.master_key_arn
    assert pod.caches.purge(arn) == 1
    with pytest.raises(MasterKeyUnusable):
        await pod.signs_with()


async def test_a_caller_that_leaves_does_not_keep_a_revoked_key_alive(
    store: SqliteStore, provider: CountedLocalProvider, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline of the call is over when the store has just committed: the caches hear of it nevertheless."""
    pod = Pod(provider, store, clock)
    key_id = await pod.signs_with()
    original, committed = store.revoke, asyncio.Event()

    async def revoke(*arguments: Any) -> bool:
        done = await original(*arguments)
        committed.set()
        await asyncio.sleep(0.01)
        return done

    monkeypatch.setattr(store, "revoke", revoke)
    call = asyncio.create_task(pod.lifecycle.revoke("acme", key_id))
    await committed.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await pod.lifecycle.close()
    assert await pod.signs_with() != key_id


async def test_a_change_whose_answer_was_lost_leaves_nothing_old_in_the_caches(
    store: SqliteStore, provider: CountedLocalProvider, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store says that it did not answer in time, and had done it."""
    pod = Pod(provider, store, clock)
    key_id = await pod.signs_with()
    original = store.rotate

    async def rotate(*arguments: Any) -> bool:
        await original(*arguments)
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(store, "rotate", rotate)
    with pytest.raises(StoreUnavailable):
        await pod.lifecycle.rotate("acme")
    assert await pod.signs_with() != key_id


async def test_a_store_that_hangs_does_not_hold_up_what_is_cached(
    pods: tuple[Pod, Pod], provider: CountedLocalProvider, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads run out of time after five seconds of the clock: cached keys are used, and KMS is not asked."""
    pod, _ = pods
    key_id = await pod.signs_with()
    sealed = await pod.keyring.seal("acme", b"payload", {})
    await pod.keyring.open("acme", sealed.ciphertext, {})

    async def hang(tenant_id: str) -> TenantHead:
        clock.now += 5
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(pod.store, "head", hang)
    provider.calls.clear()
    for _ in range(5):
        clock.now += MAX_AGE
        assert await pod.signs_with() == key_id
        assert (await pod.keyring.open("acme", sealed.ciphertext, {})).plaintext == b"payload"
        await pod.keyring.seal("acme", b"more", {})
    assert not provider.calls


async def test_one_tenants_defect_does_not_stop_the_others(
    pods: tuple[Pod, Pod], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no error of ours counts as that tenant's failure."""
    pod, _ = pods
    for number in range(30):
        await pod.signs_with(f"tenant-{number}")
    original = pod.lifecycle.rotate

    async def rotate(tenant_id: str, **arguments: Any) -> bool:
        if tenant_id == "tenant-3":
            raise KeyError("defect")
        return await original(tenant_id, **arguments)

    monkeypatch.setattr(pod.lifecycle, "rotate", rotate)
    clock.now += 1
    outcome = await Rotation(pod.lifecycle, batch_size=5, now=clock).run(int(clock.now * 1000))
    assert (outcome.rotated, outcome.failed) == (29, 1)


class Calendar:
    """A clock of the wall that a rotation sleeps on, and the runs that it makes."""

    def __init__(self, start: datetime, end: datetime) -> None:
        self.now, self.end = start.timestamp(), end.timestamp()

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        assert seconds > 0
        self.now += seconds
        if self.now >= self.end:
            raise asyncio.CancelledError


async def test_a_year_of_the_schedule_fires_at_the_right_instants(pods: tuple[Pod, Pod]) -> None:
    """Daily at two, UTC, leap day included; keys older than 90 days are due at the instant, not at the jitter after."""
    calendar = Calendar(datetime(2028, 1, 1, 12, tzinfo=UTC), datetime(2029, 1, 1, 12, tzinfo=UTC))
    runs: list[tuple[datetime, datetime]] = []

    class Watched(Rotation):
        async def run(self, before_ms: int, event: KeyEvent | None = None) -> Any:
            runs.append((datetime.fromtimestamp(calendar.now, UTC), datetime.fromtimestamp(before_ms / 1000, UTC)))
            return await super().run(before_ms, event)

    pod, _ = pods
    rotation = Watched(
        pod.lifecycle,
        batch_size=100,
        now=calendar,
        sleep=calendar.sleep,
        jitter=lambda: 0.5,
    )
    with pytest.raises(asyncio.CancelledError):
        await rotation.follow(Schedule.parse("0 0 2 * * ?"), timedelta(days=90))
    first, *rest = runs
    assert first == (datetime(2028, 1, 1, 12, tzinfo=UTC), datetime(2028, 1, 1, 2, tzinfo=UTC) - timedelta(days=90))
    days = [datetime(2028, 1, 2, 2, tzinfo=UTC) + timedelta(days=number) for number in range(366)]
    assert [before + timedelta(days=90) for _, before in rest] == days
    assert [at for at, _ in rest] == [day + timedelta(seconds=30) for day in days]
    assert rotation.last_run == rest[-1][0].timestamp()


async def test_a_run_that_fails_is_repeated_until_it_is_done(
    pods: tuple[Pod, Pod], outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KMS is away for an hour at two o'clock: every ten minutes another try, and the failures are counted."""
    start = datetime(2028, 1, 1, 1, tzinfo=UTC)
    calendar = Calendar(start, start + timedelta(hours=10))
    pod, _ = pods
    pod.signer._now = lambda: 0.0
    await pod.signs_with()
    tries: list[float] = []
    original = pod.lifecycle.rotate

    async def rotate(tenant_id: str, **arguments: Any) -> bool:
        tries.append(calendar.now)
        outage.error = KmsUnreachable("no answer") if calendar.now < start.timestamp() + 2 * 3600 else None
        return await original(tenant_id, **arguments)

    monkeypatch.setattr(pod.lifecycle, "rotate", rotate)
    rotation = Rotation(
        pod.lifecycle,
        batch_size=100,
        now=calendar,
        sleep=calendar.sleep,
        jitter=lambda: 0.0,
    )
    pod.lifecycle._now = calendar
    with pytest.raises(asyncio.CancelledError):
        await rotation.follow(Schedule.parse("0 0 2 * * ?"), timedelta(days=90))
    assert rotation.failures == len(tries) - 1 >= 6
    assert [key.status for key in await pod.store.all("acme")] == ["rotated", "active"]


async def test_a_clock_that_is_set_back_does_not_silence_the_schedule(pods: tuple[Pod, Pod]) -> None:
    """The daemon starts in 2040; then the clock is mended, and the next run is tomorrow's."""
    start = datetime(2026, 3, 1, 12, tzinfo=UTC)
    calendar = Calendar(datetime(2040, 1, 1, tzinfo=UTC), datetime(2041, 1, 1, tzinfo=UTC))
    runs: list[float] = []

    async def sleep(seconds: float) -> None:
        if calendar.now > start.timestamp() + 10 * 365 * 24 * 3600:
            calendar.now, calendar.end = start.timestamp(), start.timestamp() + 3 * 24 * 3600
        await calendar.sleep(seconds)

    class Watched(Rotation):
        async def run(self, before_ms: int, event: KeyEvent | None = None) -> Any:
            runs.append(calendar.now)
            return await super().run(before_ms, event)

    pod, _ = pods
    rotation = Watched(pod.lifecycle, batch_size=100, now=calendar, sleep=sleep, jitter=lambda: 0.0)
    with pytest.raises(asyncio.CancelledError):
        await rotation.follow(Schedule.parse("0 0 2 * * ?"), timedelta(days=90))
    assert [datetime.fromtimestamp(run, UTC).day for run in runs[1:]] == [2, 3, 4]
