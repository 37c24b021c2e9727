"""Branch keys over every provider: what they ask KMS for, how daemons agree, and what is damaged."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from betrace_kms_envelope import Message, Sealer
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.branch_rows import BranchKeyRow, timestamp
from betrace_kms_server.core.errors import DoesNotOpen, KeyDamaged, MasterKeyUnusable
from betrace_kms_server.core.key_event import KeyEvent
from betrace_kms_server.core.keys import DataKey, KeyMaterial
from betrace_kms_server.core.master_keys import step_to_configure
from betrace_kms_server.core.tenancy import Context, encryption_context
from betrace_kms_server.data_keys.batches import Item, SharedContext, Turns, open_batch, seal_batch
from betrace_kms_server.data_keys.branch_keys import BranchKeys
from betrace_kms_server.data_keys.branch_messages import BranchMessages
from betrace_kms_server.data_keys.hierarchy import BranchKey, version_of
from betrace_kms_server.data_keys.keyring import KeyRing
from betrace_kms_server.data_keys.results import Opened, Sealed
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.stores.sqlite.branch_keys import SqliteBranchKeys
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE, SqliteStore, open_sqlite

from tests.contract.doubles import CountedLocalProvider, FakeClock, Kms

CONTEXT = {"record": "17"}


class CountedBranchKeys(SqliteBranchKeys):
    """A store that counts reads of versions."""

    def __init__(self, store: SqliteStore) -> None:
        super().__init__(store)
        self.version_reads = 0

    async def version(self, branch_key_id: str, version: UUID) -> BranchKeyRow | None:
        """Count the read."""
        self.version_reads += 1
        return await super().version(branch_key_id, version)


class Place:
    """One store and one KMS, and any number of daemons on them, each with a cache and a key ring of its own."""

    def __init__(self, provider: KeyProvider, store: SqliteStore, cache: Callable[[], KeyCache], clock: FakeClock):
        self.provider, self.clock = provider, clock
        self.keys = CountedBranchKeys(store)
        self.fetch = store.fetch
        self.changed: list[str] = []
        self.events: list[KeyEvent] = []
        self._cache = cache

    def branch_keys(self, provider: KeyProvider | None = None, logical_name: str = "logical") -> BranchKeys:
        """Return branch keys with an empty cache, as after a restart."""
        cache = self._cache()

        async def changed(tenant_id: str) -> None:
            self.changed.append(tenant_id)
            cache.invalidate(tenant_id)

        return BranchKeys(
            provider or self.provider,
            self.keys,
            cache,
            logical_name=logical_name,
            changed=changed,
            now=self.clock,
            clock=self.clock,
            record=self.events.append,
        )

    def ring(self, branch_keys: BranchKeys | None = None, *, seals: bool = True) -> KeyRing:
        """Return a key ring with an empty cache."""
        messages = BranchMessages(branch_keys or self.branch_keys(), seals=seals)
        return KeyRing(self.provider, self._cache(), branch_messages=messages)

    async def rows(self) -> Sequence[object]:
        """Return all that the store holds."""
        return [tuple(row) for row in await self.fetch("SELECT * FROM branch_keys ORDER BY branch_key_id, type")]


@pytest.fixture
async def place(kms: Kms, store: SqliteStore, new_cache: Callable[..., KeyCache], clock: FakeClock) -> Place:
    """Give an empty place."""
    return Place(kms.provider, store, new_cache, clock)


def version_in(message: bytes) -> UUID | None:
    """Return the version of the branch key in a message."""
    (encrypted,) = Message.parse(message).encrypted_data_keys
    return version_of(encrypted)


async def test_any_number_of_contexts_costs_four_calls(place: Place, kms: Kms) -> None:
    """Three make the branch key, and one unwraps it to be sure; opening it all after a restart costs one."""
    ring, contexts = place.ring(), [{"record": str(number)} for number in range(300)]
    sealed = [await ring.seal("acme", b"secret", context) for context in contexts]
    assert {"GenerateDataKey": 2, "Encrypt": 1, "Decrypt": 1} == kms.calls
    assert 300 == len({message.ciphertext for message in sealed})
    kms.calls.clear()
    restarted = place.ring()
    for message, context in zip(sealed, contexts, strict=True):
        opened = await restarted.open("acme", message.ciphertext, context)
        assert (b"secret", kms.provider.master_key_arn) == (opened.plaintext, opened.master_key_arn)
    assert {"Decrypt": 1} == kms.calls


async def test_second_round_of_many_tenants_asks_kms_nothing(place: Place, kms: Kms) -> None:
    """Each tenant has a branch key of its own, which stays in memory."""
    ring = place.ring()
    for tenant in range(50):
        await ring.seal(f"tenant-{tenant}", b"secret", CONTEXT)
    kms.calls.clear()
    for tenant in range(50):
        await ring.seal(f"tenant-{tenant}", b"secret", {"record": "18"})
    assert {} == kms.calls


async def test_first_seals_at_once_make_one_branch_key(place: Place, kms: Kms) -> None:
    """However many begin at once, and the daemon says once that it made one."""
    ring = place.ring()
    await asyncio.gather(*(ring.seal("acme", b"secret", {"record": str(number)}) for number in range(50)))
    assert {"GenerateDataKey": 2, "Encrypt": 1, "Decrypt": 1} == kms.calls
    assert ["CreateBranchKey"] == [event.operation for event in place.events]


async def test_daemons_that_create_at_once_agree(place: Place) -> None:
    """Whoever comes second adopts the winner: each message opens on each daemon."""
    rings = [place.ring() for _ in range(4)]
    sealed = await asyncio.gather(*(ring.seal("acme", b"secret", CONTEXT) for ring in rings))
    assert 1 == len({version_in(message.ciphertext) for message in sealed})
    for ring in rings:
        for message in sealed:
            assert b"secret" == (await ring.open("acme", message.ciphertext, CONTEXT)).plaintext


async def test_batch_is_under_the_branch_key(place: Place, kms: Kms) -> None:
    """Each item has a data key of its own, also where contexts are alike; KMS is asked for the branch key alone."""
    ring, contexts = place.ring(), [SharedContext({"record": str(number)}) for number in range(10)]
    items = [Item(b"%d" % number, contexts[number % 10]) for number in range(100)]
    sealed = [each for each in await seal_batch(ring, "acme", items, Turns()) if isinstance(each, Sealed)]
    assert 100 == len({Message.parse(each.ciphertext).fields for each in sealed})
    ciphertexts = [Item(each.ciphertext, item.context) for each, item in zip(sealed, items, strict=True)]
    opened = await open_batch(ring, "acme", ciphertexts, Turns())
    assert [item.payload for item in items] == [each.plaintext for each in opened if isinstance(each, Opened)]
    assert {"GenerateDataKey": 2, "Encrypt": 1, "Decrypt": 2} == kms.calls


async def test_keys_of_messages_are_under_the_branch_key(place: Place, kms: Kms) -> None:
    """A caller seals under one, and opens what Encrypt sealed, because each message's key is for it alone."""
    ring = place.ring()
    key = await ring.message_key("acme", CONTEXT)
    kms.calls.clear()
    message = Sealer(key.encrypted, key.context).seal(b"secret", key.material.raw)
    assert b"secret" == (await ring.open("acme", message, CONTEXT)).plaintext
    sealed = Message.parse((await ring.seal("acme", b"secret", CONTEXT)).ciphertext)
    opening = await ring.opening_key("acme", sealed, CONTEXT)
    assert b"secret" == sealed.open(opening.material.raw)
    for tenant_id, context in (("globex", CONTEXT), ("acme", {})):
        with pytest.raises(DoesNotOpen):
            await ring.opening_key(tenant_id, sealed, context)
    assert {"Decrypt": 1} == kms.calls


