"""What may be set, and what each value must be: the names are those of BeTrace's application.properties."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from betrace_kms_server.aws.arns import are_replicas, region_of
from betrace_kms_server.core.schedule import Schedule
from betrace_kms_server.host.sockets import Address, parse_addresses, parse_host_port

_KEY_ARN = re.compile(r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):[0-9]{12}:key/[A-Za-z0-9-]+")
_REGION = r"^[a-z]{2,8}(-[a-z]+)+-[0-9]{1,2}$"
"""us-east-1, us-gov-west-1, us-isob-east-1, eusc-de-east-1: partitions name their Regions as they like."""
_ENDPOINT = re.compile(
    r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?(?:/[^@\s]*)?", re.ASCII
)
_MAX_PORT = 65_535
_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,18})", re.ASCII)


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _whole_number(value: Any) -> Any:
    """Accept decimal digits only: int() also takes 1_000, digits of other scripts and, for pydantic, 5.0."""
    if not isinstance(value, str):
        return value
    if _WHOLE_NUMBER.fullmatch(value) is None:
        raise ValueError("Input should be a whole number in decimal digits, such as 60")
    return int(value)


def _switch(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.lower() not in ("true", "false"):
        raise ValueError("Input should be true or false")
    return value.lower() == "true"


def _endpoint(value: Any) -> Any:
    """Check an endpoint. The error must not show it, because it may hold a password."""
    found = _ENDPOINT.fullmatch(value) if isinstance(value, str) else None
    if found is None or not 1 <= int(found["port"] or 1) <= _MAX_PORT:
        raise ValueError("is no endpoint: write http://HOST:PORT or https://HOST, without a user")
    return value


def _endpoints(value: Any) -> Any:
    return [_endpoint(part) for part in _split(value)] if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_split)]
Addresses = Annotated[tuple[Address, ...], BeforeValidator(parse_addresses)]
OpsAddress = Annotated[Address, BeforeValidator(parse_host_port)]
WholeNumber = Annotated[int, BeforeValidator(_whole_number)]
Switch = Annotated[bool, BeforeValidator(_switch)]
Endpoint = Annotated[str, BeforeValidator(_endpoint)]
Endpoints = Annotated[tuple[str, ...], BeforeValidator(_endpoints)]


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

    listen: Addresses = Field(
        parse_addresses("127.0.0.1:50051"),
        alias="kms.server.listen",
        description="loopback `127.0.0.1:port`, `[::1]:port` and `unix:/path`, separated by commas",
    )
    max_message_bytes: WholeNumber = Field(
        4 * 1024 * 1024,
        alias="kms.server.max-message-bytes",
        ge=1024,
        le=1024**3,
        description="largest payload",
    )
    reflection: Switch = Field(True, alias="kms.server.reflection", description="gRPC reflection, for grpcurl")
    drain_seconds: WholeNumber = Field(
        10,
        alias="kms.server.drain-seconds",
        ge=1,
        le=3_600,
        description="grace for calls in flight when the daemon stops",
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
        description="Region of the DynamoDB table; the KMS key's by default",
    )
    store_endpoint: Endpoint | None = Field(
        None, alias="kms.store.endpoint", description="DynamoDB endpoint override, for emulators"
    )
    store_allow_ephemeral: Switch = Field(
        False, alias="kms.store.allow-ephemeral", description="let provider `aws` keep its keys on a volume that dies"
    )
    health_check_seconds: WholeNumber = Field(
        30,
        alias="kms.health.check-seconds",
        ge=1,
        le=3_600,
        description="how often the master key is checked",
    )
    ops_listen: OpsAddress = Field(
        parse_host_port("127.0.0.1:9464"),
        alias="kms.ops.listen",
        description="`host:port` of health, metrics and status over HTTP; `[::]` is every IPv6 address",
    )
    audit_file: str | None = Field(None, alias="kms.audit.file", description="audit trail, `-` for stdout")
    audit_required: Switch = Field(
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
