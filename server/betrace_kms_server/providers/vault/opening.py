"""Opens the provider, and refuses what could never work."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from betrace_kms_server.core.errors import KmsError, MasterKeyUnusable, StartRefused
from betrace_kms_server.core.key_event import KmsObserver
from betrace_kms_server.providers.vault.client import VaultClient
from betrace_kms_server.providers.vault.errors import TransitKey
from betrace_kms_server.providers.vault.provider import UNFIT, VaultProvider
from betrace_kms_server.providers.vault.tokens import Login, Tokens

log = structlog.get_logger()


@asynccontextmanager
async def open_vault(
    client: VaultClient,
    login: Login,
    key: TransitKey,
    *,
    random_of_vault: bool,
    call_seconds: float,
    observe: KmsObserver,
) -> AsyncIterator[VaultProvider]:
    """Give a provider. Raises StartRefused for certificates that cannot be read, and for a key that is unfit.

    If Vault does not answer, the provider is given all the same: it may come.
    """
    async with AsyncExitStack() as resources:
        try:
            await resources.enter_async_context(client)
        except OSError as cause:  # ssl.SSLError is one
            raise StartRefused(
                "vault.ca-file, vault.auth.cert-file or vault.auth.key-file cannot be used: each must be there and hold"
                f" PEM, the key without a passphrase ({type(cause).__name__})"
            ) from cause
        tokens = Tokens(client, login)
        resources.push_async_callback(tokens.close)
        provider = VaultProvider(
            key, client, tokens, random_of_vault=random_of_vault, call_seconds=call_seconds, observe=observe
        )
        await _refuse_unfit(provider)
        yield provider


async def _refuse_unfit(provider: VaultProvider) -> None:
    try:
        await provider.check()
    except MasterKeyUnusable as error:
        if error.state == UNFIT:
            raise StartRefused(error.message) from error
    except KmsError:
        return  # the monitor reports it, and tries again
