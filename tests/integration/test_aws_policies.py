"""Every call that the daemon makes to AWS passes the policies that we ship, and calls that are none of its do not.

A proxy before moto notes the calls of real daemons: all RPCs, in both modes of encryption, and what the daemon does
unasked. tests/iam.py decides whether the policies allow them.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from betrace.kms.v1 import admin_pb2 as admin
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace.kms.v1.key_management_pb2_grpc import KeyManagementServiceStub
from betrace_kms_client import AsyncKmsClient
from betrace_kms_server.core.shredding import Shredding
from betrace_kms_server.stores.dynamodb.store import open_dynamodb
from botocore.session import get_session

from bench.workloads import KINDS, Daemon
from tests.aws_proxy import aws_proxy
from tests.daemon import running
from tests.iam import allows, request_of
from tests.integration.test_aws_daemon import SPAN
from tests.moto_server import REGION, MotoServer

IAM = Path(__file__).parents[2] / "deploy/iam"
EXAMPLE = "arn:aws:kms:us-east-1:123456789012:key/abcd1234-5678-90ab-cdef-1234567890ab"
ROLE = "arn:aws:iam::123456789012:role/betrace-kms"
KMS_USES = {"Decrypt", "Encrypt", "GenerateDataKey"}
FORMER = "former"
"""A tenant whose keys are moved to a new master key."""


@dataclass
class Recorded:
    """Calls to AWS, without repetitions."""

    calls: dict[str, tuple[str, str, Mapping[str, str] | None]] = field(default_factory=dict)
    """Permission, resource, and encryption context of a call to KMS."""

    def note(self, action: str, sent: dict[str, Any]) -> None:
        """Note a call, and of a transaction its parts."""
        if "KeyId" in sent:
            self._keep(f"kms:{action}", sent["KeyId"], sent.get("EncryptionContext"))
        elif "TransactItems" in sent:
            for item in sent["TransactItems"]:
                [(part, written)] = item.items()
                permission = "ConditionCheckItem" if part == "ConditionCheck" else f"{part}Item"
                self._keep(f"dynamodb:{permission}", self._table(written["TableName"]))
        else:
            self._keep(f"dynamodb:{action}", self._table(sent["TableName"]))

    def _keep(self, permission: str, resource: str, context: Mapping[str, str] | None = None) -> None:
        self.calls[json.dumps([permission, resource, context], sort_keys=True)] = (permission, resource, context)

    @staticmethod
    def _table(name: str) -> str:
        return f"arn:aws:dynamodb:{REGION}:123456789012:table/{name}"


def policy(name: str, master_keys: list[str], values: Mapping[str, str]) -> Any:
    """Return a policy that we ship, for the keys and the tables of a test."""
    text = (IAM / name).read_text("utf-8").replace(f'"{EXAMPLE}"', json.dumps(master_keys)[1:-1])
    for table in ("betrace-kms-branch-keys", "betrace-kms-keys"):
        setting = "kms_branch_keys_table" if "branch" in table else "kms_store_table"
        text = text.replace(f"table/{table}", f"table/{values[setting]}")
    return json.loads(text.replace("betrace-kms-branch-keys", values["kms_branch_keys_table"]))


@asynccontextmanager
async def pod(data_dir: Path, values: Mapping[str, str]) -> AsyncIterator[tuple[str, Any]]:
    """Run a daemon; gives its address and a stub of its admin service."""
    async with (
        running(data_dir, **values) as daemon,
        grpc.aio.insecure_channel(f"unix:{data_dir}/admin.sock") as channel,
    ):
        yield daemon.addresses[0], KmsAdminServiceStub(channel)


def call_everything(address: str, tenant: str) -> None:
    """Make every RPC of the service for a tenant, as benchmarks do."""
    with grpc.insecure_channel(address) as channel:
        daemon = Daemon(KeyManagementServiceStub(channel), address, tenant)
        for kind in KINDS.values():
            kind.make(daemon, kind.payload, min(kind.batch, 2))


async def administer(on: Any, address: str, tenant: str) -> None:
    """Make every RPC of the admin service; the last one asks to shred the tenant."""
    assert (await on.Validate(admin.ValidateRequest())).passed
    await on.GetStatus(admin.GetStatusRequest())
    assert 0 == (await on.RotateKeys(admin.RotateKeysRequest(all=True))).failed
    async with AsyncKmsClient(address) as client:
        signed = await client.sign_span(tenant, SPAN)
    await on.RevokeKey(admin.RevokeKeyRequest(tenant_id=tenant, key_id=signed.key_id))
    await on.InvalidateTenant(admin.InvalidateTenantRequest(tenant_id=tenant))
    await on.Lock(admin.LockRequest(reason="test"))
    await on.Unlock(admin.UnlockRequest())
    await on.ShredTenant(admin.ShredTenantRequest(tenant_id=tenant))


async def until_shredded(on: Any, tenant: str) -> None:
    """Wait until a shredding that is due has been done."""
    while (await on.ShredTenant(admin.ShredTenantRequest(tenant_id=tenant))).state != "SHREDDED":  # noqa: ASYNC110
        await asyncio.sleep(0.05)


@pytest.fixture
async def recorded(
    tmp_path: Path, moto: MotoServer, dynamodb: dict[str, str]
) -> AsyncIterator[tuple[Recorded, list[str], dict[str, str]]]:
    """Let daemons do everything; gives their calls, the ARNs of both master keys, and the settings."""
    notes = Recorded()
    with aws_proxy(moto.url) as proxy:
        proxy.observe = notes.note
        values = dynamodb | {"aws_kms_endpoint": proxy.url, "kms_store_endpoint": proxy.url}
        new = moto.create_key()
        for mode in ("data-key", "branch-key"):
            async with pod(tmp_path / mode, values | {"kms_encryption_mode": mode}) as (address, on):
                await asyncio.to_thread(call_everything, address, mode)
                await administer(on, address, mode)
                async with AsyncKmsClient(address) as client:
                    await client.sign_span(FORMER, SPAN)
                    await client.encrypt(FORMER, b"secret")
        async with open_dynamodb(values["kms_store_table"], region=REGION, endpoint=moto.url) as store:
            asked = (await store.head("branch-key")).shredding()
            assert await store.set_shredding("branch-key", asked, Shredding("pending", 1_000, 2_000))
        keys = {"aws_kms_master_key_id": new, "aws_kms_decrypt_key_ids": dynamodb["aws_kms_master_key_id"]}
        async with pod(tmp_path / "moved", values | keys) as (_, on):
            await until_shredded(on, "branch-key")
        yield notes, [dynamodb["aws_kms_master_key_id"], new], values


def without(context: Mapping[str, str], name: str) -> Mapping[str, str]:
    """Return a context less one of its pairs."""
    return {key: value for key, value in context.items() if key != name}


async def test_policies_allow_what_the_daemon_calls(recorded: tuple[Recorded, list[str], dict[str, str]]) -> None:
    """Each call passes; and each action of the role's policy is called on each of its resources."""
    notes, master_keys, values = recorded
    role, key = (
        policy(name, master_keys, values) for name in ("betrace-kms-policy.json", "betrace-kms-key-policy.json")
    )
    kinds = set()
    for permission, resource, context in notes.calls.values():
        request = request_of(context)
        assert allows(role, permission, resource, request), (permission, resource, context)
        if permission.startswith("kms:"):
            assert allows(key, permission, resource, request, ROLE), (permission, context)
            assert not allows(key, permission, resource, request, f"{ROLE}-of-another")
            assert not allows(role, permission, f"{resource[:-1]}_", request)
        if context is not None:
            kinds.add(context.get("keyType") or context["type"].partition(":version:")[0])
            names = ("tenantId", "keyType") if "keyType" in context else ("branch-key-id", "tablename")
            for lacking in ({}, *(without(context, name) for name in names)):
                assert not allows(role, permission, resource, request_of(lacking)), (permission, lacking)
                assert not allows(key, permission, resource, request_of(lacking), ROLE), (permission, lacking)
    assert {"encryption", "sealing", "signing", "branch", "branch:ACTIVE", "beacon:ACTIVE"} == kinds
    called = {(permission, resource) for permission, resource, _ in notes.calls.values()}
    assert called == {
        (action, resource)
        for statement in role["Statement"]
        for action in statement["Action"]
        for resource in ([statement["Resource"]] if isinstance(statement["Resource"], str) else statement["Resource"])
    }


