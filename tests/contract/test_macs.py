"""Beacon keys and the MACs under them, over every provider: what KMS is asked, how daemons agree, what is damaged."""

import asyncio
from collections.abc import Callable

import pytest
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.branch_rows import BranchKeyRow
from betrace_kms_server.core.errors import InvalidRequest, KeyDamaged, NoBranchKeyStore
from betrace_kms_server.data_keys.batches import Turns
from betrace_kms_server.data_keys.branch_keys import BranchKeys
from betrace_kms_server.data_keys.mac_keys import purpose_of
from betrace_kms_server.data_keys.macs import Mac, MacItem, Macs
from betrace_kms_server.stores.sqlite.branch_keys import SqliteBranchKeys
from betrace_kms_server.stores.sqlite.store import SqliteStore

from tests.contract.doubles import FakeClock, Kms

Make = Callable[[], BranchKeys]
EMAIL = MacItem(purpose_of("email", 256), b"alice@example.com")
CREATED = {"GenerateDataKey": 2, "Encrypt": 1, "Decrypt": 2}
"""What the first MAC of a tenant costs: a branch key, and its beacon key, which is unwrapped to be sure."""


@pytest.fixture
async def make(kms: Kms, store: SqliteStore, new_cache: Callable[..., KeyCache], clock: FakeClock) -> Make:
    """Give what makes the branch keys of one more daemon, with an empty cache."""

    async def changed(tenant_id: str) -> None: ...

    def branch_keys() -> BranchKeys:
        return BranchKeys(
            kms.provider,
            SqliteBranchKeys(store),
            new_cache(),
            logical_name="logical",
            changed=changed,
            now=clock,
            clock=clock,
        )

    return branch_keys


async def test_key_is_made_once_and_stays(make: Make, kms: Kms) -> None:
    """A thousand MACs cost what the key costs; after a restart one call, and the MACs are the same."""
    macs = Macs(make())
    made = {
        purpose: await macs.generate("acme", MacItem(purpose_of(purpose, 256), b"x"))
        for purpose in map(str, range(1000))
    }
    assert CREATED == kms.calls
    kms.calls.clear()
    restarted = Macs(make())
    for purpose, mac in made.items():
        assert mac == await restarted.generate("acme", MacItem(purpose_of(purpose, 256), b"x"))
    assert {"Decrypt": 1} == kms.calls
    assert 1000 == len({mac.mac for mac in made.values()})


async def test_rotation_of_the_branch_key_changes_no_mac(make: Make) -> None:
    """An index that was stored would never be found again."""
    keys = make()
    before = await Macs(keys).generate("acme", EMAIL)
    assert await keys.rotate("acme")
    assert before == await Macs(keys).generate("acme", EMAIL) == await Macs(make()).generate("acme", EMAIL)


async def test_tenants_have_keys_of_their_own(make: Make) -> None:
    """Equal messages of two tenants have nothing in common."""
    macs = Macs(make())
    mine, theirs = [await macs.generate(tenant, EMAIL) for tenant in ("acme", "globex")]
    assert mine.mac != theirs.mac
    assert (False, theirs.master_key_arn) == await macs.verify("globex", EMAIL, mine.mac)


async def test_daemons_that_begin_at_once_agree(make: Make) -> None:
    """Also with one that makes the branch key to seal under it."""
    daemons = [make() for _ in range(4)]
    sealing = [asyncio.create_task(keys.active("acme")) for keys in daemons]
    made = await asyncio.gather(*(Macs(keys).generate("acme", EMAIL) for keys in daemons))
    await asyncio.gather(*sealing)
    assert 1 == len({mac.mac for mac in made})


async def test_verifying_makes_no_key(make: Make, kms: Kms) -> None:
    """No MAC is that of a tenant without a key, and KMS is not asked."""
    macs = Macs(make())
    assert (False, "") == await macs.verify("acme", EMAIL, bytes(32))
    assert {} == kms.calls
    made = await macs.generate("acme", EMAIL)
    assert (True, made.master_key_arn) == await macs.verify("acme", EMAIL, made.mac)


