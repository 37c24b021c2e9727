"""Providers of the Key Vault and the Managed HSM of tests, with the SDK's own credentials and clients."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from azure.core.pipeline.transport import AioHttpTransport
from azure.identity.aio import ClientSecretCredential
from betrace_kms_server.providers.azure.key_ids import KeyId
from betrace_kms_server.providers.azure.opening import open_azure
from betrace_kms_server.providers.azure.provider import AzureProvider

from tests.keyvault_server import CLIENT, HSM, SECRET, TENANT, Key, KeyVaultServer


@asynccontextmanager
async def azure_provider(
    server: KeyVaultServer, key: Key | None = None, sign_key: Key | None = None, *, secret: str = SECRET, **options: Any
) -> AsyncIterator[AzureProvider]:
    """Give a provider of a Key Vault, by default with new keys."""
    key, sign_key = key or server.create_key(), sign_key or server.create_key("EC")
    async with server.session() as session:
        transport = AioHttpTransport(session=session, session_owner=False)
        credential = ClientSecretCredential(TENANT, CLIENT, secret, transport=transport)
        async with open_azure(
            KeyId(key.id), KeyId(sign_key.id), credential=credential, transport=transport, **options
        ) as provider:
            yield provider


@asynccontextmanager
async def hsm_provider(server: KeyVaultServer, key: Key | None = None, **options: Any) -> AsyncIterator[AzureProvider]:
    """Give a provider of a Managed HSM, by default with a new key."""
    key = key or server.create_key("oct-HSM", vault=HSM)
    async with server.session() as session:
        transport = AioHttpTransport(session=session, session_owner=False)
        credential = ClientSecretCredential(TENANT, CLIENT, SECRET, transport=transport)
        async with open_azure(KeyId(key.id), None, credential=credential, transport=transport, **options) as provider:
            yield provider
