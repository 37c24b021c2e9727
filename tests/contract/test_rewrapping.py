"""Moving signing keys to another master key: what moves, what stays and is named, and what an outage delays."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from betrace_kms_server.core import moving
from betrace_kms_server.core.errors import AccessDenied, KeyDamaged, KmsUnreachable, StoreUnavailable
from betrace_kms_server.core.key_event import KeyEvent
from betrace_kms_server.core.keys import KeyMaterial, StoredKey, WrappedKey
from betrace_kms_server.core.tenancy import Context
from betrace_kms_server.providers.local import LocalProvider
from betrace_kms_server.signing_keys.rewrapping import rewrap_signing_keys
from betrace_kms_server.signing_keys.seeds import new_key, rewrap_seed, unwrap_seed
from betrace_kms_server.stores.sqlite.store import SqliteStore, open_sqlite
from structlog.testing import capture_logs

from tests.contract.doubles import FORMER, REPLICA, UNLISTED, Named, Today


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """Give an empty store."""
    async with open_sqlite(tmp_path / "keystore.db") as opened:
        yield opened


async def stored(store: SqliteStore, by: LocalProvider, tenant: str) -> StoredKey:
    """Store a tenant's key, wrapped by a provider."""
    key, _ = await new_key(by, tenant, 1_700_000_000_000)
    return await store.create(key)


async def no_pause(seconds: float) -> None:
    """Note that the pause would be the one that is documented."""
    assert moving.PAUSE_SECONDS == seconds


async def test_keys_of_a_listed_master_key_move(store: SqliteStore) -> None:
    """Each to the same seed under today's master key; both steps are recorded for the tenant and key."""
    former = Named(FORMER)
    today = Today(former)
    before = [await stored(store, former, tenant) for tenant in ("acme", "globex")]
    at_home = await stored(store, today, "initech")
    events: list[KeyEvent] = []
    reports: list[tuple[str, int]] = []
    with capture_logs() as logs:
        await rewrap_signing_keys(
            today, store, sleep=no_pause, record=events.append, report=lambda *left: reports.append(left)
        )
    for key in before:
        moved = await store.get(key.tenant_id, key.key_id)
        assert moved is not None
        assert (today.master_key_arn, key.public_key) == (moved.wrapped_seed.master_key_arn, moved.public_key)
        await unwrap_seed(today, moved)
    assert at_home == await store.get("initech", at_home.key_id)
    assert {(step, key.tenant_id, key.key_id, "OK") for key in before for step in ("UnwrapKey", "RewrapKey")} == {
        (event.operation, event.tenant_id, event.key_id, event.result) for event in events
    }
    assert 4 == len(events)
    assert [("signing keys", 2), ("signing keys", 0)] == reports
    assert [("Signing keys were moved to the master key", 2, 0)] == [
        (line["event"], line["moved"], line["left"]) for line in logs
    ]


async def test_what_cannot_move_stays_and_is_named(store: SqliteStore) -> None:
    """A key of a master key that is not listed, a damaged one and a denied one; the one after them moves."""
    former = Named(FORMER)
    today = Today(former)
    unlisted = await stored(store, Named(UNLISTED), "a")
    damaged = await stored(store, Named(FORMER), "b")  # another key under the same name
    denied = await stored(store, former, "c")
    good = await stored(store, former, "d")

    class Denying(Today):
        async def unwrap(self, wrapped: WrappedKey, context: Context) -> KeyMaterial:
            if context["tenantId"] == "c":
                raise AccessDenied("kms:Decrypt is denied")
            return await super().unwrap(wrapped, context)

    today = Denying(former)
    with capture_logs() as logs:
        await rewrap_signing_keys(today, store, sleep=no_pause)
    for key in (unlisted, damaged, denied):
        assert key == await store.get(key.tenant_id, key.key_id)
    moved = await store.get("d", good.key_id)
    assert moved is not None
    assert today.master_key_arn == moved.wrapped_seed.master_key_arn
    assert (1, 3) == (logs[0]["moved"], logs[0]["left"])
    problems = [line["problem"] for line in logs[1:]]
    assert [1, 1, 1] == [line["keys"] for line in logs[1:]]
    for words in ("wrapped by unlisted: add aws to kms.former-providers", "does not unwrap", "kms:Decrypt"):
        assert any(words in problem for problem in problems), words


async def test_key_that_a_replica_wrapped_is_at_home(store: SqliteStore) -> None:
    """It was wrapped while the replica's Region served, and needs no move."""
    replica = Named(REPLICA)
    key = await stored(store, replica, "acme")
    await rewrap_signing_keys(Today(replica), store, sleep=no_pause)
    assert key == await store.get("acme", key.key_id)


@pytest.mark.parametrize("failure", [KmsUnreachable("away"), StoreUnavailable("away", place="volume")])
async def test_outage_delays_the_move(store: SqliteStore, failure: Exception) -> None:
    """After the pause it goes on, and the keys are there."""
    former = Named(FORMER)
    today = Today(former)
    keys = [await stored(store, former, tenant) for tenant in ("acme", "globex")]
    today.failures = [failure]
    await rewrap_signing_keys(today, store, sleep=no_pause)
    assert [] == await store.wrapped_by_other_keys(today.master_key_arn)
    for key in keys:
        moved = await store.get(key.tenant_id, key.key_id)
        assert moved is not None
        await unwrap_seed(today, moved)


async def test_wrapping_that_does_not_open_to_the_seed_replaces_nothing(store: SqliteStore) -> None:
    """The old row is the only copy of the key, and stays."""
    former = Named(FORMER)
    today = Today(former)
    key = await stored(store, former, "acme")
    today.wrong_answer = True
    with pytest.raises(KeyDamaged, match="neither used nor replaced"):
        await rewrap_seed(today, store, key, await unwrap_seed(today, key))
    assert key == await store.get("acme", key.key_id)


async def test_seed_of_another_key_is_damage(store: SqliteStore) -> None:
    """What unwraps must have the public key of its row."""
    today = Today()
    key = await stored(store, today, "acme")
    other, _ = await new_key(today, "acme", 0)
    with pytest.raises(KeyDamaged):
        await unwrap_seed(today, replace(key, public_key=other.public_key))