@pytest.mark.parametrize(
    "context",
    [
        None,
        {"tenantId": "acme"},
        {"keyType": "encryption"},
        {"tenantId": "acme", "keyType": "other"},
        {"tenantid": "acme", "keyType": "encryption"},
        {"branch-key-id": "acme"},
        {"branch-key-id": "acme", "tablename": "another-table"},
        {"tablename": "betrace-kms-branch-keys"},
        {"aws:dynamodb:tableName": "betrace-kms-keys"},
    ],
)
def test_other_contexts_pass_neither_policy(context: Mapping[str, str] | None) -> None:
    """A context that none of the daemon's keys has opens nothing."""
    for use in KMS_USES:
        for name, principal in (("betrace-kms-policy.json", None), ("betrace-kms-key-policy.json", ROLE)):
            shipped = json.loads((IAM / name).read_text("utf-8"))
            assert not allows(shipped, f"kms:{use}", EXAMPLE, request_of(context), principal)


def test_key_policy_lets_nobody_pass_the_use_on() -> None:
    """Whoever administers the key cannot use it, make grants for it, or schedule its deletion."""
    administration = json.loads((IAM / "betrace-kms-key-policy.json").read_text("utf-8"))["Statement"][0]
    assert {"AWS": ["arn:aws:iam::123456789012:root"]} == administration["Principal"]
    model = get_session().get_service_model("kms")
    actions = {action.removeprefix("kms:") for action in administration["Action"]}
    assert set() == actions - set(model.operation_names)
    uses = {name for name in model.operation_names if "DryRun" in model.operation_model(name).input_shape.members}
    assert KMS_USES | {"CreateGrant", "ReEncrypt", "Sign"} <= uses
    assert set() == actions & ({*uses, "ScheduleKeyDeletion"} - {"RevokeGrant"})
