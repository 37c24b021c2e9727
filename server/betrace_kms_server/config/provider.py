"""Settings of the key provider: who wraps keys, and which master keys there are."""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from betrace_kms_server.aws.arns import are_replicas, region_of
from betrace_kms_server.config.values import REGION, Endpoint, Endpoints, WholeNumber, Words

_KEY_ARN = re.compile(r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):[0-9]{12}:key/[A-Za-z0-9-]+")


ProviderName = Literal["local", "aws", "azure", "gcp", "vault", "pkcs11"]


def _providers(value: Any) -> Any:
    for name in value:
        if name not in get_args(ProviderName):
            raise ValueError(f"{name!r} is no provider: name some of {', '.join(get_args(ProviderName))}")
    if len(set(value)) < len(value):
        raise ValueError("names a provider twice")
    return value


class ProviderSettings(BaseModel):
    """`betrace.kms.provider`, `kms.former-providers` and `aws.kms.*`."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    provider: ProviderName = Field(
        "local",
        alias="betrace.kms.provider",
        description="who wraps keys: `aws`, `azure`, `gcp`, `vault`, `pkcs11`, or `local` (not for production)",
    )
    former_providers: Annotated[Words, AfterValidator(_providers)] = Field(
        (),
        alias="kms.former-providers",
        description="providers that a deployment leaves: they still unwrap what they wrapped, and wrap nothing",
    )
    master_key_id: str | None = Field(
        None, alias="aws.kms.master-key-id", description="full ARN of the KMS key (a bare id only with an endpoint)"
    )
    region: str | None = Field(
        None,
        alias="aws.kms.region",
        pattern=REGION,
        description="Region of the KMS key; its ARN's by default",
    )
    endpoint: Endpoint | None = Field(
        None,
        alias="aws.kms.endpoint",
        description="KMS endpoint override, for emulators",
    )
    call_timeout_ms: WholeNumber = Field(
        5000,
        alias="aws.kms.call-timeout-ms",
        ge=1,
        le=600_000,
        description="bound on one KMS call, its retries included",
    )
    decrypt_key_ids: Words = Field(
        (), alias="aws.kms.decrypt-key-ids", description="former master keys, for Decrypt only"
    )
    max_encrypted_data_keys: WholeNumber = Field(
        10,
        alias="kms.decrypt.max-encrypted-data-keys",
        ge=1,
        le=1_000,
        description="wrapped keys that a message may carry",
    )
    replica_key_ids: Words = Field(
        (),
        alias="aws.kms.replica-key-ids",
        description="full ARNs of the master key's replicas, to fail over to; the nearest Region first",
    )
    replica_endpoints: Endpoints = Field(
        (), alias="aws.kms.replica-endpoints", description="endpoint overrides of the replicas, for emulators"
    )

    budget_per_second: WholeNumber = Field(
        0,
        alias="kms.budget.per-second",
        ge=0,
        le=100_000,
        description="KMS calls a second of all tenants; 0 is no limit",
    )
    budget_tenant_burst: WholeNumber = Field(
        200,
        alias="kms.budget.tenant-burst",
        ge=1,
        le=100_000,
        description="KMS calls that a tenant may make at once",
    )
    budget_tenant_per_second: WholeNumber = Field(
        50,
        alias="kms.budget.tenant-per-second",
        ge=0,
        le=100_000,
        description="KMS calls a second of one tenant; 0 is no limit",
    )

    @model_validator(mode="after")
    def _aws_needs_a_key(self) -> "ProviderSettings":
        if self.provider in self.former_providers:
            raise ValueError(
                f"kms.former-providers names {self.provider}, which is betrace.kms.provider: leave it out; former"
                " master keys of provider aws go into aws.kms.decrypt-key-ids"
            )
        if not self.uses("aws"):
            return self
        if self.master_key_id is None:
            raise ValueError("aws.kms.master-key-id is missing: give the full ARN of the KMS key")
        arn = _KEY_ARN.fullmatch(self.master_key_id)
        if arn is None and self.endpoint is None:
            raise ValueError(
                "aws.kms.master-key-id must be a full key ARN (arn:aws:kms:REGION:ACCOUNT:key/ID); an alias or a bare"
                " id works only with aws.kms.endpoint"
            )
        if arn is None and self.region is None:
            raise ValueError("aws.kms.region is missing: give the region of the KMS key")
        if arn is not None and self.region not in (None, arn["region"]):
            raise ValueError(
                f"aws.kms.region is {self.region}, aws.kms.master-key-id is a key of {arn['region']}: make them equal"
            )
        for former in self.decrypt_key_ids:
            of = _KEY_ARN.fullmatch(former)
            if of is None or of["region"] != self.kms_region:
                raise ValueError(
                    f"aws.kms.decrypt-key-ids: {former!r} must be a full key ARN of region {self.kms_region}, as"
                    " aws.kms.master-key-id is"
                )
        for replica in self.replica_key_ids:
            if not are_replicas(replica, self.master_key_id or "") or region_of(replica) == self.kms_region:
                raise ValueError(
                    f"aws.kms.replica-key-ids: {replica!r} must be the full ARN of a replica of aws.kms.master-key-id:"
                    " the same account and mrk- key id in another region"
                )
        if len(self.replica_endpoints) != (len(self.replica_key_ids) if self.endpoint else 0):
            raise ValueError(
                "aws.kms.replica-endpoints must name one endpoint for each of aws.kms.replica-key-ids if"
                " aws.kms.endpoint is set, and none otherwise"
            )
        return self

    def uses(self, provider: str) -> bool:
        """Return whether a provider wraps keys, or unwraps what it wrapped in former times."""
        return provider == self.provider or provider in self.former_providers

    @property
    def kms_region(self) -> str:
        """Region of the KMS client."""
        arn = _KEY_ARN.fullmatch(self.master_key_id or "")
        return self.region or (arn["region"] if arn else "")
