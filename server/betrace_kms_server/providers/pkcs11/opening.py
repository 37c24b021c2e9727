"""Opens the provider, and refuses what could never work."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec

from betrace_kms_server.core.errors import KmsError, MasterKeyUnusable, StartRefused
from betrace_kms_server.core.key_event import KmsObserver
from betrace_kms_server.providers.pkcs11.errors import UNFIT
from betrace_kms_server.providers.pkcs11.keys import HsmKey
from betrace_kms_server.providers.pkcs11.processes import Processes
from betrace_kms_server.providers.pkcs11.provider import Pkcs11Provider
from betrace_kms_server.providers.pkcs11.wraps import WrapCount


@asynccontextmanager
async def open_pkcs11(
    key: HsmKey,
    formers: Sequence[HsmKey],
    processes: Processes,
    wraps: WrapCount,
    *,
    calls_at_once: int,
    random_of_token: bool,
    observe: KmsObserver,
) -> AsyncIterator[Pkcs11Provider]:
    """Give a provider. Raises StartRefused for a library, a token or a key that is unfit.

    If the token is away, or refuses the PIN, the provider is given all the same. A daemon that exited would be started
    again and again, and each start would be another try of the PIN.
    """
    if find_spec("pkcs11") is None:
        raise StartRefused("betrace.kms.provider is pkcs11, and python-pkcs11 is missing: install betrace-kms[pkcs11]")
    async with processes:
        provider = Pkcs11Provider(
            key,
            formers,
            processes,
            wraps,
            calls_at_once=calls_at_once,
            random_of_token=random_of_token,
            observe=observe,
        )
        await _refuse_unfit(provider)
        yield provider


async def _refuse_unfit(provider: Pkcs11Provider) -> None:
    try:
        await provider.check()
    except MasterKeyUnusable as error:
        if error.state == UNFIT:
            raise StartRefused(error.message) from error
    except KmsError:
        return  # the monitor reports it, and tries again
