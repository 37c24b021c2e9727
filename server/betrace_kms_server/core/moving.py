"""Moves stored keys of one kind from former master keys to today's, after an operator changed it."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from betrace_kms_server.core.errors import AccessDenied, KeyDamaged, KmsError, MasterKeyUnusable
from betrace_kms_server.core.master_keys import step_to_configure

log = structlog.get_logger()
N = TypeVar("N")
K = TypeVar("K")

Report = Callable[[str, int], object]
"""Gets a kind of key, and how many of them former master keys still wrap."""

PAUSE_SECONDS = 30.0
"""How long to wait before another try, when KMS or the store failed."""


def unreported(kind: str, left: int) -> None:
    """Report to no one."""


async def move_keys(
    kind: str,
    left: Callable[[], Awaitable[Sequence[N]]],
    unwrap: Callable[[N], Awaitable[K | None]],
    rewrap: Callable[[N, K], Awaitable[object]],
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    report: Report = unreported,
) -> None:
    """Move every key of a kind ("signing keys") that `left` names, and try again until none is left that can be.

    `unwrap` returns None for a key that need not move. One that it refuses, because it is damaged or its master key
    may not be used, stays as it is and is named in the log.
    """
    while True:
        try:
            names = await left()
            report(kind, len(names))
            if not names:
                return
            done, stuck = await _move(names, unwrap, rewrap)
        except KmsError as error:
            log.warning(f"Moving {kind} to the master key is interrupted, trying again", problem=error.message)  # noqa: G004
        else:
            report(kind, sum(stuck.values()))
            if done or stuck:
                log.info(
                    f"{kind.capitalize()} were moved to the master key",  # noqa: G004
                    moved=done,
                    left=sum(stuck.values()),
                )
            for problem, count in stuck.items():
                log.error(
                    f"{kind.capitalize()} could not be moved to the master key",  # noqa: G004
                    keys=count,
                    problem=problem,
                )
            return
        await sleep(PAUSE_SECONDS)


def not_configured(arn: str, provider: str) -> MasterKeyUnusable:
    """Return the error for keys whose master key is unknown to a daemon of `provider`."""
    return MasterKeyUnusable(f"they were wrapped by {arn}: {step_to_configure(arn, provider)}")


async def _move(
    names: Sequence[N], unwrap: Callable[[N], Awaitable[K | None]], rewrap: Callable[[N, K], Awaitable[object]]
) -> tuple[int, Counter[str]]:
    done, stuck = 0, Counter[str]()
    for name in names:
        try:
            key = await unwrap(name)
        except (AccessDenied, KeyDamaged, MasterKeyUnusable) as error:  # this key's own trouble; others may move
            stuck[error.message] += 1
            continue
        if key is not None:
            await rewrap(name, key)
            done += 1
    return done, stuck
