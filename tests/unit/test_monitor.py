"""KmsMonitor: how often the master key is looked at, and what is made of it."""

import asyncio
from typing import Any

import pytest
from betrace_kms_server.core.errors import KmsUnreachable
from betrace_kms_server.operations import monitor
from betrace_kms_server.operations.monitor import KmsMonitor, KmsState


class Provider:
    """A provider whose check is counted, and fails if it is told to."""

    master_key_arn = "arn"

    def __init__(self) -> None:
        self.checks = 0
        self.looked = asyncio.Event()
        self.error: Exception | None = None

    async def check(self, arn: str | None = None) -> None:
        """Count."""
        self.checks += 1
        self.looked.set()
        await asyncio.sleep(0)
        if self.error:
            raise self.error


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
