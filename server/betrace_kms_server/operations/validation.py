"""Tries everything that the daemon needs of KMS, of its store and of its clock, and says what to fix.

It leaves nothing behind, and the store stays as it is. However often it is asked, KMS is called a bounded number of
times, because an outcome is good for `FRESH_SECONDS`.

For production there are more tests: what must not be so of the deployment, and what the daemon's role may do beyond
what it needs. Each fails with the sentence of its finding, and so does what cannot be found out.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
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
from betrace_kms_server.core.errors import KmsError, StartRefused
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.core.tenancy import VALIDATION_TENANT, Context
from betrace_kms_server.operations.shared_run import SharedRun
from betrace_kms_server.operations.validation_run import Run, Test
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.stores.branch_keys import BranchKeyStore
from betrace_kms_server.stores.protocol import KeyStore

READY = "✅ KMS configuration is valid and ready for production"


@dataclass(frozen=True, slots=True)
class Validation:
    """The outcome of all tests, in the order in which they ran. `time` is seconds since the Unix epoch, at the end."""

    provider: str
    tests: Sequence[Test]
    recommendations: Sequence[str]
    time: float

    @property
    def passed(self) -> bool:
        """Return whether every test passed."""
        return all(test.passed for test in self.tests)


class Validator:
    """Validates one daemon. `deployment` is what production.py found.

    `serving` returns whether the daemon takes calls. `branch_keys` is the branch key store, if there is one, and
    `logical_name` its name, if branch keys are to be made in it. `clock` is monotonic; `now` returns seconds since the
    Unix epoch.
    """

    def __init__(
        self,
        provider: KeyProvider,
        store: KeyStore,
        *,
        deployment: Sequence[Finding] = (),
        serving: Callable[[], bool] = lambda: True,
        branch_keys: BranchKeyStore | None = None,
        logical_name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._provider = provider
        self._store = store
        self._branch_keys = branch_keys
        self._logical_name = logical_name
        self._deployment = deployment
        self._serving = serving
        self._clock = clock
        self._now = now
        self._general = SharedRun("validate", self._validate, clock)
        self._strict = SharedRun("validate for production", self._validate_for_production, clock)

    async def run(self, production: bool = False) -> Validation:
        """Return an outcome that is at most `FRESH_SECONDS` old. Who asks while tests run waits for these."""
        return await (self._strict if production else self._general).outcome()

    async def close(self) -> None:
        """End a validation that runs."""
        await self._strict.close()
        await self._general.close()

    async def _validate(self) -> Validation:
        run = Run(self._provider, self._clock)
        await run.try_kms()
        await run.attempt("key_store", self._store.check)
        if self._branch_keys is not None and self._store.shared:  # else it is in the key store's own file
            await run.attempt("branch_key_store", self._branch_keys.check)
        if self._logical_name is not None:
            await run.try_row(row_context(self._row_attributes(), self._logical_name))
        run.judge_clock()
        notes = [finding.problem for finding in self._deployment if finding.problem]
        run.note("configuration", [*notes, *await self._shredding_notes()])
        return Validation(self._provider.name, run.tests, list(run.steps.values()) or [READY], self._now())

    async def _validate_for_production(self) -> Validation:
        general = await self._general.outcome()
        serving = "" if self._serving() else "the daemon does not take calls: betrace-kms status says why"
        inspections: list[tuple[str, Callable[[], Awaitable[Sequence[Finding]]]]] = [
            ("kms", self._provider.inspect),
            ("key_store", self._store.inspect),
        ]
        if self._branch_keys is not None:
            inspections.append(("branch_key_store", self._branch_keys.inspect))
        found = await asyncio.gather(*(_inspected(name, inspect) for name, inspect in inspections))
        findings = [*self._deployment, Finding("serving", serving), *(each for some in found for each in some)]
        problems = [finding.problem for finding in findings if finding.problem]
        steps = [step for step in general.recommendations if step != READY]
        return replace(
            general,
            tests=[*general.tests, *(Test(f"production_{f.name}", not f.problem, message=f.problem) for f in findings)],
            recommendations=list(dict.fromkeys([*steps, *problems])) or [READY],
            time=self._now(),
        )

    def _row_attributes(self) -> Context:
        """Return the attributes of an active branch key of the validation's own tenant: it has all that any row has."""
        attributes = attributes_of(
            VALIDATION_TENANT,
            ACTIVE,
            kms_arn=self._provider.master_key_arn,
            create_time=timestamp(self._now()),
            custom={f"{CUSTOM_PREFIX}tenantId": VALIDATION_TENANT},
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


async def _inspected(name: str, inspect: Callable[[], Awaitable[Sequence[Finding]]]) -> Sequence[Finding]:
    """Return what an adapter finds, or that it could not be found out."""
    try:
        return await inspect()
    except (KmsError, StartRefused) as error:
        return [Finding(name, f"not known: {error}")]
