"""Tries everything that the daemon needs of KMS, of its store and of its clock, and says what to fix.

It leaves nothing behind, and the store stays as it is. However often it is asked, KMS is called a bounded number of
times, because an outcome is good for `FRESH_SECONDS`.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

from betrace_kms_server.core.branch_rows import (
    ACTIVE,
    CUSTOM_PREFIX,
    VERSION,
    attributes_of,
    row_context,
    timestamp,
    type_of,
)
from betrace_kms_server.core.errors import KmsError
from betrace_kms_server.core.tenancy import Context
from betrace_kms_server.operations.validation_run import TENANT, Run, Test
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.stores.branch_keys import BranchKeyStore
from betrace_kms_server.stores.protocol import KeyStore

FRESH_SECONDS = 5.0
"""How long an outcome is given again, counted from its end."""
READY = "✅ KMS configuration is valid and ready for production"


@dataclass(frozen=True, slots=True)
class Validation:
    """The outcome of all tests, in the order in which they ran. `time` is seconds since the Unix epoch, at the end."""

    provider: str
    tests: Sequence[Test]
    recommendations: Sequence[str]
    time: float
    unfit: Sequence[str] = ()
    """What must not be so in production, each with what to do."""

    @property
    def passed(self) -> bool:
        """Return whether every test passed."""
        return all(test.passed for test in self.tests)

    def for_production(self) -> "Validation":
        """Return the same outcome with one more test, which fails if something must not be so in production."""
        test = Test("production", not self.unfit, message="; ".join(self.unfit))
        return replace(self, tests=[*self.tests, test])


class Validator:
    """Validates one daemon. `endpoint` is aws.kms.endpoint, `ephemeral` what makes the data folder's volume ephemeral.

    `unfit` is what must not be so in production, each with what to do. `branch_keys` is the branch key store, if there
    is one, and `logical_name` its name, if branch keys are to be made in it. `clock` is monotonic; `now` returns
    seconds since the Unix epoch.
    """

    def __init__(
        self,
        provider: KeyProvider,
        store: KeyStore,
        *,
        endpoint: str | None,
        ephemeral: str | None,
        unfit: Sequence[str] = (),
        branch_keys: BranchKeyStore | None = None,
        logical_name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._provider = provider
        self._store = store
        self._branch_keys = branch_keys
        self._logical_name = logical_name
        self._endpoint = endpoint if provider.name == "aws" else None
        self._ephemeral = ephemeral
        local = ["provider local is NOT FOR PRODUCTION: set betrace.kms.provider=aws there"]
        emulator = ["aws.kms.endpoint is set: calls do not go to AWS KMS; remove it in production"]
        self._unfit = [
            *(local if provider.name == "local" else ()),
            *(emulator if self._endpoint else ()),
            *unfit,
        ]
        self._clock = clock
        self._now = now
        self._running: asyncio.Task[Validation] | None = None
        self._ended = 0.0

    async def run(self) -> Validation:
        """Return an outcome that is at most `FRESH_SECONDS` old. Who asks while tests run waits for these."""
        running = self._running
        if running is None or (running.done() and self._clock() - self._ended >= FRESH_SECONDS):
            running = self._running = asyncio.create_task(self._validate(), name="validate")
        return await asyncio.shield(running)

    async def close(self) -> None:
        """End a validation that runs."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    async def _validate(self) -> Validation:
        try:
            run = Run(self._provider, self._endpoint, self._clock)
            await run.try_kms()
            await run.attempt("key_store", self._store.check)
            if self._branch_keys is not None and self._store.shared:  # else it is in the key store's own file
                await run.attempt("branch_key_store", self._branch_keys.check)
            if self._logical_name is not None:
                await run.try_row(row_context(self._row_attributes(), self._logical_name))
            run.judge_clock()
            run.note("configuration", [*self._notes(), *await self._shredding_notes()])
            return Validation(
                self._provider.name, run.tests, list(run.steps.values()) or [READY], self._now(), self._unfit
            )
        finally:
            self._ended = self._clock()

    def _row_attributes(self) -> Context:
        """Return the attributes of an active branch key of the validation's own tenant: it has all that any row has."""
        attributes = attributes_of(
            TENANT,
            ACTIVE,
            kms_arn=self._provider.master_key_arn,
            create_time=timestamp(self._now()),
            custom={f"{CUSTOM_PREFIX}tenantId": TENANT},
        )
        return {**attributes, VERSION: type_of(uuid4())}

    async def _shredding_notes(self) -> Sequence[str]:
        if self._branch_keys is None:
            return []
        try:
            await self._branch_keys.check_destroy()
        except KmsError as error:
            if "action" not in error.metadata:  # no denial: a store that is away fails a test of its own
                return []
            return [f"tenants cannot be shredded: {error.message}; if none is to be, that is as it should be"]
        return []

    def _notes(self) -> Sequence[str]:
        notes = list(self._unfit)
        if self._ephemeral:
            notes.append(f"kms.data-dir is on {self._ephemeral}, and its keys die with it: mount a persistent volume")
        return notes
