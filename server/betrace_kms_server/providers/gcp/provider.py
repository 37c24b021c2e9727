"""Cloud KMS of Google Cloud: the master key is a symmetric CryptoKey.

Data keys come from this machine's generator, or from that of Cloud HSM (`GenerateRandomBytes`), and are wrapped by
`Encrypt` with the encryption context as additional authenticated data. The daemon's service account needs
cloudkms.cryptoKeyVersions.useToEncrypt and .useToDecrypt, which roles/cloudkms.cryptoKeyEncrypterDecrypter has, and
cloudkms.cryptoKeys.get, which roles/cloudkms.viewer has; for random bytes, cloudkms.locations.generateRandomBytes.

Whatever goes there or comes from there has a CRC32C ("Verifying end-to-end data integrity" of the documentation of
Cloud KMS): a request that does not arrive as it was sent is an error there, an answer that does not match is a
BadAnswer here. A wrapped key is the ciphertext of Cloud KMS, which has the version of the key in it.

Cloud KMS answers no request id. Each call has a random one as its request reason, which Cloud Audit Logs keep.
"""

import asyncio
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TypeVar

import structlog

from betrace_kms_server.core.associated_data import associated_data
from betrace_kms_server.core.call_slots import CallSlots
from betrace_kms_server.core.errors import (
    CredentialsUnavailable,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
    Throttled,
)
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.core.key_event import KmsObserver, unobserved
from betrace_kms_server.core.keys import DataKey, KeyMaterial, WrappedKey
from betrace_kms_server.core.tenancy import Context, tenant_of
from betrace_kms_server.core.waiters import current_waiters
from betrace_kms_server.providers.answers import MAX_BLOB_BYTES, Answers
from betrace_kms_server.providers.breaker import CircuitBreaker, Permit, State
from betrace_kms_server.providers.gcp.client import Call, CloudKms
from betrace_kms_server.providers.gcp.credentials import Metadata
from betrace_kms_server.providers.gcp.errors import KeyName, refused, version_unusable
from betrace_kms_server.providers.gcp.inspection import ASKED, inspect_key, inspect_permissions
from betrace_kms_server.providers.gcp.remedies import LATENCY_ADVICE, remedy
from betrace_kms_server.providers.gcp.requests import decrypting, describing, encrypting, generating, permitted
from betrace_kms_server.providers.gcp.sdk import (
    CryptoKey,
    CryptoKeyVersion,
    DecryptResponse,
    EncryptResponse,
    GenerateRandomBytesResponse,
    crc32c,
)

A = TypeVar("A")
R = TypeVar("R")

log = structlog.get_logger()

UNFIT = "Unfit"
"""State of a master key that no outage explains: with it, nothing could ever work."""
CALLS_AT_ONCE, CALLS_OF_TENANT = 50, 25
_ANSWERS = Answers("Cloud KMS", "", "gcp.kms.endpoint, and the proxies on the route")
_LEAST_RANDOM_BYTES = 8
_LOCAL_KINDS = frozenset({"sdk"})
_ENABLED = CryptoKeyVersion.CryptoKeyVersionState.ENABLED
_ENCRYPT_DECRYPT = CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT


