"""KmsMonitor: how often the master key is looked at, and what is made of it."""

import asyncio
from typing import Any

import pytest
import structlog.testing
from betrace_kms_server.core.errors import (
    AccessDenied,
    BadAnswer,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
)
from betrace_kms_server.core.keys import DataKey, KeyMaterial, WrappedKey
from betrace_kms_server.core.tenancy import Context
from betrace_kms_server.operations import monitor
from betrace_kms_server.operations.monitor import KmsMonitor, KmsState


class Provider:
    """A provider whose checks and round trips are counted, and fail if a test says so."""

    master_key_arn = "arn"
    denied: Exception | None = None

    def __init__(self) -> None:
        self.checks = self.made = self.unwrapped = 0
        self.looked = asyncio.Event()
        self.error: Exception | None = None

    async def check(self, arn: str | None = None) -> None:
        """Count."""
        self.checks += 1
        self.looked.set()
        await asyncio.sleep(0)
        if self.error:
            raise self.error

    async def generate_data_key(self, number_of_bytes: int, context: Context) -> DataKey:
        """Count."""
        self.made += 1
        return DataKey(KeyMaterial(bytes(number_of_bytes)), WrappedKey(b"blob", "arn"))

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> KeyMaterial:
        """Count."""
        self.unwrapped += 1
        if self.denied:
            raise self.denied
        return KeyMaterial(bytes(32))


@pytest.fixture
def provider() -> Any:
    """A provider that is well."""
    return Provider()


async def test_callers_that_ask_at_once_share_one_look(provider: Any) -> None:
    """And one that is young enough is not made again."""
    clock = iter(range(1000))
    watched = KmsMonitor(provider, lambda state: None, clock=lambda: float(next(clock)))
    await asyncio.gather(*(watched.fresh(100.0) for _ in range(20)))
    assert provider.checks == 1
    await watched.fresh(0.0)
    assert provider.checks == 2


async def test_states_are_told(provider: Any) -> None:
    """Bad, then good: both are told, and only the good one sets `usable`."""
    told: list[KmsState] = []
    watched = KmsMonitor(provider, told.append)
    provider.error = KmsUnreachable("no answer")
    await watched.fresh(0.0)
    assert not watched.usable.is_set()
    provider.error = None
    await watched.fresh(0.0)
    assert watched.usable.is_set()
    assert [(state.usable, state.problem, state.reason) for state in told] == [
        (False, "no answer", "KMS_UNREACHABLE"),
        (True, "", ""),
    ]


async def test_a_defect_is_a_state_too(provider: Any) -> None:
    """What is no error of ours must not end the watch."""
    provider.error = KeyError("defect")
    state = await KmsMonitor(provider, lambda state: None).fresh(0.0)
    assert (state.usable, state.reason) == (False, "INTERNAL")


async def test_however_many_doubt_kms_is_asked_no_more_often(provider: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls go on failing although DescribeKey says Enabled: each pause has one look, and doubts lead to the next."""
    pauses = 0
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        nonlocal pauses
        pauses += seconds > 0
        for _ in range(20):
            watched.request_check()
            await sleep(0)

    watched = KmsMonitor(provider, lambda state: None)
    monkeypatch.setattr(asyncio, "sleep", pause)
    watching = asyncio.create_task(watched.watch(3600.0))
    while pauses < 5:
        await sleep(0)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert provider.checks <= 6


async def test_a_doubt_leads_to_a_look_before_its_time(provider: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next regular look would be in an hour."""
    monkeypatch.setattr(monitor, "RETRY_SECONDS", 0.001)
    watched = KmsMonitor(provider, lambda state: None)
    watching = asyncio.create_task(watched.watch(3600.0))
    await provider.looked.wait()
    provider.looked.clear()
    watched.request_check()
    await asyncio.wait_for(provider.looked.wait(), 20)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_a_round_trip_is_made_at_start_and_not_again(provider: Any) -> None:
    """DescribeKey does not show whether keys can be unwrapped; a good round trip has no standing cost."""
    watched = KmsMonitor(provider, lambda state: None)
    for _ in range(5):
        await watched.fresh(0.0)
    assert (5, 1, 1) == (provider.checks, provider.made, provider.unwrapped)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AccessDenied("KMS denies kms:Decrypt"), "KMS_ACCESS_DENIED"),
        (DoesNotOpen(), BadAnswer.reason),
        (BadAnswer("empty"), BadAnswer.reason),
    ],
)
async def test_missing_decrypt_is_a_state_until_it_is_allowed(provider: Any, error: KmsError, reason: str) -> None:
    """The key is enabled and not usable; each repetition asks for one Decrypt, and makes no new key."""
    watched = KmsMonitor(provider, lambda state: None)
    provider.denied = error
    for _ in range(3):
        state = await watched.fresh(0.0)
    assert (False, True, False, reason) == (state.usable, state.enabled, watched.usable.is_set(), state.reason)
    provider.denied = None
    assert (await watched.fresh(0.0)).usable
    assert (1, 4) == (provider.made, provider.unwrapped)