async def test_context_in_the_header_is_that_of_every_message(place: Place) -> None:
    """Tenant and use are in it, and the data key is bound to it."""
    sealed = await place.ring().seal("acme", b"secret", CONTEXT)
    message = Message.parse(sealed.ciphertext)
    assert encryption_context("acme", CONTEXT) == dict(message.context)
    (encrypted,) = message.encrypted_data_keys
    assert ("aws-kms-hierarchy", "acme") == (encrypted.provider_id, encrypted.provider_info)


async def test_new_version_seals_and_old_ones_open(place: Place) -> None:
    """A rotation changes what is sealed from then on, and is announced."""
    keys = place.branch_keys()
    ring = place.ring(keys)
    before = await ring.seal("acme", b"before", CONTEXT)
    assert await keys.rotate("acme")
    after = await ring.seal("acme", b"after", CONTEXT)
    assert version_in(before.ciphertext) != version_in(after.ciphertext)
    for open_ring in (ring, place.ring()):
        assert b"before" == (await open_ring.open("acme", before.ciphertext, CONTEXT)).plaintext
        assert b"after" == (await open_ring.open("acme", after.ciphertext, CONTEXT)).plaintext
    assert ["acme"] == place.changed
    assert ["CreateBranchKey", "RotateBranchKey"] == [event.operation for event in place.events]


