"""Opens the provider, and refuses what could never work."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from azure.core.credentials_async import AsyncSupportsTokenInfo
from azure.identity.aio import DefaultAzureCredential

from betrace_kms_server.core.errors import KmsError, MasterKeyUnusable, StartRefused
from betrace_kms_server.core.key_event import KmsObserver, unobserved
from betrace_kms_server.providers.azure.client import VaultClient
from betrace_kms_server.providers.azure.credentials import Credential
from betrace_kms_server.providers.azure.inspection import UNFIT
from betrace_kms_server.providers.azure.key_ids import KeyId
from betrace_kms_server.providers.azure.provider import AzureProvider
from betrace_kms_server.providers.azure.sealing import HsmSealing, SignedSealing
from betrace_kms_server.providers.breaker import CircuitBreaker

_SHARE_OF_CREDENTIALS = 0.8
"""Of the time of a call. What is left lets the error for a token that does not come arrive before the call ends."""


@asynccontextmanager
async def open_azure(
    key: KeyId,
    sign_key: KeyId | None,
    *,
    call_seconds: float = 5.0,
    observe: KmsObserver = unobserved,
    breaker: CircuitBreaker | None = None,
    credential: AsyncSupportsTokenInfo | None = None,
    **options: Any,
) -> AsyncIterator[AzureProvider]:
    """Give a provider; a key of a Key Vault needs a sign key.

    Raises StartRefused for a key that is unfit, and for AZURE_* variables that the SDK refuses.
    If Key Vault does not answer, the provider is given all the same: it may come. `credential` is by default what the
    SDK finds, `options` are those of the SDK's clients.
    """
    if credential is None:
        credential = _found_credential()
    sealing = HsmSealing(key) if sign_key is None else SignedSealing(key, sign_key)
    source = Credential(credential, wait_seconds=call_seconds * _SHARE_OF_CREDENTIALS)
    async with source, VaultClient(key.vault_url, source, **options) as client:
        provider = AzureProvider(
            key, sealing, client, source, call_seconds=call_seconds, observe=observe, breaker=breaker
        )
        await _refuse_unfit(provider)
        yield provider


def _found_credential() -> AsyncSupportsTokenInfo:
    try:
        return DefaultAzureCredential()
    except ValueError as cause:
        raise StartRefused(
            "the SDK refuses the AZURE_* variables: check AZURE_TENANT_ID, AZURE_AUTHORITY_HOST and"
            " AZURE_TOKEN_CREDENTIALS"
        ) from cause


async def _refuse_unfit(provider: AzureProvider) -> None:
    try:
        await provider.check()
    except MasterKeyUnusable as error:
        if error.state == UNFIT:
            raise StartRefused(error.message) from error
    except KmsError:
        return  # the monitor reports it, and tries again
