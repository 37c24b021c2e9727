"""The official branch key store and hierarchical keyring, on the DynamoDB and KMS that moto plays."""

from dataclasses import dataclass
from typing import Any

import boto3  # type: ignore[import-untyped]
from aws_cryptographic_material_providers.keystore.client import KeyStore  # type: ignore[import-untyped]
from aws_cryptographic_material_providers.keystore.config import KeyStoreConfig  # type: ignore[import-untyped]
from aws_cryptographic_material_providers.keystore.models import (  # type: ignore[import-untyped]
    CreateKeyInput,
    CreateKeyStoreInput,
    GetActiveBranchKeyInput,
    KMSConfigurationKmsKeyArn,
    VersionKeyInput,
)
from aws_cryptographic_material_providers.mpl.models import (  # type: ignore[import-untyped]
    CreateAwsKmsHierarchicalKeyringInput,
)

from tests.interop.sdk import REGION, Sdk, material_providers


@dataclass(frozen=True, slots=True)
class OfficialBranchKeys:
    """A branch key store of the official library on a table, with a logical name and a KMS key."""

    endpoint: str
    kms_key: str
    table: str
    logical_name: str

    def _store(self) -> Any:
        session = boto3.session.Session()
        return KeyStore(
            KeyStoreConfig(
                ddb_table_name=self.table,
                kms_configuration=KMSConfigurationKmsKeyArn(self.kms_key),
                logical_key_store_name=self.logical_name,
                ddb_client=session.client("dynamodb", region_name=REGION, endpoint_url=self.endpoint),
                kms_client=session.client("kms", region_name=REGION, endpoint_url=self.endpoint),
            )
        )

    def make_table(self) -> None:
        """Make the table as the library does."""
        self._store().create_key_store(CreateKeyStoreInput())

    def create(self, branch_key_id: str, context: dict[str, str]) -> None:
        """Make a branch key with a custom encryption context."""
        self._store().create_key(CreateKeyInput(branch_key_identifier=branch_key_id, encryption_context=context))

    def beacon(self, branch_key_id: str) -> tuple[dict[str, Any], bytes]:
        """Return the row of a beacon key, and the key, unwrapped by KMS itself."""
        session = boto3.session.Session()
        item = session.client("dynamodb", region_name=REGION, endpoint_url=self.endpoint).get_item(
            TableName=self.table, Key={"branch-key-id": {"S": branch_key_id}, "type": {"S": "beacon:ACTIVE"}}
        )["Item"]
        context = {name: next(iter(value.values())) for name, value in item.items() if name != "enc"}
        opened = session.client("kms", region_name=REGION, endpoint_url=self.endpoint).decrypt(
            CiphertextBlob=item["enc"]["B"], EncryptionContext={**context, "tablename": self.logical_name}
        )
        return item, opened["Plaintext"]

    def rotate(self, branch_key_id: str) -> None:
        """Make a new version of a branch key."""
        self._store().version_key(VersionKeyInput(branch_key_identifier=branch_key_id))

    def active_key(self, branch_key_id: str) -> tuple[str, bytes]:
        """Return version and material of a branch key."""
        found = self._store().get_active_branch_key(GetActiveBranchKeyInput(branch_key_identifier=branch_key_id))
        materials = found.branch_key_materials
        return str(materials.branch_key_version), bytes(materials.branch_key)

    def sdk(self, branch_key_id: str) -> Sdk:
        """Return the official SDK with a new hierarchical keyring for one branch key, which caches nothing yet."""
        return Sdk(
            keyring=material_providers().create_aws_kms_hierarchical_keyring(
                CreateAwsKmsHierarchicalKeyringInput(
                    key_store=self._store(), branch_key_id=branch_key_id, ttl_seconds=600
                )
            )
        )
