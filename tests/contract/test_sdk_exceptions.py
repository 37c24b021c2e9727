"""Whatever the AWS SDK and what it stands on raise becomes an error of ours, at each place where they are called."""

import asyncio
import errno
import inspect
import json
import ssl
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import aiobotocore.config
import aiobotocore.httpsession
import aiobotocore.response
import aiohttp
import botocore.exceptions
import botocore.httpchecksum
import botocore.parsers
import pytest
from betrace_kms_server.core.errors import CredentialsUnavailable, KmsError, KmsUnreachable, StoreUnavailable
from betrace_kms_server.stores.dynamodb.client import asking

from tests.contract.stub_kms import ACTIONS, provider, stubbed

CANARY = "sdk-said-this"
MODULES: tuple[ModuleType, ...] = (
    botocore.exceptions,
    botocore.parsers,
    aiobotocore.httpsession,
    aiobotocore.response,
    aiohttp,
)


def instances() -> Iterator[Exception]:
    """Make one of each exception class that the libraries export, whatever its constructor takes."""
    kinds = {
        kind
        for module in MODULES
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Exception)
    }
    for kind in sorted(kinds, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}"):
        instance = kind.__new__(kind)
        Exception.__init__(instance, CANARY)
        if isinstance(instance, botocore.exceptions.ClientError):
            instance.response, instance.operation_name = {"Error": {"Code": "New", "Message": CANARY}}, "Decrypt"
        yield instance


OTHERS: tuple[Exception, ...] = (
    ValueError(CANARY),
    RuntimeError(CANARY),
    KeyError(CANARY),
    TypeError(CANARY),
    AttributeError(CANARY),
    NotImplementedError(CANARY),
    UnicodeDecodeError("utf-8", b"x", 0, 1, CANARY),
    json.JSONDecodeError(CANARY, "", 0),
    ssl.SSLError(1, CANARY),
    OSError(errno.EMFILE, CANARY),
    OSError(errno.ECONNREFUSED, CANARY),
    TimeoutError(CANARY),
    asyncio.IncompleteReadError(b"", 1),
    EOFError(CANARY),
    RecursionError(CANARY),
)
ALL = [*instances(), *OTHERS]


@pytest.mark.parametrize("cause", ALL, ids=lambda cause: type(cause).__qualname__)
async def test_exception_of_a_library_is_translated(cause: Exception) -> None:
    """Each becomes a KmsError whose text has nothing of the library's, at KMS and at DynamoDB."""

    async def answer(action: str, parameters: Any) -> Any:
        raise cause

    async with provider(stubbed(answer)) as aws:
        with pytest.raises(KmsError) as of_kms:
            await ACTIONS["Decrypt"](aws)
    with pytest.raises(StoreUnavailable) as of_store:
        async with asking("GetItem", "keys"):
            raise cause
    assert CANARY not in str(of_kms.value) + str(of_store.value)


def test_the_libraries_export_many() -> None:
    """The list is made by introspection, so it must not be empty when a library moves its classes."""
    assert len(ALL) > 120


async def test_cancellation_is_none_of_them() -> None:
    """A call that is cancelled stays cancelled."""

    async def answer(action: str, parameters: Any) -> Any:
        raise asyncio.CancelledError

    async with provider(stubbed(answer)) as aws:
        with pytest.raises(asyncio.CancelledError):
            await ACTIONS["Decrypt"](aws)


@pytest.mark.parametrize(
    ("cause", "kind", "words"),
    [
        (botocore.exceptions.SSLError(endpoint_url="x", error=CANARY), KmsUnreachable, "TLS certificate"),
        (
            botocore.exceptions.ProxyConnectionError(proxy_url="http://user:pw@p"),
            KmsUnreachable,
            "proxy of HTTPS_PROXY",
        ),
        (OSError(errno.EMFILE, CANARY), KmsUnreachable, "raise the limit of open files"),
        (OSError(errno.ENFILE, CANARY), KmsUnreachable, "raise the limit of open files"),
        (
            botocore.exceptions.EndpointConnectionError(endpoint_url="x", error=OSError(errno.EMFILE, "x")),
            KmsUnreachable,
            "raise the limit of open files",
        ),
        (botocore.exceptions.ProfileNotFound(profile="x"), CredentialsUnavailable, "credentials are missing"),
    ],
)
async def test_text_says_which_kind(cause: Exception, kind: type[KmsError], words: str) -> None:
    """TLS, proxies, CA files and file descriptors are told from a network that is silent."""

    async def answer(action: str, parameters: Any) -> Any:
        raise cause

    async with provider(stubbed(answer)) as aws:
        with pytest.raises(kind, match=words) as error:
            await ACTIONS["Decrypt"](aws)
    assert "pw" not in str(error.value)
