"""A hardware security module of your own: the master key is an AES key on a PKCS#11 token, and never leaves it.

The token wraps data keys by AES-GCM (CKM_AES_GCM) with the encryption context as additional authenticated data. Data
keys come from this machine's generator, or from the token's (C_GenerateRandom). The user of the PIN needs C_Encrypt and
C_Decrypt with the key, and to read its attributes.

What a key wrapped that left the token may be in unknown hands, so one that is or was extractable is refused. So is a
token that does not authenticate the context: a check lets it refuse a trial ciphertext under another one.
"""

import os
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

from betrace_kms_server.core.associated_data import associated_data
from betrace_kms_server.core.call_slots import CallSlots
from betrace_kms_server.core.errors import DoesNotOpen, KmsError, KmsUnreachable
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.core.key_event import KmsObserver, unobserved
from betrace_kms_server.core.keys import DataKey, KeyMaterial, WrappedKey
from betrace_kms_server.core.tenancy import Context, tenant_of
from betrace_kms_server.core.waiters import current_waiters
from betrace_kms_server.providers.answers import Answers
from betrace_kms_server.providers.breaker import CircuitBreaker, Permit, State
from betrace_kms_server.providers.pkcs11.errors import UNSPECIFIC, Died, ModuleFault, unanswered, unfit
from betrace_kms_server.providers.pkcs11.inspection import inspect_flags, inspect_wraps, problem_of
from betrace_kms_server.providers.pkcs11.keys import HsmKey
from betrace_kms_server.providers.pkcs11.processes import Processes
from betrace_kms_server.providers.pkcs11.remedies import LATENCY_ADVICE, remedy
from betrace_kms_server.providers.pkcs11.wrapped import joined, parts
from betrace_kms_server.providers.pkcs11.wraps import WrapCount

R = TypeVar("R")

_ANSWERS = Answers("the HSM", "PKCS#11 ", "pkcs11.module")
_PLACE = "pkcs11"
_FAILURES = (KmsError, ModuleFault, Died, OSError)  # TimeoutError is an OSError
_TRIAL, _TRIAL_AAD, _OTHER_AAD = b"betrace-kms trial", b"trial", b"other"


