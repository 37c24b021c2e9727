"""Fixtures of the contract tests: each provider with its KMS, each store, and caches on a fake clock."""

import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.providers.aws.provider import AwsProvider
from betrace_kms_server.providers.local import LocalProvider
from betrace_kms_server.stores.dynamodb.creation import create_table
from betrace_kms_server.stores.dynamodb.store import open_dynamodb
from betrace_kms_server.stores.postgresql.store import open_postgresql
from betrace_kms_server.stores.sqlite.store import DATABASE_FILE, SqliteStore, open_sqlite
from botocore.awsrequest import AWSResponse

from tests.cloud_kms_server import CloudKmsServer
from tests.contract.azure_peer import azure_provider
from tests.contract.doubles import CountedLocalProvider, FakeClock, Kms, Open, StoreKind, counting
from tests.contract.gcp_peer import gcp_provider
from tests.contract.pkcs11_peer import KeptProcesses, pkcs11_provider
from tests.contract.postgres_peer import Place, emptied
from tests.contract.vault_peer import vault_provider
from tests.keyvault_server import KeyVaultServer
from tests.moto_server import REGION, MotoServer
from tests.openbao_server import OpenBaoServer
from tests.softhsm import Token


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


@asynccontextmanager
async def _azure(request: pytest.FixtureRequest) -> AsyncIterator[Kms]:
    server: KeyVaultServer = request.getfixturevalue("key_vault")
    calls = Counter[str]()
    async with azure_provider(server, observe=counting(calls)) as provider, azure_provider(server) as foreign:
        calls.clear()
        yield Kms(provider, calls, foreign)


@asynccontextmanager
async def _vault(request: pytest.FixtureRequest) -> AsyncIterator[Kms]:
    bao: OpenBaoServer = request.getfixturevalue("bao")
    calls = Counter[str]()
    async with vault_provider(bao, observe=counting(calls)) as provider, vault_provider(bao) as foreign:
        calls.clear()
        yield Kms(provider, calls, foreign)


@asynccontextmanager
async def _pkcs11(request: pytest.FixtureRequest) -> AsyncIterator[Kms]:
    """Two keys of SoftHSM, and processes of it, that all tests share."""
    token: Token = request.getfixturevalue("hsm_token")
    ours, theirs = request.getfixturevalue("hsm_keys")
    calls = Counter[str]()
    async with (
        pkcs11_provider(token, ours, processes=KeptProcesses, observe=counting(calls)) as provider,
        pkcs11_provider(token, theirs, processes=KeptProcesses) as foreign,
    ):
        yield Kms(provider, calls, foreign)


@pytest.fixture(scope="session")
def hsm_keys(hsm_token: Token) -> Iterator[tuple[str, str]]:
    """Make two master keys for the process, and give their labels."""
    yield hsm_token.make_key(), hsm_token.make_key()
    for worker in KeptProcesses.idle:
        worker.end()
    KeptProcesses.idle.clear()


@asynccontextmanager
async def _gcp(request: pytest.FixtureRequest) -> AsyncIterator[Kms]:
    server: CloudKmsServer = request.getfixturevalue("cloud_kms")
    calls = Counter[str]()
    async with gcp_provider(server, observe=counting(calls)) as provider, gcp_provider(server) as foreign:
        yield Kms(provider, calls, foreign)


PROVIDERS: Mapping[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Kms]]] = {
    "local": _local,
    "aws": _aws,
    "azure": _azure,
    "vault": _vault,
    "pkcs11": _pkcs11,
    "gcp": _gcp,
}


@pytest.fixture(params=PROVIDERS)
async def kms(request: pytest.FixtureRequest) -> AsyncIterator[Kms]:
    """Give every provider in turn."""
    async with PROVIDERS[request.param](request) as kms:
        yield kms


@asynccontextmanager
async def _sqlite(request: pytest.FixtureRequest) -> AsyncIterator[StoreKind]:
    folder: Path = request.getfixturevalue("tmp_path")
    yield StoreKind(
        open=lambda: open_sqlite(folder / DATABASE_FILE),
        forbid_writes=lambda store: store._database.execute_fetchall("PRAGMA query_only=ON"),
    )


@asynccontextmanager
async def _dynamodb(request: pytest.FixtureRequest) -> AsyncIterator[StoreKind]:
    moto: MotoServer = request.getfixturevalue("moto")
    table = f"keys-{secrets.token_hex(8)}"
    async for _ in create_table(table, region=REGION, endpoint=moto.url):
        pass

    async def forbid_writes(store: Any) -> None:
        denial = AWSResponse(moto.url, 400, {}, None), {"Error": {"Code": "AccessDeniedException"}}
        for action in ("TransactWriteItems", "PutItem"):
            store._client.meta.events.register(f"before-call.dynamodb.{action}", lambda **_: denial)

    yield StoreKind(
        open=lambda: open_dynamodb(table, region=REGION, endpoint=moto.url),
        forbid_writes=forbid_writes,
    )


@asynccontextmanager
async def _postgresql(request: pytest.FixtureRequest) -> AsyncIterator[StoreKind]:
    place: Place = await emptied(request.getfixturevalue("postgres"))

    async def forbid_writes(store: Any) -> None:
        place.forbid_writes()

    yield StoreKind(open=lambda: open_postgresql(place.conninfo), forbid_writes=forbid_writes)


STORES: Mapping[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[StoreKind]]] = {
    "sqlite": _sqlite,
    "dynamodb": _dynamodb,
    "postgresql": _postgresql,
}


@pytest.fixture(params=STORES)
async def store_kind(request: pytest.FixtureRequest) -> AsyncIterator[StoreKind]:
    """Give every kind of store in turn."""
    async with STORES[request.param](request) as kind:
        yield kind


@pytest.fixture
def open_store(store_kind: StoreKind) -> Open:
    """Give, for every kind of store, what opens one that is empty at first."""
    return store_kind.open


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
