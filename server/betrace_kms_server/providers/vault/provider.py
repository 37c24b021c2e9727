"""OpenBao and HashiCorp Vault: the master key is a key of a transit secrets engine.

Data keys come from this machine's generator, or from `transit/random`, and are wrapped by `encrypt` with the encryption
context as `associated_data`. `datakey/*` takes none, so it is not used. The policy of the daemon needs `update` on
encrypt/KEY and decrypt/KEY and `read` on keys/KEY, and nothing else.

A wrapped key is the text that Vault answers, `vault:v1:...`, whose version says which of the key's versions opens it:
so a key that was rotated opens what its former versions wrapped.

An AEAD alone binds a context, and a key that was exported has wrapped keys in unknown hands: a key of another type, or
one that is exportable, derived or convergent, is refused.
"""

import asyncio
import os
import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

from betrace_kms_server.core.associated_data import associated_data
from betrace_kms_server.core.call_slots import CallSlots
from betrace_kms_server.core.errors import DoesNotOpen, KmsError, KmsUnreachable, MasterKeyUnusable
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.core.key_event import KmsObserver, unobserved
from betrace_kms_server.core.keys import DataKey, KeyMaterial, WrappedKey
from betrace_kms_server.core.tenancy import Context, tenant_of
from betrace_kms_server.core.waiters import current_waiters
from betrace_kms_server.providers.answers import Answers
from betrace_kms_server.providers.breaker import CircuitBreaker, Permit, State
from betrace_kms_server.providers.vault.client import Answer, VaultClient
from betrace_kms_server.providers.vault.errors import TransitKey, denied, refused, rejected, unanswered
from betrace_kms_server.providers.vault.inspection import inspect_capabilities, inspect_key, needed_capabilities
from betrace_kms_server.providers.vault.remedies import LATENCY_ADVICE, remedy
from betrace_kms_server.providers.vault.tokens import Tokens

R = TypeVar("R")

AEAD_TYPES = frozenset({"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"})
UNFIT = "Unfit"
"""State of a master key that no outage explains: with it, nothing could ever work."""
_ANSWERS = Answers("Vault", "transit ", "vault.address, and the proxies on the route")
_CIPHERTEXT = re.compile(r"vault:v[1-9][0-9]{0,9}:[A-Za-z0-9+/]+={0,2}", re.ASCII)
_PLACE = "vault"
CALLS_AT_ONCE, CALLS_OF_TENANT = 16, 8
_LOCAL_KINDS = frozenset({"sdk", "endpoint"})


