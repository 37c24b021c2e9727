"""Providers of a Cloud KMS that is played on loopback, each with a key of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from betrace_kms_server.providers.gcp.client import CloudKms
from betrace_kms_server.providers.gcp.errors import KeyName
from betrace_kms_server.providers.gcp.provider import GcpProvider

from tests.cloud_kms_server import CloudKmsServer, PlayedKey


@asynccontextmanager
async def gcp_provider(
    server: CloudKmsServer, key: PlayedKey | None = None, **options: Any
) -> AsyncIterator[GcpProvider]:
    """Give a provider with a key, by default a new one."""
    key = key or server.make_key()
    async with CloudKms(server.url, None) as client:
        yield GcpProvider(KeyName(key.name), client, **options)
