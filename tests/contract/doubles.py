"""Stand-ins that contract tests share: a clock that stands still, and a local provider that counts like KMS."""

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any

from betrace_kms_server.core.key_event import KmsCall, KmsObserver, unobserved
from betrace_kms_server.core.keys import DataKey, KeyMaterial, WrappedKey
from betrace_kms_server.core.tenancy import Context
from betrace_kms_server.providers.local import LocalProvider
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.stores.protocol import KeyStore

FORMER, UNLISTED, REPLICA = "former", "unlisted", "replica"
"""Names of master keys."""


class FakeClock:
    """Seconds that pass only when a test says so."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class CountedLocalProvider(LocalProvider):
    """A local provider that counts what would be calls of KMS."""

    def __init__(self, master_key: bytes) -> None:
        super().__init__(master_key)
        self.calls: Counter[str] = Counter()

    async def generate_data_key(self, number_of_bytes: int, context: Mapping[str, str]) -> DataKey:
        """Count one GenerateDataKey."""
        self.calls["GenerateDataKey"] += 1
        material = KeyMaterial(os.urandom(number_of_bytes))
        return DataKey(material, await super().wrap(material, context))

    async def wrap(self, key: KeyMaterial, context: Mapping[str, str]) -> WrappedKey:
        """Count one Encrypt."""
        self.calls["Encrypt"] += 1
        return await super().wrap(key, context)

    async def unwrap(self, wrapped: WrappedKey, context: Mapping[str, str]) -> KeyMaterial:
        """Count one Decrypt."""
        self.calls["Decrypt"] += 1
        return await super().unwrap(wrapped, context)


def counting(calls: Counter[str]) -> KmsObserver:
    """Return an observer that counts calls by their action."""

    def observe(action: str, region: str) -> AbstractContextManager[KmsCall]:
        calls[action] += 1
        return unobserved(action, region)

    return observe


@dataclass(frozen=True, slots=True)
class Kms:
    """A provider under test, the calls that its KMS got by action, and a provider with another master key."""

    provider: KeyProvider
    calls: Counter[str]
    foreign: KeyProvider


Open = Callable[[], AbstractAsyncContextManager[KeyStore]]


@dataclass(frozen=True, slots=True)
class StoreKind:
    """A kind of store under test.

    `open` opens one that is empty at first, and the same one each time; `forbid_writes` keeps an open one from writing.
    """

    open: Open
    forbid_writes: Callable[[Any], Awaitable[object]]


class Named(LocalProvider):
    """A local provider whose master key has a name."""

    def __init__(self, arn: str) -> None:
        super().__init__(os.urandom(32))
        self.master_key_arn = arn


class Today(LocalProvider):
    """A provider with today's master key, a former one that is listed, and a replica; `failures` come first."""

    def __init__(self, *others: Named) -> None:
        super().__init__(os.urandom(32))
        self.others = {other.master_key_arn: other for other in others}
        self.failures: list[Exception] = []
        self.wrong_answer = False

    def is_current(self, arn: str) -> bool:
        """Return True for today's master key and its replica."""
        return arn in (self.master_key_arn, REPLICA)

    def unwrapping_key_for(self, arn: str) -> str | None:
        """Return the ARN if it is listed."""
        return arn if arn in self.others or self.is_current(arn) else None

    async def wrap(self, key: KeyMaterial, context: Context) -> WrappedKey:
        """Wrap, or wrap another key."""
        return await super().wrap(KeyMaterial(os.urandom(32)) if self.wrong_answer else key, context)

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> KeyMaterial:
        """Fail as asked, or unwrap by whichever master key wrapped it."""
        if self.failures:
            raise self.failures.pop(0)
        other = self.others.get(wrapped.master_key_arn)
        return await (other.unwrap(wrapped, context) if other else super().unwrap(wrapped, context))