class GcpProvider:
    """Wraps keys under the CryptoKey `key`. `client` is open; keys of `former` unwrap only.

    `random_of_kms` takes data keys from the generator of Cloud HSM.
    """

    name = "gcp"
    clock_skew_seconds = None

    def __init__(
        self,
        key: KeyName,
        client: CloudKms,
        *,
        former: Sequence[str] = (),
        random_of_kms: bool = False,
        call_seconds: float = 5.0,
        observe: KmsObserver = unobserved,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self.master_key_arn = key.name
        self.decrypt_key_arns: Sequence[str] = (key.name, *former)
        self.serving_region = key.location
        self._key = key
        self._client = client
        self._random_of_kms = random_of_kms
        self._call_seconds = call_seconds
        self._observe = observe
        self._breaker = breaker or CircuitBreaker(key.location)
        self._slots = CallSlots("Cloud KMS", size=CALLS_AT_ONCE, per_tenant=CALLS_OF_TENANT)

    @property
    def breakers(self) -> Mapping[str, State]:
        """See KeyProvider."""
        return {self.serving_region: self._breaker.state}

    @property
    def credential_attempts(self) -> Mapping[str, int]:
        """See KeyProvider."""
        return self._client.credential_attempts

    def is_current(self, arn: str) -> bool:
        """See KeyProvider."""
        return arn == self.master_key_arn

    def unwrapping_key_for(self, arn: str) -> str | None:
        """See KeyProvider."""
        return arn if arn in self.decrypt_key_arns else None

    async def generate_data_key(self, number_of_bytes: int, context: Context) -> DataKey:
        """See KeyProvider."""
        tenant = tenant_of(context)
        raw = os.urandom(number_of_bytes)
        if self._random_of_kms:
            size = max(number_of_bytes, _LEAST_RANDOM_BYTES)
            found = await self._ask("GenerateRandom", self._key, generating(self._key, size), self._random, tenant)
            raw = found[:number_of_bytes] if len(found) == size else found

        def read(answer: EncryptResponse) -> DataKey:
            blob, key_id = self._ciphertext("GenerateDataKey", answer)
            return _ANSWERS.data_key(self._key.name, number_of_bytes, plaintext=raw, blob=blob, key_id=key_id)

        call = encrypting(self._key, raw, associated_data(context))
        return await self._ask("GenerateDataKey", self._key, call, read, tenant)

    async def wrap(self, key: KeyMaterial, context: Context) -> WrappedKey:
        """See KeyProvider."""

        def read(answer: EncryptResponse) -> WrappedKey:
            blob, key_id = self._ciphertext("Encrypt", answer)
            return _ANSWERS.wrapped_key(self._key.name, blob=blob, key_id=key_id)

        call = encrypting(self._key, bytes(key.raw), associated_data(context))
        return await self._ask("Encrypt", self._key, call, read, tenant_of(context))

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> KeyMaterial:
        """See KeyProvider. What cannot be a ciphertext of Cloud KMS for its size is not sent."""
        arn = self.unwrapping_key_for(wrapped.master_key_arn)
        if arn is None or not 1 <= len(wrapped.blob) <= MAX_BLOB_BYTES:
            raise DoesNotOpen
        key = KeyName(arn)

        def read(answer: DecryptResponse) -> KeyMaterial:
            _match("Decrypt", key, answer.plaintext, answer.plaintext_crc32c)
            return _ANSWERS.unwrapped_key(arn, plaintext=answer.plaintext, key_id=arn)

        call = decrypting(key, wrapped.blob, associated_data(context))
        return await self._ask("Decrypt", key, call, read, tenant_of(context))

    async def check(self, arn: str | None = None) -> None:
        """See KeyProvider. A key that may not be used as ours is MasterKeyUnusable in the state `UNFIT`."""
        key = self._key if arn is None else KeyName(arn)
        described = await self._described(key)
        if described.purpose != _ENCRYPT_DECRYPT:
            purpose = CryptoKey.CryptoKeyPurpose(described.purpose).name
            raise MasterKeyUnusable(
                f"{key.name} has the purpose {purpose}: make another key with --purpose=encryption, and set"
                " gcp.kms.key-name",
                metadata={"master_key": key.name},
                state=UNFIT,
            )
        if not described.primary.name:
            raise MasterKeyUnusable(
                f"{key.name} has no primary version: run `gcloud kms keys set-primary-version --version=VERSION"
                f" {key.flags.replace('--key=', '')}`",
                metadata={"master_key": key.name},
            )
        if described.primary.state != _ENABLED:
            state = CryptoKeyVersion.CryptoKeyVersionState(described.primary.state).name
            raise version_unusable(key, state, described.primary.name.rpartition("/")[2])

    def remedy(self, error: KmsError) -> str | None:
        """See KeyProvider."""
        return remedy(error, self._key)

    @property
    def latency_advice(self) -> str:
        """See KeyProvider."""
        return LATENCY_ADVICE

    async def inspect(self) -> Sequence[Finding]:
        """See KeyProvider."""
        call = permitted(self._key, ASKED)
        granted = await self._ask("DescribeKey", self._key, call, lambda answer: set(answer.permissions), insist=True)
        return [inspect_permissions(self._key, granted), inspect_key(self._key, await self._described(self._key))]

    async def _described(self, key: KeyName) -> CryptoKey:
        def read(answer: CryptoKey) -> CryptoKey:
            _ANSWERS.master_key("DescribeKey", key.name, answer.name)
            return answer

        return await self._ask("DescribeKey", key, describing(key), read, insist=True)

    async def _ask(
        self,
        action: str,
        key: KeyName,
        call: Call[A],
        read: Callable[[A], R],
        tenant: str = "",
        *,
        insist: bool = False,
    ) -> R:
        """Ask Cloud KMS, and once more if it does not accept the token. `read` checks the answer.

        What comes of insisting is not counted by the breaker: it would not be a call on trial.
        """
        headers = await self._client.authorization()
        try:
            return await self._attempt(action, key, call, read, tenant, insist, headers)
        except CredentialsUnavailable:
            if not self._client.refused(headers):
                raise
        headers = await self._client.authorization()
        return await self._attempt(action, key, call, read, tenant, insist, headers)

    async def _attempt(
        self,
        action: str,
        key: KeyName,
        call: Call[A],
        read: Callable[[A], R],
        tenant: str,
        insist: bool,
        headers: Metadata,
    ) -> R:
        """Make one call, observed and bounded in time."""
        async with nullcontext() if insist else self._slots.slot(tenant, current_waiters.get()):
            permit = Permit(lambda outcome: None) if insist else self._breaker.acquire()
            if permit is None:
                raise KmsUnreachable("Cloud KMS failed too often and is left alone for a few seconds: try again then")
            reason = secrets.token_hex(16)
            with permit, self._observe(action, key.location) as observed:
                observed.answered(reason)
                try:
                    async with asyncio.timeout(self._call_seconds):
                        answer = await self._client.ask(
                            call, headers=headers, reason=reason, seconds=self._call_seconds
                        )
                except Exception as cause:
                    raise self._reported(permit, refused(cause, action, key), cause) from cause
                permit.success()
                return read(answer)

    def _reported(self, permit: Permit, error: KmsError, cause: Exception) -> KmsError:
        """Report how a call ended to the breaker and to the queue; what nothing has a name for goes to the log."""
        if isinstance(error, Throttled):
            self._slots.throttled()
        if error.metadata.get("kind") in _LOCAL_KINDS:
            log.error("The SDK of Google Cloud fails at a call to Cloud KMS", exc_info=cause)
        else:
            (permit.failure if isinstance(error, KmsUnreachable) else permit.success)()
        return error

    def _random(self, answer: GenerateRandomBytesResponse) -> bytes:
        _match("GenerateRandom", self._key, answer.data, answer.data_crc32c)
        return answer.data

    def _ciphertext(self, action: str, answer: EncryptResponse) -> tuple[bytes, str]:
        """Return a ciphertext, and the key that made it. Raises BadAnswer where a checksum was lost on the way."""
        if not (answer.verified_plaintext_crc32c and answer.verified_additional_authenticated_data_crc32c):
            raise _ANSWERS.bad(action, self._key.name, "does not say that the checksums of the request were verified")
        _match(action, self._key, answer.ciphertext, answer.ciphertext_crc32c)
        return answer.ciphertext, answer.name.partition("/cryptoKeyVersions/")[0]


def _match(action: str, key: KeyName, content: bytes, checksum: object) -> None:
    """Check what was answered against its checksum. A service that sends none is not Cloud KMS. Raises BadAnswer."""
    if checksum != crc32c(content):
        raise _ANSWERS.bad(action, key.name, "does not match its checksum")