async def test_young_branch_key_is_not_rotated(place: Place, clock: FakeClock) -> None:
    """Only one that is older than asked for is, and a tenant without one gets none."""
    keys = place.branch_keys()
    await keys.active("acme")
    made = int(clock() * 1000)
    assert (False, None) == (
        await keys.rotate("acme", if_older_than_ms=made),
        await keys.rotate("globex", if_older_than_ms=made + 1),
    )
    assert ["acme"] == [tenant async for tenant in keys.created_before(made + 1)]
    assert await keys.rotate("acme", if_older_than_ms=made + 1)
    assert not await keys.rotate("acme", if_older_than_ms=made + 1)
    assert [] == [tenant async for tenant in keys.created_before(made + 1)]


async def test_daemons_that_rotate_at_once_make_one_version(place: Place) -> None:
    """Whoever comes second changes nothing, and everything that was sealed meanwhile opens."""
    daemons = [place.branch_keys() for _ in range(4)]
    rings = [place.ring(keys) for keys in daemons]
    await daemons[0].active("acme")
    rotated, sealed = await asyncio.gather(
        asyncio.gather(*(keys.rotate("acme") for keys in daemons)),
        asyncio.gather(*(ring.seal("acme", b"secret", CONTEXT) for ring in rings for _ in range(5))),
    )
    assert [False, False, False, True] == sorted(map(bool, rotated))
    last = place.ring()
    for message in sealed:
        assert b"secret" == (await last.open("acme", message.ciphertext, CONTEXT)).plaintext


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("UPDATE branch_keys SET enc = zeroblob(length(enc))", id="altered"),
        pytest.param("UPDATE branch_keys SET enc = substr(enc, 1, 40)", id="cut"),
        pytest.param("UPDATE branch_keys SET enc = x''", id="empty"),
        pytest.param("UPDATE branch_keys SET create_time = '2020-01-01T00:00:00.000000Z'", id="another time"),
        pytest.param("UPDATE branch_keys SET attributes = replace(attributes, '}', ',\"a\":\"b\"}')", id="more"),
        pytest.param("UPDATE branch_keys SET attributes = '{'", id="no JSON"),
        pytest.param("UPDATE branch_keys SET branch_key_id = 'acme'", id="moved from another tenant"),
        pytest.param("DELETE FROM branch_keys WHERE type = 'branch:ACTIVE'", id="active row lost"),
        pytest.param("DELETE FROM branch_keys WHERE type LIKE 'branch:version:%'", id="version lost"),
    ],
)
async def test_damaged_branch_key_is_refused_and_never_replaced(place: Place, damage: str) -> None:
    """The tenant's calls end with DATA_LOSS, another tenant's do not, and nothing is written."""
    ring = place.ring()
    await ring.seal("healthy", b"secret", CONTEXT)
    victim = "globex" if "= 'acme'" in damage else "acme"
    await ring.seal(victim, b"secret", CONTEXT)
    where = " AND " if "WHERE" in damage else " WHERE "
    await place.fetch(f"{damage}{where} branch_key_id = '{victim}'")
    rows, restarted = await place.rows(), place.ring()
    with pytest.raises(KeyDamaged, match=r"neither used nor replaced|no new key was made"):
        await restarted.seal("acme", b"secret", CONTEXT)
    await restarted.seal("healthy", b"secret", CONTEXT)
    assert rows == await place.rows()


