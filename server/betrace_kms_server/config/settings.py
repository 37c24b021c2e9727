"""What may be set, and what each value must be: the names are those of BeTrace's application.properties."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from betrace_kms_server.aws.arns import are_replicas, region_of
from betrace_kms_server.core.schedule import Schedule
from betrace_kms_server.host.sockets import Address, parse_addresses, parse_host_port

_KEY_ARN = re.compile(r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):\d{12}:key/[A-Za-z0-9-]+")
_REGION = r"^[a-z]{2}(-[a-z]+)+-\d+$"
_ENDPOINT = r"^https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?(/[^@\s]*)?$"


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_split)]
Addresses = Annotated[tuple[Address, ...], BeforeValidator(parse_addresses)]
OpsAddress = Annotated[Address, BeforeValidator(parse_host_port)]
Positive = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Every setting under its public name; `model_fields` has the descriptions that docs/configuration.md shows."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    provider: Literal["local", "aws"] = Field(
        "local", alias="betrace.kms.provider", description="who wraps keys: `aws`, or `local` (not for production)"
    )
    master_key_id: str | None = Field(
        None, alias="aws.kms.master-key-id", description="full ARN of the KMS key (a bare id only with an endpoint)"
    )
    region: str | None = Field(
        None,
        alias="aws.kms.region",
        pattern=_REGION,
        description="region of the KMS key; its ARN's by default",
    )
    endpoint: str | None = Field(
        None,
        alias="aws.kms.endpoint",
        pattern=_ENDPOINT,
        description="KMS endpoint override, for emulators",
    )
    call_timeout_ms: Positive = Field(
        5000, alias="aws.kms.call-timeout-ms", description="bound on one KMS call, its retries included"
    )
    decrypt_key_ids: Words = Field(
        (), alias="aws.kms.decrypt-key-ids", description="former master keys, for Decrypt only"
    )
    max_encrypted_data_keys: Positive = Field(
        10, alias="kms.decrypt.max-encrypted-data-keys", description="wrapped keys that a message may carry"
    )
    replica_key_ids: Words = Field(
        (),
        alias="aws.kms.replica-key-ids",
        description="full ARNs of the master key's replicas, to fail over to; the nearest region first",
    )
    replica_endpoints: Words = Field(
        (), alias="aws.kms.replica-endpoints", description="endpoint overrides of the replicas, for emulators"
    )

    private_key_ttl_minutes: Positive = Field(
        60, alias="kms.cache.private-key-ttl-minutes", description="how long a signing key stays in memory"
    )
    public_key_ttl_hours: Positive = Field(
        24, alias="kms.cache.public-key-ttl-hours", description="how long a public key stays in memory"
    )
    encryption_key_ttl_minutes: Positive = Field(
        60, alias="kms.cache.encryption-key-ttl-minutes", description="how long a data key stays in memory"
    )
    cache_max_size: Positive = Field(
        1000, alias="kms.cache.max-size", description="entries, for each of the three kinds of key"
    )
    encryption_key_max_messages: Positive = Field(
        2**32, alias="kms.cache.encryption-key-max-messages", description="messages that one data key seals"
    )
    data_key_max_uses: Positive | None = Field(
        None, alias="kms.cache.data-key-max-uses", description="times that one data key is handed out"
    )
    version_check_seconds: Positive = Field(
        60, alias="kms.cache.version-check-seconds", description="how soon other pods see a rotation or a revocation"
    )

    rotation_enabled: bool = Field(True, alias="kms.rotation.enabled", description="rotate signing keys by themselves")
    rotation_check_cron: Annotated[Schedule, BeforeValidator(Schedule.parse)] = Field(
        Schedule.parse("0 0 2 * * ?"), alias="kms.rotation.check-cron", description="when, in Quartz's form and in UTC"
    )
    rotation_max_age_days: Positive = Field(90, alias="kms.rotation.max-age-days", description="age of a key to rotate")
    rotation_batch_size: Positive = Field(
        100, alias="kms.rotation.batch-size", description="keys to rotate before a look at the next ones"
    )

    auto_create: bool = Field(
        True, alias="kms.signing.auto-create", description="make a tenant's signing key when it first signs"
    )

    listen: Addresses = Field(
        parse_addresses("127.0.0.1:50051"),
        alias="kms.server.listen",
        description="loopback `host:port` and `unix:/path`, separated by commas",
    )
    max_message_bytes: int = Field(
        4 * 1024 * 1024, alias="kms.server.max-message-bytes", ge=1024, le=1024**3, description="largest payload"
    )
    reflection: bool = Field(True, alias="kms.server.reflection", description="gRPC reflection, for grpcurl")
    drain_seconds: Positive = Field(
        10, alias="kms.server.drain-seconds", description="grace for calls in flight when the daemon stops"
    )
    data_dir: Path = Field(Path("data"), alias="kms.data-dir", description="key store and local master key")
    store: Literal["sqlite", "dynamodb"] = Field(
        "sqlite",
        alias="kms.store",
        description="where wrapped signing keys live: `sqlite`, or `dynamodb` for several pods",
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
        pattern=_REGION,
        description="region of the DynamoDB table; the KMS key's by default",
    )
    store_endpoint: str | None = Field(
        None, alias="kms.store.endpoint", pattern=_ENDPOINT, description="DynamoDB endpoint override, for emulators"
    )
    store_allow_ephemeral: bool = Field(
        False, alias="kms.store.allow-ephemeral", description="let provider `aws` keep its keys on a volume that dies"
    )
    health_check_seconds: Positive = Field(
        30, alias="kms.health.check-seconds", description="how often the master key is looked at"
    )
    ops_listen: OpsAddress = Field(
        parse_host_port("127.0.0.1:9464"),
        alias="kms.ops.listen",
        description="`host:port` of health, metrics and status over HTTP; port 0 takes a free one",
    )
    audit_file: str | None = Field(None, alias="kms.audit.file", description="audit trail, `-` for stdout")
    audit_required: bool = Field(
        False, alias="kms.audit.required", description="refuse calls while the audit trail cannot be written"
    )
    log_format: Literal["console", "json"] = Field("console", alias="kms.log.format", description="form of the log")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", alias="kms.log.level", description="least level that is logged"
    )

    @model_validator(mode="after")
    def _required_audit_needs_a_file(self) -> "Settings":
        if self.audit_required and self.audit_file is None:
            raise ValueError("kms.audit.file is missing, and kms.audit.required is set: give a path, or - for stdout")
        return self

    @model_validator(mode="after")
    def _aws_needs_a_key(self) -> "Settings":
        if self.provider != "aws":
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

    @model_validator(mode="after")
    def _dynamodb_needs_a_table(self) -> "Settings":
        if self.store == "dynamodb" and self.store_table is None:
            raise ValueError("kms.store.table is missing: name the DynamoDB table that keystore init made")
        if self.store == "dynamodb" and self.provider != "aws":
            raise ValueError("kms.store is dynamodb, and betrace.kms.provider is not aws: other pods could not unwrap")
        return self

    @property
    def dynamodb_region(self) -> str:
        """Region of the DynamoDB client."""
        return self.store_region or self.kms_region

    @property
    def kms_region(self) -> str:
        """Region of the KMS client."""
        arn = _KEY_ARN.fullmatch(self.master_key_id or "")
        return self.region or (arn["region"] if arn else "")