async def test_first_mac_is_made_beside_calls_that_make_no_key(make: Make) -> None:
    """It does not share their answer, whoever comes first."""
    macs = Macs(make())
    verified = [asyncio.create_task(macs.verify("acme", EMAIL, bytes(32))) for _ in range(5)]
    made = asyncio.create_task(macs.generate("acme", EMAIL))
    verified += [asyncio.create_task(macs.verify("acme", EMAIL, bytes(32))) for _ in range(5)]
    assert 32 == len((await made).mac)
    assert {False} == {valid for valid, _ in await asyncio.gather(*verified)}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("UPDATE branch_keys SET enc = zeroblob(length(enc)) WHERE type = 'beacon:ACTIVE'", id="altered"),
        pytest.param("UPDATE branch_keys SET enc = substr(enc, 1, 20) WHERE type = 'beacon:ACTIVE'", id="cut"),
        pytest.param("UPDATE branch_keys SET create_time = '2020' WHERE type = 'beacon:ACTIVE'", id="another time"),
        pytest.param("UPDATE branch_keys SET attributes = '{' WHERE type = 'beacon:ACTIVE'", id="no JSON"),
        pytest.param("DELETE FROM branch_keys WHERE type = 'beacon:ACTIVE'", id="lost"),
        pytest.param(
            "UPDATE branch_keys SET branch_key_id = CASE branch_key_id WHEN 'acme' THEN 'gone' ELSE 'acme' END"
            " WHERE type = 'beacon:ACTIVE'",
            id="another tenant's",
        ),
    ],
)
async def test_damaged_beacon_key_is_refused_and_never_replaced(make: Make, store: SqliteStore, damage: str) -> None:
    """The tenant's other keys, and other tenants, go on."""
    macs = Macs(make())
    for tenant in ("acme", "globex"):
        await macs.generate(tenant, EMAIL)
    where = "" if "CASE" in damage else " AND branch_key_id = 'acme'"
    await store.fetch(damage + where)
    rows = await store.fetch("SELECT * FROM branch_keys")
    keys = make()
    for call in (Macs(keys).generate("acme", EMAIL), Macs(keys).verify("acme", EMAIL, bytes(32))):
        with pytest.raises(KeyDamaged):
            await call
    (refused,) = await Macs(keys).generate_batch("acme", [EMAIL], Turns())
    assert isinstance(refused, KeyDamaged)
    assert await keys.active("acme")
    assert list(map(tuple, rows)) == list(map(tuple, await store.fetch("SELECT * FROM branch_keys")))


class Forgetful(SqliteBranchKeys):
    """A store that has lost every beacon key, and does not say so."""

    async def beacon(self, branch_key_id: str) -> BranchKeyRow | None:
        """Find none."""
        return None


async def test_beacon_key_that_is_not_there_after_it_was_made_is_damage(
    kms: Kms, store: SqliteStore, new_cache: Callable[..., KeyCache]
) -> None:
    """It is asked for twice, and not for ever."""

    async def changed(tenant_id: str) -> None: ...

    keys = BranchKeys(kms.provider, Forgetful(store), new_cache(), logical_name="logical", changed=changed)
    with pytest.raises(KeyDamaged, match="no row beacon:ACTIVE"):
        await Macs(keys).generate("acme", EMAIL)


async def test_batch_is_what_single_calls_give(make: Make) -> None:
    """In order, whatever purposes and lengths are mixed, and a bad item stays what it is."""
    macs, refusal = Macs(make()), InvalidRequest("bad")
    items = [MacItem(purpose_of(f"p{number % 3}", 8 + number), b"%d" % number) for number in range(200)]
    batch = await macs.generate_batch("acme", [*items[:100], refusal, *items[100:]], Turns())
    assert refusal is batch.pop(100)
    assert [await macs.generate("acme", item) for item in items] == batch
    assert all(isinstance(each, Mac) for each in batch)


async def test_refused_batch_makes_no_key(make: Make, kms: Kms) -> None:
    """If no item of it is good."""
    refusal = InvalidRequest("bad")
    assert [refusal] == await Macs(make()).generate_batch("acme", [refusal], Turns())
    assert {} == kms.calls


async def test_without_a_store_the_error_says_what_to_set() -> None:
    """For each call."""
    macs = Macs(None)
    for call in (macs.generate("acme", EMAIL), macs.verify("acme", EMAIL, bytes(32))):
        with pytest.raises(NoBranchKeyStore, match=r"keystore init.*kms\.branch-keys\.table"):
            await call
    (refused,) = await macs.generate_batch("acme", [EMAIL], Turns())
    assert isinstance(refused, NoBranchKeyStore)