async def test_damaged_version_does_not_open(place: Place) -> None:
    """Its messages end with DATA_LOSS, and those of the next version open."""
    keys = place.branch_keys()
    before = await place.ring(keys).seal("acme", b"before", CONTEXT)
    await keys.rotate("acme")
    after = await place.ring(keys).seal("acme", b"after", CONTEXT)
    await place.fetch(
        "UPDATE branch_keys SET enc = zeroblob(99) WHERE type = ?", f"branch:version:{version_in(before.ciphertext)}"
    )
    restarted = place.ring()
    with pytest.raises(KeyDamaged):
        await restarted.open("acme", before.ciphertext, CONTEXT)
    assert b"after" == (await restarted.open("acme", after.ciphertext, CONTEXT)).plaintext


async def test_message_of_another_tenant_does_not_open(place: Place, kms: Kms) -> None:
    """Neither as it is, nor with another tenant in its header; and KMS is not asked."""
    ring, keys = place.ring(), place.branch_keys()
    sealed = await ring.seal("acme", b"secret", CONTEXT)
    context = encryption_context("globex", CONTEXT, "sealing")
    forged = Sealer((await keys.active("acme")).wrap(bytes(32), context), context).seal(b"forged", bytes(32))
    kms.calls.clear()
    for message in (sealed.ciphertext, forged):
        with pytest.raises(DoesNotOpen):
            await ring.open("globex", message, CONTEXT)
    assert {} == kms.calls


async def test_unknown_versions_ask_kms_nothing(place: Place, kms: Kms) -> None:
    """They do not open, and one that comes again is not even looked up in the store."""
    ring, context = place.ring(), encryption_context("acme", CONTEXT, "sealing")
    await ring.seal("acme", b"secret", CONTEXT)
    kms.calls.clear()
    place.keys.version_reads = 0
    forged = []
    for _ in range(100):
        key = BranchKey("acme", uuid4(), KeyMaterial(bytes(32)), "arn")
        forged.append(Sealer(key.wrap(bytes(32), context), context).seal(b"forged", bytes(32)))
    for message in forged * 3:
        with pytest.raises(DoesNotOpen):
            await ring.open("acme", message, CONTEXT)
    assert (Counter(), 100) == (kms.calls, place.keys.version_reads)


