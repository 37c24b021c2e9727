"""What a key-management service must do for us. tests/contract/test_providers.py holds every provider to it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from betrace_kms_server.core.errors import KmsError
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.core.keys import DataKey, KeyMaterial, WrappedKey
from betrace_kms_server.core.tenancy import Context
from betrace_kms_server.providers.breaker import State


class KeyProvider(Protocol):
    """Makes, wraps and unwraps keys under one master key."""

    @property
    def name(self) -> str:
        """Name in the configuration and in the rows of the key store, e.g. "aws"."""

    @property
    def master_key_arn(self) -> str:
        """ARN of the master key that wraps what is new."""

    @property
    def decrypt_key_arns(self) -> Sequence[str]:
        """ARNs of the master keys that may unwrap, the current one first."""

    @property
    def serving_region(self) -> str:
        """The region that answered the last good call; before the first, the one of the master key."""

    @property
    def breakers(self) -> Mapping[str, State]:
        """State of each region's circuit breaker, by the region's name, the one of the master key first."""

    @property
    def credential_attempts(self) -> Mapping[str, int]:
        """How many attempts to obtain the daemon's own credentials ended so: OK, or the kind of failure."""

    def is_current(self, arn: str) -> bool:
        """Return whether an ARN is the current master key's or that of one of its replicas."""

    def unwrapping_key_for(self, arn: str) -> str | None:
        """Return which of `decrypt_key_arns` unwraps what `arn` wrapped, or None if none does."""

    async def generate_data_key(self, number_of_bytes: int, context: Context) -> DataKey:
        """Return a new random key of 1 to 1,024 bytes, in plaintext and wrapped under the master key and context."""

    async def wrap(self, key: KeyMaterial, context: Context) -> WrappedKey:
        """Wrap a key that is there already, of at most 4,096 bytes, under the master key and context."""

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> KeyMaterial:
        """Return the key that was wrapped under that master key and context.

        Raises DoesNotOpen if it was not, or if none of `decrypt_key_arns` unwraps what that master key wrapped.
        """

    @property
    def clock_skew_seconds(self) -> float | None:
        """How far this machine's clock was ahead of KMS's at the last `check`, or None if that is not known."""

    async def check(self, arn: str | None = None) -> None:
        """Return if a master key, by default the current one, can be used; raise the KmsError that says why not.

        A circuit breaker never keeps it from asking.
        """

    def remedy(self, error: KmsError) -> str | None:
        """Return an operator's next step about an error, or None if it is not about the service."""

    @property
    def latency_advice(self) -> str:
        """What an operator does about a service that answers slowly."""

    async def inspect(self) -> Sequence[Finding]:
        """Return what a production check must know of the service and of the daemon's rights there, good or bad.

        Changes nothing. Raises a KmsError if it cannot be found out.
        """
