"""What may be set: the names are those of BeTrace's application.properties."""

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from betrace_kms_server.config.azure import AzureSettings
from betrace_kms_server.config.gcp import GcpSettings
from betrace_kms_server.config.keys import KeySettings
from betrace_kms_server.config.pkcs11 import Pkcs11Settings
from betrace_kms_server.config.provider import ProviderSettings
from betrace_kms_server.config.server import ServerSettings
from betrace_kms_server.config.values import REGION, Dsn, Endpoint, Switch
from betrace_kms_server.config.vault import VaultSettings


class Settings(
    ServerSettings, KeySettings, ProviderSettings, AzureSettings, GcpSettings, VaultSettings, Pkcs11Settings
):
    """Every setting under its public name; `model_fields` has the descriptions that docs/configuration.md shows."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    data_dir: Path = Field(Path("data"), alias="kms.data-dir", description="key store and local master key")
    store: Literal["sqlite", "dynamodb", "postgresql"] = Field(
        "sqlite",
        alias="kms.store",
        description="where wrapped keys live: `sqlite`, or for several pods `dynamodb` or `postgresql`",
    )
    store_table: str | None = Field(
        None,
        alias="kms.store.table",
        pattern=r"^[A-Za-z0-9_.-]{3,255}$",
        description="name of the DynamoDB table: 3 to 255 of `A-Za-z0-9_.-`",
    )
    store_region: str | None = Field(
        None,
        alias="kms.store.region",
        pattern=REGION,
        description="Region of the DynamoDB table; the KMS key's by default",
    )
    store_endpoint: Endpoint | None = Field(
        None, alias="kms.store.endpoint", description="DynamoDB endpoint override, for emulators"
    )
    store_dsn: Dsn | None = Field(
        None,
        alias="kms.store.dsn",
        description="PostgreSQL database, as libpq takes it, without a password; PG* variables complete it",
    )
    store_password_file: Path | None = Field(
        None,
        alias="kms.store.password-file",
        description="file of the password for PostgreSQL, read for each connection",
    )
    store_allow_ephemeral: Switch = Field(
        False, alias="kms.store.allow-ephemeral", description="let provider `aws` keep its keys on a volume that dies"
    )

    @model_validator(mode="after")
    def _dynamodb_needs_a_table(self) -> "Settings":
        if self.store == "dynamodb" and self.store_table is None:
            raise ValueError("kms.store.table is missing: name the DynamoDB table that keystore init made")
        if self.store != "sqlite" and self.provider == "local":
            raise ValueError(
                f"kms.store is {self.store}, and betrace.kms.provider is local: other pods could not unwrap"
            )
        if self.store != "postgresql" and (self.store_dsn or self.store_password_file):
            raise ValueError(
                "kms.store.dsn or kms.store.password-file is set, and kms.store is not postgresql: leave one of them"
                " out"
            )
        if self.store == "dynamodb" and self.encryption_mode == "branch-key" and self.branch_keys_table is None:
            raise ValueError("kms.branch-keys.table is missing: name the DynamoDB table that keystore init made")
        if self.store != "dynamodb" and self.branch_keys_table is not None:
            raise ValueError("kms.branch-keys.table is set, and kms.store is not dynamodb: leave one of them out")
        return self

    @model_validator(mode="after")
    def _providers_are_whole(self) -> "Settings":
        if self.uses("azure") and (problem := self.azure_problem()):
            raise ValueError(problem)
        if self.uses("vault") and (problem := self.vault_problem()):
            raise ValueError(problem)
        if self.uses("pkcs11") and (problem := self.pkcs11_problem()):
            raise ValueError(problem)
        if self.uses("gcp") and (problem := self.gcp_problem()):
            raise ValueError(problem)
        return self

    @property
    def logical_name(self) -> str:
        """Logical name of the branch key store."""
        return self.branch_keys_logical_name or self.branch_keys_table or "betrace-kms"

    @property
    def makes_branch_keys(self) -> bool:
        """Return whether KMS is asked for branch keys: to seal under, or for MACs on a table that was named."""
        return self.encryption_mode == "branch-key" or self.branch_keys_table is not None or self.store == "postgresql"

    @property
    def max_stale(self) -> float:
        """Seconds for which a tenant's shredding may be overlooked; always less than the wait before keys go."""
        return float(self.max_stale_seconds or min(self.encryption_key_ttl_minutes * 60, 86_400))

    @property
    def dynamodb_region(self) -> str:
        """Region of the DynamoDB client."""
        return self.store_region or self.kms_region
