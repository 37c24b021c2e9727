"""Azure Key Vault and Managed HSM: the master key is a key of a vault. Data keys come from this machine's generator.

A key of a Managed HSM seals them with the encryption context as associated data. An RSA key of a Key Vault binds no
context and does not show who wrapped: there, sealing.py seals here and lets the vault sign. wrapped.py has the formats.

The vault wraps with the current version of a key and answers which one that is. The version is kept in the wrapped key,
so a key that was rotated opens what its former versions wrapped.

Key Vault wraps and encrypts with a key that is disabled, and refuses only to open: so once a check found the master key
withdrawn, this provider makes and wraps no more keys until a check passes.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

from betrace_kms_server.core.associated_data import associated_data
from betrace_kms_server.core.call_slots import CallSlots
from betrace_kms_server.core.errors import DoesNotOpen, KmsError, KmsUnreachable, MasterKeyUnusable, Throttled
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.core.key_event import KmsCall, KmsObserver, unobserved
from betrace_kms_server.core.keys import DataKey, KeyMaterial, WrappedKey
from betrace_kms_server.core.tenancy import Context, tenant_of
from betrace_kms_server.core.waiters import current_waiters
from betrace_kms_server.providers.azure.client import Answer, VaultClient
from betrace_kms_server.providers.azure.credentials import Credential
from betrace_kms_server.providers.azure.errors import DELETED, refused, unanswered
from betrace_kms_server.providers.azure.inspection import check_key, inspect_key
from betrace_kms_server.providers.azure.key_ids import KeyId
from betrace_kms_server.providers.azure.remedies import LATENCY_ADVICE, remedy
from betrace_kms_server.providers.azure.sealing import ANSWERS, Ask, HsmSealing, SignedSealing
from betrace_kms_server.providers.breaker import CircuitBreaker, Permit, State

R = TypeVar("R")

_PLACE = "azure"
CALLS_AT_ONCE, CALLS_OF_TENANT = 16, 8
_LOCAL_KINDS = frozenset({"sdk"})


class AzureProvider:
    """Wraps keys under a key of a vault. `client` and `credential` are open."""

    name = "azure"
    serving_region = _PLACE
    clock_skew_seconds = None

    def __init__(
        self,
        key: KeyId,
        sealing: HsmSealing | SignedSealing,
        client: VaultClient,
        credential: Credential,
        *,
        call_seconds: float = 5.0,
        observe: KmsObserver = unobserved,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self.master_key_arn = key.id
        self._key = key
        self._sealing = sealing
        self._client = client
        self._credential = credential
        self._call_seconds = call_seconds
        self._observe = observe
        self._breaker = breaker or CircuitBreaker(_PLACE)
        self._slots = CallSlots("Key Vault", size=CALLS_AT_ONCE, per_tenant=CALLS_OF_TENANT)
        self._withdrawn: MasterKeyUnusable | None = None

    @property
    def decrypt_key_arns(self) -> Sequence[str]:
        """See KeyProvider. All versions of the one key."""
        return (self.master_key_arn,)

    @property
    def breakers(self) -> Mapping[str, State]:
        """See KeyProvider."""
        return {_PLACE: self._breaker.state}

    @property
    def credential_attempts(self) -> Mapping[str, int]:
        """See KeyProvider."""
        return dict(self._credential.attempts)

    def is_current(self, arn: str) -> bool:
        """See KeyProvider."""
        return arn == self.master_key_arn

    def unwrapping_key_for(self, arn: str) -> str | None:
        """See KeyProvider."""
        return arn if self.is_current(arn) else None

    async def generate_data_key(self, number_of_bytes: int, context: Context) -> DataKey:
        """See KeyProvider."""
        action, plaintext = "GenerateDataKey", os.urandom(number_of_bytes)

        async def make(ask: Ask) -> DataKey:
            blob = await self._sealing.seal(ask, action, plaintext, associated_data(context))
            return ANSWERS.data_key(
                self.master_key_arn, number_of_bytes, plaintext=plaintext, blob=blob, key_id=self.master_key_arn
            )

        self._refuse_withdrawn()
        return await self._run(action, make, tenant_of(context))

    async def wrap(self, key: KeyMaterial, context: Context) -> WrappedKey:
        """See KeyProvider."""
        action = "Encrypt"

        async def make(ask: Ask) -> WrappedKey:
            blob = await self._sealing.seal(ask, action, bytes(key.raw), associated_data(context))
            return ANSWERS.wrapped_key(self.master_key_arn, blob=blob, key_id=self.master_key_arn, action=action)

        self._refuse_withdrawn()
        return await self._run(action, make, tenant_of(context))

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> KeyMaterial:
        """See KeyProvider."""

        async def open_(ask: Ask) -> KeyMaterial:
            plaintext = await self._sealing.open(ask, wrapped.blob, associated_data(context))
            return ANSWERS.unwrapped_key(self.master_key_arn, plaintext=plaintext, key_id=self.master_key_arn)

        if self.unwrapping_key_for(wrapped.master_key_arn) is None:
            raise DoesNotOpen
        try:
            return await self._run("Decrypt", open_, tenant_of(context))
        except MasterKeyUnusable as error:
            if error.state != DELETED:
                raise
        await self.check()  # the key may be deleted; if it is there, what was presented names a version that never was
        raise DoesNotOpen

    async def check(self, arn: str | None = None) -> None:
        """See KeyProvider. A key that may not be used as ours is MasterKeyUnusable in the state `UNFIT`."""
        try:
            for key, bundle in (await self._described()).items():
                check_key(key, self._sealing.keys[key], bundle)
        except MasterKeyUnusable as error:
            self._withdrawn = error if error.withdrawn else None
            raise
        self._withdrawn = None

    def remedy(self, error: KmsError) -> str | None:
        """See KeyProvider."""
        return remedy(error, self._key)

    @property
    def latency_advice(self) -> str:
        """See KeyProvider."""
        return LATENCY_ADVICE

    async def inspect(self) -> Sequence[Finding]:
        """See KeyProvider."""
        names = ("azure_key", "azure_sign_key")
        described = await self._described()
        return [inspect_key(name, key, bundle) for name, (key, bundle) in zip(names, described.items(), strict=False)]

    async def _described(self) -> Mapping[KeyId, Mapping[str, Any]]:
        async def describe(ask: Ask) -> Mapping[KeyId, Mapping[str, Any]]:
            return {key: (await ask(key)).body or {} for key in self._sealing.keys}

        return await self._run("DescribeKey", describe, insist=True)

    def _refuse_withdrawn(self) -> None:
        if (error := self._withdrawn) is not None:
            raise MasterKeyUnusable(error.message, metadata=error.metadata, state=error.state, withdrawn=True)

    async def _run(
        self, action: str, work: Callable[[Ask], Awaitable[R]], tenant: str = "", *, insist: bool = False
    ) -> R:
        """Do the requests of one operation, observed and bounded in time.

        What comes of insisting is not counted by the breaker: it would not be a call on trial.
        """
        async with nullcontext() if insist else self._slots.slot(tenant, current_waiters.get()):
            permit = Permit(lambda outcome: None) if insist else self._breaker.acquire()
            if permit is None:
                raise KmsUnreachable("Key Vault failed too often and is left alone for a few seconds: try again then")
            with permit, self._observe(action, _PLACE) as call:
                requests = _Requests(self._client, call)
                try:
                    async with asyncio.timeout(self._call_seconds):
                        result = await work(requests)
                except Exception as cause:
                    error = unanswered(cause)
                    self._judge(error, permit, answered=requests.answered)
                    if error is cause:
                        raise
                    raise error from cause
                permit.success()
                return result

    def _judge(self, error: KmsError, permit: Permit, *, answered: bool) -> None:
        """Report to the breaker and to the queue how an operation failed, if the vault had a part in it."""
        if isinstance(error, Throttled):
            self._slots.throttled()
        if error.metadata.get("kind") in _LOCAL_KINDS:
            return
        if isinstance(error, KmsUnreachable):
            permit.failure()
        elif answered:
            permit.success()


class _Requests:
    """Makes the requests of one operation."""

    def __init__(self, client: VaultClient, call: KmsCall) -> None:
        self.answered = False
        self._client = client
        self._call = call

    async def __call__(self, key: KeyId, version: str = "", operation: str = "", **body: str) -> Answer:
        """See Ask."""
        answer = await self._client.ask(key, version, operation, **body)
        self.answered = True
        self._call.answered(answer.request_id)
        if answer.status != 200:
            raise refused(key, operation, answer)
        if answer.body is None:
            raise ANSWERS.bad(operation or "get", key.id, "is not one of Key Vault")
        return answer
