"""The tests of one validation: KMS, whatever else is tried, and what to do about a failure.

They leave nothing behind: data keys are dropped, and the cache that is tried is their own. What they say is for
operators: it may name the daemon's own principal, which callers do not learn.
"""

import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.errors import AccessDenied, DoesNotOpen, KmsError
from betrace_kms_server.core.keys import DataKey, KeyMaterial
from betrace_kms_server.core.tenancy import VALIDATION_TENANT, Context, encryption_context
from betrace_kms_server.operations.remedies import operator_message, remedy
from betrace_kms_server.providers.protocol import KeyProvider

log = logging.getLogger(__name__)

V = TypeVar("V")

CALL_TARGET_MS = 100
"""What a call to KMS may take, and with it a key that is not cached."""
HIT_TARGET_MS = 10
"""What a cached key may take."""
MAX_SKEW_SECONDS = 60
"""AWS refuses signatures that are off by more than five minutes; a minute leaves time to act."""

_CONTEXT = encryption_context(VALIDATION_TENANT, {})
_OTHER_CONTEXT = encryption_context(VALIDATION_TENANT, {"purpose": "must not open"})
_KEY_BYTES = 32
_AFTER_DECRYPT = ("wrong_context", "key_retrieval_cache_miss", "key_retrieval_cache_hit")


@dataclass(frozen=True, slots=True)
class Test:
    """The outcome of one test. `message` says what went wrong, or what there is to note."""

    __test__: ClassVar[bool] = False  # pytest takes every Test* for one of its own

    name: str
    passed: bool
    latency_ms: float | None = None
    message: str = ""
    target_ms: int | None = None


class _ContractBroken(Exception):
    """KMS answered, and not as every key-management service must."""


