"""AWS KMS through aioboto3, in one region or in several.

The role of the daemon needs, on the master key, on each of its replicas, and nothing else: kms:GenerateDataKey,
kms:Encrypt, kms:Decrypt, kms:DescribeKey; role.py checks that it may no more. Credentials come from the SDK's own
chain: environment, ~/.aws, web identity (IRSA), EKS pod identity and ECS, instance metadata.

Every call goes to the region of the master key. If KMS there does not answer, throttles, or was left alone by its
breaker, the call goes on to the replicas in their order, and ends as a whole in `call_seconds`, in which waiting for
credentials and for a connection does not count (see region.py). Each region gets an equal share of what is left of
them. No task brings us back: the breaker lets through a few calls on trial, and of these a region that has others
behind it gets only `TRIAL_SECONDS`.

Whatever else KMS answers is final. A key that is disabled or a role that is denied was so decided by somebody, and is
not got round by another region. Neither are missing credentials, which are missing everywhere.

Outside, the master key has one name, its ARN in its own region: caches and `decrypt_key_arns` go by it. Only a wrapped
key carries the ARN of what really wrapped it, because other readers of our messages ask there first.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from betrace_kms_server.aws.arns import Replica, are_replicas
from betrace_kms_server.aws.credentials import AwsCredentials
from betrace_kms_server.aws.endpoints import inspect_endpoints
from betrace_kms_server.core.errors import (
    CredentialsUnavailable,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
)
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.core.key_event import KmsObserver, unobserved
from betrace_kms_server.core.keys import DataKey, KeyMaterial, WrappedKey
from betrace_kms_server.core.tenancy import VALIDATION_TENANT, Context, encryption_context, tenant_of
from betrace_kms_server.core.waiters import current_waiters
from betrace_kms_server.providers.answers import Answers
from betrace_kms_server.providers.aws.region import TRANSIENT, ClientFactory, KmsApi, KmsRegion, Request, SdkClients
from betrace_kms_server.providers.aws.remedies import latency_advice, remedy
from betrace_kms_server.providers.aws.role import inspect_role
from betrace_kms_server.providers.breaker import CircuitBreaker, Permit, State

__all__ = ["AwsProvider", "KmsApi", "Replica"]

A = TypeVar("A", bound=Mapping[str, Any])
R = TypeVar("R")

_ANSWERS = Answers("KMS", "kms:", "aws.kms.endpoint if it is set, and the proxies on the route")

TRIAL_SECONDS = 1.0
"""What a call may spend on a region that is on trial, while there is another to go on to."""

_SAMPLE_BYTES, _SAMPLE_CONTEXT = 32, encryption_context(VALIDATION_TENANT, {})
"""The data key that stands in for others when the role is tried."""

_Place = tuple[KmsRegion, str]
"""A region, and the ARN of a master key there."""


_USABLE = frozenset({"Enabled", "Updating"})
"""Key states in which KMS encrypts and decrypts (AWS KMS developer guide, "Key states of AWS KMS keys"). A multi-Region
key is Updating while its primary Region changes."""
_WITHDRAWN = {
    "Disabled": "enable it",
    "PendingDeletion": "cancel its deletion, then enable it",
    "PendingReplicaDeletion": "cancel its deletion, then enable it",
    "PendingImport": "import its key material again",
}
"""Key states that somebody chose for a key, and what ends them. All others pass, or end by a repair."""
_NEXT_STEPS = {**_WITHDRAWN, "Unavailable": "connect its custom key store again"}


class AwsProvider:
    """Wraps keys under a symmetric KMS key. `new_breaker` makes the breaker of a region, given its name."""

    name = "aws"

    def __init__(
        self,
        master_key_id: str,
        *,
        region: str,
        endpoint: str | None = None,
        replicas: Sequence[Replica] = (),
        former_key_arns: Sequence[str] = (),
        call_seconds: float = 5.0,
        client_factory: ClientFactory | None = None,
        new_breaker: Callable[[str], CircuitBreaker] = CircuitBreaker,
        observe: KmsObserver = unobserved,
    ) -> None:
        clients = client_factory or SdkClients(AwsCredentials(region))

        def in_region(name: str, endpoint: str | None) -> KmsRegion:
            return KmsRegion(name, endpoint, client_factory=clients, breaker=new_breaker(name), observe=observe)

        self.master_key_arn = master_key_id
        self.serving_region = region
        self.clock_skew_seconds: float | None = None
        self._endpoint = endpoint
        self._primary = in_region(region, endpoint)
        self._replicas: list[_Place] = [(in_region(each.region, each.endpoint), each.arn) for each in replicas]
        self._former_key_arns = tuple(former_key_arns)
        self._call_seconds = call_seconds

    async def __aenter__(self) -> "AwsProvider":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        async with AsyncExitStack() as closing:
            for region, _ in self._places(self.master_key_arn):
                closing.push_async_callback(region.close)

    @property
    def decrypt_key_arns(self) -> Sequence[str]:
        """The master key, then the former ones."""
        return tuple(dict.fromkeys((self.master_key_arn, *self._former_key_arns)))

    @property
    def breakers(self) -> Mapping[str, State]:
        """See KeyProvider."""
        return {region.name: region.breaker.state for region, _ in self._places(self.master_key_arn)}

    @property
    def credential_attempts(self) -> Mapping[str, int]:
        """See KeyProvider."""
        credentials = self._primary.credentials
        return {} if credentials is None else dict(credentials.attempts)

    def is_current(self, arn: str) -> bool:
        """See KeyProvider. A replica in any region counts, also one that is not configured."""
        return arn == self.master_key_arn or are_replicas(arn, self.master_key_arn)

    def unwrapping_key_for(self, arn: str) -> str | None:
        """See KeyProvider. A multi-Region key of another region is opened by its replica that is configured here."""
        if self.is_current(arn):
            return self.master_key_arn
        if arn in self._former_key_arns:
            return arn
        return next((former for former in self._former_key_arns if are_replicas(arn, former)), None)

    async def generate_data_key(self, number_of_bytes: int, context: Context) -> DataKey:
        """See KeyProvider."""
        return await self._ask(
            "GenerateDataKey",
            self.master_key_arn,
            lambda kms, arn: kms.generate_data_key(
                KeyId=arn, NumberOfBytes=number_of_bytes, EncryptionContext=dict(context)
            ),
            lambda arn, answer: _ANSWERS.data_key(
                arn,
                number_of_bytes,
                plaintext=answer.get("Plaintext"),
                blob=answer.get("CiphertextBlob"),
                key_id=answer.get("KeyId"),
            ),
            tenant=tenant_of(context),
        )

    async def wrap(self, key: KeyMaterial, context: Context) -> WrappedKey:
        """See KeyProvider."""
        return await self._ask(
            "Encrypt",
            self.master_key_arn,
            lambda kms, arn: kms.encrypt(KeyId=arn, Plaintext=key.raw, EncryptionContext=dict(context)),
            lambda arn, answer: _ANSWERS.wrapped_key(
                arn, blob=answer.get("CiphertextBlob"), key_id=answer.get("KeyId")
            ),
            tenant=tenant_of(context),
        )

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> KeyMaterial:
        """See KeyProvider. Every call to KMS names the key to use, so a blob of a foreign account never opens."""
        master_key_arn = self.unwrapping_key_for(wrapped.master_key_arn)
        if master_key_arn is None or not wrapped.blob:
            raise DoesNotOpen
        return await self._ask(
            "Decrypt",
            master_key_arn,
            lambda kms, arn: kms.decrypt(KeyId=arn, CiphertextBlob=wrapped.blob, EncryptionContext=dict(context)),
            lambda arn, answer: _ANSWERS.unwrapped_key(
                arn, plaintext=answer.get("Plaintext"), key_id=answer.get("KeyId")
            ),
            tenant=tenant_of(context),
        )

    async def check(self, arn: str | None = None) -> None:
        """See KeyProvider. Also learns the ARN of a master key that was configured as an alias (emulators only).

        It is never refused: if the breakers leave no region to ask, it asks the first one nevertheless.
        """
        key, self.clock_skew_seconds = await self._ask(
            "DescribeKey",
            arn or self.master_key_arn,
            lambda kms, arn: kms.describe_key(KeyId=arn),
            lambda arn, answer: (_described(arn, answer), _clock_skew(answer)),
            insist=True,
        )
        if arn is None and not self._replicas:
            self.master_key_arn = key.arn
        if key.state not in _USABLE:
            step = _NEXT_STEPS.get(key.state, "wait until it is Enabled, or use another key")
            raise MasterKeyUnusable(
                f"the master key {key.arn} is {key.state}: {step}", state=key.state, withdrawn=key.state in _WITHDRAWN
            )
        if (key.usage, key.spec) != ("ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT"):
            raise MasterKeyUnusable(
                f"the master key {key.arn} is {key.spec} for {key.usage}: a symmetric key for encrypt and decrypt is"
                " needed"
            )

    def remedy(self, error: KmsError) -> str | None:
        """See KeyProvider."""
        return remedy(error, self.master_key_arn, self._endpoint)

    @property
    def latency_advice(self) -> str:
        """See KeyProvider."""
        return latency_advice(self.master_key_arn)

    async def inspect(self) -> Sequence[Finding]:
        """See KeyProvider. The role is tried in the first region, and only if what answers there is AWS."""
        clients = {
            f"KMS in {region.name}": await region.make_ready("DescribeKey", arn)
            for region, arn in self._places(self.master_key_arn)
        }
        endpoints = inspect_endpoints("kms_endpoint", {name: kms.meta.endpoint_url for name, kms in clients.items()})
        if endpoints.problem:
            return [endpoints, Finding("kms_role", "not known: the daemon's role is tried at an endpoint of AWS alone")]
        sample = await self.generate_data_key(_SAMPLE_BYTES, _SAMPLE_CONTEXT)
        kms = next(iter(clients.values()))
        return [endpoints, await inspect_role(kms, sample.wrapped, _SAMPLE_CONTEXT, self._call_seconds)]

    async def _ask(
        self,
        action: str,
        arn: str,
        request: Request[A],
        read: Callable[[str, A], R],
        *,
        tenant: str = "",
        insist: bool = False,
    ) -> R:
        """Ask KMS, and once more if other credentials came in the place of those that it refused.

        `read` checks what was answered.
        """
        results: list[R] = []

        async def checked(kms: KmsApi, local_arn: str) -> A:
            answer = await request(kms, local_arn)
            results.append(read(local_arn, answer))  # here, so that the call is counted by what the check says
            return answer

        try:
            await self._ask_regions(action, arn, checked, tenant, insist)
        except CredentialsUnavailable as error:
            credentials = self._primary.credentials
            if error.metadata.get("kind") != "rejected" or credentials is None or not await credentials.replaced():
                raise
            await self._ask_regions(action, arn, checked, tenant, insist)
        return results[-1]

    async def _ask_regions(self, action: str, arn: str, request: Request[A], tenant: str, insist: bool) -> A:
        """Ask one region after the other, until one answers or all have failed.

        What comes of insisting is not counted by the breaker: it would not be a call on trial.
        """
        places = self._places(arn)
        closed = [place for place in places if place[0].breaker.state != "open"]  # one that opens later gets no time
        failure: KmsError | None = None
        now = asyncio.get_running_loop().time
        seconds, asked = self._call_seconds, False
        for index, (region, local_arn) in enumerate([*closed, *(places[:1] if insist else ())], 1):
            forced = index > len(closed)
            if forced and asked:
                break
            try:
                kms = await region.make_ready(action, local_arn)
                async with nullcontext() if insist else region.slots.slot(tenant, current_waiters.get()):
                    permit = Permit(lambda outcome: None) if forced else region.breaker.acquire()
                    if permit is None:
                        continue
                    asked, began = True, now()
                    share = _share(seconds, region, closed[index:])
                    try:
                        answer: A = await region.ask(kms, action, local_arn, request, permit, share)
                        self.serving_region = region.name
                        return answer
                    finally:
                        seconds -= now() - began
            except TRANSIENT as error:
                failure = error
        if failure is None:
            raise _circuit_open(places)
        try:
            raise failure
        finally:
            del failure  # it leads to this frame, and the cycle would keep the request and its key for a while

    def _places(self, arn: str) -> list[_Place]:
        """Return where a master key can be asked. The former ones exist only in the region of the current one."""
        first = (self._primary, arn)
        return [first, *self._replicas] if arn == self.master_key_arn else [first]


@dataclass(frozen=True, slots=True)
class _Described:
    """What DescribeKey says about a key."""

    arn: str
    state: str
    usage: str
    spec: str


def _described(asked: str, answer: Mapping[str, Any]) -> _Described:
    """Read an answer of DescribeKey. A member that an emulator leaves out has the default of the API.

    Raises BadAnswer if it describes another key, or no key.
    """
    key = answer.get("KeyMetadata")
    if not isinstance(key, Mapping) or not (key.get("Arn") or key.get("KeyId")):
        raise _ANSWERS.bad("DescribeKey", asked, "describes no key")
    if not (arn := key.get("Arn")) and key["KeyId"] == asked.rpartition("/")[2]:
        arn = asked
    arn = _ANSWERS.master_key("DescribeKey", asked, arn or key["KeyId"])
    return _Described(
        arn,
        str(key.get("KeyState") or ("Disabled" if key.get("Enabled") is False else "Enabled")),
        str(key.get("KeyUsage") or "ENCRYPT_DECRYPT"),
        str(key.get("KeySpec") or key.get("CustomerMasterKeySpec") or "SYMMETRIC_DEFAULT"),
    )


def _share(seconds: float, region: KmsRegion, rest: Sequence[_Place]) -> float:
    """Return how much of the time that is left a region gets, if the rest is to have as much each."""
    others = sum(other.breaker.state != "open" for other, _ in rest)
    share = seconds / (1 + others)
    return min(share, TRIAL_SECONDS) if others and region.breaker.state == "half_open" else share


def _circuit_open(places: Sequence[_Place]) -> KmsUnreachable:
    regions = " and ".join(region.name for region, _ in places)
    return KmsUnreachable(f"KMS in {regions} failed too often and is left alone for a few seconds: try again then")


def _clock_skew(answer: Mapping[str, Any]) -> float | None:
    """Return how many seconds our clock is ahead of the `Date` of an answer (RFC 9110, section 6.6.1)."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        return (datetime.now(UTC) - parsedate_to_datetime(headers["date"])).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None
