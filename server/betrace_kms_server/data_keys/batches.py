"""Data keys for one tenant, and payloads to seal and open, many at a time: what items share is done once.

Each item fails alone.

Items of one context share a sealing key, and messages with the same header fields a data key, so KMS is asked once for
each of those that is not cached. Threads would not help: OpenSSL keeps the interpreter's lock for payloads as short as
these. So the work is done in the loop, which gets its turn after each millisecond of it; there a call that was
cancelled, or that is over its deadline, ends.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, NoReturn, TypeAlias, TypeVar

from betrace_kms_envelope import Message

from betrace_kms_server.core.errors import DoesNotOpen, KmsError
from betrace_kms_server.core.key_event import KeyEvent
from betrace_kms_server.core.keys import DataKey
from betrace_kms_server.core.tenancy import Context
from betrace_kms_server.data_keys.keyring import KeyRing, is_message
from betrace_kms_server.data_keys.results import Opened, OpeningKey, Sealed, SealingKey

KEYS_AT_ONCE = 8
"""Keys that a batch loads at a time: as many calls as KMS gets of one tenant (providers/aws)."""
_TURN_SECONDS = 0.001

_NO_KEY = KmsError("an item of a batch was given no key")
"""Stands where each item's outcome will be. It has no status, so a defect that left it there is an internal error."""

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
_Step: TypeAlias = Callable[[], Awaitable[T]] | KmsError
"""What is left to do for an item once it has its key, or why that cannot be done."""


@dataclass(frozen=True, slots=True, eq=False)
class SharedContext:
    """A caller's encryption context, which was checked, for all items of a batch that have it. Equal only to itself."""

    pairs: Context = field(repr=False)


@dataclass(frozen=True, slots=True)
class Item:
    """A plaintext or a ciphertext, and its context."""

    payload: bytes = field(repr=False)
    context: SharedContext


@dataclass(frozen=True, slots=True)
class KeyItem:
    """A data key to hand out: its length in bytes, and its context."""

    number_of_bytes: int
    context: SharedContext
    fresh: bool = False


class Turns:
    """Lets the loop do other work after each millisecond."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    @property
    def over(self) -> bool:
        """True when it is time for `next`; to ask costs less than to wait for what need not wait."""
        return time.perf_counter() - self._began > _TURN_SECONDS

    async def next(self) -> None:
        """Let the loop go round once."""
        await asyncio.sleep(0)
        self._began = time.perf_counter()


class _Groups(Generic[K]):
    """Indices of items, by what they share."""

    def __init__(self) -> None:
        self._indices: dict[K, list[int]] = {}

    def add(self, key: K, index: int) -> None:
        self._indices.setdefault(key, []).append(index)

    async def each(self, work: Callable[[K, Sequence[int]], Awaitable[None]], turns: Turns) -> None:
        """Do the work for each group, for some at once if there are several: most of it may be to wait for KMS."""
        todo = iter(self._indices.items())

        async def some() -> None:
            for key, indices in todo:
                await work(key, indices)
                if turns.over:
                    await turns.next()

        if len(self._indices) <= 1:
            await some()
            return
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(KEYS_AT_ONCE, len(self._indices))):
                workers.create_task(some())


async def seal_batch(
    ring: KeyRing, tenant_id: str, items: Sequence[Item | KmsError], turns: Turns, event: KeyEvent | None = None
) -> list[Sealed | KmsError]:
    """Return for each item the sealed payload, or the error that it would meet alone; errors among `items` stay."""
    steps: list[_Step[Sealed]] = [_unkeyed] * len(items)
    groups: _Groups[SharedContext] = _Groups()
    for index, item in enumerate(items):
        if isinstance(item, Item):
            groups.add(item.context, index)
        else:
            steps[index] = item

    async def key_for(context: SharedContext, indices: Sequence[int]) -> None:
        while indices:
            try:
                key, count = await ring.sealing_key(tenant_id, context.pairs, event, uses=len(indices))
            except KmsError as error:
                for index in indices:
                    steps[index] = error
                return
            for index in indices[:count]:
                steps[index] = partial(_sealed, key, items[index].payload)  # type: ignore[union-attr]
            indices = indices[count:]

    await groups.each(key_for, turns)
    return await _outcomes(steps, turns)


async def data_key_batch(
    ring: KeyRing, tenant_id: str, items: Sequence[KeyItem | KmsError], turns: Turns, event: KeyEvent | None = None
) -> list[DataKey | KmsError]:
    """Return for each item its data key, or the error that it would meet alone; errors among `items` stay."""
    outcomes: list[DataKey | KmsError] = [item if isinstance(item, KmsError) else _NO_KEY for item in items]
    groups: _Groups[tuple[KeyItem, int]] = _Groups()
    for index, item in enumerate(items):
        if isinstance(item, KeyItem):
            groups.add((item, index if item.fresh or ring.is_single_use else -1), index)

    async def key_for(group: tuple[KeyItem, int], indices: Sequence[int]) -> None:
        size, pairs, fresh = group[0].number_of_bytes, group[0].context.pairs, group[0].fresh
        while indices:
            try:
                key, count = await ring.data_keys(tenant_id, size, pairs, fresh=fresh, event=event, uses=len(indices))
            except KmsError as error:
                for index in indices:
                    outcomes[index] = error
                return
            for index in indices[:count]:
                outcomes[index] = key
            indices = indices[count:]

    await groups.each(key_for, turns)
    return outcomes


async def open_batch(
    ring: KeyRing, tenant_id: str, items: Sequence[Item | KmsError], turns: Turns, event: KeyEvent | None = None
) -> list[Opened | KmsError]:
    """Return for each item what it held, or the error that it would meet alone; errors among `items` stay."""
    steps: list[_Step[Opened]] = [_unkeyed] * len(items)
    messages: dict[int, Message] = {}
    groups: _Groups[tuple[bytes, SharedContext]] = _Groups()
    like: Message | None = None
    for index, item in enumerate(items):
        if not isinstance(item, Item):
            steps[index] = item
        elif not is_message(item.payload):
            groups.add((item.payload, item.context), index)
        else:
            try:
                messages[index] = like = ring.parse(item.payload, like)
            except DoesNotOpen as error:
                steps[index] = error
            else:
                groups.add((like.fields, item.context), index)
        if turns.over:
            await turns.next()

    async def key_for(group: tuple[bytes, SharedContext], indices: Sequence[int]) -> None:
        bare_or_fields, context = group
        message = messages.get(indices[0])
        try:
            if message is None:
                key = await ring.bare_key(tenant_id, bare_or_fields, context.pairs, event)
            else:
                key = await ring.key_of(tenant_id, message, context.pairs, event)
        except KmsError as error:
            for index in indices:
                steps[index] = error
            return
        for index in indices:
            steps[index] = partial(_handed_out, key) if message is None else partial(key.open, messages[index])

    await groups.each(key_for, turns)
    return await _outcomes(steps, turns)


async def _sealed(key: SealingKey, plaintext: bytes) -> Sealed:
    return key.seal(plaintext)


async def _handed_out(key: OpeningKey) -> Opened:
    return key.handed_out()


async def _unkeyed() -> NoReturn:
    raise AssertionError("an item of a batch was given no key")


async def _outcomes(steps: Sequence[_Step[T]], turns: Turns) -> list[T | KmsError]:
    outcomes: list[T | KmsError] = []
    for step in steps:
        if isinstance(step, KmsError):
            outcomes.append(step)
        else:
            try:
                outcomes.append(await step())
            except KmsError as error:
                outcomes.append(error)
        if turns.over:
            await turns.next()
    return outcomes