class Run:
    """One run: the tests so far, and what to do next, one step for each cause. `clock` is monotonic."""

    def __init__(self, provider: KeyProvider, clock: Callable[[], float]) -> None:
        self.tests: list[Test] = []
        self.steps: dict[str, str] = {}
        self._provider = provider
        self._clock = clock

    async def try_kms(self) -> None:
        """Try each action of KMS on its own, that it binds keys to their context, and a cache in front of it."""
        await self.attempt("describe_key", self._provider.check, CALL_TARGET_MS)
        made = await self.attempt("generate_data_key", self._generate_data_key, CALL_TARGET_MS)
        encrypted = await self.attempt("encrypt", self._encrypt, CALL_TARGET_MS)
        if sample := made or encrypted:
            await self._try_opening(sample)
        else:
            self._skip("neither generate_data_key nor encrypt gave a key", "decrypt", *_AFTER_DECRYPT)

    async def _try_opening(self, sample: DataKey) -> None:
        if await self.attempt("decrypt", lambda: self._decrypt(sample), CALL_TARGET_MS) is None:
            self._skip("decrypt failed", *_AFTER_DECRYPT)
            return
        wrong_context, miss, hit = _AFTER_DECRYPT
        await self.attempt(wrong_context, lambda: self._refuse_other_context(sample))
        cache = KeyCache("validation", ttl=60.0, max_size=1, clock=self._clock)
        key = ("validation", self._provider.master_key_arn, VALIDATION_TENANT)

        async def retrieve() -> KeyMaterial:
            return await cache.get_or_load(key, lambda: self._decrypt(sample))

        if await self.attempt(miss, retrieve, CALL_TARGET_MS) is None:
            self._skip(f"{miss} failed", hit)
        else:
            await self.attempt(hit, retrieve, HIT_TARGET_MS)
        await cache.close()

    async def try_row(self, context: Context) -> None:
        """Try the calls that a row of the branch key store needs: policies may allow other contexts only."""
        names = ", ".join(sorted(context))
        step = f"let conditions on kms:EncryptionContext pass the context keys of branch keys: {names}"
        await self.attempt("branch_key_context", lambda: self._use(context), denied=step)

    async def attempt(
        self,
        name: str,
        action: Callable[[], Awaitable[V]],
        target_ms: int | None = None,
        *,
        denied: str | None = None,
    ) -> V | None:
        """Run one test. Returns what it gave, or None if it failed. `denied` is the step if AWS denies it."""
        began = self._clock()
        try:
            result = await action()
        except KmsError as error:
            step, cause = remedy(error, self._provider), error.metadata.get("action")
            if denied and isinstance(error, AccessDenied):
                step, cause = denied, name
            self._fail(name, operator_message(error), step, cause or error.reason)
            return None
        except _ContractBroken as error:
            self._fail(name, str(error), "keep no keys behind this KMS: check what answers there", name)
            return None
        except Exception as error:  # a defect fails its test, and the others still run
            log.error("Validation test %s failed", name, exc_info=error)
            self._fail(name, "internal error", "find the traceback in the daemon's log, and report it", "INTERNAL")
            return None
        latency_ms, message = (self._clock() - began) * 1000, ""
        if target_ms and latency_ms >= target_ms:
            message = f"slower than the target of {target_ms} ms"
            self._advise_on_latency(target_ms)
        self.tests.append(Test(name, True, latency_ms, message, target_ms))
        return result

    def judge_clock(self) -> None:
        """Judge how far this machine's clock was from KMS's when the master key was described."""
        skew = self._provider.clock_skew_seconds
        if skew is None:
            self.tests.append(Test("clock_skew", True, message="not known"))
        elif abs(skew) <= MAX_SKEW_SECONDS:
            self.tests.append(Test("clock_skew", True))
        else:
            off = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} KMS's"
            step = "synchronise this machine's clock (chronyc tracking, timedatectl): AWS refuses what is 5 minutes off"
            self._fail("clock_skew", f"this machine's clock is {off}", step, "CLOCK_SKEW")

    def note(self, name: str, notes: Sequence[str]) -> None:
        """Add a test that passes and recommends what its notes say."""
        self.tests.append(Test(name, True, message="; ".join(notes)))
        self.steps.update({note: note for note in notes})

    async def _use(self, context: Context) -> None:
        sample = await self._provider.generate_data_key(_KEY_BYTES, context)
        opened = await self._provider.unwrap(await self._provider.wrap(sample.material, context), context)
        if opened.raw != sample.material.raw:
            raise _ContractBroken("KMS gave back another key than it had wrapped")

    async def _generate_data_key(self) -> DataKey:
        return await self._provider.generate_data_key(_KEY_BYTES, _CONTEXT)

    async def _encrypt(self) -> DataKey:
        key = KeyMaterial(os.urandom(_KEY_BYTES))
        return DataKey(key, await self._provider.wrap(key, _CONTEXT))

    async def _decrypt(self, sample: DataKey) -> KeyMaterial:
        opened = await self._provider.unwrap(sample.wrapped, _CONTEXT)
        if opened.raw != sample.material.raw:
            raise _ContractBroken("KMS gave back another key than it had wrapped")
        return opened

    async def _refuse_other_context(self, sample: DataKey) -> None:
        try:
            await self._provider.unwrap(sample.wrapped, _OTHER_CONTEXT)
        except DoesNotOpen:
            return
        raise _ContractBroken("KMS opened a key under another encryption context: it would not keep tenants apart")

    def _fail(self, name: str, message: str, step: str, cause: str) -> None:
        self.tests.append(Test(name, False, message=message))
        self.steps.setdefault(cause, step)

    def _skip(self, reason: str, *names: str) -> None:
        self.tests += [Test(name, False, message=f"not run: {reason}") for name in names]

    def _advise_on_latency(self, target_ms: int) -> None:
        if target_ms == HIT_TARGET_MS:
            self.steps["SLOW_CACHE"] = "give the daemon more CPU: a cached key needs no KMS and took too long"
        else:
            self.steps["SLOW_KMS"] = self._provider.latency_advice
