"""The official branch key store and hierarchical keyring, on the DynamoDB and KMS that moto plays."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import boto3  # type: ignore[import-untyped]
from aws_cryptographic_material_providers.keystore.client import KeyStore  # type: ignore[import-untyped]
from aws_cryptographic_material_providers.keystore.config import KeyStoreConfig  # type: ignore[import-untyped]
from aws_cryptographic_material_providers.keystore.models import (  # type: ignore[import-untyped]
    CreateKeyInput,
    CreateKeyStoreInput,
    Discovery,
    GetActiveBranchKeyInput,
    KMSConfigurationDiscovery,
    KMSConfigurationKmsKeyArn,
    VersionKeyInput,
)
from aws_cryptographic_material_providers.mpl.models import (  # type: ignore[import-untyped]
    CreateAwsKmsHierarchicalKeyringInput,
)

from tests.interop.sdk import REGION, Sdk, material_providers


class SealsAndOpens(Protocol):
    """An official SDK with a keyring."""

    def seal(
        self, plaintext: bytes, context: Mapping[str, str], *, suite: int = 0x0478, frame_length: int = 4096
    ) -> bytes:
        """Return a message."""
        ...

    def open(self, message: bytes) -> tuple[bytes, dict[str, str]]:
        """Return a message's plaintext and the whole context of its header."""
        ...


@dataclass(frozen=True)
class BranchKeyLibrary(ABC):
    """A branch key store of an official library on a table, with a logical name and a KMS key."""

    endpoint: str
    kms_key: str
    """An ARN, or empty for that which each row names: such a library makes no branch keys or versions."""
    table: str
    logical_name: str

    takes_empty_values: ClassVar[bool] = True
    """Whether the encryption context of a message may have a pair whose value is empty."""

    @abstractmethod
    def make_table(self) -> None:
        """Make the table as the library does."""

    @abstractmethod
    def create(self, branch_key_id: str, context: dict[str, str]) -> None:
        """Make a branch key with a custom encryption context."""

    @abstractmethod
    def rotate(self, branch_key_id: str) -> None:
        """Make a new version of a branch key."""

    @abstractmethod
    def active_key(self, branch_key_id: str) -> tuple[str, bytes]:
        """Return version and material of a branch key."""

    @abstractmethod
    def sdk(self, branch_key_id: str) -> SealsAndOpens:
        """Return the official SDK with a new hierarchical keyring for one branch key, which caches nothing yet."""

    def rows(self, branch_key_id: str) -> list[dict[str, Any]]:
        """Return the rows of a branch key as DynamoDB has them, each value with its type."""
        dynamodb = boto3.session.Session().client("dynamodb", region_name=REGION, endpoint_url=self.endpoint)
        found: list[dict[str, Any]] = dynamodb.query(
            TableName=self.table,
            KeyConditionExpression="#id = :id",
            ExpressionAttributeNames={"#id": "branch-key-id"},
            ExpressionAttributeValues={":id": {"S": branch_key_id}},
            ConsistentRead=True,
        )["Items"]
        return found

    def beacon(self, branch_key_id: str) -> tuple[dict[str, Any], bytes]:
        """Return the row of a beacon key, and the key, unwrapped by KMS itself."""
        (item,) = (row for row in self.rows(branch_key_id) if row["type"] == {"S": "beacon:ACTIVE"})
        context = {name: next(iter(value.values())) for name, value in item.items() if name != "enc"}
        kms = boto3.session.Session().client("kms", region_name=REGION, endpoint_url=self.endpoint)
        opened = kms.decrypt(
            CiphertextBlob=item["enc"]["B"], EncryptionContext={**context, "tablename": self.logical_name}
        )
        return item, opened["Plaintext"]


class OfficialBranchKeys(BranchKeyLibrary):
    """That of the official library for Python."""

    def _store(self) -> Any:
        session = boto3.session.Session()
        return KeyStore(
            KeyStoreConfig(
                ddb_table_name=self.table,
                kms_configuration=(
                    KMSConfigurationKmsKeyArn(self.kms_key) if self.kms_key else KMSConfigurationDiscovery(Discovery())
                ),
                logical_key_store_name=self.logical_name,
                ddb_client=session.client("dynamodb", region_name=REGION, endpoint_url=self.endpoint),
                kms_client=session.client("kms", region_name=REGION, endpoint_url=self.endpoint),
            )
        )

    def make_table(self) -> None:
        self._store().create_key_store(CreateKeyStoreInput())

    def create(self, branch_key_id: str, context: dict[str, str]) -> None:
        self._store().create_key(CreateKeyInput(branch_key_identifier=branch_key_id, encryption_context=context))

    def rotate(self, branch_key_id: str) -> None:
        self._store().version_key(VersionKeyInput(branch_key_identifier=branch_key_id))

    def active_key(self, branch_key_id: str) -> tuple[str, bytes]:
        found = self._store().get_active_branch_key(GetActiveBranchKeyInput(branch_key_identifier=branch_key_id))
        materials = found.branch_key_materials
        return str(materials.branch_key_version), bytes(materials.branch_key)

    def sdk(self, branch_key_id: str) -> Sdk:
        return Sdk(
            keyring=material_providers().create_aws_kms_hierarchical_keyring(
                CreateAwsKmsHierarchicalKeyringInput(
                    key_store=self._store(), branch_key_id=branch_key_id, ttl_seconds=600
                )
            )
        )