async def test_a_refused_call_leads_to_another_round_trip(provider: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A permission that is taken away while the daemon runs shows in its state."""
    monkeypatch.setattr(monitor, "RETRY_SECONDS", 0.001)
    changed = asyncio.Event()
    states: list[KmsState] = []

    def note(state: KmsState) -> None:
        states.append(state)
        changed.set()

    watched = KmsMonitor(provider, note)
    watching = asyncio.create_task(watched.watch(3600.0))
    await changed.wait()
    provider.denied = AccessDenied("KMS denies kms:Decrypt")
    changed.clear()
    watched.request_check()
    await asyncio.wait_for(changed.wait(), 20)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert ["", "KMS denies kms:Decrypt"] == [state.problem for state in states[:2]]


@pytest.mark.parametrize("withdrawn", [True, False])
async def test_state_says_whether_somebody_withdrew_the_key(provider: Any, withdrawn: bool) -> None:
    """An unavailable custom key store is no decision."""
    provider.error = MasterKeyUnusable("unusable", withdrawn=withdrawn)
    state = await KmsMonitor(provider, lambda state: None).fresh(0.0)
    assert (False, False, withdrawn) == (state.usable, state.enabled, state.withdrawn)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "Enabled"),
        (MasterKeyUnusable("disabled", state="Disabled", withdrawn=True), "Disabled"),
        (MasterKeyUnusable("a key of another usage"), "Unknown"),
        (KmsUnreachable("no answer"), "Unknown"),
        (RuntimeError("defect"), "Unknown"),
    ],
)
async def test_state_of_the_key_is_what_the_service_says(provider: Any, error: Exception | None, state: str) -> None:
    """Without an answer nothing is known, and a round trip that fails says nothing of the key's state."""
    watched = KmsMonitor(provider, lambda state: None)
    assert "Unknown" == watched.state.key_state
    provider.error = error
    provider.denied = AccessDenied("denied")
    assert state == (await watched.fresh(0.0)).key_state


async def test_a_request_during_a_check_is_answered_by_the_next(provider: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """KMS decided on the answer that travels before the key was disabled, so that answer does not count."""
    monkeypatch.setattr(monitor, "RETRY_SECONDS", 0.001)
    under_way, may_end, found = asyncio.Event(), asyncio.Event(), asyncio.Event()
    disabled = False

    async def check(arn: str | None = None) -> None:
        answer = disabled
        under_way.set()
        await may_end.wait()
        if answer:
            found.set()
            raise MasterKeyUnusable("disabled")

    provider.check = check
    watched = KmsMonitor(provider, lambda state: None)
    watching = asyncio.create_task(watched.watch(3600.0))
    await under_way.wait()
    disabled = True
    watched.request_check()
    may_end.set()
    await asyncio.wait_for(found.wait(), 20)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_age_counts_from_the_beginning_of_a_check(provider: Any) -> None:
    """Who asks while a check is under way gets another one: what happened since it began is not in its answer."""
    now = 0.0
    under_way, may_end = asyncio.Event(), asyncio.Event()
    answers: list[Exception | None] = [None, MasterKeyUnusable("disabled")]

    async def check(arn: str | None = None) -> None:
        answer = answers.pop(0)
        under_way.set()
        await may_end.wait()
        if answer:
            raise answer

    provider.check = check
    watched = KmsMonitor(provider, lambda state: None, clock=lambda: now)
    first = asyncio.create_task(watched.fresh(0.0))
    await under_way.wait()
    now = 1.0
    second = asyncio.create_task(watched.fresh(0.0))
    await asyncio.sleep(0)
    now = 2.0
    may_end.set()
    assert (True, False) == ((await first).usable, (await second).usable)


async def test_a_listener_that_fails_does_not_end_the_watch(provider: Any) -> None:
    """The state is there for whoever asks, and the log has the defect."""

    def listen(state: KmsState) -> None:
        raise RuntimeError("a defect of the listener")

    watched = KmsMonitor(provider, listen)
    with structlog.testing.capture_logs() as logs:
        state = await watched.fresh(0.0)
    assert (True, True) == (state.usable, watched.usable.is_set())
    assert "Acting on the state of the master key failed" in [entry["event"] for entry in logs]