async def test_unknown_versions_that_are_remembered_are_bounded(
    place: Place, kms: Kms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest is forgotten and read again, the newest is not; KMS is asked about none, and nothing else changes."""
    monkeypatch.setattr("betrace_kms_server.data_keys.branch_keys._UNKNOWN_VERSIONS", 10)
    keys = place.branch_keys()
    kept = await keys.active("acme")
    kms.calls.clear()
    unknown = [uuid4() for _ in range(50)]
    place.keys.version_reads = 0
    for version, reads in [*zip(unknown, range(1, 51), strict=True), (unknown[-1], 50), (unknown[0], 51)]:
        with pytest.raises(DoesNotOpen):
            await keys.version("acme", version)
        assert reads == place.keys.version_reads
    assert Counter() == kms.calls
    assert kept.version == (await keys.active("acme")).version


async def test_every_one_of_many_versions_opens_after_a_restart(place: Place, kms: Kms) -> None:
    """Each costs one call of KMS, and the newest seals."""
    keys = place.branch_keys()
    ring, messages = place.ring(keys), list[bytes]()
    for number in range(20):
        messages.append((await ring.seal("acme", b"%d" % number, CONTEXT)).ciphertext)
        assert await keys.rotate("acme")
    assert 20 == len(set(map(version_in, messages)))
    restarted = place.ring()
    kms.calls.clear()
    for _ in range(2):
        for number, message in enumerate(messages):
            assert b"%d" % number == (await restarted.open("acme", message, CONTEXT)).plaintext
    assert Counter({"Decrypt": 20}) == kms.calls


async def test_version_that_was_unknown_is_looked_up_again_later(place: Place, clock: FakeClock) -> None:
    """A store that was restored from a backup is noticed within a minute."""
    sealed = await place.ring().seal("acme", b"secret", CONTEXT)
    rows = await place.rows()
    await place.fetch("DELETE FROM branch_keys")
    ring = place.ring()
    with pytest.raises(DoesNotOpen):
        await ring.open("acme", sealed.ciphertext, CONTEXT)
    for row in rows:
        await place.fetch("INSERT INTO branch_keys VALUES (?, ?, ?, ?, ?, ?)", *row)  # type: ignore[misc]
    clock.now += 61
    assert b"secret" == (await ring.open("acme", sealed.ciphertext, CONTEXT)).plaintext


@pytest.mark.parametrize("seals", [True, False], ids=["branch-key", "data-key"])
async def test_both_kinds_open_in_either_mode(place: Place, seals: bool) -> None:
    """A deployment can switch, and switch back; sealing again moves a message to the kind of the mode."""
    keys = place.branch_keys()
    branch, data = place.ring(keys), place.ring(keys, seals=False)
    messages = [(await ring.seal("acme", b"secret", CONTEXT)).ciphertext for ring in (branch, data)]
    assert [True, False] == [version_in(message) is not None for message in messages]
    ring = branch if seals else data
    for message in messages:
        assert b"secret" == (await ring.open("acme", message, CONTEXT)).plaintext
        moved = await ring.reseal("acme", message, CONTEXT, {"record": "18"})
        assert seals == (version_in(moved.ciphertext) is not None)
        assert b"secret" == (await ring.open("acme", moved.ciphertext, {"record": "18"})).plaintext


async def test_another_logical_name_is_named_in_the_refusal(place: Place) -> None:
    """It is a part of what KMS authenticates, and the first thing to check."""
    await place.branch_keys().active("acme")
    with pytest.raises(KeyDamaged, match=r"kms\.branch-keys\.logical-name, other, is that of the store"):
        await place.branch_keys(logical_name="other").active("acme")


async def test_branch_key_of_an_unknown_master_key_is_unusable(place: Place, kms: Kms) -> None:
    """It is not damaged: the operator can list the former master key."""
    await place.branch_keys(kms.foreign).active("acme")
    with pytest.raises(MasterKeyUnusable, match=step_to_configure(kms.foreign.master_key_arn, kms.provider.name)):
        await place.branch_keys().active("acme")


async def test_rows_are_as_the_specification_says(place: Place, clock: FakeClock) -> None:
    """Three rows that differ in their type, each with the tenant in its context."""
    key = await place.branch_keys().active("acme")
    active = await place.keys.active("acme")
    assert active is not None
    arn = place.provider.master_key_arn
    common = {
        "branch-key-id": "acme",
        "kms-arn": arn,
        "create-time": timestamp(clock()),
        "hierarchy-version": "1",
        "aws-crypto-ec:tenantId": "acme",
    }
    version = f"branch:version:{key.version}"
    assert {**common, "type": "branch:ACTIVE", "version": version} == active.attributes
    stays = await place.keys.version("acme", key.version)
    assert stays is not None
    assert {**common, "type": version} == stays.attributes
    kinds = await place.fetch("SELECT type FROM branch_keys ORDER BY type")
    assert ["beacon:ACTIVE", "branch:ACTIVE", version] == [row[0] for row in kinds]


class LosingProvider(CountedLocalProvider):
    """A provider whose answers hold another wrapped key than the key that they show."""

    async def generate_data_key(self, number_of_bytes: int, context: Context) -> DataKey:
        """Return a key and a wrapped key that have nothing to do with each other."""
        made, other = [await super(LosingProvider, self).generate_data_key(number_of_bytes, context) for _ in "ab"]
        return DataKey(made.material, other.wrapped)


async def test_branch_key_that_would_be_lost_is_not_stored(tmp_path: Path, new_cache: Callable[[], KeyCache]) -> None:
    """What KMS does not give back as it was is found out before anything is sealed under it."""
    async with open_sqlite(tmp_path / DATABASE_FILE) as store:
        place = Place(LosingProvider(bytes(32)), store, new_cache, FakeClock())
        with pytest.raises(KeyDamaged):
            await place.ring().seal("acme", b"secret", CONTEXT)
        assert [] == await place.rows()
