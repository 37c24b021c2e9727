"""Settings of keys: how long and how often they serve, and when they are replaced."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from betrace_kms_server.config.values import Switch, WholeNumber
from betrace_kms_server.core.schedule import Schedule
from betrace_kms_server.core.tenancy import DataKeyType


class KeySettings(BaseModel):
    """`kms.cache.*`, `kms.shred.*`, `kms.encryption.*`, `kms.branch-keys.*`, `kms.rotation.*` and `kms.signing.*`."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    private_key_ttl_minutes: WholeNumber = Field(
        60,
        alias="kms.cache.private-key-ttl-minutes",
        ge=1,
        le=43_200,
        description="how long a signing key stays in memory",
    )
    public_key_ttl_hours: WholeNumber = Field(
        24,
        alias="kms.cache.public-key-ttl-hours",
        ge=1,
        le=8_760,
        description="how long a public key stays in memory",
    )
    encryption_key_ttl_minutes: WholeNumber = Field(
        60,
        alias="kms.cache.encryption-key-ttl-minutes",
        ge=1,
        le=43_200,
        description="how long a data key stays in memory",
    )
    cache_max_size: WholeNumber = Field(
        1000,
        alias="kms.cache.max-size",
        ge=1,
        le=1_000_000,
        description="entries, for each of the three kinds of key",
    )
    encryption_key_max_messages: WholeNumber = Field(
        2**32,
        alias="kms.cache.encryption-key-max-messages",
        ge=1,
        le=2**32,
        description="messages that one data key seals",
    )
    data_key_max_uses: WholeNumber | None = Field(
        None,
        alias="kms.cache.data-key-max-uses",
        ge=1,
        le=2**32,
        description="times that one data key is handed out",
    )
    version_check_seconds: WholeNumber = Field(
        60,
        alias="kms.cache.version-check-seconds",
        ge=1,
        le=3_600,
        description="how soon other pods see a rotation or a revocation",
    )
    max_stale_seconds: WholeNumber | None = Field(
        None,
        alias="kms.cache.max-stale-seconds",
        ge=1,
        le=86_400,
        description="how long a tenant is encrypted for while the key store cannot be read;"
        " as long as a data key stays in memory by default, at most a day",
    )
    shred_wait_days: WholeNumber = Field(
        7,
        alias="kms.shred.wait-days",
        ge=1,
        le=365,
        description="how long the shredding of a tenant can be cancelled",
    )

    encryption_mode: Literal["data-key", "branch-key"] = Field(
        "data-key",
        alias="kms.encryption.mode",
        description="what seals messages: a KMS data key for each context, or a branch key for all of a tenant",
    )
    branch_keys_table: str | None = Field(
        None,
        alias="kms.branch-keys.table",
        pattern=r"^[A-Za-z0-9_.-]{3,255}$",
        description="DynamoDB table of branch keys, with `kms.store=dynamodb`: 3 to 255 of `A-Za-z0-9_.-`",
    )
    branch_keys_logical_name: str | None = Field(
        None,
        alias="kms.branch-keys.logical-name",
        pattern=r"^[A-Za-z0-9_.-]{3,255}$",
        description="logical name of the branch key store, never to be changed; the table's name by default",
    )
    branch_keys_cache_size: WholeNumber = Field(
        10_000,
        alias="kms.branch-keys.cache-size",
        ge=1,
        le=1_000_000,
        description="branch keys in memory, one for each tenant and version in use",
    )
    sealing_key_type: DataKeyType | None = Field(
        None,
        alias="kms.encryption.sealing-key-type",
        description="keyType of new messages, `encryption` or `sealing`; `sealing` by default in a new key store",
    )

    rotation_enabled: Switch = Field(
        True, alias="kms.rotation.enabled", description="rotate signing keys automatically"
    )
    rotation_check_cron: Annotated[Schedule, BeforeValidator(Schedule.parse)] = Field(
        Schedule.parse("0 0 2 * * ?"), alias="kms.rotation.check-cron", description="when, in Quartz's form and in UTC"
    )
    rotation_max_age_days: WholeNumber = Field(
        90,
        alias="kms.rotation.max-age-days",
        ge=1,
        le=3_650,
        description="age of a key to rotate",
    )
    rotation_batch_size: WholeNumber = Field(
        100,
        alias="kms.rotation.batch-size",
        ge=1,
        le=10_000,
        description="keys to rotate before the next ones are read",
    )

    auto_create: Switch = Field(
        True, alias="kms.signing.auto-create", description="make a tenant's signing key when it first signs"
    )
