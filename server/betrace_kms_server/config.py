"""Settings: one frozen object, and where each value came from.

The names are those of BeTrace's application.properties, so that an operator's file works as it is. Sources, strongest
first: command line, environment, mounted folders (one file for each name, as Kubernetes mounts a ConfigMap or a
Secret), a properties file, defaults. An empty value counts as unset.

Names under `kms.`, `betrace.kms.` and `aws.kms.` that we do not know are refused, because a typo must not fall back to
a default; not so in the environment, where Kubernetes puts names such as KMS_SERVICE_HOST.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import javaproperties
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from betrace_kms_server.errors import StartRefused
from betrace_kms_server.listen import Address, parse_addresses, parse_host_port

_OURS = ("kms.", "betrace.kms.", "aws.kms.")
_KEY_ARN = re.compile(r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):\d{12}:key/[A-Za-z0-9-]+")


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


_WORDS = {"string_pattern_mismatch": "is not of the form that it must have: see docs/configuration.md"}
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
        pattern=r"^[a-z]{2}(-[a-z]+)+-\d+$",
        description="region of the KMS key; its ARN's by default",
    )
    endpoint: str | None = Field(
        None,
        alias="aws.kms.endpoint",
        pattern=r"^https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?(/[^@\s]*)?$",
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
    replica_key_ids: Words = Field((), alias="aws.kms.replica-key-ids", description="replicas in other regions")

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
        60, alias="kms.cache.version-check-seconds", description="how soon other pods see a revocation"
    )

    rotation_enabled: bool = Field(True, alias="kms.rotation.enabled", description="rotate signing keys by themselves")
    rotation_check_cron: str = Field(
        "0 0 2 * * ?", alias="kms.rotation.check-cron", description="when, Quartz form, UTC"
    )
    rotation_max_age_days: Positive = Field(90, alias="kms.rotation.max-age-days", description="age of a key to rotate")
    rotation_batch_size: Positive = Field(100, alias="kms.rotation.batch-size", description="keys to rotate at once")

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
    store: Literal["sqlite"] = Field("sqlite", alias="kms.store", description="where wrapped signing keys live")
    store_table: str | None = Field(None, alias="kms.store.table", description="DynamoDB table")
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
        return self

    @property
    def kms_region(self) -> str:
        """Region of the KMS client."""
        arn = _KEY_ARN.fullmatch(self.master_key_id or "")
        return self.region or (arn["region"] if arn else "")


LATER = frozenset(
    {
        "aws.kms.replica-key-ids",
        "kms.cache.version-check-seconds",
        "kms.rotation.enabled",
        "kms.rotation.check-cron",
        "kms.rotation.max-age-days",
        "kms.rotation.batch-size",
        "kms.store.table",
    }
)
"""Names that are reserved and checked, but change nothing in this version."""

NAMES: Mapping[str, str] = {field.alias or name: name for name, field in Settings.model_fields.items()}
"""Public name -> attribute."""


@dataclass(frozen=True, slots=True)
class Source:
    """Values of one place, under their public names."""

    name: str
    values: Mapping[str, str]


def environment_name(name: str) -> str:
    """Return the environment variable of a setting, by MicroProfile Config's rule."""
    return re.sub(r"[^A-Za-z0-9]", "_", name).upper()


def from_environment(environ: Mapping[str, str]) -> Source:
    """Return the settings in the environment; other variables are nobody's business."""
    return Source("environment", {name: environ[key] for name in NAMES if (key := environment_name(name)) in environ})


def from_command_line(pairs: Mapping[str, str]) -> Source:
    """Return the settings given on the command line. Raises StartRefused for an unknown name."""
    return Source("command line", _known(pairs, "command line", strict=True))


def from_folder(folder: Path) -> Source:
    """Return the settings of a mounted folder. Raises StartRefused for an unknown name of ours."""
    try:
        files = [path for path in sorted(folder.iterdir()) if not path.name.startswith("..") and path.is_file()]
        values = {path.name: path.read_text("utf-8").strip() for path in files}
    except (OSError, UnicodeDecodeError) as cause:
        raise StartRefused(f"configuration folder {folder} cannot be read: {cause}") from cause
    return Source(str(folder), _known(values, str(folder)))


def from_properties(file: Path) -> Source:
    """Return the settings of a Java properties file. Raises StartRefused for an unknown name of ours."""
    try:
        with file.open("rb") as stream:
            values = javaproperties.load(stream)
    except (OSError, ValueError) as cause:
        raise StartRefused(f"configuration file {file} cannot be read: {cause}") from cause
    return Source(str(file), _known(values, str(file)))


def _known(values: Mapping[str, str], where: str, *, strict: bool = False) -> Mapping[str, str]:
    unknown = sorted(name for name in values if name not in NAMES and (strict or name.startswith(_OURS)))
    if unknown:
        raise StartRefused("\n".join(f"{name} (from {where}): no such setting" for name in unknown))
    return {name: value for name, value in values.items() if name in NAMES}


def resolve(sources: Iterable[Source]) -> tuple[Settings, Mapping[str, str]]:
    """Return the settings, and for each public name where its value came from. `sources` are strongest first.

    Raises StartRefused with one line for each value that is impossible.
    """
    values: dict[str, str] = {}
    origins = dict.fromkeys(NAMES, "default")
    for source in sources:
        for name, value in source.values.items():
            if "\0" in value:
                raise StartRefused(f"{name} (from {source.name}): holds a zero byte")
            if value.strip() and name not in values:
                values[name] = value.strip()
                origins[name] = source.name
    try:
        return Settings.model_validate(values), origins
    except ValidationError as cause:
        lines = []
        for problem in cause.errors(include_url=False, include_input=False):
            message = _WORDS.get(problem["type"], problem["msg"]).removeprefix("Value error, ")
            name = str(problem["loc"][0]) if problem["loc"] else ""
            lines.append(f"{name} (from {origins[name]}): {message}" if name else message)
        raise StartRefused("\n".join(lines)) from None


def described(settings: Settings, origins: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return (public name, value, origin) of every setting, sorted. No setting holds a secret: endpoints refuse one."""
    rows = []
    for name, attribute in sorted(NAMES.items()):
        value = getattr(settings, attribute)
        if isinstance(value, tuple):
            value = ",".join(map(str, value))
        elif isinstance(value, bool):
            value = str(value).lower()
        rows.append((name, "" if value is None else str(value), origins[name]))
    return rows
