"""What is recorded of each change of a signing key, what a change returns, and what of a key is public."""

import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.errors import NoSigningKey, StoreUnavailable
from betrace_kms_server.core.key_event import KeyEvent
from betrace_kms_server.core.schedule import Schedule
from betrace_kms_server.providers.local import LocalProvider
from betrace_kms_server.signing_keys import rotation as rotations
from betrace_kms_server.signing_keys.lifecycle import Lifecycle
from betrace_kms_server.signing_keys.rotation import Outcome, Rotation
from betrace_kms_server.signing_keys.signer import Signer, public_key_of
from betrace_kms_server.stores.sqlite.store import SqliteStore, open_sqlite
from structlog.testing import capture_logs

from tests.contract.samples import span, stored_key

NOW = 1_700_000_000.0


class Pod:
    """A signer and a lifecycle on one store, with what they recorded."""

    def __init__(self, store: SqliteStore, new_cache: Callable[..., KeyCache]) -> None:
        self.events: list[KeyEvent] = []
        self.store = store
        provider = LocalProvider(os.urandom(32))
        self.public_keys = new_cache()
        self.signer = Signer(
            provider,
            store,
            signing_keys=new_cache(),
            public_keys=self.public_keys,
            auto_create=True,
            now=lambda: NOW,
            record=self.events.append,
        )
        self.lifecycle = Lifecycle(provider, store, self.changed, now=lambda: NOW, record=self.events.append)

    async def changed(self, tenant: str) -> int:
        """Drop nothing."""
        return 0

    def recorded(self) -> list[tuple[str, str, str, str]]:
        """Return and forget the operation, tenant, key and caller of each event."""
        found = [(event.operation, event.tenant_id, event.key_id, event.caller) for event in self.events]
        self.events.clear()
        return found


@pytest.fixture
async def pod(tmp_path: Path, new_cache: Callable[..., KeyCache]) -> AsyncIterator[Pod]:
    """Give a pod with an empty store."""
    async with open_sqlite(tmp_path / "keystore.db") as store:
        yield Pod(store, new_cache)


async def test_each_change_is_recorded_as_part_of_what_asked_for_it(pod: Pod) -> None:
    """With the tenant, the key that was made or revoked, and the caller of the call that it is part of."""
    asked = KeyEvent("SignSpan", "acme", caller="backend")
    first = (await pod.signer.sign("acme", span(), asked)).key_id
    assert [("CreateSigningKey", "acme", first, "backend")] == pod.recorded()
    assert await pod.lifecycle.rotate("acme", event=asked)
    second = await pod.store.active("acme")
    assert second is not None
    assert [("RotateKey", "acme", second.key_id, "backend")] == pod.recorded()
    third = await pod.lifecycle.revoke("acme", second.key_id, asked)
    assert [
        ("RevokeKey", "acme", second.key_id, "backend"),
        ("RotateKey", "acme", third, "backend"),
    ] == pod.recorded()


async def test_revocation_returns_the_active_key_and_changes_nothing_twice(pod: Pod) -> None:
    """A key that was rotated away, the active one, and one that is revoked already."""
    first = (await pod.signer.sign("acme", span())).key_id
    await pod.lifecycle.rotate("acme")
    second = await pod.store.active("acme")
    assert second is not None
    assert second.key_id == await pod.lifecycle.revoke("acme", first)
    pod.recorded()
    revoked = await pod.store.get("acme", first)
    assert second.key_id == await pod.lifecycle.revoke("acme", first)
    assert revoked == await pod.store.get("acme", first)
    assert [] == pod.recorded()
    with pytest.raises(NoSigningKey, match=f"no signing key {'0' * 32}: GetPublicKeys lists its keys"):
        await pod.lifecycle.revoke("acme", "0" * 32)


async def test_verification_notes_its_miss_and_then_hits(pod: Pod) -> None:
    """A warm verification loads nothing."""
    signed = await pod.signer.sign("acme", span())
    cold = KeyEvent("VerifySpan", "acme", cache_hit=True)
    await pod.signer.verifier("acme", [signed.key_id], cold)
    assert cold.cache_hit is False
    hits = pod.public_keys.hits
    warm = KeyEvent("VerifySpan", "acme", cache_hit=True)
    verifier = await pod.signer.verifier("acme", [signed.key_id], warm)
    assert (True, hits + 1, 1) == (warm.cache_hit, pod.public_keys.hits, pod.public_keys.misses)
    assert "VALID" == verifier.verify(span(), signed.signature, signed.key_id, None)


def test_public_half_of_a_stored_key() -> None:
    """Times are RFC 3339 in UTC with milliseconds, and empty where there is none."""
    stored = stored_key(
        status="revoked", create_time_ms=1_700_000_000_123, rotate_time_ms=None, revoke_time_ms=1_700_086_400_000
    )
    public = public_key_of(stored)
    assert (stored.key_id, stored.public_key, "REVOKED") == (public.key_id, public.raw, public.status)
    assert ("2023-11-14T22:13:20.123Z", "", "2023-11-15T22:13:20.000Z") == (
        public.create_time,
        public.rotate_time,
        public.revoke_time,
    )


@pytest.mark.parametrize("failure", [StoreUnavailable("away", place="volume"), ZeroDivisionError("defect")])
async def test_run_that_is_interrupted_is_counted_and_made_again(pod: Pod, failure: Exception) -> None:
    """Ten minutes later, until it succeeds; and no later than the next run of the schedule."""

    class Failing(Rotation):
        failing = 3

        async def run(self, before_ms: int, event: KeyEvent | None = None) -> Outcome:
            if self.failing:
                self.failing -= 1
                raise failure
            return Outcome(rotated=2)

    pauses: list[float] = []
    clock = [datetime(2026, 1, 1, 2, tzinfo=UTC).timestamp()]

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    rotation = Failing(pod.lifecycle, batch_size=10, now=lambda: clock[0], sleep=sleep, jitter=lambda: 0.0)
    daily, due = Schedule.parse("0 0 2 * * ?"), datetime(2026, 1, 1, 2, tzinfo=UTC)
    with capture_logs() as logs:
        await rotation._run_until_done(daily, due, timedelta(days=90))
    assert [rotations.RETRY_SECONDS] * 3 == pauses
    assert (3, clock[0]) == (rotation.failures, rotation.last_run)
    assert ["Rotation is interrupted"] * 3 + ["Signing keys were rotated"] == [line["event"] for line in logs]
    assert (2, 0) == (logs[-1]["rotated"], logs[-1]["failed"])

    rotation.failing, pauses[:] = 10**6, []
    clock[0] = datetime(2026, 1, 1, 2, tzinfo=UTC).timestamp()
    await rotation._run_until_done(Schedule.parse("0 0 * * * ?"), due, timedelta(days=90))
    assert [rotations.RETRY_SECONDS] * 5 == pauses  # the sixth would end at three o'clock, when the next run is due
