"""Opens the provider, and refuses what could never work."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from betrace_kms_server.core.errors import KmsError, MasterKeyUnusable, StartRefused
from betrace_kms_server.core.key_event import KmsObserver
from betrace_kms_server.providers.gcp.client import CloudKms
from betrace_kms_server.providers.gcp.credentials import GoogleCredentials
from betrace_kms_server.providers.gcp.errors import KeyName
from betrace_kms_server.providers.gcp.provider import UNFIT, GcpProvider


@asynccontextmanager
async def open_gcp(
    key: KeyName,
    *,
    endpoint: str | None,
    emulated: bool,
    former: Sequence[str],
    random_of_kms: bool,
    call_seconds: float,
    observe: KmsObserver,
) -> AsyncIterator[GcpProvider]:
    """Give a provider. Raises StartRefused for a key that is unfit.

    If Cloud KMS does not answer, or there are no credentials, the provider is given all the same: they may come.
    An emulator is called without credentials and without TLS.
    """
    async with AsyncExitStack() as resources:
        credentials = None if emulated else GoogleCredentials()
        client = await resources.enter_async_context(CloudKms(endpoint, credentials))
        provider = GcpProvider(
            key, client, former=former, random_of_kms=random_of_kms, call_seconds=call_seconds, observe=observe
        )
        await _refuse_unfit(provider)
        yield provider


async def _refuse_unfit(provider: GcpProvider) -> None:
    try:
        await provider.check()
    except MasterKeyUnusable as error:
        if error.state == UNFIT:
            raise StartRefused(error.message) from error
    except KmsError:
        return  # the monitor reports it, and tries again
