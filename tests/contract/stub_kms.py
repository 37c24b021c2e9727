"""A KMS client of our own in the place of the SDK's: it answers as a test says, and tells how often it was opened."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace
from typing import Any

from betrace_kms_server.core.keys import KeyMaterial, WrappedKey
from betrace_kms_server.providers.aws.provider import AwsProvider, KmsApi
from betrace_kms_server.providers.protocol import KeyProvider

from tests.contract.samples import ARN
from tests.moto_server import REGION

Answer = Callable[[str, Mapping[str, Any]], Awaitable[Any]]
"""What a stub does for an action and its parameters."""

ACTIONS: Mapping[str, Callable[[KeyProvider], Awaitable[object]]] = {
    "GenerateDataKey": lambda provider: provider.generate_data_key(32, {}),
    "Encrypt": lambda provider: provider.wrap(KeyMaterial(bytes(32)), {}),
    "Decrypt": lambda provider: provider.unwrap(WrappedKey(b"blob", ARN), {}),
    "DescribeKey": lambda provider: provider.check(),
}
"""How to bring a provider to call each action."""


class StubKms:
    """A KMS client that answers every call by `answer(action, parameters)`."""

    meta = SimpleNamespace(endpoint_url="https://kms.test")

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def generate_data_key(self, **parameters: Any) -> Any:
        return await self._answer("GenerateDataKey", parameters)

    async def encrypt(self, **parameters: Any) -> Any:
        return await self._answer("Encrypt", parameters)

    async def decrypt(self, **parameters: Any) -> Any:
        return await self._answer("Decrypt", parameters)

    async def describe_key(self, **parameters: Any) -> Any:
        return await self._answer("DescribeKey", parameters)


class Clients:
    """A client factory that counts what it opens and closes."""

    def __init__(self, open_client: Callable[[str, str | None], AbstractAsyncContextManager[KmsApi]]) -> None:
        self.opened = 0
        self.closed = 0
        self._open_client = open_client

    @asynccontextmanager
    async def __call__(self, region: str, endpoint: str | None) -> AsyncIterator[KmsApi]:
        async with self._open_client(region, endpoint) as client:
            self.opened += 1
            try:
                yield client
            finally:
                self.closed += 1


def stubbed(answer: Answer) -> Clients:
    """Return a factory of clients that answer so."""

    @asynccontextmanager
    async def open_client(region: str, endpoint: str | None) -> AsyncIterator[KmsApi]:
        await asyncio.sleep(0)  # opening a real one yields to other tasks as well
        yield StubKms(answer)

    return Clients(open_client)


def provider(clients: Clients, *, call_seconds: float = 5.0, endpoint: str | None = None) -> AwsProvider:
    """Return a provider with stubbed clients."""
    return AwsProvider(ARN, region=REGION, endpoint=endpoint, call_seconds=call_seconds, client_factory=clients)