class Pkcs11Provider:
    """Wraps keys under a key of a token. `processes` are open; `random_of_token` takes data keys from its generator."""

    name = "pkcs11"
    serving_region = _PLACE
    clock_skew_seconds = None

    def __init__(
        self,
        key: HsmKey,
        formers: Sequence[HsmKey],
        processes: Processes,
        wraps: WrapCount,
        *,
        calls_at_once: int,
        random_of_token: bool = False,
        observe: KmsObserver = unobserved,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self.master_key_arn = key.name
        self._key = key
        self._keys = {each.name: each for each in (key, *formers)}
        self._processes = processes
        self._wraps = wraps
        self._random_of_token = random_of_token
        self._observe = observe
        self._breaker = breaker or CircuitBreaker(_PLACE)
        self._slots = CallSlots("the HSM", size=calls_at_once, per_tenant=max(1, calls_at_once // 2))
        self._trial: bytes | None = None

    @property
    def decrypt_key_arns(self) -> Sequence[str]:
        """See KeyProvider."""
        return tuple(self._keys)

    @property
    def breakers(self) -> Mapping[str, State]:
        """See KeyProvider."""
        return {_PLACE: self._breaker.state}

    @property
    def credential_attempts(self) -> Mapping[str, int]:
        """See KeyProvider."""
        return dict(self._processes.logins)

    def is_current(self, arn: str) -> bool:
        """See KeyProvider."""
        return arn == self.master_key_arn

    def unwrapping_key_for(self, arn: str) -> str | None:
        """See KeyProvider."""
        return arn if arn in self._keys else None

    async def generate_data_key(self, number_of_bytes: int, context: Context) -> DataKey:
        """See KeyProvider."""
        plaintext: bytes | None = os.urandom(number_of_bytes)
        if self._random_of_token:
            plaintext = await self._call(
                "GenerateRandom",
                lambda: self._random(number_of_bytes),
                tenant=tenant_of(context),
            )

        async def make() -> DataKey:
            blob = await self._encrypt(plaintext or b"", associated_data(context))
            name = self.master_key_arn
            return _ANSWERS.data_key(name, number_of_bytes, plaintext=plaintext, blob=blob, key_id=name)

        return await self._call("GenerateDataKey", make, tenant=tenant_of(context))

    async def wrap(self, key: KeyMaterial, context: Context) -> WrappedKey:
        """See KeyProvider."""

        async def make() -> WrappedKey:
            blob = await self._encrypt(bytes(key.raw), associated_data(context))
            return _ANSWERS.wrapped_key(self.master_key_arn, blob=blob, key_id=self.master_key_arn)

        return await self._call("Encrypt", make, tenant=tenant_of(context))

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> KeyMaterial:
        """See KeyProvider. What is not of the form of a wrapped key is not sent."""
        key = self._keys.get(wrapped.master_key_arn)
        if key is None or parts(wrapped.blob) is None:
            raise DoesNotOpen

        async def make() -> KeyMaterial:
            plaintext = await self._decrypt(key, wrapped.blob, associated_data(context))
            return _ANSWERS.unwrapped_key(key.name, plaintext=plaintext, key_id=key.name)

        return await self._call("Decrypt", make, key=key, tenant=tenant_of(context))

    async def check(self, arn: str | None = None) -> None:
        """See KeyProvider. A key or a token that may not be used as ours is MasterKeyUnusable in the state `UNFIT`."""
        await self._flags(self._keys.get(arn or "", self._key))

    def remedy(self, error: KmsError) -> str | None:
        """See KeyProvider."""
        return remedy(error, self._key)

    @property
    def latency_advice(self) -> str:
        """See KeyProvider."""
        return LATENCY_ADVICE

    async def inspect(self) -> Sequence[Finding]:
        """See KeyProvider."""
        flags = await self._flags(self._key)
        return [inspect_flags(self._key, flags), inspect_wraps(self._key, self._wraps.share)]

    async def _flags(self, key: HsmKey) -> Mapping[str, Any]:
        """Return the flags of a key, after checking them and, of the current one, that it encrypts and decrypts."""

        async def check() -> Mapping[str, Any]:
            flags: Mapping[str, Any] = await self._processes.ask(_about(key, "describe"))
            if problem := problem_of(flags, wraps=key == self._key):
                raise unfit(key, *problem)
            if key == self._key:
                await self._try()
            return flags

        return await self._call("DescribeKey", check, key=key, insist=True)

    async def _try(self) -> None:
        """Decrypt the trial ciphertext; the first time, make it, and see that another context does not open it."""
        trial = self._trial
        if trial is None:
            trial = await self._encrypt(_TRIAL, _TRIAL_AAD)
            if trial is None:
                raise unfit(self._key, "is on a token that returns no IV and no ciphertext of AES-GCM", _IV_STEP)
            try:
                await self._decrypt(self._key, trial, _OTHER_AAD)
            except ModuleFault:
                pass
            else:
                raise unfit(self._key, "is on a token that does not authenticate the context", "choose another HSM")
        if await self._decrypt(self._key, trial, _TRIAL_AAD) != _TRIAL:
            raise unfit(self._key, "is on a token that does not decrypt what it encrypted", _IV_STEP)
        self._trial = trial

    async def _random(self, number_of_bytes: int) -> bytes | None:
        return _decoded(await self._processes.ask({"do": "random", "bytes": number_of_bytes}))

    async def _encrypt(self, plaintext: bytes, aad: bytes) -> bytes | None:
        """Return a wrapped key, or None if the token's answer makes none."""
        await self._wraps.take()
        answer = await self._processes.ask(
            _about(self._key, "encrypt", plaintext=_encoded(plaintext), aad=_encoded(aad))
        )
        return joined(_decoded(answer.get("iv")), _decoded(answer.get("ciphertext")), len(plaintext))

    async def _decrypt(self, key: HsmKey, blob: bytes, aad: bytes) -> bytes | None:
        iv, ciphertext = parts(blob) or (b"", b"")
        return _decoded(
            await self._processes.ask(
                _about(key, "decrypt", iv=_encoded(iv), ciphertext=_encoded(ciphertext), aad=_encoded(aad))
            )
        )

    async def _call(
        self,
        action: str,
        work: Callable[[], Awaitable[R]],
        *,
        key: HsmKey | None = None,
        tenant: str = "",
        insist: bool = False,
    ) -> R:
        """Do one call, observed. What comes of insisting is not counted by the breaker."""
        async with nullcontext() if insist else self._slots.slot(tenant, current_waiters.get()):
            permit = Permit(lambda outcome: None) if insist else self._breaker.acquire()
            if permit is None:
                raise KmsUnreachable("the HSM failed too often and is left alone for a few seconds: try again then")
            with permit, self._observe(action, _PLACE):
                try:
                    result = await work()
                except _FAILURES as cause:
                    error = await self._error(action, key or self._key, cause)
                    if isinstance(error, KmsUnreachable) and error.metadata.get("kind") != "process":
                        permit.failure()
                    elif isinstance(cause, ModuleFault):
                        permit.success()
                    raise error from cause
                permit.success()
                return result

    async def _error(self, action: str, key: HsmKey, cause: Exception) -> KmsError:
        """Return the error for a call. A token that fails to decrypt, and does decrypt the trial, is in order."""
        if action == "Decrypt" and isinstance(cause, ModuleFault) and cause.name in UNSPECIFIC:
            try:
                await self._try()
            except _FAILURES as another:
                self._processes.renew()
                return unanswered(action, key, another)
            return DoesNotOpen()
        return unanswered(action, key, cause)


_IV_STEP = "set pkcs11.iv to os, or to token for an HSM that makes the IVs, as docs/providers/pkcs11.md says"


def _about(key: HsmKey, do: str, **more: str) -> Mapping[str, str]:
    return {"do": do, "label": key.label, "id": key.id.hex(), **more}


def _encoded(raw: bytes) -> str:
    return b64encode(raw).decode("ascii")


def _decoded(value: object) -> bytes | None:
    try:
        return b64decode(value, validate=True) if isinstance(value, str) else None
    except (Base64Error, ValueError):
        return None
