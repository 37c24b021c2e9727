"""Daemons that share branch keys with official SDKs, on the table of a library."""

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace_kms_client import AsyncKmsClient
from betrace_kms_envelope import Message
from betrace_kms_server.data_keys.hierarchy import version_of
from betrace_kms_server.stores.dynamodb.creation import create_table

from tests.daemon import running
from tests.interop.hierarchy import BranchKeyLibrary
from tests.interop.sdk import REGION, TENANT, Combination


@dataclass(frozen=True, slots=True)
class Pod:
    """A daemon with branch keys on the shared table."""

    client: AsyncKmsClient
    admin: Any
    settings: Mapping[str, str]

    async def seal(self, combination: Combination) -> bytes:
        """Return a message that the daemon sealed."""
        sealed = await self.client.encrypt(TENANT, combination.plaintext, combination.context)
        return sealed.ciphertext_blob

    async def open(self, message: bytes, combination: Combination) -> bytes:
        """Return what the daemon opens."""
        return (await self.client.decrypt(TENANT, message, combination.context)).plaintext


def shares(library: BranchKeyLibrary) -> dict[str, str]:
    """Return the settings of a daemon that shares the branch keys of a library, but for its key store's table."""
    return {
        "betrace_kms_provider": "aws",
        "aws_kms_master_key_id": library.kms_key,
        "aws_kms_region": REGION,
        "aws_kms_endpoint": library.endpoint,
        "kms_store": "dynamodb",
        "kms_store_endpoint": library.endpoint,
        "kms_encryption_mode": "branch-key",
        "kms_branch_keys_table": library.table,
        "kms_branch_keys_logical_name": library.logical_name,
    }


@asynccontextmanager
async def pod(folder: Path, library: BranchKeyLibrary, **others: str) -> AsyncIterator[Pod]:
    """Run a daemon that shares the branch keys of a library, with a key store of its own."""
    table = f"keys-{secrets.token_hex(8)}"
    async for _ in create_table(table, region=REGION, endpoint=library.endpoint):
        pass
    settings = shares(library) | {"kms_store_table": table} | others
    async with (
        running(folder, **settings) as daemon,
        AsyncKmsClient(daemon.addresses[0]) as client,
        grpc.aio.insecure_channel(f"unix:{folder}/admin.sock") as channel,
    ):
        yield Pod(client, KmsAdminServiceStub(channel), settings)


def version_in(message: bytes) -> str:
    """Return the version of the branch key in a message."""
    (encrypted,) = Message.parse(message).encrypted_data_keys
    return str(version_of(encrypted))
