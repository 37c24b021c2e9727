"""Fixtures of the contract tests: each provider with its KMS, each store, and caches on a fake clock."""

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from betrace_kms_server.cache import KeyCache
from betrace_kms_server.providers.aws import AwsProvider
from betrace_kms_server.providers.local import LocalProvider
from betrace_kms_server.stores.sqlite import DATABASE_FILE, SqliteStore, open_sqlite

from tests.contract.doubles import CountedLocalProvider, FakeClock, Kms
from tests.moto_server import REGION, MotoServer


@asynccontextmanager
async def _local(request: pytest.FixtureRequest) -> AsyncIterator[Kms]:
    provider = CountedLocalProvider(os.urandom(32))
    yield Kms(provider, provider.calls, foreign=LocalProvider(os.urandom(32)))


@asynccontextmanager
async def _aws(request: pytest.FixtureRequest) -> AsyncIterator[Kms]:
    moto: MotoServer = request.getfixturevalue("moto")
    async with (
        AwsProvider(moto.create_key(), region=REGION, endpoint=moto.url) as provider,
        AwsProvider(moto.create_key(), region=REGION, endpoint=moto.url) as foreign,
    ):
        moto.calls.clear()
        yield Kms(provider, moto.calls, foreign)


PROVIDERS: Mapping[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Kms]]] = {
    "local": _local,
    "aws": _aws,
}


@pytest.fixture(params=PROVIDERS)
async def kms(request: pytest.FixtureRequest) -> AsyncIterator[Kms]:
    """Give every provider in turn."""
    async with PROVIDERS[request.param](request) as kms:
        yield kms


@pytest.fixture
def clock() -> FakeClock:
    """Give a clock that stands still."""
    return FakeClock()


@pytest.fixture
async def new_cache(clock: FakeClock) -> AsyncIterator[Callable[..., KeyCache]]:
    """Give a maker of empty caches whose entries live for an hour of the fake clock."""
    async with AsyncExitStack() as resources:

        def make(max_size: int = 1000) -> KeyCache:
            cache = KeyCache("test", ttl=3600.0, max_size=max_size, clock=clock, jitter=lambda: 0.0)
            resources.push_async_callback(cache.close)
            return cache

        yield make


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Give the path of a key store's file, which is not there yet."""
    return tmp_path / DATABASE_FILE


@pytest.fixture
async def store(database: Path) -> AsyncIterator[SqliteStore]:
    """Give an empty SQLite store."""
    async with open_sqlite(database) as store:
        yield store
