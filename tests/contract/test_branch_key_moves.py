"""Moving branch keys to another master key: what moves, what stays and is named, and what others do meanwhile."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.branch_rows import ACTIVE
from betrace_kms_server.core.errors import KmsUnreachable
from betrace_kms_server.core.key_event import KeyEvent
from betrace_kms_server.core.keys import KeyMaterial, WrappedKey
from betrace_kms_server.core.moving import PAUSE_SECONDS
from betrace_kms_server.core.tenancy import Context
from betrace_kms_server.data_keys.branch_keys import BranchKeys
from betrace_kms_server.data_keys.branch_messages import BranchMessages
from betrace_kms_server.data_keys.keyring import KeyRing
from betrace_kms_server.data_keys.row_keys import rewrap_branch_keys
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.stores.sqlite.branch_keys import SqliteBranchKeys
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE, open_sqlite
from structlog.testing import capture_logs

from tests.contract.doubles import FORMER, UNLISTED, Named, Today

CONTEXT = {"record": "17"}


class Place:
    """One store, and daemons on it."""

    def __init__(self, store: SqliteBranchKeys, new_cache: Callable[[], KeyCache]) -> None:
        self.store = store
        self.new_cache = new_cache

    def branch_keys(self, provider: KeyProvider) -> BranchKeys:
        """Return the branch keys of a daemon that has just started."""

        async def changed(tenant_id: str) -> None: ...

        return BranchKeys(provider, self.store, self.new_cache(), logical_name="logical", changed=changed)

    def ring(self, provider: KeyProvider, keys: BranchKeys | None = None) -> KeyRing:
        """Return the key ring of a daemon."""
        messages = BranchMessages(keys or self.branch_keys(provider), seals=True)
        return KeyRing(provider, self.new_cache(), branch_messages=messages)

    async def arns(self) -> list[str]:
        """Return the master key of every row."""
        return [row.kms_arn async for row in self.store.rows()]


@pytest.fixture
async def place(tmp_path: Path, new_cache: Callable[[], KeyCache]) -> AsyncIterator[Place]:
    """Give an empty store."""
    async with open_sqlite(tmp_path / DATABASE_FILE) as store:
        yield Place(SqliteBranchKeys(store), new_cache)


async def move(provider: KeyProvider, place: Place) -> list[KeyEvent]:
    """Move what can be; returns what was recorded. Pauses are those that are documented, and few."""
    events: list[KeyEvent] = []
    pauses: list[float] = []

    async def no_pause(seconds: float) -> None:
        pauses.append(seconds)
        assert pauses == [PAUSE_SECONDS] * len(pauses)
        assert len(pauses) < 10

    await rewrap_branch_keys(provider, place.store, "logical", sleep=no_pause, record=events.append)
    return events


async def test_every_row_moves(place: Place) -> None:
    """Versions, the active row and the beacon key; messages and MACs from before stay what they are."""
    former = Named(FORMER)
    keys = place.branch_keys(former)
    sealed = [(await place.ring(former, keys).seal("acme", b"secret", CONTEXT)).ciphertext]
    await keys.rotate("acme")
    sealed.append((await place.ring(former, keys).seal("acme", b"secret", CONTEXT)).ciphertext)
    beacon = await keys.beacon("acme")
    today = Today(former)
    events = await move(today, place)
    assert ["UnwrapBranchKey", "RewrapBranchKey"] * 4 == [event.operation for event in events]
    assert {("acme", "OK")} == {(event.tenant_id, event.result) for event in events}
    assert [today.master_key_arn] * 4 == await place.arns()
    del today.others[FORMER]
    for message in sealed:
        assert b"secret" == (await place.ring(today).open("acme", message, CONTEXT)).plaintext
    assert beacon.material.raw == (await place.branch_keys(today).beacon("acme")).material.raw
    assert [] == await move(today, place)


async def test_messages_open_at_any_moment_of_the_move(place: Place) -> None:
    """Whichever rows have moved: each says under which master key it is."""
    former = Named(FORMER)
    sealed = (await place.ring(former).seal("acme", b"secret", CONTEXT)).ciphertext

    class Watched(Today):
        async def wrap(self, key: KeyMaterial, context: Context) -> WrappedKey:
            assert b"secret" == (await place.ring(self).open("acme", sealed, CONTEXT)).plaintext
            assert (await place.ring(self).seal("acme", b"more", CONTEXT)).ciphertext
            return await super().wrap(key, context)

    today = Watched(former)
    await move(today, place)
    assert [today.master_key_arn] * 3 == await place.arns()


async def test_row_that_cannot_move_stays_and_others_move(place: Place) -> None:
    """A damaged one, and one of a master key that no one listed: the log says what to do about each."""
    former, unlisted = Named(FORMER), Named(UNLISTED)
    for tenant, by in (("acme", former), ("globex", former), ("initech", unlisted)):
        await place.branch_keys(by).active(tenant)
    await place.store._fetch("UPDATE branch_keys SET enc = zeroblob(64) WHERE type LIKE '%:version:%' AND rowid < 4")
    with capture_logs() as logs:
        await move(today := Today(former), place)
    assert sorted([FORMER] + [UNLISTED] * 3 + [today.master_key_arn] * 5) == sorted(await place.arns())
    (moved,) = [line for line in logs if line["log_level"] == "info"]
    assert ("Branch keys were moved to the master key", 5, 4) == (moved["event"], moved["moved"], moved["left"])
    problems = {line["problem"]: line["keys"] for line in logs if line["log_level"] == "error"}
    assert 3 == problems.pop(f"they were wrapped by {UNLISTED}: add aws to kms.former-providers")
    ((problem, count),) = problems.items()
    assert ("of branch key acme does not unwrap" in problem, count) == (True, 1)


async def test_outage_delays_the_move(place: Place) -> None:
    """It goes on where it was."""
    former = Named(FORMER)
    await place.branch_keys(former).active("acme")
    today = Today(former)
    today.failures = [KmsUnreachable("away"), KmsUnreachable("away")]
    await move(today, place)
    assert [today.master_key_arn] * 3 == await place.arns()


async def test_key_that_would_be_lost_is_not_stored(place: Place) -> None:
    """What KMS does not give back as it was replaces no row."""
    former = Named(FORMER)
    await place.branch_keys(former).active("acme")
    today = Today(former)
    today.wrong_answer = True

    async def stop(seconds: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        await rewrap_branch_keys(today, place.store, "logical", sleep=stop)
    assert [FORMER] * 3 == await place.arns()


async def test_row_that_was_replaced_meanwhile_stays(place: Place) -> None:
    """A new version that another daemon made is not undone by the one that it replaced."""
    former = Named(FORMER)
    keys = place.branch_keys(former)
    await keys.active("acme")

    class Slow(Today):
        async def wrap(self, key: KeyMaterial, context: Context) -> WrappedKey:
            if context["type"] == ACTIVE and 3 == len(await place.arns()):
                assert await keys.rotate("acme")
            return await super().wrap(key, context)

    await move(today := Slow(former), place)
    active = await place.store.active("acme")
    assert active is not None
    assert FORMER == active.kms_arn
    await move(today, place)
    assert [today.master_key_arn] * 4 == await place.arns()
    assert active.version == (await place.branch_keys(today).active("acme")).version