class VaultProvider:
    """Wraps keys under a transit key. `client` is open; `random_of_vault` takes data keys from Vault's generator."""

    name = "vault"
    serving_region = _PLACE
    clock_skew_seconds = None

    def __init__(
        self,
        key: TransitKey,
        client: VaultClient,
        tokens: Tokens,
        *,
        random_of_vault: bool = False,
        call_seconds: float = 5.0,
        observe: KmsObserver = unobserved,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self.master_key_arn = key.name
        self._key = key
        self._client = client
        self._tokens = tokens
        self._random_of_vault = random_of_vault
        self._call_seconds = call_seconds
        self._observe = observe
        self._breaker = breaker or CircuitBreaker(_PLACE)
        self._slots = CallSlots("Vault", size=CALLS_AT_ONCE, per_tenant=CALLS_OF_TENANT)

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
        return dict(self._tokens.attempts)

    def is_current(self, arn: str) -> bool:
        """See KeyProvider."""
        return arn == self.master_key_arn

    def unwrapping_key_for(self, arn: str) -> str | None:
        """See KeyProvider."""
        return arn if self.is_current(arn) else None

    async def generate_data_key(self, number_of_bytes: int, context: Context) -> DataKey:
        """See KeyProvider."""
        plaintext: object = os.urandom(number_of_bytes)
        if self._random_of_vault:
            plaintext = await self._ask(
                "GenerateRandom",
                f"random/{number_of_bytes}",
                {"format": "base64"},
                lambda answer: _decoded(answer.data.get("random_bytes")),
                tenant=tenant_of(context),
            )
        return await self._ask(
            "GenerateDataKey",
            f"encrypt/{self._key.key}",
            _wrapping(plaintext, context),
            lambda answer: _ANSWERS.data_key(
                self.master_key_arn,
                number_of_bytes,
                plaintext=plaintext,
                blob=_ciphertext(answer),
                key_id=self.master_key_arn,
            ),
            tenant=tenant_of(context),
        )

    async def wrap(self, key: KeyMaterial, context: Context) -> WrappedKey:
        """See KeyProvider."""
        return await self._ask(
            "Encrypt",
            f"encrypt/{self._key.key}",
            _wrapping(bytes(key.raw), context),
            lambda answer: _ANSWERS.wrapped_key(
                self.master_key_arn, blob=_ciphertext(answer), key_id=self.master_key_arn
            ),
            tenant=tenant_of(context),
        )

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> KeyMaterial:
        """See KeyProvider. What is not of the form of a ciphertext of Vault is not sent."""
        ciphertext = wrapped.blob.decode("ascii", "replace")
        if self.unwrapping_key_for(wrapped.master_key_arn) is None or not _CIPHERTEXT.fullmatch(ciphertext):
            raise DoesNotOpen
        return await self._ask(
            "Decrypt",
            f"decrypt/{self._key.key}",
            {"ciphertext": ciphertext, "associated_data": _encoded(associated_data(context))},
            lambda answer: _ANSWERS.unwrapped_key(
                self.master_key_arn,
                plaintext=_decoded(answer.data.get("plaintext")),
                key_id=self.master_key_arn,
            ),
            tenant=tenant_of(context),
        )

    async def check(self, arn: str | None = None) -> None:
        """See KeyProvider. A key that may not be used as ours is MasterKeyUnusable in the state `UNFIT`."""
        data = await self._described()
        if data.get("soft_deleted") is True:
            raise MasterKeyUnusable(
                f"{self.master_key_arn} is deleted: restore it with `bao write -f"
                f" {self._key.mount}/keys/{self._key.key}/soft-delete-restore`",
                state="PendingDeletion",
                withdrawn=True,
            )
        if problem := _unfit(data):
            raise MasterKeyUnusable(
                f"{self.master_key_arn} {problem}: make another key of type aes256-gcm96 that is neither exportable,"
                " derived nor convergent, and set vault.transit.key",
                state=UNFIT,
            )

    def remedy(self, error: KmsError) -> str | None:
        """See KeyProvider."""
        return remedy(error, self._key)

    @property
    def latency_advice(self) -> str:
        """See KeyProvider."""
        return LATENCY_ADVICE

    async def inspect(self) -> Sequence[Finding]:
        """See KeyProvider."""
        token = await self._tokens.token()
        paths = needed_capabilities(self._key)
        answer = await self._tokens.ask("POST", "sys/capabilities-self", {"paths": list(paths)}, token=token)
        data = await self._described()
        return [inspect_capabilities(paths, answer.data), inspect_key(self._key, data)]

    async def _described(self) -> Mapping[str, Any]:
        return await self._ask(
            "DescribeKey", f"keys/{self._key.key}", None, lambda answer: answer.data, method="GET", insist=True
        )

    async def _ask(
        self,
        action: str,
        path: str,
        body: Mapping[str, Any] | None,
        read: Callable[[Answer], R],
        *,
        method: str = "POST",
        tenant: str = "",
        insist: bool = False,
    ) -> R:
        """Ask Vault, and once more if it does not know the token and there is another. `read` checks the answer.

        What comes of insisting is not counted by the breaker: it would not be a call on trial.
        """
        token = await self._tokens.token()

        async def attempt(token: str) -> R | Answer:
            async with nullcontext() if insist else self._slots.slot(tenant, current_waiters.get()):
                permit = Permit(lambda outcome: None) if insist else self._breaker.acquire()
                if permit is None:
                    raise KmsUnreachable("Vault failed too often and is left alone for a few seconds: try again then")
                return await self._attempt(action, method, path, body, read, permit, token)

        result = await attempt(token)
        if not isinstance(result, Answer):
            return result
        if await self._tokens.accepted(token):
            raise denied(action, self._key)
        another = await self._tokens.another(token)
        if another is None:
            raise rejected("its token is not known, or has ended")
        result = await attempt(another)
        if isinstance(result, Answer):
            raise denied(action, self._key)
        return result

    async def _attempt(
        self,
        action: str,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        read: Callable[[Answer], R],
        permit: Permit,
        token: str,
    ) -> R | Answer:
        """Make one call, observed and bounded in time. Returns the answer itself if it is a 403."""
        with permit, self._observe(action, _PLACE) as call:
            try:
                async with asyncio.timeout(self._call_seconds):
                    answer = await self._client.ask(method, f"{self._key.mount}/{path}", body, token=token)
            except Exception as cause:
                error = unanswered(cause)
                if error.metadata.get("kind") not in _LOCAL_KINDS:
                    permit.failure()
                raise error from cause
            call.answered(answer.request_id)
            if answer.status == 403:
                permit.success()
                return answer
            if answer.status != 200:
                raise self._reported(permit, refused(action, self._key, answer))
            permit.success()
            if answer.body is None or "data" not in answer.body:
                raise _ANSWERS.bad(action, self.master_key_arn, "is not one of Vault")
            return read(answer)

    def _reported(self, permit: Permit, error: KmsError) -> KmsError:
        (permit.failure if isinstance(error, KmsUnreachable) else permit.success)()
        return error


def _unfit(data: Mapping[str, Any]) -> str | None:
    """Return why a key cannot be a master key, or None."""
    if data.get("type") not in AEAD_TYPES:
        return f"is of type {str(data.get('type'))[:40]}, which binds no encryption context"
    for name in ("exportable", "derived", "convergent_encryption"):
        if data.get(name) is True:
            return f"is {name.removesuffix('_encryption')}"
    return None


def _wrapping(plaintext: object, context: Context) -> Mapping[str, str]:
    """Return the request to wrap a key; what is no bytes is refused when the answer is checked."""
    raw = plaintext if isinstance(plaintext, bytes) else b""
    return {"plaintext": _encoded(raw), "associated_data": _encoded(associated_data(context))}


def _encoded(raw: bytes) -> str:
    return b64encode(raw).decode("ascii")


def _decoded(value: object) -> bytes | None:
    try:
        return b64decode(value, validate=True) if isinstance(value, str) else None
    except (Base64Error, ValueError):
        return None


def _ciphertext(answer: Answer) -> bytes | None:
    found = answer.data.get("ciphertext")
    return found.encode("ascii") if isinstance(found, str) and _CIPHERTEXT.fullmatch(found) else None
