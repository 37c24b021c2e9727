"""ProviderWithFormers: today's provider makes and wraps keys, and former ones still unwrap what they wrapped.

It is how a deployment leaves a key-management service: `kms.former-providers` names the services that it comes from.
Each reads its own settings and is asked to unwrap and to check its master key, never to make or to wrap a key. Which
one is asked goes by the name of the master key that a row or a message carries, so none ever gets another's keys.
"""

from collections.abc import Mapping, Sequence

from betrace_kms_server.core.errors import DoesNotOpen, KmsError
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.core.keys import DataKey, KeyMaterial, WrappedKey
from betrace_kms_server.core.tenancy import Context
from betrace_kms_server.providers.breaker import State
from betrace_kms_server.providers.protocol import KeyProvider


class ProviderWithFormers:
    """Today's provider, in front of the former ones in the order in which a bare wrapped key is tried."""

    def __init__(self, current: KeyProvider, formers: Sequence[KeyProvider]) -> None:
        self._current = current
        self._all = (current, *formers)

    @property
    def name(self) -> str:
        """See KeyProvider."""
        return self._current.name

    @property
    def master_key_arn(self) -> str:
        """See KeyProvider."""
        return self._current.master_key_arn

    @property
    def decrypt_key_arns(self) -> Sequence[str]:
        """See KeyProvider."""
        return tuple(arn for each in self._all for arn in each.decrypt_key_arns)

    @property
    def serving_region(self) -> str:
        """See KeyProvider."""
        return self._current.serving_region

    @property
    def breakers(self) -> Mapping[str, State]:
        """Those of today's provider, then those of the former ones, which begin with the provider's name."""
        former = {f"{each.name}-{name}": state for each in self._all[1:] for name, state in each.breakers.items()}
        return {**self._current.breakers, **former}

    @property
    def credential_attempts(self) -> Mapping[str, int]:
        """See KeyProvider."""
        return self._current.credential_attempts

    @property
    def clock_skew_seconds(self) -> float | None:
        """See KeyProvider."""
        return self._current.clock_skew_seconds

    def is_current(self, arn: str) -> bool:
        """See KeyProvider."""
        return self._current.is_current(arn)

    def unwrapping_key_for(self, arn: str) -> str | None:
        """See KeyProvider."""
        return next((found for each in self._all if (found := each.unwrapping_key_for(arn)) is not None), None)

    async def generate_data_key(self, number_of_bytes: int, context: Context) -> DataKey:
        """See KeyProvider."""
        return await self._current.generate_data_key(number_of_bytes, context)

    async def wrap(self, key: KeyMaterial, context: Context) -> WrappedKey:
        """See KeyProvider."""
        return await self._current.wrap(key, context)

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> KeyMaterial:
        """See KeyProvider."""
        owner = self._owner(wrapped.master_key_arn)
        if owner is None:
            raise DoesNotOpen
        return await owner.unwrap(wrapped, context)

    async def check(self, arn: str | None = None) -> None:
        """See KeyProvider."""
        owner = self._current if arn is None else self._owner(arn) or self._current
        await owner.check(arn)

    def remedy(self, error: KmsError) -> str | None:
        """See KeyProvider. An error names the master key that it is about, if it is about one."""
        owner = self._owner(error.metadata.get("master_key", "")) or self._current
        return owner.remedy(error)

    @property
    def latency_advice(self) -> str:
        """See KeyProvider."""
        return self._current.latency_advice

    async def inspect(self) -> Sequence[Finding]:
        """See KeyProvider. A former provider is about to be removed, with what it may do too much."""
        return await self._current.inspect()

    def _owner(self, arn: str) -> KeyProvider | None:
        return next((each for each in self._all if each.unwrapping_key_for(arn) is not None), None)
